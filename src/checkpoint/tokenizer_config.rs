//! tokenizer_config.json: the special tokens' texts and the chat template.

use std::path::Path;

use serde_json::Value;

use super::error::{Error, Result};
use super::fields::{Fields, brief, parse_object};

/// What is used of a tokenizer_config.json.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct TokenizerConfig {
    /// Text of the token that begins a sequence.
    pub(super) bos_token: Option<String>,
    /// Text of the token that ends one.
    pub(super) eos_token: Option<String>,
    /// Source of the chat template; of several, the one named `default`.
    pub(super) chat_template: Option<String>,
}

impl TokenizerConfig {
    /// Parses the bytes of a tokenizer_config.json; `path` only serves the messages.
    pub(super) fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        let map = parse_object(path, json)?;
        let fields = Fields::new(path, "", &map);
        Ok(Self {
            bos_token: token(path, &fields, "bos_token")?,
            eos_token: token(path, &fields, "eos_token")?,
            chat_template: template(path, &fields)?,
        })
    }
}

/// A token as a string, or as an object whose `content` is the string.
fn token(path: &Path, fields: &Fields<'_>, name: &str) -> Result<Option<String>> {
    let text = match fields.get(name) {
        Some(Value::Object(token)) => token.get("content"),
        other => other,
    };
    match (fields.get(name), text.and_then(Value::as_str)) {
        (None, _) => Ok(None),
        (_, Some(text)) => Ok(Some(text.into())),
        (Some(value), None) => Err(Error::FieldType {
            path: path.into(),
            field: name.into(),
            expected: "a string or an object with content",
            found: brief(value),
        }),
    }
}

/// `chat_template` as a string, or as a list of `{name, template}`.
fn template(path: &Path, fields: &Fields<'_>) -> Result<Option<String>> {
    const NAME: &str = "chat_template";
    let default = |templates: &[Value]| {
        let is_default = |t: &&Value| t.get("name").and_then(Value::as_str) == Some("default");
        let found = templates.iter().find(is_default)?;
        found.get("template")?.as_str().map(String::from)
    };
    match fields.get(NAME) {
        None => Ok(None),
        Some(Value::String(source)) => Ok(Some(source.clone())),
        Some(Value::Array(templates)) if default(templates).is_some() => Ok(default(templates)),
        Some(value) => Err(Error::FieldType {
            path: path.into(),
            field: NAME.into(),
            expected: "a string or a list with a template named default",
            found: brief(value),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<TokenizerConfig> {
        TokenizerConfig::parse(Path::new("tokenizer_config.json"), json.as_bytes())
    }

    #[test]
    fn plain_and_structured_forms_say_the_same() {
        let plain = parse(r#"{"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": "T"}"#);
        let structured = parse(
            r#"{"bos_token": {"content": "<bos>", "special": true},
                "eos_token": {"content": "<eos>"},
                "chat_template": [{"name": "tool_use", "template": "U"},
                                  {"name": "default", "template": "T"}]}"#,
        );
        let expected = TokenizerConfig {
            bos_token: Some("<bos>".into()),
            eos_token: Some("<eos>".into()),
            chat_template: Some("T".into()),
        };
        assert_eq!(plain.unwrap(), expected);
        assert_eq!(structured.unwrap(), expected);
        assert_eq!(parse("{}").unwrap(), TokenizerConfig::default());
    }

    #[test]
    fn wrong_types_are_named() {
        for (json, message) in [
            (
                r#"{"bos_token": 2}"#,
                "tokenizer_config.json: bos_token must be a string or an object with content, not 2",
            ),
            (
                r#"{"chat_template": [{"name": "other", "template": "x"}]}"#,
                "tokenizer_config.json: chat_template must be a string or a list with a template named default, not a list",
            ),
        ] {
            assert_eq!(parse(json).unwrap_err().to_string(), message);
        }
    }
}
