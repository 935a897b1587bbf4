//! What a GGUF file says of its model: values by key.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::super::error::{Error, Result};
use super::cursor::{Array, Cursor, STRING, Value};
use crate::message::shown;

/// Values by key. Every accessor names the key it refuses, and takes what is left out as `None`.
#[derive(Clone, Debug)]
pub(super) struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Value>,
    /// Each key and its value as they are written, in the file's order.
    written: Vec<(String, Bytes)>,
}

impl Metadata {
    /// Reads `count` pairs of key and value.
    pub(super) fn read(path: &Path, cursor: &mut Cursor<'_>, count: u64) -> Result<Self> {
        let (mut values, mut written) = (BTreeMap::new(), Vec::new());
        for _ in 0..count {
            let start = cursor.at();
            let key = cursor.name()?;
            let value = cursor.value()?;
            written.push((key.clone(), cursor.since(start)));
            if values.contains_key(&key) {
                return Err(cursor.wrong(format!("it has {} twice", shown(&key))));
            }
            values.insert(key, value);
        }
        Ok(Self {
            path: path.into(),
            values,
            written,
        })
    }

    /// Each key and, with it, its value as the file has them, in its order.
    pub(super) fn written(&self) -> &[(String, Bytes)] {
        &self.written
    }

    /// The file, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a value of this key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// A text.
    pub(super) fn string(&self, key: &str) -> Result<Option<&str>> {
        self.get(key, "a text in UTF-8", |value| match value {
            Value::String(text) => std::str::from_utf8(text).ok(),
            _ => None,
        })
    }

    /// An integer of any type that is not negative.
    pub(super) fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.get(key, "an integer from 0 on", unsigned)
    }

    /// A number of any type.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a number", |value| match *value {
            Value::Integer(number) => Some(number as f64),
            Value::Float(number) => Some(number),
            _ => None,
        })
    }

    /// True or false.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "true or false", |value| match *value {
            Value::Bool(flag) => Some(flag),
            _ => None,
        })
    }

    /// An array of texts.
    pub(super) fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.get(key, "an array of texts in UTF-8", |value| {
            let array = array(value).filter(|array| array.kind == STRING)?;
            let texts = array.strings().map(|text| std::str::from_utf8(text).ok());
            texts.collect()
        })
    }

    /// An array of integers that are not negative.
    pub(super) fn unsigneds(&self, key: &str) -> Result<Option<Vec<u64>>> {
        self.get(key, "an array of integers from 0 on", |value| {
            self.elements(value)?
                .map(|value| unsigned(&value))
                .collect()
        })
    }

    /// An array of numbers.
    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.get(key, "an array of floating-point numbers", |value| {
            let number = |value| match value {
                Value::Float(number) => Some(number as f32),
                _ => None,
            };
            self.elements(value)?.map(number).collect()
        })
    }

    /// An array of true and false.
    pub(super) fn flags(&self, key: &str) -> Result<Option<Vec<bool>>> {
        self.get(key, "an array of true and false", |value| {
            let flag = |value| match value {
                Value::Bool(flag) => Some(flag),
                _ => None,
            };
            self.elements(value)?.map(flag).collect()
        })
    }

    /// Whether a value is an array.
    pub(super) fn is_array(&self, key: &str) -> bool {
        self.values
            .get(key)
            .is_some_and(|value| array(value).is_some())
    }

    /// That the value of a key is not what it must be.
    pub(super) fn wrong(&self, key: &str, expected: impl Into<String>) -> Error {
        Error::FieldValue {
            path: self.path.clone(),
            field: key.into(),
            found: self.values.get(key).map_or("left out".into(), brief),
            expected: expected.into(),
        }
    }

    /// The elements of an array of numbers.
    fn elements<'a>(&self, value: &'a Value) -> Option<impl Iterator<Item = Value> + 'a> {
        let array = array(value).filter(|array| array.kind != STRING)?;
        Some(array.numbers())
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.values.get(key) else {
            return Ok(None);
        };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(Error::FieldType {
                path: self.path.clone(),
                field: key.into(),
                expected,
                found: brief(value),
            }),
        }
    }
}

fn array(value: &Value) -> Option<&Array> {
    match value {
        Value::Array(array) => Some(array),
        _ => None,
    }
}

fn unsigned(value: &Value) -> Option<u64> {
    match value {
        Value::Integer(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

/// A value as messages show it, cut short.
fn brief(value: &Value) -> String {
    match value {
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::String(text) => shown(&String::from_utf8_lossy(text)),
        Value::Array(array) => format!("an array of {}", array.len),
    }
}
