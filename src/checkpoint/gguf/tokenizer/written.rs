//! The other way: what a GGUF file says of a tokenizer of Hugging Face's.

use std::collections::HashMap;

use serde_json::Value;

use super::super::super::Named;
use super::super::super::tokenizer::Parts;
use super::super::writer::Values;
use super::byte_level::{PRE, name_of};
use super::merges::{MERGES, SCORES};
use super::settings::{TEMPLATE, TEMPLATES};
use super::vocabulary::{KINDS, Kind, PURPOSES, TOKENS};
use super::{MODEL, Model};

/// A model's tokenizer on its way into a file.
pub(in super::super) struct Source<'a> {
    pub(in super::super) parts: &'a Parts,
    /// Special tokens by Hugging Face's names.
    pub(in super::super) special: &'a Named,
    /// Chat templates by name.
    pub(in super::super) templates: &'a Named,
    /// The token that begins a text by the config, which counts where the tokenizer names none.
    pub(in super::super) bos: Option<u32>,
    /// The tokens that end a text; the tokenizer's counts where it is one of them.
    pub(in super::super) eos: &'a [u32],
    /// The rows of the embedding.
    pub(in super::super) rows: usize,
    /// GGUF's name of the model's architecture.
    pub(in super::super) architecture: &'a str,
}

/// Adds what a file says of a tokenizer. Whether it says all is for the reader of the values to find out.
///
/// # Errors
///
/// Why there is no kind of tokenizer for it in GGUF, in a few words.
pub(in super::super) fn write(source: &Source<'_>, values: &mut Values) -> Result<(), String> {
    let model = source.model()?;
    let tokens = source.tokens(model);
    let texts: Vec<&str> = tokens.iter().map(|token| &*token.0).collect();
    let kinds: Vec<Kind> = tokens.iter().map(|token| token.1).collect();
    match model {
        Model::SentencePiece => {
            values.text(MODEL, "llama");
            values.text(PRE, "default");
            values.numbers(SCORES, &source.scores(&texts, &kinds));
            values.flag("tokenizer.ggml.add_space_prefix", source.puts_space());
        }
        Model::ByteLevel => {
            let name = name_of(source.parts);
            values.text(MODEL, "gpt2");
            values.text(
                PRE,
                name.ok_or("GGUF has no name for how its texts are cut into words")?,
            );
            let merges = source.parts.merges.iter();
            let lines = merges.map(|(left, right)| format!("{left} {right}"));
            values.texts(MERGES, &lines.collect::<Vec<_>>());
        }
    }
    values.texts(TOKENS, &texts);
    let numbers: Vec<i32> = kinds.iter().map(|kind| kind.number()).collect();
    values.integers(KINDS, &numbers);
    source.write_purposes(values);
    source.write_templates(values);
    Ok(())
}

impl Source<'_> {
    fn model(&self) -> Result<Model, String> {
        let cuts_bytes = |step: &Value| step["type"] == "ByteLevel";
        if self.parts.pre_tokenizer.iter().any(cuts_bytes) {
            Ok(Model::ByteLevel)
        } else if self.parts.byte_fallback {
            Ok(Model::SentencePiece)
        } else {
            Err("GGUF has no BPE of characters that do not become bytes".into())
        }
    }

    /// Whether a space goes before a text.
    fn puts_space(&self) -> bool {
        let puts = |step: &Value| step["type"] == "Metaspace" && step["prepend_scheme"] != "never";
        self.parts.pre_tokenizer.iter().any(puts)
    }

    /// Text and kind of every row of the embedding; those without a token are filled up as llama.cpp's converter does.
    fn tokens(&self, model: Model) -> Vec<(String, Kind)> {
        let fill = |id| (format!("[PAD{id}]"), Kind::Unused);
        let mut tokens: Vec<_> = (0..self.rows).map(fill).collect();
        for (text, &id) in &self.parts.vocabulary {
            let kind = self.kind(model, text, id);
            let spells_spaces = kind == Kind::UserDefined
                && model == Model::SentencePiece
                && self.architecture.starts_with("gemma")
                && text.chars().all(|c| c == '▁');
            let text = if spells_spaces {
                text.replace('▁', " ")
            } else {
                text.clone()
            };
            tokens[id as usize] = (text, kind);
        }
        tokens
    }

    fn kind(&self, model: Model, text: &str, id: u32) -> Kind {
        let is_piece = model == Model::SentencePiece;
        let is_byte = || {
            let digits = text
                .strip_prefix("<0x")
                .and_then(|rest| rest.strip_suffix('>'));
            digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
        };
        match self.parts.added.get(&id) {
            _ if is_piece
                && self
                    .special
                    .get("unk_token")
                    .is_some_and(|unknown| unknown == text) =>
            {
                Kind::Unknown
            }
            Some(token) if token.special => Kind::Control,
            Some(_) => Kind::UserDefined,
            None if is_piece && is_byte() => Kind::Byte,
            None => Kind::Normal,
        }
    }

    /// For each token minus the number of those that are merged before it is; those that nothing is merged to come last.
    fn scores(&self, texts: &[&str], kinds: &[Kind]) -> Vec<f32> {
        let mut ranks: HashMap<String, usize> = HashMap::new();
        for (left, right) in &self.parts.merges {
            let next = ranks.len();
            ranks.entry([&**left, right].concat()).or_insert(next);
        }
        let score = |(text, kind): (&&str, &Kind)| match kind {
            Kind::Normal => -(ranks.get(*text).copied().unwrap_or(ranks.len()) as f32),
            _ => 0.0,
        };
        texts.iter().zip(kinds).map(score).collect()
    }

    /// Says which tokens have a purpose, and which of them are put around a text.
    fn write_purposes(&self, values: &mut Values) {
        // One that is a word would become a special token.
        let is_special = |id: &u32| self.parts.added.get(id).is_some_and(|token| token.special);
        let mut around = self.parts.around.as_slice();
        for (name, purpose, _) in PURPOSES {
            let named = self
                .special
                .get(name)
                .and_then(|text| self.parts.vocabulary.get(text));
            let named = named.copied();
            let id = match purpose {
                "bos" => named.or(self.bos.filter(is_special)),
                "eos" if self.eos.is_empty() => named,
                "eos" => named
                    .filter(|id| self.eos.contains(id))
                    .or(self.eos.first().copied()),
                _ => named,
            };
            let Some(id) = id else { continue };
            values.count(&format!("tokenizer.ggml.{purpose}_token_id"), id);
            let left = match purpose {
                "bos" => around.strip_prefix(&[id]),
                "eos" => around.strip_suffix(&[id]),
                _ => continue,
            };
            values.flag(
                &format!("tokenizer.ggml.add_{purpose}_token"),
                left.is_some(),
            );
            around = left.unwrap_or(around);
        }
    }

    fn write_templates(&self, values: &mut Values) {
        let named: Vec<_> = self
            .templates
            .iter()
            .filter(|(name, _)| *name != "default")
            .collect();
        if let Some(default) = self.templates.get("default") {
            values.text(TEMPLATE, default);
        }
        if !named.is_empty() {
            let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
            values.texts(TEMPLATES, &names);
        }
        for (name, source) in named {
            values.text(&format!("{TEMPLATE}.{name}"), source);
        }
    }
}
