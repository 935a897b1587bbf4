//! The tokenizer in the metadata of a GGUF file, as Hugging Face's tokenizer.json of the same model has it.
//!
//! A file says less than tokenizer.json: a vocabulary, merges or the scores to rebuild them from, and the name of how a
//! text is cut. Ids are those of the model's own tokenizer.json where all of that tells them. They are not llama.cpp's
//! where the two differ:
//!
//! * Texts are brought into NFC first where the model's own tokenizer does so (Qwen2).
//! * With `add_space_prefix`, a space goes before a text that does not begin with one; llama.cpp puts it before each
//!   part of a text between special tokens, be there a space or not.
//! * Gemma's runs of spaces are merged like other tokens; llama.cpp takes the longest first.
//! * Falcon looks for digits among the characters that stand for bytes, where ¼ is one.
//! * DeepSeek's words of Chinese characters have what stands between U+0800 and those, too, some spaces among it.
//! * Words that look like the end of a turn (`</s>` in Qwen2's vocabulary) are words where the file says so.
//! * Tokens that only fill up the vocabulary (`[PAD151646]`) are in no text.
//!
//! What a token does to the spaces around it is in no file: added tokens leave them alone.

mod byte_level;
mod merges;
mod settings;
mod vocabulary;
mod written;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedToken, PostProcessorWrapper};

use super::super::error::{Error, Result};
use super::super::tokenizer::{Bpe, Rebuilt, parse};
use super::super::tokenizer_config::TokenizerConfig;
use super::metadata::Metadata;
use crate::message::one_line;
pub(super) use settings::{end_tokens, tokenizer_config};
use vocabulary::{Kind, SpecialTokens, Vocabulary};
pub(super) use written::{Source, write};

/// Names the kind of tokenizer.
pub(super) const MODEL: &str = "tokenizer.ggml.model";

/// The kinds of tokenizers that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    /// SentencePiece's BPE: characters, bytes where a character is no token, and merges by score.
    SentencePiece,
    /// BPE of the bytes of words.
    ByteLevel,
}

impl Model {
    /// The kind of the file's tokenizer, or `None` where it has none.
    fn of(metadata: &Metadata) -> Result<Option<Self>> {
        match metadata.string(MODEL)? {
            None | Some("no_vocab" | "none") => Ok(None),
            Some("llama") => Ok(Some(Self::SentencePiece)),
            Some("gpt2") => Ok(Some(Self::ByteLevel)),
            Some(_) => Err(metadata.wrong(MODEL, "llama or gpt2; give token ids instead of text")),
        }
    }
}

/// The file's tokenizer, or `None` where it has none.
///
/// # Errors
///
/// [`Error::FieldType`], [`Error::FieldValue`] and [`Error::Tokenizer`].
pub(super) fn tokenizer(metadata: &Metadata) -> Result<Option<Bpe>> {
    let Some(model) = Model::of(metadata)? else {
        return Ok(None);
    };
    let vocabulary = Vocabulary::read(metadata, model)?;
    let special = SpecialTokens::read(metadata, model, &vocabulary)?;
    let built = match model {
        Model::SentencePiece => sentence_piece(metadata, &vocabulary, &special)?,
        Model::ByteLevel => byte_level::build(metadata, &vocabulary)?,
    };
    let template = post_processor(metadata, built.adds_bos, &special)?;
    let mut inner = built.inner;
    let finish = || {
        inner.with_post_processor(parse::<PostProcessorWrapper>(template)?);
        inner.add_tokens(added_tokens(&vocabulary, &special))
    };
    finish().map_err(|e| refused(metadata, e))?;
    Ok(Some(inner))
}

/// The content of tokenizer.json, or `None` where the file has no tokenizer.
///
/// # Errors
///
/// Those of [`tokenizer`].
pub(super) fn tokenizer_json(metadata: &Metadata) -> Result<Option<Bytes>> {
    let Some(tokenizer) = tokenizer(metadata)? else {
        return Ok(None);
    };
    let json = serde_json::to_vec(&tokenizer).map_err(|e| refused(metadata, e.into()))?;
    Ok(Some(json.into()))
}

