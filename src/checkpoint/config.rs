//! config.json: what a Gemma 3 text model looks like, checked so that nothing computed from it can
//! overflow or divide by zero.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use super::error::{Error, Result};
use super::fields::{Fields, brief, parse_object};

/// The fields of Hugging Face's `Gemma3TextConfig` that decide what is computed, under its names.
/// What a file leaves out has that class's default.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
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
    /// Length of one head's query, key and value; even. Not always `hidden_size / heads`.
    pub head_dim: usize,
    /// The longest sequence the model is made for, in tokens.
    pub max_position_embeddings: usize,
    /// ε inside every RMSNorm's square root.
    pub rms_norm_eps: f64,
    /// Attention scores are scaled by this to the power −1/2. Not always `head_dim`.
    pub query_pre_attn_scalar: f64,
    /// Tokens that a sliding layer sees, the token itself counted: key j is seen by query i when
    /// i − window < j ≤ i.
    pub sliding_window: usize,
    /// What each layer sees, `[num_hidden_layers]`.
    pub layer_types: Vec<LayerKind>,
    /// Rotary embedding of the [`Full`](LayerKind::Full) layers.
    pub rope_full: Rope,
    /// Rotary embedding of the [`Sliding`](LayerKind::Sliding) layers.
    pub rope_sliding: Rope,
    /// Whether the head is the embedding, when no `lm_head.weight` is stored.
    pub tie_word_embeddings: bool,
    /// The token that begins every sequence.
    pub bos_token_id: u32,
    /// The tokens that end a sequence according to config.json; may be empty.
    /// [`Checkpoint::eos_token_ids`](super::Checkpoint::eos_token_ids) adds generation_config.json's.
    pub eos_token_ids: Vec<u32>,
}

/// How far a layer's attention reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// The last [`sliding_window`](Config::sliding_window) tokens: `sliding_attention`.
    Sliding,
    /// All tokens so far: `full_attention`.
    Full,
}

/// The parameters of a rotary position embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// The base: pair k of a head turns by `position / factor · theta^(−2k / head_dim)`.
    pub theta: f64,
    /// Linear scaling: positions are divided by it. 1 where there is none.
    pub factor: f64,
}

/// Lengths of vectors, and numbers of heads and layers: far above every Gemma, and small enough that
/// the bytes of any matrix fit in 64 bits: two lengths, a vocabulary and a length, or heads, `head_dim`
/// and a length, multiplied and times 8.
const LENGTH: RangeInclusive<usize> = 1..=1 << 20;
const COUNT: RangeInclusive<usize> = 1..=1 << 12;
const VOCAB: RangeInclusive<usize> = 1..=1 << 24;
const POSITIONS: RangeInclusive<usize> = 1..=1 << 30;

impl Config {
    /// Parses the bytes of a config.json; `path` only serves the messages.
    ///
    /// Takes the flat form of `Gemma3ForCausalLM` and the `text_config` inside
    /// `Gemma3ForConditionalGeneration`, and both spellings of the rotary parameters and layer types.
    ///
    /// # Errors
    ///
    /// [`Error::NotJson`], [`Error::FieldType`], [`Error::FieldValue`] (with the field's name),
    /// [`Error::UnsupportedArchitecture`], [`Error::NoArchitecture`] and
    /// [`Error::UnsupportedOption`] for settings of other models (soft-capping, biases, other
    /// activations, bidirectional attention, other rotary types, quantisation).
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        let map = parse_object(path, json)?;
        let top = Fields::new(path, "", &map);
        let nested = check_architecture(path, &top)?;
        refuse_options(&top)?;
        let inner = top.object("text_config")?;
        if !nested && inner.is_none() {
            return Self::from_fields(path, &top, &top);
        }
        let empty = Map::new();
        let text = Fields::new(path, "text_config.", inner.unwrap_or(&empty));
        refuse_options(&text)?;
        Self::from_fields(path, &text, &top)
    }

    /// The config in `text`; what Hugging Face keeps at the outer level is looked for in `top` too.
    fn from_fields(path: &Path, text: &Fields<'_>, top: &Fields<'_>) -> Result<Self> {
        let vocab_size = text.size("vocab_size", 262_208, VOCAB)?;
        let num_hidden_layers = text.size("num_hidden_layers", 26, COUNT)?;
        let (num_attention_heads, num_key_value_heads) = heads(text)?;
        let rope_full = FULL.read(path, text, top)?;
        let rope_sliding = SLIDING.read(path, text, top)?;
        let tie = either(text, top, "tie_word_embeddings");
        let eos = top_first(text, top, "eos_token_id");
        let eos_token_ids = match eos.token_ids("eos_token_id")? {
            Some(ids) => ids,
            None if eos.is_null("eos_token_id") => vec![],
            None => vec![1],
        };
        if let Some(id) = eos_token_ids.iter().find(|id| **id as usize >= vocab_size) {
            let expected = format!("below vocab_size, {vocab_size}");
            return Err(eos.value("eos_token_id", id, expected));
        }
        let bos = either(text, top, "bos_token_id");
        let bos_token_id = bos.size("bos_token_id", 2, 0..=vocab_size - 1)?;
        Ok(Self {
            vocab_size,
            hidden_size: text.size("hidden_size", 2304, LENGTH)?,
            intermediate_size: text.size("intermediate_size", 9216, LENGTH)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim: head_dim(text)?,
            max_position_embeddings: text.size("max_position_embeddings", 131_072, POSITIONS)?,
            rms_norm_eps: text.real("rms_norm_eps", 1e-6, 0.0..=1.0)?,
            query_pre_attn_scalar: text.real("query_pre_attn_scalar", 256.0, 1e-6..=1e9)?,
            sliding_window: text.size("sliding_window", 4096, POSITIONS)?,
            layer_types: layer_types(text, num_hidden_layers)?,
            rope_full,
            rope_sliding,
            tie_word_embeddings: tie.flag("tie_word_embeddings", true)?,
            bos_token_id: bos_token_id as u32, // VOCAB ends far below 2³²
            eos_token_ids,
        })
    }

    /// The rotary embedding of a kind of layer.
    pub(crate) fn rope(&self, kind: LayerKind) -> Rope {
        match kind {
            LayerKind::Full => self.rope_full,
            LayerKind::Sliding => self.rope_sliding,
        }
    }
}

