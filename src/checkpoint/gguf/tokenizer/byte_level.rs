//! BPE of the bytes of words, and where texts are cut into words.

use serde_json::{Value, json};
use tokenizers::models::bpe::BPE;
use tokenizers::{DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::super::super::error::Result;
use super::super::super::tokenizer::{Bpe, Parts, QWEN2_PARTS, byte_level, parse, steps};
use super::super::metadata::Metadata;
use super::vocabulary::Vocabulary;
use super::{Built, merges, refused};

pub(super) const PRE: &str = "tokenizer.ggml.pre";

/// What a tokenizer does before its merges, by GGUF's names for it.
struct Preparation {
    names: &'static [&'static str],
    /// Whether texts are brought into NFC.
    nfc: bool,
    cuts: &'static [Cut],
    /// Whether a word that is a token is that token, whatever the merges make of it.
    ignore_merges: bool,
    /// Whether `bos` goes before a text where the file does not say so.
    adds_bos: bool,
}

/// A step that cuts texts.
enum Cut {
    /// What the expression finds is a word.
    Around(&'static str),
    /// Each digit is a word, or where they are not `apart` all that follow one another.
    Digits { apart: bool },
    /// Signs that follow one another are a word.
    Punctuation,
    /// GPT-2's words, then bytes.
    Gpt2,
    /// Bytes.
    Bytes,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Letters that come in two cases, as Unicode knew them; what changes in NFC is written in numbers.
const DEEPSEEK_WORDS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const CHINESE_AND_KOREAN: &str = "[一-龥ࠀ-一가-퟿]+";

const GPT2: Preparation = Preparation {
    names: &["gpt-2", "phi-2"],
    nfc: false,
    cuts: &[Cut::Gpt2],
    ignore_merges: false,
    adds_bos: false,
};
const FALCON: Preparation = Preparation {
    names: &["falcon"],
    cuts: &[
        Cut::Punctuation,
        Cut::Gpt2,
        Cut::Digits { apart: false },
        Cut::Around("[0-9][0-9][0-9]"),
    ],
    ..GPT2
};
const QWEN2: Preparation = Preparation {
    names: &["qwen2", "deepseek-r1-qwen", "megrez"],
    nfc: true,
    cuts: &[Cut::Around(QWEN2_PARTS), Cut::Bytes],
    ..GPT2
};
const ALL: [Preparation; 10] = [
    GPT2,
    Preparation {
        names: &["mpt", "olmo"],
        nfc: true,
        ..GPT2
    },
    Preparation {
        names: &["smollm", "starcoder", "refact", "codeshell"],
        cuts: &[Cut::Digits { apart: true }, Cut::Gpt2],
        ..GPT2
    },
    FALCON,
    QWEN2,
    Preparation {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3"],
        cuts: &[Cut::Around(LLAMA3), Cut::Bytes],
        ignore_merges: true,
        adds_bos: true,
        ..GPT2
    },
    Preparation {
        names: &["dbrx", "smaug-bpe"],
        cuts: &[Cut::Around(LLAMA3), Cut::Bytes],
        ..GPT2
    },
    Preparation {
        names: &["tekken"],
        cuts: &[Cut::Around(TEKKEN), Cut::Bytes],
        ignore_merges: true,
        adds_bos: true,
        ..GPT2
    },
    Preparation {
        names: &["deepseek-llm"],
        cuts: &[
            Cut::Around("[\r\n]"),
            Cut::Around(DEEPSEEK_WORDS),
            Cut::Around(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
            Cut::Around(r"\s+$"),
            Cut::Around(CHINESE_AND_KOREAN),
            Cut::Digits { apart: true },
            Cut::Bytes,
        ],
        ..GPT2
    },
    Preparation {
        names: &["deepseek-coder"],
        cuts: &[
            Cut::Around("[\r\n]"),
            Cut::Around(r"\s?\p{L}+"),
            Cut::Around(r"\s?\p{P}+"),
            Cut::Around(CHINESE_AND_KOREAN),
            Cut::Digits { apart: true },
            Cut::Bytes,
        ],
        ..GPT2
    },
];

/// All names.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().flat_map(|known| known.names).copied()
}

/// The name of what a tokenizer of these parts does before its merges, where GGUF has one that is read here.
pub(super) fn name_of(parts: &Parts) -> Option<&'static str> {
    let known = ALL.iter().find(|known| known.is_of(parts))?;
    known.names.first().copied()
}

impl Preparation {
    /// What the file names. Older files name nothing; then the family tells, but for Llama's, whose members differ.
    fn of(metadata: &Metadata) -> Result<&'static Self> {
        let name = match metadata.string(PRE)?.filter(|name| *name != "default") {
            Some(name) => name,
            None => match metadata.string("general.architecture")? {
                Some("falcon") => "falcon",
                Some("gpt2" | "gptj") => "gpt-2",
                Some("qwen2" | "qwen3") => "qwen2",
                _ => "",
            },
        };
        let known = ALL.iter().find(|known| known.names.contains(&name));
        known.ok_or_else(|| {
            let names = names().collect::<Vec<_>>().join(", ");
            metadata.wrong(
                PRE,
                format!("one of {names}; give token ids instead of text"),
            )
        })
    }

    /// Whether it is what a tokenizer of these parts does.
    fn is_of(&self, parts: &Parts) -> bool {
        let same = |own: Option<Value>, steps_of: &Vec<Value>| {
            steps(&own).is_ok_and(|own| own == *steps_of)
        };
        self.ignore_merges == parts.ignore_merges
            && same(self.normalizer(), &parts.normalizer)
            && same(Some(self.pre_tokenizer()), &parts.pre_tokenizer)
    }

    fn normalizer(&self) -> Option<Value> {
        self.nfc.then(|| json!({"type": "NFC"}))
    }

    fn pre_tokenizer(&self) -> Value {
        let steps: Vec<Value> = self.cuts.iter().map(Cut::step).collect();
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

impl Cut {
    /// The step as tokenizer.json has it.
    fn step(&self) -> Value {
        match self {
            Self::Around(pattern) => {
                json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
            }
            Self::Digits { apart } => json!({"type": "Digits", "individual_digits": apart}),
            Self::Punctuation => json!({"type": "Punctuation", "behavior": "Contiguous"}),
            Self::Gpt2 => byte_level(false, true),
            Self::Bytes => byte_level(false, false),
        }
    }
}

/// The file's tokenizer, up to its added tokens.
pub(super) fn build(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Built> {
    let preparation = Preparation::of(metadata)?;
    let ids = vocabulary.ids(metadata)?;
    let merges = merges::listed(metadata, &ids)?;
    let build = || {
        let builder = BPE::builder().ignore_merges(preparation.ignore_merges);
        let mut inner = Bpe::new(builder.vocab_and_merges(ids, merges).build()?);
        let normalizer = preparation.normalizer().into();
        inner.with_normalizer(parse::<NormalizerWrapper>(normalizer)?)?;
        inner.with_pre_tokenizer(parse::<PreTokenizerWrapper>(preparation.pre_tokenizer())?);
        inner.with_decoder(parse::<DecoderWrapper>(byte_level(true, true))?);
        Ok(inner)
    };
    let inner = build().map_err(|e| refused(metadata, e))?;
    Ok(Built {
        inner,
        adds_bos: preparation.adds_bos,
    })
}
