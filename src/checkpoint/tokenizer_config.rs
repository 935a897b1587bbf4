//! tokenizer_config.json, and the older special_tokens_map.json and added_tokens.json: special tokens, chat
//! templates, and what changes how a text becomes tokens.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::error::{Error, Result};
use super::fields::{Fields, brief, parse_object};
use super::files::Files;

/// What is used of a tokenizer's settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct TokenizerConfig {
    /// The file that is being read, for messages.
    path: PathBuf,
    /// The model's type in config.json, which decides where several classes could be meant.
    pub(super) model_type: String,
    /// The class that makes the tokenizer out of tokenizer.json, and the file that names it.
    pub(super) class: Option<(String, PathBuf)>,
    /// Whether a text begins with a space, where the class asks that.
    pub(super) add_prefix_space: Option<bool>,
    /// Whether Llama's class puts that space before each part of a text between special tokens.
    pub(super) legacy: bool,
    /// The special tokens by name, `bos_token` and so on; `None` where the file says null.
    pub(super) special: BTreeMap<String, Option<AddedToken>>,
    /// Special tokens without a name.
    pub(super) extra: Vec<AddedToken>,
    /// Tokens to add to the vocabulary by id, where the file lists them: then tokenizer.json's own do not count for
    /// every class.
    pub(super) added: Option<BTreeMap<u32, AddedToken>>,
    /// Tokens that added_tokens.json lists, by id.
    pub(super) older_added: BTreeMap<u32, AddedToken>,
    /// Whether special tokens in a text are text.
    pub(super) split_special_tokens: bool,
    /// Sources of the chat templates by name.
    pub(super) chat_templates: BTreeMap<String, String>,
}

impl TokenizerConfig {
    /// The settings of a tokenizer.json that is taken as it is.
    pub(super) fn as_written(bos_token: Option<&str>) -> Self {
        let bos_token = bos_token.map(|text| Some(AddedToken::from(text, true)));
        Self {
            class: Some(("PreTrainedTokenizerFast".into(), PathBuf::new())),
            special: bos_token
                .map(|token| ("bos_token".into(), token))
                .into_iter()
                .collect(),
            ..Self::default()
        }
    }

    /// Reads the files that are there.
    pub(super) fn read(files: &Files) -> Result<Self> {
        const NAME: &str = "tokenizer_config.json";
        let path = files.path(NAME);
        let map = match files.read(NAME)? {
            Some(json) => parse_object(&path, &json)?,
            None => Map::new(),
        };
        let mut config = Self::parse(&path, &map)?;
        if config.added.is_none() {
            config.read_older(files)?;
        }
        Ok(config)
    }

    fn parse(path: &Path, map: &Map<String, Value>) -> Result<Self> {
        let fields = Fields::new(path, "", map);
        const CLEAN: &str = "clean_up_tokenization_spaces";
        const FORCE: &str =
            "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output";
        if fields.flag(CLEAN, false)? && fields.flag(FORCE, false)? {
            return Err(fields.unsupported(FORCE, true, "false"));
        }
        let mut config = Self {
            path: path.into(),
            class: class(path, &fields)?,
            add_prefix_space: optional_flag(&fields, "add_prefix_space")?,
            legacy: optional_flag(&fields, "legacy")?.unwrap_or(false),
            split_special_tokens: fields.flag("split_special_tokens", false)?,
            chat_templates: templates(path, &fields)?,
            ..Self::default()
        };
        config.take_special(map)?;
        if let Some(added) = fields.object("added_tokens_decoder")? {
            let entry = |(id, token): (&String, &Value)| {
                let id = id.parse().ok().filter(|_| token.is_object());
                match (id, added_token(token, false)) {
                    (Some(id), Some(token)) => Ok((id, token)),
                    _ => Err(config.wrong(
                        "added_tokens_decoder",
                        "an object of tokens by id",
                        token,
                    )),
                }
            };
            config.added = Some(added.iter().map(entry).collect::<Result<_>>()?);
        }
        Ok(config)
    }

