//! JSON as Python reads and writes it: keys keep their order, and `tojson` takes `json.dumps`' arguments.

use std::fmt;

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Error, Value};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::python::{Dict, List, arguments, float_repr, wrong};

/// A value of a JSON text, for templates.
pub(super) struct Json(pub(super) Value);

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(JsonVisitor).map(Self)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::from(()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Json(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::from_object(List(items)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut dict = Dict::default();
        while let Some((key, Json(value))) = map.next_entry::<String, _>()? {
            dict.insert(key.into(), value);
        }
        Ok(Value::from_object(dict))
    }
}

/// The filter `tojson` as transformers defines it.
pub(super) fn tojson(value: &Value, rest: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ensure_ascii, indent, separators, sort_keys] =
        arguments("tojson", &rest.into_values(), names)?;
    let is_true = |v: &Option<Value>| v.as_ref().is_some_and(Value::is_true);
    let indent = match indent.filter(|v| !v.is_none()) {
        None => None,
        Some(text) if text.kind() == ValueKind::String => Some(text.to_string()),
        Some(number) => Some(" ".repeat(spaces(&number)?)),
    };
    let (mut item, mut key) = (
        if indent.is_some() { "," } else { ", " }.into(),
        ": ".into(),
    );
    if let Some(pair) = separators.filter(|v| !v.is_none()) {
        let pair: Vec<Value> = pair.try_iter()?.collect();
        let [first, second] = &pair[..] else {
            return Err(wrong("tojson needs two separators"));
        };
        (item, key) = (first.to_string(), second.to_string());
    }
    let mut writer = Writer {
        out: String::new(),
        ensure_ascii: is_true(&ensure_ascii),
        sort_keys: is_true(&sort_keys),
        indent,
        item,
        key,
    };
    writer.value(value, 0)?;
    Ok(writer.out)
}

/// A width that a template asks for; below zero counts as zero.
fn spaces(number: &Value) -> Result<usize, Error> {
    let count = match number.kind() {
        ValueKind::Bool => Some(i64::from(number.is_true())),
        _ => number.as_i64(),
    };
    match count {
        Some(count) if count <= 1000 => Ok(count.max(0) as usize),
        _ => Err(wrong("tojson cannot indent by this much")),
    }
}

struct Writer {
    out: String,
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    item: String,
    key: String,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool | ValueKind::Number => self.out.push_str(&scalar(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container("[]", &items, depth, |w, item| w.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let entries = self.entries(value)?;
                self.container("{}", &entries, depth, |w, (key, value)| {
                    w.string(key);
                    w.out.push_str(&w.key.clone());
                    w.value(value, depth + 1)
                })?;
            }
            kind => return Err(wrong(&format!("{kind} cannot be written as JSON"))),
        }
        Ok(())
    }

    /// The entries of a map, their keys as strings.
    fn entries(&self, map: &Value) -> Result<Vec<(String, Value)>, Error> {
        let mut keys: Vec<Value> = map.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        let entry = |key: Value| {
            let text = match key.kind() {
                ValueKind::String => key.to_string(),
                ValueKind::None => "null".into(),
                ValueKind::Bool | ValueKind::Number => scalar(&key),
                kind => return Err(wrong(&format!("a JSON key cannot be a {kind}"))),
            };
            Ok((text, map.get_item(&key)?))
        };
        keys.into_iter().map(entry).collect()
    }

    fn container<T>(
        &mut self,
        brackets: &str,
        items: &[T],
        depth: usize,
        write: impl Fn(&mut Self, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (open, close) = brackets.split_at(1);
        self.out.push_str(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.item.clone());
            }
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.new_line(depth);
        }
        self.out.push_str(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A number or truth value in JSON.
fn scalar(value: &Value) -> String {
    if value.kind() == ValueKind::Bool {
        value.is_true().to_string()
    } else if value.is_integer() {
        value.to_string()
    } else {
        let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
        match float_repr(number).as_str() {
            "nan" => "NaN".into(),
            "inf" => "Infinity".into(),
            "-inf" => "-Infinity".into(),
            finite => finite.into(),
        }
    }
}
