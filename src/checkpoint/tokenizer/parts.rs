//! What decides which ids a text gets, to write it in another form and to hold that against the original.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokenizers::AddedToken;

use super::Tokenizer;
use crate::message::shown;

/// The parts of a tokenizer that decide ids, and how they become text again; what does neither is left out.
#[derive(Debug)]
pub(in crate::checkpoint) struct Parts {
    /// Ids by text, added tokens among them; those beyond the model's vocabulary are left out.
    pub(in crate::checkpoint) vocabulary: HashMap<String, u32>,
    /// Pairs of tokens that become one, the first ones first.
    pub(in crate::checkpoint) merges: Vec<(String, String)>,
    pub(in crate::checkpoint) normalizer: Vec<Value>,
    pub(in crate::checkpoint) pre_tokenizer: Vec<Value>,
    pub(in crate::checkpoint) decoder: Vec<Value>,
    /// Whether a character that is no token becomes its bytes.
    pub(in crate::checkpoint) byte_fallback: bool,
    /// Whether a word that is a token is that token, whatever the merges make of it.
    pub(in crate::checkpoint) ignore_merges: bool,
    /// What text becomes that is no token, and whether all of it that follows becomes one; nothing where every byte is one.
    pub(in crate::checkpoint) unknown: Option<(String, bool)>,
    /// What is put before words after the first, and after words.
    affixes: [Option<String>; 2],
    /// The tokens that are found in a text before anything else, but for those beyond the model's vocabulary.
    pub(in crate::checkpoint) added: BTreeMap<u32, AddedToken>,
    /// Whether special tokens in a text are text.
    special_is_text: bool,
    /// The ids of the empty text: what is put around every one.
    pub(in crate::checkpoint) around: Vec<u32>,
}

/// What the tokenizer library shows of a model only in writing.
#[derive(Deserialize)]
struct Merges {
    merges: Vec<(String, String)>,
}

/// Texts in which tokenizers differ.
const TEXTS: [&str; 10] = [
    "Hello, world!",
    "  two  spaces,   three\n\n\tand a tab ",
    "caf\u{e9} cafe\u{301} \u{bd} \u{2167} \u{fb01} \u{212a}",
    "\u{4f60}\u{597d}\u{ff0c}\u{4e16}\u{754c} \u{3053}\u{3093} \u{d55c}\u{ad6d}\u{c5b4}",
    "\u{1f642}\u{1f468}\u{200d}\u{1f469} \u{1f1e9}\u{1f1ea}",
    "I'LL don't SHE'S 1234567.89 1 22 333",
    "\u{0}\u{7f}\u{200b}\u{2028}\u{3000}\u{fdfa}",
    "def f(x):\r\n    return x**2  # \u{2581}\u{2581} _foo_bar",
    " ",
    "\u{120}\u{a0}\u{e0}",
];

impl Tokenizer {
    /// The parts that decide ids.
    ///
    /// # Errors
    ///
    /// What the library says of a tokenizer that it cannot write.
    pub(in crate::checkpoint) fn parts(&self) -> tokenizers::Result<Parts> {
        let (inner, model) = (&self.inner, self.inner.get_model());
        let written = serde_json::to_vec(model)?;
        let within = |id: u32| (id as usize) < self.model_vocab_size;
        let mut vocabulary = inner.get_vocab(true);
        vocabulary.retain(|_, id| within(*id));
        let normalizer = steps(&inner.get_normalizer())?;
        let mut added: BTreeMap<_, _> = inner.get_added_tokens_decoder().into_iter().collect();
        added.retain(|id, _| within(*id));
        // Where nothing changes a text before them, tokens are the same before and after that.
        if normalizer.is_empty() && added.values().all(|token| token.normalized) {
            added
                .values_mut()
                .for_each(|token| token.normalized = false);
        }
        let all_bytes =
            |name: fn(u8) -> String| (0..=255).all(|byte| vocabulary.contains_key(&name(byte)));
        let never_unknown = model.byte_fallback && all_bytes(|byte| format!("<0x{byte:02X}>"));
        let unknown = model.unk_token.clone().filter(|_| !never_unknown);
        let affix = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Ok(Parts {
            merges: serde_json::from_slice::<Merges>(&written)?.merges,
            pre_tokenizer: steps(&inner.get_pre_tokenizer())?,
            decoder: steps(&inner.get_decoder())?
                .into_iter()
                .map(decoding)
                .collect(),
            byte_fallback: model.byte_fallback,
            ignore_merges: model.ignore_merges,
            unknown: unknown.map(|token| (token, model.fuse_unk)),
            affixes: [
                affix(&model.continuing_subword_prefix),
                affix(&model.end_of_word_suffix),
            ],
            special_is_text: inner.get_encode_special_tokens(),
            around: inner.encode_fast("", true)?.get_ids().into(),
            vocabulary,
            normalizer,
            added,
        })
    }