    /// Takes the special tokens of a file, in place of those that are known.
    fn take_special(&mut self, map: &Map<String, Value>) -> Result<()> {
        const EXTRA: &str = "extra_special_tokens";
        for (name, value) in map.iter().filter(|(name, _)| name.ends_with("_token")) {
            // Settings such as add_bos_token end so, too.
            if STANDARD.contains(&&**name) || value.is_string() || value.is_object() {
                self.name_token(name, value)?;
            }
        }
        let extra = [EXTRA, "additional_special_tokens"];
        let extra = extra.map(|name| map.get(name).filter(|v| !v.is_null()));
        match extra[0].or(extra[1]) {
            None => {}
            Some(Value::Object(named)) => {
                for (name, value) in named {
                    self.name_token(name, value)?;
                }
            }
            Some(Value::Array(tokens)) => {
                for token in tokens {
                    let expected = "a list or object of tokens";
                    let added = added_token(token, token.is_string());
                    self.extra
                        .push(added.ok_or_else(|| self.wrong(EXTRA, expected, token))?);
                }
            }
            Some(other) => return Err(self.wrong(EXTRA, "a list or object of tokens", other)),
        }
        Ok(())
    }

    fn name_token(&mut self, name: &str, value: &Value) -> Result<()> {
        let token = added_token(value, true);
        if token.is_none() && !value.is_null() {
            return Err(self.wrong(name, "a string or an object with content", value));
        }
        self.special.insert(name.into(), token);
        Ok(())
    }

    /// Takes what the two older files say, which count where tokenizer_config.json lists no added tokens.
    fn read_older(&mut self, files: &Files) -> Result<()> {
        const SPECIAL: &str = "special_tokens_map.json";
        const ADDED: &str = "added_tokens.json";
        let newer = std::mem::take(&mut self.path);
        if let Some(json) = files.read(SPECIAL)? {
            self.path = files.path(SPECIAL);
            self.take_special(&parse_object(&self.path, &json)?)?;
        }
        if let Some(json) = files.read(ADDED)? {
            self.path = files.path(ADDED);
            for (text, id) in parse_object(&self.path, &json)? {
                let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
                let number = number.ok_or_else(|| self.wrong(&text, "a token id", &id))?;
                let is_special = self
                    .named_tokens()
                    .chain(&self.extra)
                    .any(|t| t.content == text);
                self.older_added
                    .insert(number, AddedToken::from(text, is_special));
            }
        }
        self.path = newer;
        Ok(())
    }

    /// The special tokens that have a name, in the order in which they are added to a vocabulary.
    pub(super) fn named_tokens(&self) -> impl Iterator<Item = &AddedToken> {
        let standard = STANDARD.iter().filter_map(|name| self.special.get(*name));
        let others = self
            .special
            .iter()
            .filter(|(name, _)| !STANDARD.contains(&&***name));
        standard.chain(others.map(|(_, token)| token)).flatten()
    }

    /// The text of the special token of this name.
    pub(super) fn special_text(&self, name: &str) -> Option<&str> {
        let token = self.special.get(name)?.as_ref()?;
        Some(&token.content)
    }

    /// An error about a field of the file that is being read.
    fn wrong(&self, field: &str, expected: &'static str, found: &Value) -> Error {
        field_type(&self.path, field, expected, found)
    }
}

/// A field that is true, false, null or left out.
fn optional_flag(fields: &Fields<'_>, name: &str) -> Result<Option<bool>> {
    fields.typed(name, "true, false or null", Value::as_bool)
}

/// The class that a file names, if it does.
pub(super) fn class(path: &Path, fields: &Fields<'_>) -> Result<Option<(String, PathBuf)>> {
    let name = fields.string("tokenizer_class")?;
    Ok(name.map(|name| (name.to_owned(), path.to_owned())))
}

