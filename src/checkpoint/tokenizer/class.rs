//! Which of transformers' tokenizer classes reads a checkpoint, and what it makes of tokenizer.json and
//! tokenizer_config.json.

use std::collections::{HashMap, HashSet};

use tokenizers::{AddedToken, AddedVocabulary};

use super::super::error::{Error, Result};
use super::super::tokenizer_config::TokenizerConfig;
use super::Bpe;
use super::rebuilt::Rebuilt;
use crate::message::shown;

/// A class by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Takes tokenizer.json as it is.
    AsWritten,
    /// Takes vocabulary, merges and post-processor, and makes the rest anew.
    Rebuilt(Rebuilt),
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
    "GPTNeoXJapaneseTokenizer",
    "GPTNeoXTokenizer",
    "GPTSw3Tokenizer",
    "HerbertTokenizer",
    "LEDTokenizer",
    "LasrTokenizer",
    "LayoutLMv2Tokenizer",
    "LayoutLMv3Tokenizer",
    "LayoutXLMTokenizer",
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

/// The class of a model type's tokenizers where the files name none; `None` for a type that has none.
fn registered(model_type: &str) -> Option<Class> {
    Some(match model_type {
        "gemma" | "gemma2" | "gemma3" | "gemma3_text" => Class::Rebuilt(Rebuilt::Gemma),
        "gpt2" | "gptj" | "phi" | "starcoder2" => Class::Rebuilt(Rebuilt::Gpt2),
        "qwen2" | "qwen2_moe" | "qwen3" | "qwen3_moe" => Class::Rebuilt(Rebuilt::Qwen2),
        "granite" | "mistral" | "mixtral" | "olmo2" | "olmo3" | "phi3" | "stablelm" => {
            Class::AsWritten
        }
        _ => return None,
    })
}

impl Class {
    /// The class that `AutoTokenizer` takes for a checkpoint with these settings and the tokenizer.json `json`.
    pub(super) fn of(settings: &TokenizerConfig, json: &[u8]) -> Result<Self> {
        let registered = registered(&settings.model_type);
        let Some((name, path)) = &settings.class else {
            return Ok(registered.unwrap_or(Self::AsWritten));
        };
        // What the files of these types name counts for nothing.
        let is_fixed = registered == Some(Self::AsWritten) || settings.model_type == "qwen2";
        if let Some(class) = registered.filter(|_| is_fixed) {
            return Ok(class);
        }
        let plain = name.strip_suffix("Fast").unwrap_or(name);
        // Llama 3 and others name this class although their tokenizers are of bytes.
        if plain == "LlamaTokenizer" && contains(json, b"\"ByteLevel\"") {
            return Ok(Self::AsWritten);
        }
        if OTHER_CLASSES.contains(&plain) {
            return Err(Error::UnsupportedOption {
                path: path.clone(),
                field: "tokenizer_class".into(),
                found: shown(name),
                supported: "the tokenizers of Gemma, GPT-2, Llama and Qwen2, or PreTrainedTokenizerFast for a \
                            tokenizer.json as it is",
            });
        }
        Ok(Rebuilt::named(plain).map_or(Self::AsWritten, Self::Rebuilt))
    }

    /// Names and texts of the special tokens, whether or not the settings name them. `pad` is what tokenizer.json
    /// pads with.
    pub(super) fn add_special_tokens(self, settings: &mut TokenizerConfig, pad: Option<&str>) {
        let defaults = match self {
            Self::AsWritten => &[],
            Self::Rebuilt(kind) => kind.special_tokens(),
        };
        let pad = pad.filter(|_| self.takes_padding());
        let pad = pad.map(|pad| ("pad_token", pad));
        for (name, text) in defaults.iter().copied().chain(pad) {
            let token = || Some(AddedToken::from(text, true));
            settings.special.entry(name.into()).or_insert_with(token);
        }
    }

    /// Whether what tokenizer.json pads with becomes the pad token: the other classes have one of their own, or none.
    pub(super) fn takes_padding(self) -> bool {
        matches!(self, Self::AsWritten | Self::Rebuilt(Rebuilt::Llama))
    }

    /// Changes a tokenizer that was read from tokenizer.json to what this class makes of it.
    pub(super) fn apply(
        self,
        inner: &mut Bpe,
        settings: &TokenizerConfig,
    ) -> tokenizers::Result<()> {
        if let Self::Rebuilt(kind) = self {
            kind.rebuild(inner, settings)?;
            if settings.added.is_some() {
                inner.with_added_vocabulary(AddedVocabulary::new());
            }
        }
        let tokens = self.missing_tokens(inner, settings);
        if !tokens.is_empty() {
            inner.add_tokens(tokens)?;
        }
        if self == Self::Rebuilt(Rebuilt::Qwen2) {
            // This class adds them once more, without their flags.
            let special = settings.named_tokens().chain(&settings.extra);
            let plain = special.map(|token| AddedToken::from(token.content.clone(), true));
            inner.add_tokens(plain.collect::<Vec<_>>())?;
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
