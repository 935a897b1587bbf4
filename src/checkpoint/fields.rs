//! Reading JSON that nobody vouches for: every accessor names the field it refuses.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use super::error::{Error, Result};
use crate::message::shown;

/// Parses a JSON file whose top level is an object.
pub(super) fn parse_object(path: &Path, json: &[u8]) -> Result<Map<String, Value>> {
    let value = serde_json::from_slice(json).map_err(|source| Error::NotJson {
        path: path.into(),
        source,
    })?;
    match value {
        Value::Object(map) => Ok(map),
        other => Err(Error::FieldType {
            path: path.into(),
            field: "the top level".into(),
            expected: "an object",
            found: brief(&other),
        }),
    }
}

/// A value as an error message shows it: JSON, on one line, cut short.
pub(super) fn brief(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".into(),
        Value::Array(_) => "a list".into(),
        scalar => shown(&scalar.to_string()),
    }
}

/// One object of a JSON file. A field that is null counts as left out.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    path: &'a Path,
    prefix: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The object `map` of the file `path`; `prefix` comes before each field's name in messages.
    pub(super) fn new(path: &'a Path, prefix: &'a str, map: &'a Map<String, Value>) -> Self {
        Self { path, prefix, map }
    }

    /// The field's value, or `None` where it is left out or null.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// Whether the field is there and says null.
    pub(super) fn is_null(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_null)
    }

    /// The field as an object.
    pub(super) fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>> {
        self.typed(name, "an object", Value::as_object)
    }

    /// The field as a string.
    pub(super) fn string(&self, name: &str) -> Result<Option<&'a str>> {
        self.typed(name, "a string", Value::as_str)
    }

    /// The field as a list of strings.
    pub(super) fn strings(&self, name: &str) -> Result<Option<Vec<&'a str>>> {
        self.typed(name, "a list of strings", |v| {
            v.as_array()?.iter().map(Value::as_str).collect()
        })
    }

    /// The field as true or false.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self
            .typed(name, "true or false", Value::as_bool)?
            .unwrap_or(default))
    }

    /// The field as a whole number within `range`.
    pub(super) fn size(
        &self,
        name: &str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> Result<usize> {
        let found = self.typed(name, "a whole number", |v| v.as_u64())?;
        let size = found.map_or(Some(default), |n| usize::try_from(n).ok());
        match size.filter(|n| range.contains(n)) {
            Some(n) => Ok(n),
            None => Err(self.value(
                name,
                found.unwrap_or(default as u64),
                format!("from {} to {}", range.start(), range.end()),
            )),
        }
    }

    /// The field as a number within `range`, so never NaN nor infinite.
    pub(super) fn real(&self, name: &str, default: f64, range: RangeInclusive<f64>) -> Result<f64> {
        let x = self
            .typed(name, "a number", Value::as_f64)?
            .unwrap_or(default);
        if range.contains(&x) {
            Ok(x)
        } else {
            let expected = format!("from {} to {}", range.start(), range.end());
            Err(self.value(name, x, expected))
        }
    }

    /// The field as one token id or a list of them.
    pub(super) fn token_ids(&self, name: &str) -> Result<Option<Vec<u32>>> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        self.typed(name, "a token id or a list of them", |v| match v {
            Value::Array(ids) => ids.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        })
    }

    /// An [`Error::FieldValue`] about a field of this object.
    pub(super) fn value(
        &self,
        name: &str,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> Error {
        Error::FieldValue {
            path: self.path.into(),
            field: self.full(name),
            found: shown(&found.to_string()),
            expected: expected.into(),
        }
    }

    /// An [`Error::UnsupportedOption`] about a field of this object.
    pub(super) fn unsupported(
        &self,
        name: &str,
        found: impl ToString,
        supported: &'static str,
    ) -> Error {
        Error::UnsupportedOption {
            path: self.path.into(),
            field: self.full(name),
            found: shown(&found.to_string()),
            supported,
        }
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &'static str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match convert(value) {
            Some(t) => Ok(Some(t)),
            None => Err(Error::FieldType {
                path: self.path.into(),
                field: self.full(name),
                expected,
                found: brief(value),
            }),
        }
    }
}