fn field_type(path: &Path, field: &str, expected: &'static str, found: &Value) -> Error {
    Error::FieldType {
        path: path.into(),
        field: field.into(),
        expected,
        found: brief(found),
    }
}

/// The names that every tokenizer has a place for.
const STANDARD: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// A token as a string, or as an object whose `content` is the string.
fn added_token(value: &Value, special: bool) -> Option<AddedToken> {
    let Value::Object(fields) = value else {
        return value.as_str().map(|text| AddedToken::from(text, special));
    };
    let flag = |name: &str| fields.get(name).and_then(Value::as_bool);
    let is = |name: &str| flag(name).unwrap_or(false);
    let mut token = AddedToken::from(fields.get("content")?.as_str()?, special || is("special"));
    token.normalized = flag("normalized").unwrap_or(token.normalized);
    Some(
        token
            .single_word(is("single_word"))
            .lstrip(is("lstrip"))
            .rstrip(is("rstrip")),
    )
}

/// `chat_template` as a string, or as a list of `{name, template}`.
fn templates(path: &Path, fields: &Fields<'_>) -> Result<BTreeMap<String, String>> {
    const NAME: &str = "chat_template";
    let entry = |template: &Value| {
        let text = |name| template.get(name)?.as_str().map(String::from);
        Some((text("name")?, text("template")?))
    };
    let found = match fields.get(NAME) {
        None => Some(BTreeMap::new()),
        Some(Value::String(source)) => Some(BTreeMap::from([("default".into(), source.clone())])),
        Some(Value::Array(templates)) => templates.iter().map(entry).collect(),
        Some(_) => None,
    };
    let expected = "a string or a list of objects with name and template";
    let value = fields.get(NAME).unwrap_or(&Value::Null);
    found.ok_or_else(|| field_type(path, NAME, expected, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<TokenizerConfig> {
        let path = Path::new("tokenizer_config.json");
        TokenizerConfig::parse(path, &parse_object(path, json.as_bytes())?)
    }

    #[test]
    fn plain_and_structured_forms_say_the_same() {
        let plain = parse(r#"{"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": "T"}"#);
        let structured = parse(
            r#"{"bos_token": {"content": "<bos>", "special": true},
                "eos_token": {"content": "<eos>", "normalized": false},
                "chat_template": [{"name": "default", "template": "T"}]}"#,
        );
        let config = plain.unwrap();
        assert_eq!(structured.unwrap(), config);
        assert_eq!(config.special_text("bos_token"), Some("<bos>"));
        assert_eq!(config.special_text("eos_token"), Some("<eos>"));
        assert_eq!(config.chat_templates["default"], "T");
    }

    #[test]
    fn settings_that_end_as_tokens_do_are_no_tokens() {
        let config = parse(r#"{"add_bos_token": true, "image_token": "<i>", "pad_token": null}"#);
        let config = config.unwrap();
        assert_eq!(config.special_text("image_token"), Some("<i>"));
        assert_eq!(config.special.get("pad_token"), Some(&None));
        assert!(!config.special.contains_key("add_bos_token"));
    }

    #[test]
    fn wrong_types_are_named() {
        for (json, message) in [
            (
                r#"{"bos_token": 2}"#,
                "bos_token must be a string or an object with content, not 2",
            ),
            (
                r#"{"chat_template": [{"name": "other"}]}"#,
                "chat_template must be a string or a list of objects with name and template, not a list",
            ),
            (
                r#"{"added_tokens_decoder": {"one": {"content": "a"}}}"#,
                "added_tokens_decoder must be an object of tokens by id, not an object",
            ),
            (
                r#"{"extra_special_tokens": [3]}"#,
                "extra_special_tokens must be a list or object of tokens, not 3",
            ),
        ] {
            let message = format!("tokenizer_config.json: {message}");
            assert_eq!(parse(json).unwrap_err().to_string(), message);
        }
    }
}