/// A tokenizer up to its added tokens and what it puts around a text.
struct Built {
    inner: Bpe,
    /// Whether `bos` goes before a text where the file does not say so.
    adds_bos: bool,
}

/// SentencePiece's BPE around which all is as transformers' classes have it: Llama's, or Gemma's, which puts no space
/// before a text.
fn sentence_piece(
    metadata: &Metadata,
    vocabulary: &Vocabulary<'_>,
    special: &SpecialTokens<'_>,
) -> Result<Built> {
    let ids = vocabulary.ids(metadata)?;
    let merges = merges::from_scores(metadata, vocabulary, &ids)?;
    let class = match metadata.flag("tokenizer.ggml.add_space_prefix")? {
        Some(false) => Rebuilt::Gemma,
        Some(true) | None => Rebuilt::Llama,
    };
    let build = || {
        let mut builder = BPE::builder().fuse_unk(true).byte_fallback(true);
        if let Some((_, unknown)) = special.get("unk_token") {
            builder = builder.unk_token(unknown.into());
        }
        let mut inner = Bpe::new(builder.vocab_and_merges(ids, merges).build()?);
        class.rebuild_around_model(&mut inner, &TokenizerConfig::default())?;
        Ok(inner)
    };
    let inner = build().map_err(|e| refused(metadata, e))?;
    Ok(Built {
        inner,
        adds_bos: true,
    })
}

/// The tokens that are found in a text before anything else: those that have a purpose, control tokens, and those that
/// users defined.
fn added_tokens(vocabulary: &Vocabulary<'_>, special: &SpecialTokens<'_>) -> Vec<AddedToken> {
    let added = |(id, text, kind): (u32, &str, Kind)| {
        let is_special = kind == Kind::Control || special.iter().any(|token| token.1 == id);
        let is_added = is_special || kind == Kind::UserDefined;
        is_added.then(|| AddedToken::from(text, is_special).normalized(false))
    };
    vocabulary.tokens().filter_map(added).collect()
}

/// What puts special tokens around a text, or null.
fn post_processor(
    metadata: &Metadata,
    adds_bos: bool,
    special: &SpecialTokens<'_>,
) -> Result<Value> {
    let token = |purpose: &str, usual: bool| -> Result<Option<(u32, &str)>> {
        let key = format!("tokenizer.ggml.add_{purpose}_token");
        if !metadata.flag(&key)?.unwrap_or(usual) {
            return Ok(None);
        }
        let found = special.get(&format!("{purpose}_token"));
        let id = format!("tokenizer.ggml.{purpose}_token_id");
        let expected = format!("the id of the token that {key} puts around a text");
        found.ok_or_else(|| metadata.wrong(&id, expected)).map(Some)
    };
    let [before, after] = [token("bos", adds_bos)?, token("eos", false)?];
    if before.is_none() && after.is_none() {
        return Ok(Value::Null);
    }
    let around = |sequence: &str, kind: u32| {
        let part = |text: &str| json!({"SpecialToken": {"id": text, "type_id": kind}});
        let text = json!({"Sequence": {"id": sequence, "type_id": kind}});
        let parts = [
            before.map(|token| part(token.1)),
            Some(text),
            after.map(|token| part(token.1)),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>()
    };
    let entry = |(id, text): (u32, &str)| {
        (
            text.to_owned(),
            json!({"id": text, "ids": [id], "tokens": [text]}),
        )
    };
    let tokens: Map<String, Value> = before.into_iter().chain(after).map(entry).collect();
    let pair = [around("A", 0), around("B", 1)].concat();
    Ok(json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": tokens,
    }))
}

fn refused(metadata: &Metadata, error: tokenizers::Error) -> Error {
    Error::Tokenizer {
        path: metadata.path().into(),
        reason: one_line(&error.to_string(), 300),
    }
}

#[cfg(test)]
mod tests;
