//! What transformers' classes make anew around the vocabulary and the merges of a tokenizer.json.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokenizers::{DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::super::tokenizer_config::TokenizerConfig;
use super::Bpe;

/// Where Qwen2 cuts a text before its merges.
pub(in crate::checkpoint) const QWEN2_PARTS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A class that takes vocabulary, merges and post-processor of tokenizer.json only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::checkpoint) enum Rebuilt {
    /// `GemmaTokenizer`.
    Gemma,
    /// `GPT2Tokenizer`, and `CodeGenTokenizer`, which reads as it does.
    Gpt2,
    /// `LlamaTokenizer`.
    Llama,
    /// `Qwen2Tokenizer`.
    Qwen2,
}

impl Rebuilt {
    /// The class of this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "GemmaTokenizer" => Self::Gemma,
            "CodeGenTokenizer" | "GPT2Tokenizer" => Self::Gpt2,
            "LlamaTokenizer" => Self::Llama,
            "Qwen2Tokenizer" => Self::Qwen2,
            _ => return None,
        })
    }

    /// Names and texts of the special tokens where the settings do not name them.
    pub(super) fn special_tokens(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Gemma => &[
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("unk_token", "<unk>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
            Self::Gpt2 => &[
                ("bos_token", "<|endoftext|>"),
                ("eos_token", "<|endoftext|>"),
                ("unk_token", "<|endoftext|>"),
            ],
            Self::Llama => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "<unk>"),
            ],
            Self::Qwen2 => &[
                ("eos_token", "<|endoftext|>"),
                ("unk_token", "<|endoftext|>"),
                ("pad_token", "<|endoftext|>"),
            ],
        }
    }

    /// Makes everything but vocabulary, merges and post-processor as this class has it.
    pub(super) fn rebuild(
        self,
        inner: &mut Bpe,
        settings: &TokenizerConfig,
    ) -> tokenizers::Result<()> {
        self.set_model(inner, settings)?;
        self.rebuild_around_model(inner, settings)
    }

    /// Makes normalizer, pre-tokenizer and decoder as this class has them.
    pub(in crate::checkpoint) fn rebuild_around_model(
        self,
        inner: &mut Bpe,
        settings: &TokenizerConfig,
    ) -> tokenizers::Result<()> {
        let prefix_space = settings.add_prefix_space.unwrap_or(self == Self::Llama);
        let (normalizer, pre_tokenizer) = match self {
            Self::Gemma => (
                json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
                json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false}),
            ),
            Self::Gpt2 => (Value::Null, byte_level(prefix_space, true)),
            Self::Llama => {
                let scheme = match (prefix_space, settings.legacy) {
                    (false, _) => "never",
                    (true, false) => "first",
                    (true, true) => "always",
                };
                let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
                (Value::Null, metaspace)
            }
            Self::Qwen2 => {
                let parts = json!({"type": "Split", "pattern": {"Regex": QWEN2_PARTS}, "behavior": "Isolated", "invert": false});
                let both = [parts, byte_level(prefix_space, false)];
                (
                    json!({"type": "NFC"}),
                    json!({"type": "Sequence", "pretokenizers": both}),
                )
            }
        };
        inner.with_normalizer(parse::<NormalizerWrapper>(normalizer)?)?;
        inner.with_pre_tokenizer(parse::<PreTokenizerWrapper>(pre_tokenizer)?);
        inner.with_decoder(parse::<DecoderWrapper>(self.decoder(prefix_space))?);
        Ok(())
    }

    /// Gives the model this class's options.
    fn set_model(self, inner: &mut Bpe, settings: &TokenizerConfig) -> tokenizers::Result<()> {
        let model = inner.get_model();
        let is_none = |text: &Option<String>| text.as_ref().is_none_or(String::is_empty);
        if !is_none(&model.continuing_subword_prefix) {
            return Err("its class has no continuing_subword_prefix; leave it out".into());
        }
        let unknown = match self {
            // Without this token the class looks for one that is called as Python's null.
            Self::Gemma => Some(settings.special_text("unk_token").unwrap_or("None")),
            Self::Gpt2 | Self::Llama | Self::Qwen2 => None,
        };
        let of_bytes = matches!(self, Self::Gemma | Self::Llama);
        let is_ours = model.dropout.is_none()
            && model.unk_token.as_deref() == unknown
            && is_none(&model.end_of_word_suffix)
            && (model.fuse_unk, model.byte_fallback, model.ignore_merges)
                == (of_bytes, of_bytes, false);
        // The vocabulary is large: no copy without need.
        if !is_ours {
            let mut model = model.clone();
            model.dropout = None;
            model.unk_token = unknown.map(String::from);
            model.end_of_word_suffix = None;
            (model.fuse_unk, model.byte_fallback, model.ignore_merges) =
                (of_bytes, of_bytes, false);
            inner.with_model(model);
        }
        Ok(())
    }

    fn decoder(self, prefix_space: bool) -> Value {
        if matches!(self, Self::Gpt2 | Self::Qwen2) {
            return byte_level(true, true);
        }
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self == Self::Llama && prefix_space {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        json!({"type": "Sequence", "decoders": decoders})
    }
}

/// Bytes written as GPT-2 writes them.
pub(in crate::checkpoint) fn byte_level(add_prefix_space: bool, use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex})
}

/// A part of a tokenizer, or none.
pub(in crate::checkpoint) fn parse<T: DeserializeOwned>(
    json: Value,
) -> serde_json::Result<Option<T>> {
    serde_json::from_value(json)
}
