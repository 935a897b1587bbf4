//! tokenizer.json: text to token ids and back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tokenizers::models::bpe::BPE;
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PaddingParams, PostProcessorWrapper, PreTokenizerWrapper,
    TokenizerImpl,
};

mod class;
mod lengths;
mod parts;
mod rebuilt;
mod stream;

use super::Config;
use super::error::{Error, Result};
use super::tokenizer_config::TokenizerConfig;
use crate::message::one_line;
use class::Class;
pub(super) use parts::{Parts, steps};
pub(super) use rebuilt::{QWEN2_PARTS, Rebuilt, byte_level, parse};
pub use stream::TextStream;
use stream::{Bytes, level_bytes};

/// A model's tokenizer.
///
/// Special tokens written out in a text (`<start_of_turn>`) are taken as those tokens, as Hugging
/// Face does.
///
/// # Which vocabulary
///
/// Every entry of the tokenizer's own vocabulary must be a row of the model's embedding. Tokens
/// *added* to it may lie beyond: all Gemma 3 models share one tokenizer.json whose
/// `<image_soft_token>`, 262 144, is one past the embedding of the text-only models. Such a token is
/// refused only when a text contains it. A tokenizer with fewer tokens than the model is accepted: the
/// embedding of the larger models is padded to 262 208 rows.
pub struct Tokenizer {
    inner: Bpe,
    path: PathBuf,
    /// The token that it puts before a text, if it does.
    bos: Option<u32>,
    bytes: Bytes,
    model_vocab_size: usize,
}

/// What the families' tokenizers are. The crate's type for any model at all reads vocabulary and merges, 33 MB for Gemma,
/// three times over, which is most of the time to the first token.
pub(super) type Bpe = TokenizerImpl<
    BPE,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Tokenizer({}, {} tokens)",
            self.path.display(),
            self.inner.get_vocab_size(true)
        )
    }
}

impl Tokenizer {
    /// Parses the bytes of a tokenizer.json, taken as it is, for a model with this config. `bos_token` is the text of
    /// the token that begins a sequence, if there is one. `path` only serves the messages.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`], and [`Error::TokenizerVocabulary`] or [`Error::TokenizerBos`] for a
    /// tokenizer of another model.
    pub fn from_bytes(
        path: &Path,
        json: &[u8],
        config: &Config,
        bos_token: Option<&str>,
    ) -> Result<Self> {
        Self::load(path, json, config, TokenizerConfig::as_written(bos_token))
    }

    /// Parses tokenizer.json and makes of it what transformers makes of it with these settings.
    pub(super) fn load(
        path: &Path,
        json: &[u8],
        config: &Config,
        settings: TokenizerConfig,
    ) -> Result<Self> {
        let class = Class::of(&settings, json)?;
        let refused = |e: &dyn std::fmt::Display| Error::Tokenizer {
            path: path.into(),
            reason: one_line(&format!("not a tokenizer this crate can read: {e}"), 300),
        };
        lengths::check(json).map_err(|e| refused(&e))?;
        let inner = serde_json::from_slice(json).map_err(|e| refused(&e))?;
        Self::of_class(class, path, inner, config, settings)
    }

    /// A tokenizer that was read already, taken as it is.
    pub(super) fn as_written(
        path: &Path,
        inner: Bpe,
        config: &Config,
        settings: TokenizerConfig,
    ) -> Result<Self> {
        Self::of_class(Class::AsWritten, path, inner, config, settings)
    }

    fn of_class(
        class: Class,
        path: &Path,
        mut inner: Bpe,
        config: &Config,
        mut settings: TokenizerConfig,
    ) -> Result<Self> {
        let pad = inner.get_padding().map(|padding| padding.pad_token.clone());
        class.add_special_tokens(&mut settings, pad.as_deref());
        let bos_token = settings.special_text("bos_token");
        let bos = bos_token.and_then(|token| inner.token_to_id(token));
        let mut finish = || {
            class.apply(&mut inner, &settings)?;
            // Lengths to cut or pad to and merges left out at random belong to training, and would change a prompt
            // silently.
            inner.with_truncation(None)?.with_padding(None);
            if inner.get_model().dropout.is_some() {
                let mut model = inner.get_model().clone();
                model.dropout = None;
                inner.with_model(model);
            }
            Ok(())
        };
        finish().map_err(|e: tokenizers::Error| Error::Tokenizer {
            path: path.into(),
            reason: one_line(&e.to_string(), 300),
        })?;
        let decoder = serde_json::to_string(&inner.get_decoder()).unwrap_or_default();
        let mut tokenizer = Self {
            bytes: if decoder.contains("\"ByteLevel\"") {
                Bytes::Level
            } else if decoder.contains("\"ByteFallback\"") {
                Bytes::Fallback
            } else {
                Bytes::None
            },
            inner,
            path: path.into(),
            bos: None,
            model_vocab_size: config.vocab_size,
        };
        tokenizer.check_vocabulary()?;
        // Gemma's first token has one id in all its vocabularies; of other families a config may name another than the
        // tokenizer's.
        let gemma = config.model_type.starts_with("gemma");
        if let (Some(token), Some(expected), true) = (bos_token, config.bos_token_id, gemma) {
            tokenizer.check_bos(token, bos, expected)?;
        }
        let before = tokenizer.ids("", true)?.first().copied();
        tokenizer.bos = before.filter(|id| bos == Some(*id));
        Ok(tokenizer)
    }

