//! The families: each a file that says, as data and names, what a config.json of its `model_type` is made of.
//!
//! | file | families |
//! |---|---|
//! | `llama` | Llama, Mistral, Qwen2, Qwen3, Mixtral, OLMo 2, Phi 3 |
//! | `gemma` | Gemma 1 and 2 |
//! | `gemma3` | Gemma 3 |
//! | `siglip` | the vision part of Gemma 3 |
//! | `falcon` | Falcon, in the form of 7B, of 40B and of RW |
//! | `gpt2`, `gptj`, `phi` | GPT-2, GPT-J, Phi 1 and 2 |

mod common;
mod falcon;
mod gemma;
mod gemma3;
mod gemma3_rope;
mod gpt2;
mod gptj;
mod llama;
mod phi;
mod rope;
mod shape;
pub(super) mod siglip;

use std::path::Path;

use super::config::Config;
use super::error::{Error, Result};
use super::fields::{Fields, brief, parse_object};

/// Reads a config of one family.
type Read = fn(&Fields<'_>) -> Result<Config>;

/// Every `model_type` that is known, and what reads it.
const FAMILIES: [(&str, Read); 15] = [
    ("gemma3_text", gemma3::text),
    ("gemma3", gemma3::multimodal),
    ("gemma2", gemma::gemma2),
    ("gemma", gemma::gemma),
    ("llama", llama::llama),
    ("mistral", llama::mistral),
    ("qwen2", llama::qwen2),
    ("qwen3", llama::qwen3),
    ("mixtral", llama::mixtral),
    ("olmo2", llama::olmo2),
    ("falcon", falcon::falcon),
    ("gpt2", gpt2::gpt2),
    ("gptj", gptj::gptj),
    ("phi", phi::phi),
    ("phi3", llama::phi3),
];

impl Config {
    /// Parses the bytes of a config.json as transformers does; `path` only serves the messages.
    ///
    /// `model_type` decides which family it is of. docs/checkpoints.md has every field.
    ///
    /// # Errors
    ///
    /// [`Error::NotJson`], [`Error::FieldType`], [`Error::FieldValue`] (with the field's name),
    /// [`Error::UnsupportedArchitecture`], [`Error::NoArchitecture`] and
    /// [`Error::UnsupportedOption`] for settings that nothing here computes (bidirectional attention, ALiBi, other
    /// activations, other rotary types, quantisation).
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        let map = parse_object(path, json)?;
        let top = Fields::new(path, "", &map);
        let Some(model_type) = top.string("model_type")? else {
            return Err(Error::NoArchitecture { path: path.into() });
        };
        let Some((_, read)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else {
            return Err(Error::UnsupportedArchitecture {
                path: path.into(),
                found: model_type.into(),
                known: FAMILIES.map(|(name, _)| name).join(", "),
            });
        };
        refuse_elsewhere(&top)?;
        read(&top)
    }
}

/// Refuses what puts a part of the model elsewhere, or makes it another.
fn refuse_elsewhere(fields: &Fields<'_>) -> Result<()> {
    for (name, supported) in [
        (
            "quantization_config",
            "unquantised weights; take the checkpoint in bf16",
        ),
        ("per_layer_config", "layers that are all configured alike"),
        (
            "configuration_files",
            "what config.json itself says; rename the file that is for your version to it",
        ),
    ] {
        if let Some(value) = fields.get(name) {
            return Err(fields.unsupported(name, brief(value), supported));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
