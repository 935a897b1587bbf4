//! tokenizer.json: text to token ids and back.

use std::path::{Path, PathBuf};

use tokenizers::models::bpe::BPE;
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

use super::Config;
use super::error::{Error, Result};
use crate::message::one_line;

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
    bos: u32,
    model_vocab_size: usize,
}

/// What Gemma's tokenizers are. The crate's type for any model at all reads the 33 MB of vocabulary and merges three times
/// over, which is most of the time to the first token.
type Bpe = TokenizerImpl<
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
    /// Parses the bytes of a tokenizer.json for a model with this config. `bos_token` is the text of the token that
    /// begins a sequence, from tokenizer_config.json; where that is not known, it is `<bos>`. `path`
    /// only serves the messages.
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
        let wrong = |reason: String| Error::Tokenizer {
            path: path.into(),
            reason: one_line(&reason, 300),
        };
        let mut inner: Bpe = serde_json::from_slice(json)
            .map_err(|e| wrong(format!("not a tokenizer this crate can read: {e}")))?;
        // A length to cut or pad to belongs to training, and would change a prompt silently.
        inner
            .with_truncation(None)
            .map_err(|e| wrong(e.to_string()))?
            .with_padding(None);
        let tokenizer = Self {
            inner,
            path: path.into(),
            bos: config.bos_token_id,
            model_vocab_size: config.vocab_size,
        };
        tokenizer.check_vocabulary()?;
        tokenizer.check_bos(bos_token)?;
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

    fn check_bos(&self, bos_token: Option<&str>) -> Result<()> {
        let token = bos_token.unwrap_or("<bos>");
        let found = self.inner.token_to_id(token);
        if found == Some(self.bos) {
            return Ok(());
        }
        Err(Error::TokenizerBos {
            path: self.path.clone(),
            token: token.into(),
            found,
            expected: self.bos,
        })
    }

    /// The ids of `text` with the config's `bos_token_id` before them exactly once, whether or not the
    /// text itself begins with `<bos>`. The tokenizer's own post-processor is left out.
    ///
    /// # Errors
    ///
    /// [`Error::TokenBeyondVocabulary`] and [`Error::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode_raw(text)?;
        let rest = ids.iter().copied().skip_while(|id| *id == self.bos);
        Ok(std::iter::once(self.bos).chain(rest).collect())
    }

    /// The ids of `text` and nothing else.
    fn encode_raw(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false);
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

    /// The ids of a `text` that continues another: the same without `bos_token_id`.
    ///
    /// # Errors
    ///
    /// Those of [`encode`](Self::encode).
    pub fn encode_more(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text)?;
        ids.remove(0);
        Ok(ids)
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
        TextStream {
            tokenizer: self,
            ids: Vec::new(),
            shown: 0,
        }
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

/// Text out of tokens as they come, never cutting a character in two: the pieces joined are what
/// [`Tokenizer::decode`] gives for all the tokens at once, as long as these spell valid UTF-8.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens of the last piece, for the decoder to see what the next ones follow, and then those
    /// that have come since.
    ids: Vec<u32>,
    /// How many of `ids` are of the last piece.
    shown: usize,
}

impl TextStream<'_> {
    /// Takes the next token and returns the text that it completes: empty for a special token, or
    /// within a character spelled as several byte tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let piece = self.pending()?;
        if piece.is_empty() || piece.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        self.ids.drain(..self.shown);
        self.shown = self.ids.len();
        Ok(piece)
    }

    /// What is left when no more tokens come: U+FFFD for the bytes of an unfinished character.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`].
    pub fn finish(self) -> Result<String> {
        self.pending()
    }

    /// The text of the tokens since the last piece.
    fn pending(&self) -> Result<String> {
        let (before, since) = self.ids.split_at(self.shown);
        let before = self.tokenizer.decode(before)?;
        let all = self.tokenizer.decode(&self.ids)?;
        match all.strip_prefix(&before) {
            Some(piece) => Ok(piece.to_owned()),
            // A stray byte after the last piece changes how the decoder reads that piece's own bytes.
            None => self.tokenizer.decode(since),
        }
    }
}

#[cfg(test)]
mod tests;