    /// What of this tokenizer, which `parts` are of, is otherwise in `other`, in a few words.
    pub(in crate::checkpoint) fn difference(&self, parts: &Parts, other: &Self) -> Option<String> {
        let Ok(others) = other.parts() else {
            return Some("all of it".into());
        };
        let own = self.inner.get_model().get_vocab();
        let hidden = |token: &&AddedToken| {
            !own.contains_key(&token.content) && parts.may_be_word(&token.content)
        };
        let added = parts
            .added
            .iter()
            .find(|(id, token)| others.added.get(id) != Some(token));
        let added = added.or_else(|| {
            others
                .added
                .iter()
                .find(|(id, _)| !parts.added.contains_key(id))
        });
        let added = added
            .map(|(_, token)| token)
            .or_else(|| parts.added.values().find(hidden));
        if let Some(token) = added {
            return Some(format!("its added token {}", shown(&token.content)));
        }
        let same = [
            ("its vocabulary", parts.vocabulary == others.vocabulary),
            (
                "its merges",
                parts.applied_merges().eq(others.applied_merges()),
            ),
            (
                "what it does to a text before it cuts it",
                parts.normalizer == others.normalizer,
            ),
            (
                "where it cuts a text",
                parts.pre_tokenizer == others.pre_tokenizer,
            ),
            (
                "how it makes words of tokens",
                parts.decoder == others.decoder,
            ),
            ("what becomes of text that is no token", {
                (parts.byte_fallback, &parts.unknown) == (others.byte_fallback, &others.unknown)
            }),
            (
                "words that are tokens whatever the merges say",
                parts.ignore_merges == others.ignore_merges,
            ),
            (
                "what marks the ends of words",
                parts.affixes == others.affixes,
            ),
            (
                "whether special tokens in a text are text",
                parts.special_is_text == others.special_is_text,
            ),
            (
                "what it puts around a text",
                (&parts.around, self.bos) == (&others.around, other.bos),
            ),
        ];
        let different = same.into_iter().find(|(_, same)| !same);
        different
            .map(|(what, _)| what.into())
            .or_else(|| self.text_difference(parts, other))
    }

    /// A text that has other ids in `other`.
    fn text_difference(&self, parts: &Parts, other: &Self) -> Option<String> {
        let added: Vec<&str> = parts
            .added
            .values()
            .map(|token| &*token.content)
            .take(8)
            .collect();
        let texts = TEXTS
            .into_iter()
            .map(String::from)
            .chain([added.concat(), added.join(" a")]);
        let differs = |text: &String| {
            let [ids, others] = [self, other].map(|tokenizer| tokenizer.ids(text, true).ok());
            let decoded = |tokenizer: &Self| tokenizer.decode(ids.as_deref()?).ok();
            ids != others || decoded(self) != decoded(other)
        };
        let text = texts.into_iter().find(differs)?;
        Some(format!("the ids of {}", shown(&text)))
    }
}

impl Parts {
    /// The merges but for those to added tokens, which are found in a text before words are: of letters as they stand in the
    /// text, they could not be left for a merge.
    fn applied_merges(&self) -> impl Iterator<Item = &(String, String)> {
        let keeps_letters = |step: &Value| {
            *step == json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
        };
        let found_first = !self.special_is_text && self.normalizer.iter().all(keeps_letters);
        let is_found = |token: &&AddedToken| {
            let letters = token.content.chars().all(|c| c.is_ascii() && c != ' ');
            found_first && letters && !token.normalized && !token.single_word
        };
        let found = self.added.values().filter(is_found);
        let found: HashSet<&str> = found.map(|token| &*token.content).collect();
        let applied =
            move |(left, right): &&(String, String)| !found.contains(&*[&**left, right].concat());
        self.merges.iter().filter(applied)
    }

    /// Whether a text that becomes no added token might become a word of this text: one of one character that something
    /// else is turned into, or one that stands for other bytes.
    fn may_be_word(&self, token: &str) -> bool {
        token.chars().nth(1).is_none() || self.ignore_merges && !token.is_ascii()
    }
}

/// A step of a decoder with what changes a text: for bytes its other options do nothing.
fn decoding(step: Value) -> Value {
    match step["type"].as_str() {
        Some("ByteLevel") => step["type"].clone(),
        _ => step,
    }
}

/// The steps of a part of a tokenizer, one after the other, each with what decides ids.
pub(in crate::checkpoint) fn steps(part: &impl Serialize) -> serde_json::Result<Vec<Value>> {
    let mut steps = Vec::new();
    flatten(serde_json::to_value(part)?, &mut steps);
    Ok(steps)
}

fn flatten(mut step: Value, steps: &mut Vec<Value>) {
    const LISTS: [&str; 3] = ["normalizers", "pretokenizers", "decoders"];
    let list = LISTS
        .iter()
        .find_map(|list| Some(step.get_mut(list)?.take()));
    if let Some(Value::Array(parts)) = list {
        parts.into_iter().for_each(|part| flatten(part, steps));
    } else if !step.is_null() {
        // It is about which characters a token stands for.
        if let Some(fields) = step.as_object_mut() {
            fields.remove("trim_offsets");
        }
        steps.push(step);
    }
}
