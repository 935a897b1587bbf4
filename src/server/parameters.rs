//! The parameters of a request's body, one by one.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::refusal::Refusal;

/// A body's parameters. One that is null is one that is not there.
pub(super) struct Parameters {
    map: Map<String, Value>,
    /// What stands before a name in messages: `stream_options.`.
    prefix: String,
}

impl Parameters {
    /// Those of a whole body.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Refusal> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self::new(map, "")),
            Ok(other) => Err(Refusal::bad(format!(
                "the body must be a JSON object, and is {}",
                kind(&other)
            ))),
            Err(error) => Err(Refusal::bad(format!("the body is not JSON: {error}"))),
        }
    }

    fn new(map: Map<String, Value>, prefix: impl Into<String>) -> Self {
        Self {
            map,
            prefix: prefix.into(),
        }
    }

    /// The name of a parameter in messages.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// What is wrong with a parameter's type.
    fn mistyped(&self, name: &str, wanted: &str, value: &Value) -> Refusal {
        mistyped(self.path(name), wanted, value)
    }

    pub(super) fn string(&self, name: &str) -> Result<Option<&str>, Refusal> {
        let string = |value: &'_ Value| self.mistyped(name, "a string", value);
        self.get(name)
            .map(|value| value.as_str().ok_or_else(|| string(value)))
            .transpose()
    }

    pub(super) fn boolean(&self, name: &str) -> Result<Option<bool>, Refusal> {
        self.get(name)
            .map(|value| {
                value
                    .as_bool()
                    .ok_or_else(|| self.mistyped(name, "a boolean", value))
            })
            .transpose()
    }

    pub(super) fn integer(
        &self,
        name: &str,
        allowed: RangeInclusive<i64>,
    ) -> Result<Option<i64>, Refusal> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let Some(number) = value.as_i64() else {
            return Err(self.mistyped(name, "an integer", value));
        };
        self.within(name, number, allowed).map(Some)
    }

    pub(super) fn number(
        &self,
        name: &str,
        allowed: RangeInclusive<f64>,
    ) -> Result<Option<f64>, Refusal> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let Some(number) = value.as_f64() else {
            return Err(self.mistyped(name, "a number", value));
        };
        self.within(name, number, allowed).map(Some)
    }

    fn within<T: PartialOrd + Display>(
        &self,
        name: &str,
        value: T,
        allowed: RangeInclusive<T>,
    ) -> Result<T, Refusal> {
        if allowed.contains(&value) {
            return Ok(value);
        }
        let path = self.path(name);
        let (least, most) = allowed.into_inner();
        let message = format!("'{path}' must be from {least} to {most}, and is {value}");
        Err(Refusal::parameter(path, message))
    }

    pub(super) fn object(&self, name: &str) -> Result<Option<Self>, Refusal> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let Value::Object(map) = value else {
            return Err(self.mistyped(name, "an object", value));
        };
        let prefix = format!("{}.", self.path(name));
        Ok(Some(Self::new(map.clone(), prefix)))
    }

    pub(super) fn list(&self, name: &str) -> Result<Option<&[Value]>, Refusal> {
        self.get(name)
            .map(|value| {
                let list = value.as_array().map(Vec::as_slice);
                list.ok_or_else(|| self.mistyped(name, "a list", value))
            })
            .transpose()
    }

    /// The objects of a list.
    pub(super) fn objects(&self, name: &str) -> Result<Option<Vec<Self>>, Refusal> {
        let Some(list) = self.list(name)? else {
            return Ok(None);
        };
        let object = |(i, value): (usize, &Value)| {
            let path = format!("{}[{i}]", self.path(name));
            match value {
                Value::Object(map) => Ok(Self::new(map.clone(), path + ".")),
                other => Err(mistyped(path, "an object", other)),
            }
        };
        list.iter()
            .enumerate()
            .map(object)
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// All of them by name.
    pub(super) fn into_map(self) -> Map<String, Value> {
        self.map
    }
}

/// What is wrong with the type of the value at `path`.
pub(super) fn mistyped(path: String, wanted: &str, value: &Value) -> Refusal {
    let message = format!("'{path}' must be {wanted}, and is {}", kind(value));
    Refusal::parameter(path, message)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number that is no integer",
        Value::Number(number) if !number.is_i64() => "an integer that is too large",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
