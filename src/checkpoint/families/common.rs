//! What several families' configs have in common beside their [sizes](super::shape).

use super::super::error::Result;
use super::super::fields::Fields;
use crate::kernels::activation::Activation;

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
