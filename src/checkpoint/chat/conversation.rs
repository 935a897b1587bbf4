//! What is said, and what else a chat template is given.

use std::path::Path;
use std::sync::Arc;

use jiff::civil::DateTime;
use minijinja::Value;
use minijinja::value::{Rest, ValueOrKwargs};

use super::super::error::{Error, Result};
use super::clock;
use super::json::Json;
use super::python::{Dict, List, arguments, wrong};
use crate::message::{IoError, one_line};

/// One turn of a conversation that is text alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `user`, `assistant`, or `system` where the template knows it.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// A turn of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// What the model is told before the first turn.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    fn new(role: &str, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// The arguments of `apply_chat_template`: messages, and where they are given tools, documents and whatever else a
/// template asks for. The prompt ends where the model's answer begins, unless
/// [`without_generation_prompt`](Self::without_generation_prompt).
#[derive(Clone, Debug)]
pub struct Conversation {
    messages: Vec<Arc<Dict>>,
    /// All but the messages, by name.
    others: Vec<(String, Value)>,
    time: Option<DateTime>,
}

/// Arguments of `apply_chat_template` that are not for the template, and change what it does.
const NOT_FOR_TEMPLATES: [&str; 4] = [
    "chat_template",
    "continue_final_message",
    "sanitize_control_tokens",
    "tokenizer_kwargs",
];

impl Conversation {
    /// A conversation in text.
    pub fn new(messages: impl IntoIterator<Item = Message>) -> Self {
        let dict = |message: Message| {
            let mut dict = Dict::default();
            dict.insert("role".into(), message.role.into());
            dict.insert("content".into(), message.content.into());
            Arc::new(dict)
        };
        Self::of(messages.into_iter().map(dict).collect(), Vec::new())
    }

    /// Reads a JSON file and [parses](Self::parse) it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] and [`Error::Conversation`].
    pub fn read(path: &Path) -> Result<Self> {
        let json = std::fs::read(path).map_err(IoError::at("read", path))?;
        Self::parse(path, &json)
    }

    /// Parses a JSON text: a list of messages, or an object of `apply_chat_template`'s arguments, such as
    /// `{"messages": […], "tools": […]}`. It is taken as text because templates see the order of an object's keys.
    /// `path` only serves the messages.
    ///
    /// # Errors
    ///
    /// [`Error::Conversation`].
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        let wrong = |reason: String| Error::Conversation {
            path: path.into(),
            reason: one_line(&reason, 300),
        };
        // Some editors begin a file with a mark of its encoding.
        let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
        let Json(value) = serde_json::from_slice(json).map_err(|e| wrong(e.to_string()))?;
        let arguments = match value.downcast_object::<Dict>() {
            Some(arguments) => arguments,
            None => {
                let mut arguments = Dict::default();
                arguments.insert("messages".into(), value);
                Arc::new(arguments)
            }
        };
        let dicts = |name: &str| -> Result<Vec<Arc<Dict>>> {
            let list = arguments
                .get(name)
                .and_then(Value::downcast_object_ref::<List>);
            let dicts =
                list.map(|list| list.0.iter().map(Value::downcast_object::<Dict>).collect());
            dicts
                .flatten()
                .ok_or_else(|| wrong(format!("{name} must be a list of objects")))
        };
        let messages = dicts("messages")?;
        let mut others = Vec::new();
        for (name, value) in arguments.iter().filter(|(name, _)| &***name != "messages") {
            if NOT_FOR_TEMPLATES.contains(&&**name) {
                return Err(wrong(format!("{name} is not supported")));
            }
            if matches!(&**name, "tools" | "documents") && !value.is_none() {
                dicts(name)?;
            }
            others.push((name.to_string(), value.clone()));
        }
        Ok(Self::of(messages, others))
    }

    fn of(messages: Vec<Arc<Dict>>, others: Vec<(String, Value)>) -> Self {
        Self {
            messages,
            others,
            time: None,
        }
    }

    /// The same conversation as it stands, without the beginning of an answer.
    pub fn without_generation_prompt(mut self) -> Self {
        self.others
            .push(("add_generation_prompt".into(), false.into()));
        self
    }

    /// The same conversation with pictures before the text of its last message, whose content becomes a list of parts: so many
    /// `{"type": "image"}`, and `{"type": "text", "text": …}`.
    pub fn with_images(mut self, images: usize) -> Self {
        let dict = |entries: &[(&str, Value)]| {
            let mut dict = Dict::default();
            for (key, value) in entries {
                dict.insert((*key).into(), value.clone());
            }
            dict
        };
        if let Some(last) = self.messages.last_mut() {
            let text = last.get("content").cloned().unwrap_or_default();
            let image = Value::from_object(dict(&[("type", "image".into())]));
            let mut parts = vec![image; images];
            parts.push(Value::from_object(dict(&[
                ("type", "text".into()),
                ("text", text),
            ])));
            let mut message = Dict::default();
            for (key, value) in last.iter() {
                message.insert(key.clone(), value.clone());
            }
            message.insert("content".into(), Value::from_object(List(parts)));
            *last = Arc::new(message);
        }
        self
    }

    /// The time that `strftime_now` tells, such as `2026-11-27T09:30:00`, in place of the clock's.
    ///
    /// # Errors
    ///
    /// [`Error::Time`].
    pub fn at(mut self, time: &str) -> Result<Self> {
        let parsed = time.parse().map_err(|_| Error::Time { time: time.into() });
        self.time = Some(parsed?);
        Ok(self)
    }

    /// Whether the model is told of tools.
    pub(super) fn has_tools(&self) -> bool {
        let tools = self.others.iter().rev().find(|(name, _)| name == "tools");
        tools.is_some_and(|(_, tools)| !tools.is_none())
    }

    /// The template's variables, later ones in place of earlier ones.
    pub(super) fn variables(&self) -> Result<Vec<(String, Value)>, String> {
        if self.messages.is_empty() {
            return Err("there is no message; give one at least".into());
        }
        let messages = self.messages.iter().map(|m| Value::from_object(message(m)));
        let time = self.time;
        let strftime_now = move |rest: Rest<ValueOrKwargs>| {
            let [format] = arguments("strftime_now", &rest.into_values(), ["format"])?;
            let time = time.unwrap_or_else(|| jiff::Zoned::now().datetime());
            let format = format.as_ref().and_then(Value::as_str).unwrap_or_default();
            clock::format(time, format).map_err(|e| wrong(&e))
        };
        let mut variables = vec![
            (
                "messages".into(),
                Value::from_object(List(messages.collect())),
            ),
            ("tools".into(), Value::from(())),
            ("documents".into(), Value::from(())),
            ("add_generation_prompt".into(), Value::from(true)),
            ("strftime_now".into(), Value::from_function(strftime_now)),
        ];
        variables.extend(self.others.iter().cloned());
        Ok(variables)
    }
}

/// A message as transformers hands it to templates: without null entries, the model's reasoning under each of the
/// names that templates look for.
fn message(given: &Dict) -> Dict {
    let reasoning = ["reasoning_content", "thinking", "reasoning"]
        .iter()
        .filter_map(|name| given.get(name))
        .find(|value| !value.is_none());
    let mut message = Dict::default();
    if let Some(reasoning) = reasoning {
        message.insert("thinking".into(), reasoning.clone());
    }
    for (key, value) in given.iter().filter(|(_, value)| !value.is_none()) {
        message.insert(key.clone(), value.clone());
    }
    if let Some(reasoning) = reasoning {
        message.insert("reasoning_content".into(), reasoning.clone());
    }
    message
}