    fn check_vocabulary(&self) -> Result<()> {
        let vocabulary = self.inner.get_vocab(false);
        match vocabulary.into_iter().max_by_key(|(_, id)| *id) {
            Some((token, id)) if id as usize >= self.model_vocab_size => {
                Err(Error::TokenizerVocabulary {
                    path: self.path.clone(),
                    token,
                    id,
                    vocab_size: self.model_vocab_size,
                })
            }
            _ => Ok(()),
        }
    }

    /// Checks that `token` is the model's first; `found` is its id in the file.
    fn check_bos(&self, token: &str, found: Option<u32>, expected: u32) -> Result<()> {
        if self.inner.token_to_id(token) == Some(expected) {
            return Ok(());
        }
        Err(Error::TokenizerBos {
            path: self.path.clone(),
            token: token.into(),
            found,
            expected,
        })
    }

    /// The ids of `text` with the special tokens that the tokenizer's post-processor puts around them: for Gemma
    /// `<bos>` before them, for GPT-2 none. Where `<bos>` would stand before itself, because the text begins with it
    /// too, it stands there once.
    ///
    /// # Errors
    ///
    /// [`Error::TokenBeyondVocabulary`] and [`Error::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.ids(text, true)?;
        Ok(ids[self.count_bos(&ids).saturating_sub(1)..].to_vec())
    }

    /// The ids of `text` and nothing else: for a text that a chat template wrote.
    ///
    /// # Errors
    ///
    /// Those of [`encode`](Self::encode).
    pub fn encode_as_written(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(text, false)
    }

    fn ids(&self, text: &str, post_process: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, post_process);
        let ids = encoding.map_err(|e| self.failed("encode the text", &e))?;
        let ids = ids.get_ids();
        match ids.iter().find(|id| **id as usize >= self.model_vocab_size) {
            Some(&id) => Err(Error::TokenBeyondVocabulary {
                token: self.token_text(id).unwrap_or_default(),
                id,
                vocab_size: self.model_vocab_size,
            }),
            None => Ok(ids.to_vec()),
        }
    }

    /// The ids of a `text` that continues another: without the `<bos>` that the tokenizer puts before texts, even where
    /// the text begins with it.
    ///
    /// # Errors
    ///
    /// Those of [`encode`](Self::encode).
    pub fn encode_more(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode_as_written(text)?;
        ids.drain(..self.count_bos(&ids));
        Ok(ids)
    }

    /// How many `<bos>` the ids begin with, where the tokenizer puts one before a text.
    fn count_bos(&self, ids: &[u32]) -> usize {
        ids.iter().take_while(|id| Some(**id) == self.bos).count()
    }

    /// The text of `ids`, special tokens left out. Ids that the tokenizer does not know are skipped;
    /// bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = self.inner.decode(ids, true);
        text.map_err(|e| self.failed("decode the token ids", &e))
    }

    /// A decoder that takes tokens one by one.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }

    /// The bytes that token `id` stands for, none where it is special or unknown; or `None` for a token whose text the
    /// decoder makes.
    fn bytes_of(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.inner.id_to_token(id);
        let is_special = |token: &String| self.inner.get_added_vocabulary().is_special_token(token);
        let Some(token) = token.filter(|token| !is_special(token)) else {
            return Some(Vec::new());
        };
        match self.bytes {
            Bytes::None => None,
            Bytes::Level => Some(level_bytes(&token)),
            Bytes::Fallback => {
                let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
                let is_byte = token.len() == "<0x00>".len();
                u8::from_str_radix(digits, 16)
                    .ok()
                    .filter(|_| is_byte)
                    .map(|byte| vec![byte])
            }
        }
    }

    /// Whether token `id` has no part in texts: a special token, or one that the tokenizer does not know.
    #[cfg(feature = "server")]
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.bytes_of(id).is_some_and(|bytes| bytes.is_empty())
    }

    /// The bytes that token `id` adds to a text that has begun; of a special token its name's, of an unknown one none.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`].
    pub fn token_bytes(&self, id: u32) -> Result<Vec<u8>> {
        if let Some(bytes) = self.bytes_of(id) {
            if bytes.is_empty() {
                return Ok(self.token_text(id).unwrap_or_default().into_bytes());
            }
            return Ok(bytes);
        }
        let mut stream = self.stream();
        stream.push(id)?;
        Ok(stream.push(id)?.into_bytes())
    }

    /// Token `id` as the vocabulary writes it: `▁Paris`, `<0x0A>`, `<bos>`.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    fn failed(&self, action: &str, error: &tokenizers::Error) -> Error {
        Error::Tokenizer {
            path: self.path.clone(),
            reason: one_line(&format!("cannot {action}: {error}"), 300),
        }
    }
}

/// Names and texts of the special tokens that a tokenizer with these settings and the tokenizer.json `json` has.
pub(super) fn special_tokens(
    mut settings: TokenizerConfig,
    json: &[u8],
) -> Result<BTreeMap<String, String>> {
    /// What of the file matters.
    #[derive(serde::Deserialize)]
    struct Padding {
        padding: Option<PaddingParams>,
    }
    let class = Class::of(&settings, json)?;
    let padding = || serde_json::from_slice::<Padding>(json).ok()?.padding;
    // The file is large.
    let padding = class.takes_padding().then(padding).flatten();
    class.add_special_tokens(&mut settings, padding.as_ref().map(|p| &*p.pad_token));
    let named = settings.special.into_iter();
    Ok(named
        .filter_map(|(name, token)| Some((name, token?.content)))
        .collect())
}

#[cfg(test)]
mod tests;
