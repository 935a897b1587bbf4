//! What transformers has in tokenizer_config.json, and the tokens that end a text.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::super::super::error::Result;
use super::super::metadata::Metadata;
use super::Model;
use super::vocabulary::{Kind, SpecialTokens, Vocabulary};

pub(super) const TEMPLATE: &str = "tokenizer.chat_template";
/// The names of templates beside the one that has none.
pub(super) const TEMPLATES: &str = "tokenizer.chat_templates";

/// Tokens that end a turn or a text where a model chats, whether or not a file says so; llama.cpp knows them by their
/// texts, too.
const ENDS: [&str; 8] = [
    "<end_of_turn>",
    "<eos>",
    "<|end_of_text|>",
    "<|end|>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|im_end|>",
];

/// The content of tokenizer_config.json: special tokens by name, chat templates, and a class that takes tokenizer.json
/// as it is.
///
/// # Errors
///
/// [`FieldType`](super::super::super::Error::FieldType) and [`FieldValue`](super::super::super::Error::FieldValue).
pub(in super::super) fn tokenizer_config(metadata: &Metadata) -> Result<Map<String, Value>> {
    let mut config = Map::new();
    let mut set = |name: &str, value: Value| config.insert(name.into(), value);
    set("tokenizer_class", "PreTrainedTokenizerFast".into());
    set("clean_up_tokenization_spaces", false.into());
    if let Some(model) = Model::of(metadata)? {
        let vocabulary = Vocabulary::read(metadata, model)?;
        for (name, _, text) in SpecialTokens::read(metadata, model, &vocabulary)?.iter() {
            set(name, text.into());
        }
    }
    let templates = templates(metadata)?;
    match templates.get("default") {
        Some(only) if templates.len() == 1 => drop(set("chat_template", (*only).into())),
        None if templates.is_empty() => {}
        _ => {
            let entry = |(name, source)| json!({"name": name, "template": source});
            let list: Vec<Value> = templates.into_iter().map(entry).collect();
            set("chat_template", list.into());
        }
    }
    Ok(config)
}

/// Sources of the chat templates by name.
fn templates(metadata: &Metadata) -> Result<BTreeMap<&str, &str>> {
    let mut templates = BTreeMap::new();
    for name in metadata.strings(TEMPLATES)?.unwrap_or_default() {
        let key = format!("{TEMPLATE}.{name}");
        let Some(source) = metadata.string(&key)? else {
            return Err(metadata.wrong(&key, format!("a template, which {TEMPLATES} names")));
        };
        templates.insert(name, source);
    }
    let default = metadata.string(TEMPLATE)?;
    templates.extend(default.map(|source| ("default", source)));
    Ok(templates)
}

/// The tokens that end a text: those that the file names, and where it has a chat template those that are known to.
///
/// # Errors
///
/// [`FieldType`](super::super::super::Error::FieldType) and [`FieldValue`](super::super::super::Error::FieldValue).
pub(in super::super) fn end_tokens(metadata: &Metadata) -> Result<Vec<u64>> {
    let mut ids = Vec::new();
    for purpose in ["eos", "eot", "eom"] {
        ids.extend(metadata.unsigned(&format!("tokenizer.ggml.{purpose}_token_id"))?);
    }
    // A tokenizer that is not read here is refused when it is asked for: without it, the model takes ids.
    if let Ok(Some(model)) = Model::of(metadata) {
        let vocabulary = Vocabulary::read(metadata, model)?;
        let special = SpecialTokens::read(metadata, model, &vocabulary)?;
        ids.extend(special.get("eos_token").map(|(id, _)| u64::from(id)));
        let chats = metadata.has(TEMPLATE);
        let ends = |(_, text, kind): &(u32, &str, Kind)| {
            chats && matches!(kind, Kind::Control | Kind::UserDefined) && ENDS.contains(text)
        };
        ids.extend(
            vocabulary
                .tokens()
                .filter(ends)
                .map(|(id, ..)| u64::from(id)),
        );
    }
    let mut seen = std::collections::BTreeSet::new();
    ids.retain(|id| seen.insert(*id));
    Ok(ids)
}
