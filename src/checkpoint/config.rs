//! config.json: what a model looks like, checked so that nothing computed from it can overflow or divide by zero.

use std::ops::RangeInclusive;
use std::path::Path;

use super::error::Result;
use super::fields::{Fields, is_file_name, parse_object};
use super::form::{BlockForm, DecoderForm, MapsForm, ProjectionsForm, Rope};

/// A model's shape and parts, from the fields of its Hugging Face config. What a file leaves out has the default of that
/// family's config class.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The family, as `model_type` names it: `gemma3_text`, `llama`, ….
    pub model_type: String,
    /// Rows of the embedding, `V`: token ids are below it.
    pub vocab_size: usize,
    /// Length of the residual stream, `d`.
    pub hidden_size: usize,
    /// Length of the MLP's hidden layer, `m`.
    pub intermediate_size: usize,
    /// Number of blocks, `L`.
    pub num_hidden_layers: usize,
    /// Query heads of each layer.
    pub num_attention_heads: usize,
    /// Key and value heads of each layer; a divisor of
    /// [`num_attention_heads`](Self::num_attention_heads).
    pub num_key_value_heads: usize,
    /// Length of one head's query, key and value. Not always `hidden_size / heads`.
    pub head_dim: usize,
    /// The longest sequence the model is made for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding, when only one of them is stored.
    pub tie_word_embeddings: bool,
    /// The token that begins every sequence, where the config names one.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a sequence according to config.json, those beyond the vocabulary left out; may be empty.
    /// [`Checkpoint::eos_token_ids`](super::Checkpoint::eos_token_ids) prefers generation_config.json's.
    pub eos_token_ids: Vec<u32>,
    /// Whether the text model is part of a multimodal one.
    pub multimodal: bool,
    /// What is around the blocks.
    pub(crate) decoder: DecoderForm,
    /// The blocks, `[num_hidden_layers]`.
    pub(crate) blocks: Vec<BlockForm>,
}

/// Lengths of vectors, and numbers of heads and layers: far above every model here, and small enough that
/// the bytes of any matrix fit in 64 bits: two lengths, a vocabulary and a length, or heads, `head_dim`
/// and a length, multiplied and times 8.
pub(super) const LENGTH: RangeInclusive<usize> = 1..=1 << 20;
pub(super) const COUNT: RangeInclusive<usize> = 1..=1 << 12;
pub(super) const VOCAB: RangeInclusive<usize> = 1..=1 << 24;
pub(super) const POSITIONS: RangeInclusive<usize> = 1..=1 << 30;
pub(super) const EPS: RangeInclusive<f64> = 0.0..=1.0;

impl Config {
    /// The tokens that a token sees in a layer, itself counted: key j is seen by query i when i − window < j ≤ i; `None`
    /// where it sees all before it.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.blocks[layer].attention.window
    }

    /// What the scores of a layer are multiplied by.
    pub fn scaling(&self, layer: usize) -> f64 {
        self.blocks[layer].attention.scaling
    }

    /// The rotary embedding of a layer, where it has one.
    pub fn rope(&self, layer: usize) -> Option<Rope> {
        self.blocks[layer].attention.rope.map(|form| form.rope)
    }

    /// Says of GPT-2's maps that they are stored `[out, in]`, as all are in GGUF.
    pub(super) fn as_stored_in_gguf(&mut self) {
        for block in &mut self.blocks {
            block.attention.out.transposed = false;
            if let ProjectionsForm::Fused(map, _) = &mut block.attention.projections {
                map.transposed = false;
            }
            if let MapsForm::Plain(map) = &mut block.inner.maps {
                map.transposed = false;
            }
            for map in &mut block.outer.down {
                map.transposed = false;
            }
        }
    }

    /// ε of the norm before the head.
    pub fn norm_eps(&self) -> f64 {
        self.decoder.norm.eps
    }
}

/// The file of weights or index that config.json names, where it names one.
///
/// # Errors
///
/// [`NotJson`](super::Error::NotJson), [`FieldType`](super::Error::FieldType) and [`FieldValue`](super::Error::FieldValue).
pub(super) fn weights_file(path: &Path, json: &[u8]) -> Result<Option<String>> {
    const NAME: &str = "transformers_weights";
    let map = parse_object(path, json)?;
    let fields = Fields::new(path, "", &map);
    let Some(file) = fields.string(NAME)? else {
        return Ok(None);
    };
    let known = [".safetensors", ".safetensors.index.json"]
        .iter()
        .any(|end| file.ends_with(end));
    if known && is_file_name(file) {
        Ok(Some(file.into()))
    } else {
        let expected = "a .safetensors file or .safetensors.index.json beside config.json";
        Err(fields.value(NAME, file, expected))
    }
}
