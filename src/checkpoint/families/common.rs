//! What the configs of all families have in common.

use super::super::config::{COUNT, Config};
use super::super::error::Result;
use super::super::fields::{Fields, whole};
use super::super::form::{BlockForm, NormForm, NormKind};
use crate::kernels::activation::Activation;

/// A norm under its name.
pub(super) fn norm(name: &str, kind: NormKind, eps: f64) -> NormForm {
    NormForm {
        name: name.into(),
        kind,
        eps,
    }
}

/// A number of query heads, which must divide `hidden_size` where it is given, and of key heads, which must divide it. Without key heads in
/// the config, or with null for them, there is one for each query head, or `default_keys`.
pub(super) fn heads(
    fields: &Fields<'_>,
    [name, keys_name]: [&str; 2],
    [default, default_keys]: [usize; 2],
    hidden_size: Option<usize>,
) -> Result<(usize, usize)> {
    let heads = fields.size(name, default, COUNT)?;
    if let Some(hidden_size) = hidden_size
        && !hidden_size.is_multiple_of(heads)
    {
        let expected = format!("a divisor of hidden_size, {hidden_size}");
        return Err(fields.value(name, heads, expected));
    }
    let keys = match (fields.is_null(keys_name), fields.has(keys_name)) {
        (true, _) => heads,
        (false, true) => fields.size(keys_name, heads, COUNT)?,
        (false, false) => default_keys,
    };
    if !heads.is_multiple_of(keys) {
        let expected = format!("a divisor of {name}, {heads}");
        return Err(fields.value(keys_name, keys, expected));
    }
    Ok((heads, keys))
}

/// The length of a head: what the config says, or hidden_size / heads.
pub(super) fn head_dim(fields: &Fields<'_>, hidden_size: usize, heads: usize) -> Result<usize> {
    if fields.get("head_dim").is_some() {
        return fields.size("head_dim", 0, 1..=1 << 14);
    }
    match hidden_size / heads {
        0 => Err(fields.value("num_attention_heads", heads, "at most hidden_size")),
        head_dim => Ok(head_dim),
    }
}

/// An activation by transformers' name for it.
pub(super) fn activation(fields: &Fields<'_>, name: &str, default: &str) -> Result<Activation> {
    let said = fields.required(name, "a string", serde_json::Value::as_str)?;
    match said.unwrap_or(default) {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" => Ok(Activation::GeluNew),
        "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        other => Err(fields.unsupported(
            name,
            other,
            "silu, gelu, gelu_new, gelu_pytorch_tanh and relu",
        )),
    }
}

/// The token before every text, or `default` where the config does not say it.
pub(super) fn bos_token_id(fields: &Fields<'_>, default: Option<u32>) -> Result<Option<u32>> {
    if fields.is_null("bos_token_id") {
        return Ok(None);
    }
    let said = fields.typed("bos_token_id", "a token id", |v| whole(v))?;
    Ok(match said {
        Some(id) => id.as_u64().and_then(|id| u32::try_from(id).ok()),
        None => default,
    })
}

/// The tokens that end a text, those beyond the vocabulary left out; `default` where the config does not say it.
pub(super) fn eos_token_ids(
    fields: &Fields<'_>,
    default: &[u32],
    vocab_size: usize,
) -> Result<Vec<u32>> {
    let said = fields.token_ids("eos_token_id")?;
    let default = if fields.has("eos_token_id") {
        &[]
    } else {
        default
    };
    let mut ids = said.unwrap_or_else(|| default.to_vec());
    ids.retain(|id| (*id as usize) < vocab_size);
    Ok(ids)
}

/// Which layers have a window, where the config has a list of them.
pub(super) fn layer_types(fields: &Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(names) = fields.strings("layer_types")? else {
        return Ok(None);
    };
    if names.len() != layers {
        let found = format!("a list of {}", names.len());
        let expected = format!("one entry for each of the {layers} hidden layers");
        return Err(fields.value("layer_types", found, expected));
    }
    let slides = |name: &&str| match *name {
        // An old name.
        "full_attention" | "attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => {
            Err(fields.unsupported("layer_types", other, "full_attention and sliding_attention"))
        }
    };
    names.iter().map(slides).collect::<Result<_>>().map(Some)
}

impl Config {
    /// The same for layers that are all alike but for what `change` makes of each.
    pub(super) fn with_layers(mut self, change: impl Fn(usize, &mut BlockForm)) -> Self {
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            change(layer, block);
        }
        self
    }
}