/// Whether the model is one this crate runs, and if so, whether its config is nested.
fn check_architecture(path: &Path, top: &Fields<'_>) -> Result<bool> {
    let refuse = |found: &str| {
        Err(Error::UnsupportedArchitecture {
            path: path.into(),
            found: found.into(),
        })
    };
    let by_type = match top.string("model_type")? {
        None => None,
        Some("gemma3_text") => Some(false),
        Some("gemma3") => Some(true),
        Some(other) => return refuse(other),
    };
    let by_class = match top.strings("architectures")?.as_deref() {
        None | Some([]) => None,
        Some(["Gemma3ForCausalLM", ..]) => Some(false),
        Some(["Gemma3ForConditionalGeneration", ..]) => Some(true),
        Some([other, ..]) => return refuse(other),
    };
    by_class
        .or(by_type)
        .ok_or_else(|| Error::NoArchitecture { path: path.into() })
}

/// Refuses what is legitimate in a config of this family or its relatives and is not computed here.
fn refuse_options(fields: &Fields<'_>) -> Result<()> {
    if let Some(name) = fields.string("hidden_activation")?
        && name != "gelu_pytorch_tanh"
    {
        return Err(fields.unsupported("hidden_activation", name, "gelu_pytorch_tanh"));
    }
    for name in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(value) = fields.get(name) {
            return Err(fields.unsupported(
                name,
                brief(value),
                "models without soft-capping (null)",
            ));
        }
    }
    for name in ["attention_bias", "use_bidirectional_attention"] {
        if fields.flag(name, false)? {
            return Err(fields.unsupported(name, true, "false"));
        }
    }
    if let Some(value) = fields.get("quantization_config") {
        let supported = "unquantised weights; take the checkpoint in bf16";
        return Err(fields.unsupported("quantization_config", brief(value), supported));
    }
    Ok(())
}

/// `num_attention_heads` and `num_key_value_heads`.
fn heads(text: &Fields<'_>) -> Result<(usize, usize)> {
    let heads = text.size("num_attention_heads", 8, COUNT)?;
    let kv_heads = text.size("num_key_value_heads", 4, COUNT)?;
    if !heads.is_multiple_of(kv_heads) {
        let expected = format!("a divisor of num_attention_heads, {heads}");
        return Err(text.value("num_key_value_heads", kv_heads, expected));
    }
    Ok((heads, kv_heads))
}

fn head_dim(text: &Fields<'_>) -> Result<usize> {
    let head_dim = text.size("head_dim", 256, 2..=1 << 14)?;
    if !head_dim.is_multiple_of(2) {
        return Err(text.value("head_dim", head_dim, "even"));
    }
    Ok(head_dim)
}

