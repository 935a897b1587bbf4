//! Reading JSON that nobody vouches for: every accessor names the field it refuses.

use std::ops::RangeInclusive;
use std::path::{Component, Path};

use serde_json::{Map, Number, Value};

use super::error::{Error, Result};
use super::json;
use crate::message::shown;

/// Parses a JSON file whose top level is an object.
pub(super) fn parse_object(path: &Path, json: &[u8]) -> Result<Map<String, Value>> {
    let value = json::parse(json).map_err(|source| Error::NotJson {
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
        Value::Object(_) => match json::number(value) {
            Some(x) => x.to_string().replace("inf", "Infinity"),
            None => "an object".into(),
        },
        Value::Array(_) => "a list".into(),
        scalar => shown(&scalar.to_string()),
    }
}

/// Whether `name` can only mean a file beside the one that names it, on every system.
pub(super) fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let one = matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(part)), None) if part == name
    );
    one && !name.contains(['/', '\\', ':', '\0'])
}

/// A whole number of any sign and size.
pub(super) fn whole(value: &Value) -> Option<&Number> {
    // What 64 bits do not hold is parsed as f64.
    let huge = |n: &Number| n.as_f64().is_some_and(|x| x.abs() >= 2f64.powi(63));
    value.as_number().filter(|n| !n.is_f64() || huge(n))
}

/// One object of a JSON file. Where null is as good as left out, accessors give an `Option`; the others refuse it.
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

    /// An object inside; `prefix` comes before each field's name in messages.
    pub(super) fn inner<'b>(&self, prefix: &'b str, map: &'b Map<String, Value>) -> Fields<'b>
    where
        'a: 'b,
    {
        Fields::new(self.path, prefix, map)
    }

    /// Whether the field is there, be it null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
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

    /// The field as true or false, or `default` where it is left out.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        let found = self.required(name, "true or false", Value::as_bool)?;
        Ok(found.unwrap_or(default))
    }

    /// The field as a whole number within `range`, or `default` where it is left out.
    pub(super) fn size(
        &self,
        name: &str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> Result<usize> {
        let Some(found) = self.required(name, "a whole number", whole)? else {
            return Ok(default);
        };
        let size = found.as_u64().and_then(|n| usize::try_from(n).ok());
        match size.filter(|n| range.contains(n)) {
            Some(n) => Ok(n),
            None => Err(self.value(
                name,
                found,
                format!("from {} to {}", range.start(), range.end()),
            )),
        }
    }

    /// The field as a number within `range`, so never NaN nor infinite, or `None` where it is left out.
    pub(super) fn number(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(x) = self.required(name, "a number", json::number)? else {
            return Ok(None);
        };
        if range.contains(&x) {
            Ok(Some(x))
        } else {
            let expected = format!("from {} to {}", range.start(), range.end());
            Err(self.value(name, x, expected))
        }
    }

    /// The field as a number that is written as no whole one, within `range`, or `default` where it is left out.
    pub(super) fn real(&self, name: &str, default: f64, range: RangeInclusive<f64>) -> Result<f64> {
        self.required(name, "a number with a point or an exponent", |v| {
            (v.is_f64() || v.is_object()).then(|| json::number(v))?
        })?;
        Ok(self.number(name, range)?.unwrap_or(default))
    }

    /// The field as one token id or a list of them, without those that no token can have.
    pub(super) fn token_ids(&self, name: &str) -> Result<Option<Vec<u32>>> {
        let id = |v: &Value| whole(v).map(|n| n.as_u64().and_then(|n| u32::try_from(n).ok()));
        let ids = self.typed(name, "a token id or a list of them", |v| match v {
            Value::Array(ids) => ids.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        })?;
        Ok(ids.map(|ids: Vec<_>| ids.into_iter().flatten().collect()))
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

    /// A field's name with its parents.
    pub(super) fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The field converted, or `None` where it is left out or null.
    pub(super) fn typed<T>(
        &self,
        name: &str,
        expected: &'static str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(name) {
            Some(_) => self.required(name, expected, convert),
            None => Ok(None),
        }
    }

    /// The field converted, or `None` where it is left out; null is of the wrong type.
    pub(super) fn required<T>(
        &self,
        name: &str,
        expected: &'static str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.map.get(name) else {
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
