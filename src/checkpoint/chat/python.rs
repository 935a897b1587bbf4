//! Python's lists, dicts and `repr` for templates.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::Arc;

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

pub(super) fn wrong(reason: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.to_owned())
}

/// The arguments of a call of `function` in the order of its parameters' `names`, given by position or by name.
pub(super) fn arguments<const N: usize>(
    function: &str,
    values: &[Value],
    names: [&str; N],
) -> Result<[Option<Value>; N], Error> {
    let (by_position, by_name): (&[Value], Kwargs) = from_args(values)?;
    if by_position.len() > N {
        return Err(wrong(&format!("{function} takes {N} arguments at most")));
    }
    let mut arguments = [const { None }; N];
    for (slot, value) in arguments.iter_mut().zip(by_position) {
        *slot = Some(value.clone());
    }
    for name in by_name.args() {
        let slot = names.iter().position(|n| *n == name);
        let slot = slot.filter(|i| arguments[*i].is_none());
        let slot = slot.ok_or_else(|| wrong(&format!("{function} does not take {name}")))?;
        arguments[slot] = Some(by_name.peek(name)?);
    }
    Ok(arguments)
}

/// A list.
#[derive(Debug)]
pub(super) struct List(pub(super) Vec<Value>);

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_joined(f, "[]", &self.0, write_repr)
    }
}

/// A dict with text keys, in the order in which they were inserted.
#[derive(Clone, Debug, Default)]
pub(super) struct Dict {
    entries: Vec<(Arc<str>, Value)>,
    places: HashMap<Arc<str>, usize>,
}

impl Dict {
    /// Sets an entry; one that is there keeps its place.
    pub(super) fn insert(&mut self, key: Arc<str>, value: Value) {
        match self.places.get(&key) {
            Some(place) => self.entries[*place].1 = value,
            None => {
                self.places.insert(key.clone(), self.entries.len());
                self.entries.push((key, value));
            }
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.places.get(key).map(|place| &self.entries[*place].1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Value)> {
        self.entries.iter().map(|(key, value)| (key, value))
    }
}

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get(key.as_str()?).cloned()
    }

    /// `dict.name`, which in Jinja2 is the method of this name before it is the entry.
    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        match key {
            "copy" | "get" | "items" | "keys" | "values" => Some(Value::from_object(Method {
                of: Value::from_dyn_object(self.clone()),
                name: key.to_owned(),
            })),
            // What would change the dict is hidden by the sandbox.
            "clear" | "pop" | "popitem" | "setdefault" | "update" => None,
            key => self.get(key).cloned(),
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let keys = self.entries.iter().map(|(key, _)| Value::from(key.clone()));
        Enumerator::Values(keys.collect())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_joined(f, "{}", &self.entries, |f, (key, value)| {
            write_str_repr(f, key)?;
            f.write_str(": ")?;
            write_repr(f, value)
        })
    }
}

/// A method that is named and not called.
#[derive(Debug)]
struct Method {
    of: Value,
    name: String,
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        self.of.call_method(state, &self.name, args)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<built-in method {} of dict object>", self.name)
    }
}

fn write_joined<T>(
    f: &mut fmt::Formatter<'_>,
    brackets: &str,
    items: &[T],
    write: impl Fn(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    let (open, close) = brackets.split_at(1);
    f.write_str(open)?;
    for (i, item) in items.iter().enumerate() {
        f.write_str(if i > 0 { ", " } else { "" })?;
        write(f, item)?;
    }
    f.write_str(close)
}

fn write_repr(f: &mut fmt::Formatter<'_>, value: &Value) -> fmt::Result {
    match (value.kind(), value.as_str()) {
        (ValueKind::String, Some(text)) => write_str_repr(f, text),
        _ => f.write_str(&text(value)),
    }
}

/// Python's `str` of a value.
pub(super) fn text(value: &Value) -> String {
    if value.is_number() && !value.is_integer() {
        f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float_repr)
    } else {
        value.to_string()
    }
}

/// The shortest digits that mean `x`, with an exponent from 1e16 and below 1e-4.
pub(super) fn float_repr(x: f64) -> String {
    if !x.is_finite() {
        return x.to_string().to_lowercase();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x == 0.0 || (-4..16).contains(&exponent) {
        format!("{x:?}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    }
}

fn write_str_repr(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    f.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            c if c == quote => write!(f, "\\{c}")?,
            c if is_printable(c) => f.write_char(c)?,
            c if c <= '\u{ff}' => write!(f, "\\x{:02x}", c as u32)?,
            c if c <= '\u{ffff}' => write!(f, "\\u{:04x}", c as u32)?,
            c => write!(f, "\\U{:08x}", c as u32)?,
        }
    }
    f.write_char(quote)
}

/// Python's `isprintable` for assigned characters: everything but controls, formats, private use and spaces other
/// than U+0020. Which characters are assigned depends on the version of Python; they all count as printable here.
fn is_printable(c: char) -> bool {
    !(c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(c, '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}' | '\u{891}'
            | '\u{8e2}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}'
            | '\u{2066}'..='\u{206f}' | '\u{e000}'..='\u{f8ff}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}' | '\u{f0000}'..='\u{ffffd}'
            | '\u{100000}'..='\u{10fffd}'))
}