/// The layers' kinds, from `layer_types` or else from `sliding_window_pattern`.
fn layer_types(text: &Fields<'_>, layers: usize) -> Result<Vec<LayerKind>> {
    let Some(names) = text.strings("layer_types")? else {
        let spelling = match text.get("sliding_window_pattern") {
            Some(_) => "sliding_window_pattern",
            None => "_sliding_window_pattern",
        };
        let pattern = text.size(spelling, 6, COUNT)?;
        let kind = |i: usize| match (i + 1).is_multiple_of(pattern) {
            true => LayerKind::Full,
            false => LayerKind::Sliding,
        };
        return Ok((0..layers).map(kind).collect());
    };
    if names.len() != layers {
        let found = format!("a list of {}", names.len());
        let expected = format!("one entry for each of the {layers} hidden layers");
        return Err(text.value("layer_types", found, expected));
    }
    let kind = |name: &&str| match *name {
        "full_attention" => Ok(LayerKind::Full),
        "sliding_attention" => Ok(LayerKind::Sliding),
        other => {
            Err(text.unsupported("layer_types", other, "full_attention and sliding_attention"))
        }
    };
    names.iter().map(kind).collect()
}

/// Where the rotary parameters of one kind of layer are found.
struct RopeSource {
    /// Key in the new `rope_parameters`.
    kind: &'static str,
    /// That key with its parents, for messages.
    prefix: &'static str,
    /// Key of the base in the old spelling.
    theta: &'static str,
    /// The base where neither is there.
    default_theta: f64,
    /// Whether the old `rope_scaling` is about these layers.
    scaled: bool,
}

const FULL: RopeSource = RopeSource {
    kind: "full_attention",
    prefix: "rope_parameters.full_attention.",
    theta: "rope_theta",
    default_theta: 1e6,
    scaled: true,
};

const SLIDING: RopeSource = RopeSource {
    kind: "sliding_attention",
    prefix: "rope_parameters.sliding_attention.",
    theta: "rope_local_base_freq",
    default_theta: 1e4,
    scaled: false,
};

impl RopeSource {
    /// As `Gemma3TextConfig.convert_rope_params_to_dict` does: `rope_parameters` of this kind, with
    /// `rope_scaling` laid over it, with the base from the old spelling where it has none.
    fn read(&self, path: &Path, text: &Fields<'_>, top: &Fields<'_>) -> Result<Rope> {
        let mut prefix = self.prefix;
        let mut merged = self.parameters(path, text, top)?;
        if self.scaled
            && let Some(scaling) = either(text, top, "rope_scaling").object("rope_scaling")?
        {
            prefix = "rope_scaling.";
            merged.extend(scaling.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
        let fields = Fields::new(path, prefix, &merged);
        let theta = match fields.get("rope_theta") {
            Some(_) => fields.real("rope_theta", self.default_theta, THETA)?,
            None => either(text, top, self.theta).real(self.theta, self.default_theta, THETA)?,
        };
        let kind = match fields.string("rope_type")? {
            Some(kind) => Some(kind),
            None => fields.string("type")?,
        };
        let factor = match kind {
            Some("default") => 1.0,
            Some("linear") if fields.get("factor").is_some() => {
                fields.real("factor", 1.0, 1e-6..=1e6)?
            }
            Some("linear") => return Err(fields.value("factor", "left out", "a number")),
            None if fields.get("factor").is_none() => 1.0,
            other => {
                let found = other.unwrap_or("left out beside a factor");
                return Err(fields.unsupported("rope_type", found, "default and linear"));
            }
        };
        Ok(Rope { theta, factor })
    }

    /// A copy of this kind's entry in `rope_parameters`, empty where there is none.
    fn parameters(
        &self,
        path: &Path,
        text: &Fields<'_>,
        top: &Fields<'_>,
    ) -> Result<Map<String, Value>> {
        let Some(map) = either(text, top, "rope_parameters").object("rope_parameters")? else {
            return Ok(Map::new());
        };
        let fields = Fields::new(path, "rope_parameters.", map);
        if let Some(key) = map.keys().find(|k| **k != FULL.kind && **k != SLIDING.kind) {
            let supported = "full_attention and sliding_attention, each with its own parameters";
            return Err(fields.unsupported(key, "one of its keys", supported));
        }
        Ok(fields.object(self.kind)?.cloned().unwrap_or_default())
    }
}

/// Bases that keep every angle finite.
const THETA: RangeInclusive<f64> = 1.0..=1e15;

/// The level that has field `name`: the text model's own, else the outer one.
fn either<'f, 'a>(text: &'f Fields<'a>, top: &'f Fields<'a>, name: &str) -> &'f Fields<'a> {
    match text.get(name) {
        Some(_) => text,
        None => top,
    }
}

/// The level that has field `name`: the outer one, which generation uses, else the text model's own.
fn top_first<'f, 'a>(text: &'f Fields<'a>, top: &'f Fields<'a>, name: &str) -> &'f Fields<'a> {
    match top.get(name) {
        Some(_) => top,
        None => text,
    }
}

#[cfg(test)]
mod tests;
