//! Gemma 3: `Gemma3TextConfig`, with all fields at the top, and `Gemma3Config`, with those of the text model in
//! `text_config`.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::super::config::{COUNT, Config, EPS, LENGTH, POSITIONS, VOCAB};
use super::super::error::Result;
use super::super::fields::{Fields, brief};
use super::super::form::{NormKind, RopeForm, RopePairing};
use super::common::{bos_token_id, heads, layer_types, norm};
use super::gemma::{Parts, block, decoder, with_post_norms};
use super::gemma3_rope::{FULL, SLIDING};
use super::refuse_elsewhere;
use crate::kernels::activation::Activation;

const SCALAR: RangeInclusive<usize> = 1..=1 << 30;

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
    refuse_options(text, multimodal)?;
    let vocab_size = text.size("vocab_size", 262_208, VOCAB)?;
    let layers = text.size("num_hidden_layers", 26, COUNT)?;
    let hidden_size = text.size("hidden_size", 2304, LENGTH)?;
    let (heads, kv_heads) = gemma3_heads(text, hidden_size)?;
    let slides = layer_kinds(text, layers)?;
    // Outside null is false; the text model's own field is not looked at where it lies in a multimodal one.
    let tie = !(multimodal && top.is_null("tie_word_embeddings"));
    let mut eos_token_ids = outer_first(text, top, "eos_token_id")
        .token_ids("eos_token_id")?
        .unwrap_or_default();
    eos_token_ids.retain(|id| (*id as usize) < vocab_size);
    let width = text.size("intermediate_size", 9216, LENGTH)?;
    let head_dim = head_dim(text)?;
    let positions = text.size("max_position_embeddings", 131_072, POSITIONS)?;
    let eps = text.real("rms_norm_eps", 1e-6, EPS)?;
    let scalar = text.size("query_pre_attn_scalar", 256, SCALAR)? as f64;
    let window = text.size("sliding_window", 4096, POSITIONS)?;
    let ropes = [
        FULL.read(text, slides.contains(&false))?,
        SLIDING.read(text, slides.contains(&true))?,
    ];
    let bias = text.flag("attention_bias", false)?;
    let layer = |slides: bool| {
        let mut block = with_post_norms(
            block(&Parts {
                heads,
                kv_heads,
                head_dim,
                width,
                eps,
                scaling: 1.0 / scalar.sqrt(),
                rope: RopeForm {
                    rope: ropes[usize::from(slides)],
                    dims: head_dim,
                    pairing: RopePairing::Halves,
                    rounded_once: false,
                },
                bias,
                activation: Activation::GeluTanh,
            }),
            eps,
        );
        let qk_norm = |name| norm(name, NormKind::GEMMA, eps);
        block.attention.qk_norms = Some(["self_attn.q_norm", "self_attn.k_norm"].map(qk_norm));
        block.attention.window = slides.then_some(window);
        block
    };
    Ok(Config {
        model_type: "gemma3_text".into(),
        vocab_size,
        hidden_size,
        intermediate_size: width,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        max_position_embeddings: positions,
        tie_word_embeddings: tie && top.flag("tie_word_embeddings", true)?,
        bos_token_id: bos_token_id(text, Some(2))?.or(Some(2)),
        eos_token_ids,
        multimodal,
        decoder: decoder("gemma3", eps, None),
        blocks: slides.into_iter().map(layer).collect(),
    })
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
    const BIDIRECTIONAL: &str = "use_bidirectional_attention";
    if !text.is_null(BIDIRECTIONAL) && text.flag(BIDIRECTIONAL, false)? {
        return Err(text.unsupported(BIDIRECTIONAL, true, "false"));
    }
    Ok(())
}

/// `num_attention_heads` and `num_key_value_heads`, which null is not.
fn gemma3_heads(text: &Fields<'_>, hidden_size: usize) -> Result<(usize, usize)> {
    const NAMES: [&str; 2] = ["num_attention_heads", "num_key_value_heads"];
    text.size(NAMES[1], 4, COUNT)?;
    heads(text, NAMES, [8, 4], Some(hidden_size))
}

fn head_dim(text: &Fields<'_>) -> Result<usize> {
    let head_dim = text.size("head_dim", 256, 2..=1 << 14)?;
    if !head_dim.is_multiple_of(2) {
        return Err(text.value("head_dim", head_dim, "even"));
    }
    Ok(head_dim)
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
