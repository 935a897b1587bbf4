//! What transformers' tokenizer classes make of tokenizer.json and tokenizer_config.json.

use std::collections::{HashMap, HashSet};

use serde::de::DeserializeOwned;
use tokenizers::{
    AddedToken, AddedVocabulary, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper,
};

use super::super::error::{Error, Result};
use super::super::tokenizer_config::TokenizerConfig;
use super::Bpe;
use crate::message::shown;

/// A class by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Takes tokenizer.json as it is.
    AsWritten,
    /// Takes vocabulary, merges and post-processor, and makes the rest as the published Gemmas have it.
    Gemma,
}

/// Classes of transformers 5.23, without `Fast` at the end, that make a tokenizer in a way of their own: of those in
/// `TOKENIZER_MAPPING_NAMES`, the ones with an `__init__`, and the ones that do not read tokenizer.json.
const OTHER_CLASSES: &[&str] = &[
    "AlbertTokenizer",
    "BartTokenizer",
    "BarthezTokenizer",
    "BartphoTokenizer",
    "BertJapaneseTokenizer",
    "BertTokenizer",
    "BertTokenizerLegacy",
    "BertweetTokenizer",
    "BigBirdTokenizer",
    "BioGptTokenizer",
    "BlenderbotSmallTokenizer",
    "BlenderbotTokenizer",
    "ByT5Tokenizer",
    "CLIPTokenizer",
    "CTRLTokenizer",
    "CamembertTokenizer",
    "CanineTokenizer",
    "ClvpTokenizer",
    "CodeGenTokenizer",
    "CodeLlamaTokenizer",
    "CohereTokenizer",
    "CpmAntTokenizer",
    "CpmTokenizer",
    "DPRContextEncoderTokenizer",
    "DPRQuestionEncoderTokenizer",
    "DPRReaderTokenizer",
    "DebertaTokenizer",
    "DebertaV2Tokenizer",
    "DiaTokenizer",
    "DistilBertTokenizer",
    "EsmTokenizer",
    "EsmcTokenizer",
    "FSMTTokenizer",
    "FlaubertTokenizer",
    "FunnelTokenizer",
    "GPT2Tokenizer",
    "GPTNeoXJapaneseTokenizer",
    "GPTNeoXTokenizer",
    "GPTSw3Tokenizer",
    "HerbertTokenizer",
    "LEDTokenizer",
    "LasrTokenizer",
    "LayoutLMv2Tokenizer",
    "LayoutLMv3Tokenizer",
    "LayoutXLMTokenizer",
    "LlamaTokenizer",
    "LukeTokenizer",
    "LxmertTokenizer",
    "MBart50Tokenizer",
    "MBartTokenizer",
    "MLukeTokenizer",
    "MPNetTokenizer",
    "MarkupLMTokenizer",
    "MgpstrTokenizer",
    "MobileBertTokenizer",
    "MvpTokenizer",
    "MyT5Tokenizer",
    "NllbTokenizer",
    "NougatTokenizer",
    "OpenAIGPTTokenizer",
    "PLBartTokenizer",
    "PegasusTokenizer",
    "PerceiverTokenizer",
    "PhobertTokenizer",
    "ProphetNetTokenizer",
    "Qwen2Tokenizer",
    "Qwen3_5Tokenizer",
    "RagTokenizer",
    "ReformerTokenizer",
    "RemBertTokenizer",
    "RoCBertTokenizer",
    "RoFormerTokenizer",
    "RobertaTokenizer",
    "SeamlessM4TTokenizer",
    "Siglip2Tokenizer",
    "SplinterTokenizer",
    "SqueezeBertTokenizer",
    "T5Tokenizer",
    "TapasTokenizer",
    "Tipsv2Tokenizer",
    "UdopTokenizer",
    "VideoPrismTokenizer",
    "VitsTokenizer",
    "Wav2Vec2CTCTokenizer",
    "Wav2Vec2PhonemeCTCTokenizer",
    "WhisperTokenizer",
    "XGLMTokenizer",
    "XLMRobertaTokenizer",
    "XLMTokenizer",
    "XLNetTokenizer",
];

impl Class {
    /// The class that reads a Gemma checkpoint with these settings and the tokenizer.json `json`.
    pub(super) fn of(settings: &TokenizerConfig, json: &[u8]) -> Result<Self> {
        let Some((name, path)) = &settings.class else {
            return Ok(Self::Gemma);
        };
        match name.strip_suffix("Fast").unwrap_or(name) {
            "GemmaTokenizer" => Ok(Self::Gemma),
            // Many files name this class although their tokenizer is not of its kind, and transformers knows.
            "LlamaTokenizer" if contains(json, b"\"ByteLevel\"") => Ok(Self::AsWritten),
            other if OTHER_CLASSES.contains(&other) => Err(Error::UnsupportedOption {
                path: path.clone(),
                field: "tokenizer_class".into(),
                found: shown(name),
                supported: "GemmaTokenizer, or PreTrainedTokenizerFast for a tokenizer.json as it is",
            }),
            _ => Ok(Self::AsWritten),
        }
    }

