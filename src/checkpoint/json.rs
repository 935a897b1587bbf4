//! JSON as Python's `json` reads it, which writes and takes more than the standard: `NaN`, `Infinity`, numbers
//! beyond f64, and halves of surrogate pairs. Hugging Face's files are read with it.
//!
//! A number that JSON does not have becomes `{"__float__": "Infinity"}`, which is how transformers spells it
//! where a file must be standard JSON; [`number`] reads both.

use serde::de::IgnoredAny;
use serde_json::{Result, Value};

/// The key of a number that JSON does not have.
const FLOAT: &str = "__float__";

/// Python refuses whole numbers of more digits.
const MAX_DIGITS: usize = 4300;

/// Parses `json`.
///
/// # Errors
///
/// Where and why parsing stopped.
pub(super) fn parse(json: &[u8]) -> Result<Value> {
    serde_json::from_slice(json).or_else(|error| match standard(json) {
        Some(standard) => serde_json::from_slice(&standard),
        None => Err(error),
    })
}

/// A number, or true and false as the 1 and 0 that they are in Python.
pub(super) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        Value::Number(number) => number.as_f64(),
        Value::Object(map) if map.len() == 1 => match map.get(FLOAT)?.as_str()? {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// `json` with what only Python has written in standard JSON, or `None` where there is nothing of it. What is
/// wrong stays wrong.
fn standard(json: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut rest) = (Vec::with_capacity(json.len()), json);
    let mut changed = false;
    while let Some(&first) = rest.first() {
        let (length, replacement) = match first {
            b'"' => string(rest),
            b'-' | b'0'..=b'9' | b'N' | b'I' => special(rest),
            _ => (1, None),
        };
        let (token, after) = rest.split_at(length);
        changed |= replacement.is_some();
        match replacement {
            Some(replacement) => out.extend(replacement),
            None => out.extend(token),
        }
        rest = after;
    }
    changed.then_some(out)
}

/// The length of the string that `json` begins with, and the string with U+FFFD for half surrogate pairs.
fn string(json: &[u8]) -> (usize, Option<Vec<u8>>) {
    let (mut out, mut at, mut changed) = (vec![b'"'], 1, false);
    while let Some(&byte) = json.get(at) {
        let length = match byte {
            b'\\' if is_surrogate(&json[at..], 0xd8..=0xdb) => {
                if is_surrogate(&json[at + 6..], 0xdc..=0xdf) {
                    12
                } else {
                    6
                }
            }
            b'\\' if is_surrogate(&json[at..], 0xdc..=0xdf) => 6,
            b'\\' => 2,
            _ => 1,
        };
        let token = &json[at..json.len().min(at + length)];
        if length == 6 {
            out.extend(br"\ufffd");
            changed = true;
        } else {
            out.extend(token);
        }
        at += token.len();
        if byte == b'"' {
            break;
        }
    }
    (at, changed.then_some(out))
}

/// Whether `json` begins with `\uXXYY` where XX is in `range`.
fn is_surrogate(json: &[u8], range: std::ops::RangeInclusive<u8>) -> bool {
    let Some([b'\\', b'u', digits @ ..]) = json.first_chunk::<6>() else {
        return false;
    };
    let digits = std::str::from_utf8(digits).unwrap_or_default();
    let is_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
    let code = u16::from_str_radix(digits, 16).unwrap_or_default();
    is_hex && range.contains(&(code >> 8).to_le_bytes()[0])
}

