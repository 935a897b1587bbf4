//! Methods of Python's `str`, `list` and `dict` that templates call.

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::python::{View, arguments, wrong};

/// A call of a method of a value: those below, and else minijinja's own set of Python's methods.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let done = match (value.kind(), value.as_str()) {
        (ValueKind::String, Some(text)) => string(text, method, args)?,
        (ValueKind::Seq | ValueKind::Iterable, _) => list(value, method, args)?,
        (ValueKind::Map, _) => dict(value, method, args)?,
        _ => None,
    };
    match done {
        Some(result) => Ok(result),
        None => unknown_method_callback(state, value, method, args),
    }
}

fn string(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let none = || arguments::<0>(method, args, []);
    Ok(Some(match method {
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = arguments(method, args, ["chars"])?;
            strip(text, optional_text(chars.as_ref())?, method).into()
        }
        "split" | "rsplit" => {
            let [sep, maxsplit] = arguments(method, args, ["sep", "maxsplit"])?;
            let sep = optional_text(sep.as_ref())?;
            let limit = maxsplit.map_or(Ok(-1), i64::try_from)?;
            let limit = usize::try_from(limit).unwrap_or(usize::MAX - 1);
            Value::from(split(text, sep, limit, method == "rsplit")?)
        }
        "splitlines" => {
            let [keepends] = arguments(method, args, ["keepends"])?;
            let keep = keepends.is_some_and(|v| v.is_true());
            let lines = lines(text).map(|(line, end)| Value::from(if keep { end } else { line }));
            lines.collect()
        }
        "partition" | "rpartition" => {
            let [sep] = arguments(method, args, ["sep"])?;
            let sep = some_text(sep.as_ref())?;
            let parts = match method {
                "partition" => text.split_once(sep).map(|(a, b)| [a, sep, b]),
                _ => text.rsplit_once(sep).map(|(a, b)| [a, sep, b]),
            };
            let missing = if method == "partition" {
                [text, "", ""]
            } else {
                ["", "", text]
            };
            Value::from(Tuple::from(parts.unwrap_or(missing).map(Value::from)))
        }
        "removeprefix" | "removesuffix" => {
            let [affix] = arguments(method, args, ["affix"])?;
            let affix = some_text(affix.as_ref())?;
            let rest = match method {
                "removeprefix" => text.strip_prefix(affix),
                _ => text.strip_suffix(affix),
            };
            rest.unwrap_or(text).into()
        }
        "index" | "rindex" => {
            let [what] = arguments(method, args, ["sub"])?;
            let what = some_text(what.as_ref())?;
            let at = if method == "index" {
                text.find(what)
            } else {
                text.rfind(what)
            };
            let at = at.ok_or_else(|| wrong("substring not found"))?;
            text[..at].chars().count().into()
        }
        "center" | "ljust" | "rjust" | "zfill" => {
            let [width, fill] = arguments(method, args, ["width", "fillchar"])?;
            let width = width.ok_or_else(|| wrong("a width is missing"))?;
            let fill = fill.as_ref().map_or(Ok(" "), |v| some_text(Some(v)))?;
            pad(text, width_of(&width)?, fill, method).into()
        }
        "isdecimal" | "isdigit" | "isnumeric" => {
            let [] = none()?;
            if text.contains(|c: char| !c.is_ascii() && c.is_numeric()) {
                return Err(wrong("numbers other than ASCII's are not told apart"));
            }
            (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).into()
        }
        "isspace" => {
            let [] = none()?;
            (!text.is_empty() && text.chars().all(is_space)).into()
        }
        "swapcase" => {
            let [] = none()?;
            let swap = |c: char| -> String {
                if c.is_uppercase() {
                    c.to_lowercase().collect()
                } else {
                    c.to_uppercase().collect()
                }
            };
            text.chars().map(swap).collect::<String>().into()
        }
        "title" => {
            let [] = none()?;
            title(text).into()
        }
        "join" => {
            let [items] = arguments(method, args, ["iterable"])?;
            let items: Vec<Value> = items.unwrap_or_default().try_iter()?.collect();
            if items.iter().any(|v| v.kind() != ValueKind::String) {
                return Err(wrong("join takes strings alone"));
            }
            let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            items.join(text).into()
        }
        _ => return Ok(None),
    }))
}

fn list(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "copy" => {
            let [] = arguments::<0>(method, args, [])?;
            value.clone()
        }
        "index" => {
            let [item] = arguments(method, args, ["value"])?;
            let item = item.unwrap_or_default();
            let at = value.try_iter()?.position(|v| v == item);
            at.ok_or_else(|| wrong("the value is not in the list"))?
                .into()
        }
        "append" | "clear" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort" => {
            return Err(immutable("list", method));
        }
        _ => return Ok(None),
    }))
}

