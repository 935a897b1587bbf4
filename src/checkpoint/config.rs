//! config.json: what a Gemma 3 text model looks like, checked so that nothing computed from it can
//! overflow or divide by zero.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use super::error::{Error, Result};
use super::fields::{Fields, brief, is_file_name, parse_object, whole};

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
    /// Whether the head is the embedding, when only one of them is stored.
    pub tie_word_embeddings: bool,
    /// The token that begins every sequence.
    pub bos_token_id: u32,
    /// The tokens that end a sequence according to config.json, those beyond the vocabulary left out; may be empty.
    /// [`Checkpoint::eos_token_ids`](super::Checkpoint::eos_token_ids) prefers generation_config.json's.
    pub eos_token_ids: Vec<u32>,
    /// Whether the text model is part of a `Gemma3ForConditionalGeneration`.
    pub multimodal: bool,
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
const SCALAR: RangeInclusive<usize> = 1..=1 << 30;

impl Config {
    /// Parses the bytes of a config.json as transformers does; `path` only serves the messages.
    ///
    /// `model_type` decides whether it is `Gemma3TextConfig`, with all fields at the top, or `Gemma3Config`, with
    /// those of the text model in `text_config`. docs/checkpoints.md has every field.
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
        let multimodal = is_multimodal(path, &top)?;
        let inner = top.object("text_config")?;
        let empty = Map::new();
        let text = match (multimodal, inner) {
            (true, inner) => Fields::new(path, "text_config.", inner.unwrap_or(&empty)),
            (false, None) => top,
            (false, Some(_)) => {
                let expected = "left out where model_type is gemma3_text";
                return Err(top.value("text_config", "an object", expected));
            }
        };
        refuse_elsewhere(&top)?;
        refuse_elsewhere(&text)?;
        refuse_options(&text, multimodal)?;
        Self::from_fields(&text, &top, multimodal)
    }

    /// The config in `text`; `top` has what transformers takes from the outer level.
    fn from_fields(text: &Fields<'_>, top: &Fields<'_>, multimodal: bool) -> Result<Self> {
        let vocab_size = text.size("vocab_size", 262_208, VOCAB)?;
        let num_hidden_layers = text.size("num_hidden_layers", 26, COUNT)?;
        let hidden_size = text.size("hidden_size", 2304, LENGTH)?;
        let (num_attention_heads, num_key_value_heads) = heads(text, hidden_size)?;
        let layer_types = layer_types(text, num_hidden_layers)?;
        let in_use = |kind| layer_types.contains(&kind);
        // Outside null is false; the text model's own field is not looked at where it lies in a multimodal one.
        let tie = !(multimodal && top.is_null("tie_word_embeddings"));
        let mut eos_token_ids = outer_first(text, top, "eos_token_id")
            .token_ids("eos_token_id")?
            .unwrap_or_default();
        eos_token_ids.retain(|id| (*id as usize) < vocab_size);
        Ok(Self {
            vocab_size,
            hidden_size,
            intermediate_size: text.size("intermediate_size", 9216, LENGTH)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim: head_dim(text)?,
            max_position_embeddings: text.size("max_position_embeddings", 131_072, POSITIONS)?,
            rms_norm_eps: text.real("rms_norm_eps", 1e-6, 0.0..=1.0)?,
            query_pre_attn_scalar: text.size("query_pre_attn_scalar", 256, SCALAR)? as f64,
            sliding_window: text.size("sliding_window", 4096, POSITIONS)?,
            rope_full: FULL.read(text, in_use(LayerKind::Full))?,
            rope_sliding: SLIDING.read(text, in_use(LayerKind::Sliding))?,
            layer_types,
            tie_word_embeddings: tie && top.flag("tie_word_embeddings", true)?,
            bos_token_id: bos_token_id(text)?,
            eos_token_ids,
            multimodal,
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

/// Whether the config is that of a multimodal model, if the model is one that this crate runs.
fn is_multimodal(path: &Path, top: &Fields<'_>) -> Result<bool> {
    match top.string("model_type")? {
        None => Err(Error::NoArchitecture { path: path.into() }),
        Some("gemma3_text") => Ok(false),
        Some("gemma3") => Ok(true),
        Some(other) => Err(Error::UnsupportedArchitecture {
            path: path.into(),
            found: other.into(),
        }),
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

/// Refuses what is legitimate in a config of this family or its relatives and is not computed here.
fn refuse_options(text: &Fields<'_>, multimodal: bool) -> Result<()> {
    const ACTIVATION: &str = "hidden_activation";
    if let Some(name) = text.required(ACTIVATION, "a string", Value::as_str)?
        && name != "gelu_pytorch_tanh"
    {
        return Err(text.unsupported(ACTIVATION, name, "gelu_pytorch_tanh"));
    }
    // transformers caps neither attention, nor the logits of a multimodal model, whatever is said.
    if let Some(value) = text.get("final_logit_softcapping")
        && !multimodal
    {
        return Err(text.unsupported(
            "final_logit_softcapping",
            brief(value),
            "models without soft-capping (null)",
        ));
    }
    for name in ["attention_bias", "use_bidirectional_attention"] {
        let null = name == "use_bidirectional_attention" && text.is_null(name);
        if !null && text.flag(name, false)? {
            return Err(text.unsupported(name, true, "false"));
        }
    }
    Ok(())
}

/// The file of weights or index that config.json names, where it names one.
///
/// # Errors
///
/// [`Error::NotJson`], [`Error::FieldType`] and [`Error::FieldValue`].
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

/// The token before every text; transformers does not use what config.json says of it, but the tokenizer's.
fn bos_token_id(text: &Fields<'_>) -> Result<u32> {
    let ids = text.typed("bos_token_id", "a token id", |v| whole(v))?;
    Ok(ids
        .and_then(|n| u32::try_from(n.as_u64()?).ok())
        .unwrap_or(2))
}

/// `num_attention_heads` and `num_key_value_heads`.
fn heads(text: &Fields<'_>, hidden_size: usize) -> Result<(usize, usize)> {
    let heads = text.size("num_attention_heads", 8, COUNT)?;
    if !hidden_size.is_multiple_of(heads) {
        let expected = format!("a divisor of hidden_size, {hidden_size}");
        return Err(text.value("num_attention_heads", heads, expected));
    }
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
        const NAME: &str = "sliding_window_pattern";
        let pattern = text.number(NAME, f64::MIN..=f64::MAX)?.unwrap_or(6.0);
        if pattern == 0.0 {
            return Err(text.value(NAME, 0, "another number"));
        }
        let kind = |i: usize| {
            if (i + 1) as f64 % pattern == 0.0 {
                LayerKind::Full
            } else {
                LayerKind::Sliding
            }
        };
        return Ok((0..layers).map(kind).collect());
    };
    if names.len() != layers {
        let found = format!("a list of {}", names.len());
        let expected = format!("one entry for each of the {layers} hidden layers");
        return Err(text.value("layer_types", found, expected));
    }
    let kind = |name: &&str| match *name {
        // An old name.
        "full_attention" | "attention" => Ok(LayerKind::Full),
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
    /// Key of the base in the old spelling.
    theta: &'static str,
    /// The base where neither is there.
    default_theta: f64,
    /// Whether the old `rope_scaling` is about these layers.
    scaled: bool,
}

const FULL: RopeSource = RopeSource {
    kind: "full_attention",
    theta: "rope_theta",
    default_theta: 1e6,
    scaled: true,
};

const SLIDING: RopeSource = RopeSource {
    kind: "sliding_attention",
    theta: "rope_local_base_freq",
    default_theta: 1e4,
    scaled: false,
};

impl RopeSource {
    /// As `Gemma3TextConfig.convert_rope_params_to_dict` does: `rope_parameters` of this kind, with
    /// `rope_scaling` laid over it, with the base from the old spelling where it has none. Parameters of a kind that
    /// no layer is of are not looked at.
    fn read(&self, text: &Fields<'_>, in_use: bool) -> Result<Rope> {
        let nested = text.object("rope_parameters")?;
        let path = text.full("rope_parameters.");
        let nested = nested.map(|map| text.inner(&path, map));
        let path = text.full(&format!("rope_parameters.{}.", self.kind));
        let own = nested
            .map(|nested| nested.object(self.kind))
            .transpose()?
            .flatten();
        let own = own.map(|map| text.inner(&path, map));
        let path = text.full("rope_scaling.");
        let scaling = if self.scaled {
            text.object("rope_scaling")?
        } else {
            None
        };
        let scaling = scaling.map(|map| text.inner(&path, map));
        if let (Some(nested), Some(_), None) = (nested, scaling, own) {
            let expected = "an object, which rope_scaling changes";
            return Err(nested.value(self.kind, "left out", expected));
        }
        let default = Rope {
            theta: self.default_theta,
            factor: 1.0,
        };
        if !in_use {
            return Ok(default);
        }
        let with = |name: &str| [scaling, own].into_iter().flatten().find(|f| f.has(name));
        let theta = match with("rope_theta") {
            Some(fields) => fields.number("rope_theta", THETA)?,
            None => text.number(self.theta, THETA)?,
        };
        let theta = theta.unwrap_or(default.theta);
        // Without rope_parameters the type is there, and is the default: the old name for it is not looked at.
        let old_name = nested.is_some().then(|| with("type")).flatten();
        let kind = match (with("rope_type"), old_name) {
            (Some(fields), _) => fields.required("rope_type", "a string", Value::as_str)?,
            (None, Some(fields)) => fields.required("type", "a string", Value::as_str)?,
            (None, None) => None,
        };
        match kind.unwrap_or("default") {
            "default" => Ok(Rope { theta, ..default }),
            "linear" => {
                self.refuse_partial(with("partial_rotary_factor").unwrap_or(*text))?;
                let Some(fields) = with("factor") else {
                    let fields = scaling.or(own).unwrap_or(*text);
                    return Err(fields.value("factor", "left out", "a number"));
                };
                let factor = fields
                    .number("factor", 1e-6..=1e6)?
                    .unwrap_or(default.factor);
                Ok(Rope { theta, factor })
            }
            other => {
                let fields = with("rope_type").or(old_name).unwrap_or(*text);
                Err(fields.unsupported("rope_type", other, "default and linear"))
            }
        }
    }

    /// Refuses angles for a part of each head.
    fn refuse_partial(&self, fields: Fields<'_>) -> Result<()> {
        const NAME: &str = "partial_rotary_factor";
        match fields.number(NAME, f64::MIN..=f64::MAX)? {
            Some(factor) if factor != 1.0 => {
                Err(fields.unsupported(NAME, factor, "whole heads (1)"))
            }
            _ => Ok(()),
        }
    }
}

/// Bases that keep every angle finite.
const THETA: RangeInclusive<f64> = 1e-15..=1e15;

/// The level that says `name`: the outer one, which generation uses, else the text model's own.
fn outer_first<'f, 'a>(text: &'f Fields<'a>, top: &'f Fields<'a>, name: &str) -> &'f Fields<'a> {
    match top.get(name) {
        Some(_) => top,
        None => text,
    }
}

#[cfg(test)]
mod tests;