    /// Names and texts of the special tokens, whether or not the settings name them.
    pub(super) fn add_special_tokens(self, settings: &mut TokenizerConfig, pad: Option<&str>) {
        const GEMMA: [(&str, &str); 5] = [
            ("bos_token", "<bos>"),
            ("eos_token", "<eos>"),
            ("unk_token", "<unk>"),
            ("pad_token", "<pad>"),
            ("mask_token", "<mask>"),
        ];
        let defaults = if self == Self::Gemma { &GEMMA[..] } else { &[] };
        let pad = pad
            .filter(|_| self == Self::AsWritten)
            .map(|pad| ("pad_token", pad));
        for (name, text) in defaults.iter().copied().chain(pad) {
            let token = || Some(AddedToken::from(text, true));
            settings.special.entry(name.into()).or_insert_with(token);
        }
    }

    /// Changes a tokenizer that was read from tokenizer.json to what this class makes of it.
    pub(super) fn apply(
        self,
        inner: &mut Bpe,
        settings: &TokenizerConfig,
    ) -> tokenizers::Result<()> {
        if self == Self::Gemma {
            make_gemma(inner, settings)?;
        }
        let listed = settings.added.is_some();
        if self == Self::Gemma && listed {
            inner.with_added_vocabulary(AddedVocabulary::new());
        }
        let tokens = self.missing_tokens(inner, settings);
        if !tokens.is_empty() {
            inner.add_tokens(tokens)?;
        }
        inner.set_encode_special_tokens(settings.split_special_tokens);
        Ok(())
    }

    /// The added tokens that the tokenizer does not have, or has otherwise, in the order in which they get their ids.
    fn missing_tokens(self, inner: &Bpe, settings: &TokenizerConfig) -> Vec<AddedToken> {
        let present = inner.get_added_tokens_decoder();
        let named: HashSet<&str> = settings.named_tokens().map(|t| &*t.content).collect();
        let mut listed = settings.added.clone().unwrap_or_else(|| {
            let mut older = settings.older_added.clone();
            older.extend(present.iter().map(|(id, token)| (*id, token.clone())));
            older
        });
        let texts = present.values().map(|token| (&*token.content, token));
        let by_text: HashMap<&str, &AddedToken> = texts.collect();
        let is_present = |token: &AddedToken| by_text.get(&*token.content) == Some(&token);
        if self == Self::AsWritten {
            listed.retain(|_, token| !is_present(token));
        }
        let mut tokens: Vec<AddedToken> = listed.into_values().collect();
        for token in &mut tokens {
            token.special |= named.contains(&*token.content);
        }
        let mut known: HashSet<&str> = by_text.keys().copied().collect();
        known.extend(tokens.iter().map(|t| &*t.content));
        let others = settings.named_tokens().chain(&settings.extra);
        let others: Vec<AddedToken> = others
            .filter(|t| known.insert(&t.content))
            .cloned()
            .collect();
        tokens.extend(others);
        tokens.retain(|token| !is_present(token));
        tokens
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Everything but vocabulary, merges and post-processor as `GemmaTokenizer` has it.
fn make_gemma(inner: &mut Bpe, settings: &TokenizerConfig) -> tokenizers::Result<()> {
    // Without this token the class looks for one that is called as Python's null.
    let unknown = settings.special_text("unk_token").unwrap_or("None");
    let model = inner.get_model();
    let is_none = |text: &Option<String>| text.as_ref().is_none_or(String::is_empty);
    if !is_none(&model.continuing_subword_prefix) {
        return Err("GemmaTokenizer has no continuing_subword_prefix; leave it out".into());
    }
    let as_gemma = model.dropout.is_none()
        && model.unk_token.as_deref() == Some(unknown)
        && is_none(&model.end_of_word_suffix)
        && (model.fuse_unk, model.byte_fallback, model.ignore_merges) == (true, true, false);
    if !as_gemma {
        let mut model = model.clone();
        model.dropout = None;
        model.unk_token = Some(unknown.into());
        model.end_of_word_suffix = None;
        (model.fuse_unk, model.byte_fallback, model.ignore_merges) = (true, true, false);
        inner.with_model(model);
    }
    let normalizer = r#"{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}"#;
    let pre_tokenizer = r#"{"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
        "invert": false}"#;
    let decoder = r#"{"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}]}"#;
    inner.with_pre_tokenizer(Some(parse::<PreTokenizerWrapper>(pre_tokenizer)?));
    inner.with_decoder(Some(parse::<DecoderWrapper>(decoder)?));
    inner.with_normalizer(Some(parse::<NormalizerWrapper>(normalizer)?))?;
    Ok(())
}

fn parse<T: DeserializeOwned>(json: &str) -> serde_json::Result<T> {
    serde_json::from_str(json)
}
