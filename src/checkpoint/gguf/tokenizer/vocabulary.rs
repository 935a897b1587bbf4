//! The tokens of a GGUF file: their texts, what kind each is, and what some are for.

use std::borrow::Cow;

use tokenizers::models::bpe::Vocab;

use super::super::super::error::Result;
use super::super::metadata::Metadata;
use super::Model;
use crate::message::shown;

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const KINDS: &str = "tokenizer.ggml.token_type";

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    /// Stands for text that no token is.
    Unknown,
    /// Stands for no text: it begins a text, ends a turn, and so on.
    Control,
    /// Added to the vocabulary after its training, and found in a text before anything else.
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    /// The number that stands for it in a file.
    pub(super) fn number(self) -> i32 {
        match self {
            Self::Normal => 1,
            Self::Unknown => 2,
            Self::Control => 3,
            Self::UserDefined => 4,
            Self::Unused => 5,
            Self::Byte => 6,
        }
    }
}

/// The tokens by id.
pub(super) struct Vocabulary<'a> {
    /// Their texts, empty for an id that only fills the vocabulary up.
    texts: Vec<Cow<'a, str>>,
    kinds: Vec<Kind>,
}

impl<'a> Vocabulary<'a> {
    pub(super) fn read(metadata: &'a Metadata, model: Model) -> Result<Self> {
        let Some(texts) = metadata.strings(TOKENS)? else {
            return Err(metadata.wrong(TOKENS, "an array of the tokens' texts"));
        };
        let kinds = kinds(metadata, texts.len())?;
        let architecture = metadata.string("general.architecture")?.unwrap_or_default();
        let spells_spaces = model == Model::SentencePiece && architecture.starts_with("gemma");
        let spelled = |(id, text): (usize, &'a str)| {
            if kinds[id] != Kind::Normal
                && text
                    .strip_prefix("[PAD")
                    .is_some_and(|rest| rest == format!("{id}]"))
            {
                Cow::Borrowed("")
            } else if spells_spaces
                && kinds[id] == Kind::UserDefined
                && text.bytes().all(|byte| byte == b' ')
            {
                Cow::Owned("▁".repeat(text.len()))
            } else {
                Cow::Borrowed(text)
            }
        };
        Ok(Self {
            texts: texts.into_iter().enumerate().map(spelled).collect(),
            kinds,
        })
    }

    /// All tokens with their ids, but for those that only fill the vocabulary up.
    pub(super) fn tokens(&self) -> impl Iterator<Item = (u32, &str, Kind)> {
        let all = (0..).zip(&self.texts).zip(&self.kinds);
        let all = all.map(|((id, text), kind)| (id, &**text, *kind));
        all.filter(|(_, text, _)| !text.is_empty())
    }

    /// The text of a token.
    pub(super) fn text(&self, id: u32) -> Option<&str> {
        let text = self.texts.get(id as usize)?;
        (!text.is_empty()).then_some(text)
    }

    /// The ids by text.
    pub(super) fn ids(&self, metadata: &Metadata) -> Result<Vocab> {
        let mut ids = Vocab::with_capacity(self.texts.len());
        for (id, text, _) in self.tokens() {
            if let Some(first) = ids.insert(text.into(), id) {
                let expected = format!(
                    "an array of texts that differ; tokens {first} and {id} are both {}",
                    shown(text)
                );
                return Err(metadata.wrong(TOKENS, expected));
            }
        }
        Ok(ids)
    }

    /// Refuses an array with the key `key` that has not one element for each token.
    pub(super) fn check_length(&self, metadata: &Metadata, key: &str, length: usize) -> Result<()> {
        check_length(metadata, key, length, self.texts.len())
    }
}

fn check_length(metadata: &Metadata, key: &str, length: usize, tokens: usize) -> Result<()> {
    if length == tokens {
        return Ok(());
    }
    Err(metadata.wrong(key, format!("an array of {tokens}, as long as {TOKENS}")))
}

/// What each of the tokens is; all are normal where the file does not say it.
fn kinds(metadata: &Metadata, tokens: usize) -> Result<Vec<Kind>> {
    let Some(numbers) = metadata.unsigneds(KINDS)? else {
        return Ok(vec![Kind::Normal; tokens]);
    };
    check_length(metadata, KINDS, numbers.len(), tokens)?;
    let kind = |number: u64| {
        Ok(match number {
            0 | 1 => Kind::Normal,
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            other => {
                return Err(metadata.wrong(
                    KINDS,
                    format!("an array of numbers from 0 to 6, without {other}"),
                ));
            }
        })
    };
    numbers.into_iter().map(kind).collect()
}

/// Hugging Face's names for the tokens that have a purpose, GGUF's, and SentencePiece's usual ids.
pub(super) const PURPOSES: [(&str, &str, Option<u32>); 7] = [
    ("bos_token", "bos", Some(1)),
    ("eos_token", "eos", Some(2)),
    ("unk_token", "unknown", Some(0)),
    ("sep_token", "seperator", None),
    ("pad_token", "padding", None),
    ("cls_token", "cls", None),
    ("mask_token", "mask", None),
];

/// The tokens that have a purpose, by Hugging Face's name for it.
pub(super) struct SpecialTokens<'a>(Vec<(&'static str, u32, &'a str)>);

impl<'a> SpecialTokens<'a> {
    pub(super) fn read(
        metadata: &Metadata,
        model: Model,
        vocabulary: &'a Vocabulary<'a>,
    ) -> Result<Self> {
        let mut tokens = Vec::new();
        for (name, purpose, usual) in PURPOSES {
            let usual = usual.filter(|_| model == Model::SentencePiece);
            let id = token_id(metadata, purpose, vocabulary)?.or(usual);
            let text = id.and_then(|id| Some((name, id, vocabulary.text(id)?)));
            tokens.extend(text);
        }
        Ok(Self(tokens))
    }

    /// Names, ids and texts.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, u32, &'a str)> {
        self.0.iter().copied()
    }

    /// Id and text of the token of this name.
    pub(super) fn get(&self, name: &str) -> Option<(u32, &'a str)> {
        let (_, id, text) = self.iter().find(|token| token.0 == name)?;
        Some((id, text))
    }
}

/// The id of the token with a purpose, where the file says it.
pub(super) fn token_id(
    metadata: &Metadata,
    purpose: &str,
    vocabulary: &Vocabulary<'_>,
) -> Result<Option<u32>> {
    let key = format!("tokenizer.ggml.{purpose}_token_id");
    let Some(id) = metadata.unsigned(&key)? else {
        return Ok(None);
    };
    let count = vocabulary.texts.len();
    match u32::try_from(id) {
        Ok(id) if (id as usize) < count => Ok(Some(id)),
        _ => Err(metadata.wrong(&key, format!("the id of one of the {count} tokens"))),
    }
}
