//! Gemma 3: `Gemma3TextConfig`, with all fields at the top, and `Gemma3Config`, with those of the text model in
//! `text_config`.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::super::config::{COUNT, Config, POSITIONS};
use super::super::error::Result;
use super::super::fields::Fields;
use super::super::form::{NormKind, RopeForm, RopePairing};
use super::common::layer_types;
use super::gemma::{block, cap, decoder, with_post_norms};
use super::gemma3_rope::{FULL, SLIDING};
use super::refuse_elsewhere;
use super::shape::{HeadDim, Shape};
use crate::kernels::activation::Activation;

const SCALAR: RangeInclusive<usize> = 1..=1 << 30;

const GEMMA3: Shape = Shape {
    vocab_size: 262_208,
    hidden_size: ("hidden_size", 2304),
    layers: ("num_hidden_layers", 26),
    heads: ("num_attention_heads", 8),
    kv_heads: Some(("num_key_value_heads", Some(4))),
    head_dim: HeadDim::Default(256, true),
    width: ("intermediate_size", Some(9216)),
    positions: ("max_position_embeddings", 131_072),
    eps: ("rms_norm_eps", 1e-6),
    bos: Some(2),
    eos: None,
    tied: None,
};

pub(super) fn text(top: &Fields<'_>) -> Result<Config> {
    if top.object("text_config")?.is_some() {
        let expected = "left out where model_type is gemma3_text";
        return Err(top.value("text_config", "an object", expected));
    }
    read(top, top, false)
}

pub(super) fn multimodal(top: &Fields<'_>) -> Result<Config> {
    let empty = Map::new();
    let inner = top.object("text_config")?.unwrap_or(&empty);
    let text = top.inner("text_config.", inner);
    refuse_elsewhere(&text)?;
    read(&text, top, true)
}

/// The config in `text`; `top` has what transformers takes from the outer level.
fn read(text: &Fields<'_>, top: &Fields<'_>, multimodal: bool) -> Result<Config> {
    refuse_options(text)?;
    let mut sizes = GEMMA3.read(text)?;
    // Null is no number here.
    text.size("num_key_value_heads", 4, COUNT)?;
    if !sizes.head_dim.is_multiple_of(2) {
        return Err(text.value("head_dim", sizes.head_dim, "even"));
    }
    sizes.bos = sizes.bos.or(GEMMA3.bos);
    let eos = outer_first(text, top, "eos_token_id").token_ids("eos_token_id")?;
    sizes.eos = eos.unwrap_or_default();
    let vocab_size = sizes.vocab_size;
    sizes.eos.retain(|id| (*id as usize) < vocab_size);
    // Outside null is false; the text model's own field is not looked at where it lies in a multimodal one.
    let tied = !(multimodal && top.is_null("tie_word_embeddings"));
    sizes.tied = tied && top.flag("tie_word_embeddings", true)?;
    let slides = layer_kinds(text, sizes.layers)?;
    let scalar = text.size("query_pre_attn_scalar", 256, SCALAR)? as f64;
    let window = text.size("sliding_window", 4096, POSITIONS)?;
    let ropes = [
        FULL.read(text, slides.contains(&false))?,
        SLIDING.read(text, slides.contains(&true))?,
    ];
    let rope = |slides: bool| RopeForm {
        rope: ropes[usize::from(slides)],
        dims: sizes.head_dim,
        pairing: RopePairing::Halves,
        rounded_once: false,
    };
    let bias = text.flag("attention_bias", false)?;
    let block = block(&sizes, bias, rope(false), Activation::GeluTanh);
    let mut block = with_post_norms(block, &sizes);
    block.attention.scaling = 1.0 / scalar.sqrt();
    let qk_norm = |name| sizes.norm(name, NormKind::GEMMA);
    block.attention.qk_norms = Some(["self_attn.q_norm", "self_attn.k_norm"].map(qk_norm));
    let of_kind: Vec<_> = slides.iter().map(|&slides| rope(slides)).collect();
    // transformers caps no scores, nor the logits of a multimodal model, whatever is said.
    let softcap = if multimodal {
        None
    } else {
        cap(text, "final_logit_softcapping", None)?
    };
    let decoder = decoder("gemma3", &sizes, softcap);
    let config = sizes.config("gemma3_text", decoder, block);
    let config = config.with_layers(|layer, block| {
        block.attention.window = slides[layer].then_some(window);
        block.attention.rope = Some(of_kind[layer]);
    });
    Ok(Config {
        multimodal,
        ..config
    })
}

/// Refuses what is legitimate in a config of this family or its relatives and is not computed here.
fn refuse_options(text: &Fields<'_>) -> Result<()> {
    const ACTIVATION: &str = "hidden_activation";
    if let Some(name) = text.required(ACTIVATION, "a string", Value::as_str)?
        && name != "gelu_pytorch_tanh"
    {
        return Err(text.unsupported(ACTIVATION, name, "gelu_pytorch_tanh"));
    }
    const BIDIRECTIONAL: &str = "use_bidirectional_attention";
    if !text.is_null(BIDIRECTIONAL) && text.flag(BIDIRECTIONAL, false)? {
        return Err(text.unsupported(BIDIRECTIONAL, true, "false"));
    }
    Ok(())
}

/// Which layers have a window, from `layer_types` or else from `sliding_window_pattern`.
fn layer_kinds(text: &Fields<'_>, layers: usize) -> Result<Vec<bool>> {
    if let Some(slides) = layer_types(text, layers)? {
        return Ok(slides);
    }
    const NAME: &str = "sliding_window_pattern";
    let pattern = text.number(NAME, f64::MIN..=f64::MAX)?.unwrap_or(6.0);
    if pattern == 0.0 {
        return Err(text.value(NAME, 0, "another number"));
    }
    let slides = |layer: usize| (layer + 1) as f64 % pattern != 0.0;
    Ok((0..layers).map(slides).collect())
}

/// The level that says `name`: the outer one, which generation uses, else the text model's own.
fn outer_first<'f, 'a>(text: &'f Fields<'a>, top: &'f Fields<'a>, name: &str) -> &'f Fields<'a> {
    match top.get(name) {
        Some(_) => top,
        None => text,
    }
}