/// The length of the word or number that `json` begins with, and how it is spelt if only Python has it.
fn special(json: &[u8]) -> (usize, Option<Vec<u8>>) {
    let part = |b: &u8| b.is_ascii_alphanumeric() || b"+-.".contains(b);
    let length = json.iter().take_while(|b| part(b)).count();
    let word = std::str::from_utf8(&json[..length]).unwrap_or_default();
    let spelling = match word {
        "NaN" | "Infinity" | "-Infinity" => word,
        _ => beyond_f64(word).unwrap_or_default(),
    };
    let object =
        (!spelling.is_empty()).then(|| format!(r#"{{"{FLOAT}":"{spelling}"}}"#).into_bytes());
    (length.max(1), object)
}

/// What a number in JSON's grammar is that f64 has not.
fn beyond_f64(word: &str) -> Option<&'static str> {
    let is_number = serde_json::from_str::<IgnoredAny>(word).is_ok();
    let whole = word.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    if !is_number || (whole && word.len() > MAX_DIGITS) {
        return None;
    }
    match word.parse::<f64>() {
        Ok(f64::INFINITY) => Some("Infinity"),
        Ok(f64::NEG_INFINITY) => Some("-Infinity"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Value {
        parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn numbers_that_only_python_has() {
        let value = read(
            r#"{"a": NaN, "b": [-Infinity, Infinity], "c": "NaN Infinity \" NaN", "d": -1e999}"#,
        );
        assert!(number(&value["a"]).unwrap().is_nan());
        assert_eq!(number(&value["b"][0]), Some(f64::NEG_INFINITY));
        assert_eq!(number(&value["b"][1]), Some(f64::INFINITY));
        assert_eq!(value["c"], "NaN Infinity \" NaN");
        assert_eq!(number(&value["d"]), Some(f64::NEG_INFINITY));
        let (longest, longer) = ("9".repeat(4300), "9".repeat(4301));
        assert_eq!(number(&read(&longest)), Some(f64::INFINITY));
        assert!(parse(longer.as_bytes()).is_err());
    }

    #[test]
    fn numbers_spelt_as_objects() {
        for (text, expected) in [
            (r#"{"__float__": "Infinity"}"#, Some(f64::INFINITY)),
            (r#"{"__float__": "-Infinity"}"#, Some(f64::NEG_INFINITY)),
            (r#"{"__float__": "1"}"#, None),
            (r#"{"__float__": 1}"#, None),
            (r#"{"__float__": "Infinity", "a": 1}"#, None),
            ("true", Some(1.0)),
            ("false", Some(0.0)),
            ("-2.5", Some(-2.5)),
            (r#""1""#, None),
            ("null", None),
        ] {
            assert_eq!(number(&read(text)), expected, "{text}");
        }
    }

    #[test]
    fn halves_of_surrogate_pairs() {
        assert_eq!(
            read(r#"["\ud800", "\udc00x", "\ud800\ud83d\ude00"]"#),
            json!(["\u{fffd}", "\u{fffd}x", "\u{fffd}\u{1f600}"])
        );
        assert_eq!(
            read(r#"{"\uDFFF": "\\ud800"}"#),
            json!({"\u{fffd}": "\\ud800"})
        );
    }

    #[test]
    fn the_last_of_a_key_wins() {
        assert_eq!(read(r#"{"a": 1, "a": 2}"#), json!({"a": 2}));
        assert_eq!(read(r#"{"a": NaN, "a": 2}"#), json!({"a": 2}));
    }

    #[test]
    fn what_python_refuses_is_refused() {
        for text in [
            "nan",
            "NAN",
            "-NaN",
            "+Infinity",
            "Infinit",
            "NaNs",
            "1e",
            "01",
            "+1",
            "1.",
            ".5",
            "True",
            "'a'",
            "[1,]",
            "{\"a\": 1,}",
            "// x\n1",
            "\u{feff}1",
            "1 x",
            "NaN x",
            "1\0",
            "\u{a0}1",
            "\"\\x41\"",
            "\"\\ud8\"",
            "\"\\ud800",
            "\"a\tb\"",
            "",
            "-",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
        for bytes in [&b"\"\xff\""[..], b"[NaN, \"\xff\"]", b"\xff\xfe1\0"] {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn the_place_of_a_fault_is_that_of_the_file() {
        let error = parse(b"{\"a\": ").unwrap_err();
        assert_eq!((error.line(), error.column()), (1, 6));
    }
}