fn dict(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "copy" => {
            let [] = arguments::<0>(method, args, [])?;
            Ok(Some(value.clone()))
        }
        "items" => {
            let entry = |key: Value| {
                Ok(Value::from(Tuple::from([
                    key.clone(),
                    value.get_item(&key)?,
                ])))
            };
            view(
                "items",
                args,
                value.try_iter()?.map(entry).collect::<Result<_, Error>>()?,
            )
        }
        "keys" => view("keys", args, value.try_iter()?.collect()),
        "values" => {
            let values = value.try_iter()?.map(|key| value.get_item(&key));
            view("values", args, values.collect::<Result<_, Error>>()?)
        }
        "clear" | "pop" | "popitem" | "setdefault" | "update" => Err(immutable("dict", method)),
        _ => Ok(None),
    }
}

fn view(method: &'static str, args: &[Value], items: Vec<Value>) -> Result<Option<Value>, Error> {
    let [] = arguments::<0>(method, args, [])?;
    Ok(Some(Value::from_object(View { method, items })))
}

fn immutable(kind: &str, method: &str) -> Error {
    let reason = format!("templates may not change a {kind} ({method})");
    Error::new(ErrorKind::InvalidOperation, reason)
}

fn some_text(value: Option<&Value>) -> Result<&str, Error> {
    let text = value.filter(|v| v.kind() == ValueKind::String);
    text.and_then(Value::as_str)
        .ok_or_else(|| wrong("a string is needed"))
}

fn optional_text(value: Option<&Value>) -> Result<Option<&str>, Error> {
    value
        .filter(|v| !v.is_none())
        .map(|v| some_text(Some(v)))
        .transpose()
}

/// A width that a template asks for, bounded.
pub(super) fn width_of(value: &Value) -> Result<usize, Error> {
    match value.as_i64() {
        Some(width) if width <= 100_000 => Ok(width.max(0) as usize),
        _ => Err(wrong("this is too wide")),
    }
}

/// What Python counts as white space: Unicode's, and four separators of files and records.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `strip`, `lstrip` or `rstrip`.
pub(super) fn strip<'t>(text: &'t str, chars: Option<&str>, method: &str) -> &'t str {
    let is_stripped = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    match method {
        "lstrip" => text.trim_start_matches(is_stripped),
        "rstrip" => text.trim_end_matches(is_stripped),
        _ => text.trim_matches(is_stripped),
    }
}

fn split(text: &str, sep: Option<&str>, limit: usize, from_end: bool) -> Result<Vec<Value>, Error> {
    let mut parts: Vec<&str> = match sep {
        Some("") => return Err(wrong("an empty separator")),
        Some(sep) if from_end => text.rsplitn(limit + 1, sep).collect(),
        Some(sep) => text.splitn(limit + 1, sep).collect(),
        None => words(text, limit, from_end),
    };
    if from_end {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// The words of a text, after `limit` splits all the rest as one; from the end in reverse order.
fn words(text: &str, limit: usize, from_end: bool) -> Vec<&str> {
    let trimmed = |text| strip(text, None, if from_end { "rstrip" } else { "lstrip" });
    let mut words = Vec::new();
    let mut rest = trimmed(text);
    while !rest.is_empty() {
        let cut = if from_end {
            let space = rest.char_indices().rfind(|(_, c)| is_space(*c));
            space.map(|(at, c)| (&rest[at + c.len_utf8()..], &rest[..at]))
        } else {
            rest.find(is_space).map(|at| rest.split_at(at))
        };
        let (word, after) = cut.filter(|_| words.len() < limit).unwrap_or((rest, ""));
        words.push(word);
        rest = trimmed(after);
    }
    words
}

/// The lines of a text as `splitlines` finds them, each without its end and with it.
pub(super) fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    const ENDS: [char; 10] = [
        '\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}',
        '\u{2029}',
    ];
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let at = rest.find(ENDS).unwrap_or(rest.len());
        let end = if rest[at..].starts_with("\r\n") {
            at + 2
        } else {
            at + rest[at..].chars().next().map_or(0, char::len_utf8)
        };
        let (line, after) = rest.split_at(end);
        rest = after;
        Some((&line[..at], line))
    })
}

/// `center`, `ljust`, `rjust` or `zfill`.
pub(super) fn pad(text: &str, width: usize, fill: &str, method: &str) -> String {
    let missing = width.saturating_sub(text.chars().count());
    match method {
        "ljust" => format!("{text}{}", fill.repeat(missing)),
        "rjust" => format!("{}{text}", fill.repeat(missing)),
        "zfill" => {
            let digits = text.trim_start_matches(['+', '-']);
            let sign = if text.len() == digits.len() + 1 {
                &text[..1]
            } else {
                ""
            };
            format!("{sign}{}{}", "0".repeat(missing), &text[sign.len()..])
        }
        _ => {
            let left = missing / 2 + (missing & width & 1);
            format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left))
        }
    }
}

/// `str.title`: a letter after none is upper case, all others lower.
fn title(text: &str) -> String {
    let mut after_letter = false;
    let mut titled = String::with_capacity(text.len());
    for c in text.chars() {
        if after_letter {
            titled.extend(c.to_lowercase());
        } else {
            titled.extend(c.to_uppercase());
        }
        after_letter = c.is_lowercase() || c.is_uppercase();
    }
    titled
}
