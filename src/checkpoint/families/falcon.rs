//! Falcon, in its three forms: one key head and one norm for both branches (7B), grouped key heads and a norm for each
//! branch (40B), and one branch after the other (RW).

use super::super::config::Config;
use super::super::error::Result;
use super::super::fields::Fields;
use super::super::form::{
    AttentionForm, BlockForm, DecoderForm, FusedOrder, InnerForm, LinearForm, MapsForm, OuterForm,
    ProjectionsForm, Sum,
};
use super::common::activation;
use super::rope::{self, RopeDefaults};
use super::shape::{HeadDim, Shape};

const FALCON: Shape = Shape {
    vocab_size: 65_024,
    hidden_size: ("hidden_size", 4544),
    layers: ("num_hidden_layers", 32),
    heads: ("num_attention_heads", 71),
    kv_heads: Some(("num_kv_heads", None)),
    head_dim: HeadDim::Whole,
    width: ("ffn_hidden_size", None),
    positions: ("max_position_embeddings", 2048),
    eps: ("layer_norm_epsilon", 1e-5),
    bos: Some(11),
    eos: Some(&[11]),
    tied: Some(true),
};

pub(super) fn falcon(fields: &Fields<'_>) -> Result<Config> {
    if fields.flag("alibi", false)? {
        return Err(fields.unsupported("alibi", true, "rotary positions (false)"));
    }
    let hidden_name = if fields.has("n_embed") {
        "n_embed"
    } else {
        "hidden_size"
    };
    let shape = Shape {
        hidden_size: (hidden_name, 4544),
        ..FALCON
    };
    let mut sizes = shape.read(fields)?;
    let new = fields.flag("new_decoder_architecture", false)?;
    let multi_query = fields.flag("multi_query", true)?;
    let parallel = fields.flag("parallel_attn", true)?;
    if !new {
        sizes.kv_heads = if multi_query { 1 } else { sizes.heads };
    }
    let bias = fields.flag("bias", false)?;
    let map = |name: &str| LinearForm {
        rounded_first: true,
        ..LinearForm::new(name).biased(bias)
    };
    // One norm for both branches, or one for each: 0 stands for what is left out.
    let norms = match (fields.get("num_ln_in_parallel_attn"), new) {
        (Some(_), _) => fields.size("num_ln_in_parallel_attn", 0, 1..=2)?,
        (None, new) => 1 + usize::from(new),
    };
    let (first, second) = match (new || parallel, norms) {
        (false, _) => ("input_layernorm", Some("post_attention_layernorm")),
        (true, 2) if new => ("ln_attn", Some("ln_mlp")),
        _ => ("input_layernorm", None),
    };
    let rope_defaults = RopeDefaults {
        theta: 1e4,
        partial: None,
    };
    let block = BlockForm {
        attention: AttentionForm {
            norm: Some(sizes.layer_norm(first)),
            rope: Some(rope::read(fields, &rope_defaults, &sizes)?),
            ..sizes.attention(
                "self_attention",
                ProjectionsForm::Fused(map("self_attention.query_key_value"), FusedOrder::Grouped),
                map("self_attention.dense"),
            )
        },
        inner: InnerForm {
            norm: second.map(|name| sizes.layer_norm(name)),
            module: "mlp",
            maps: MapsForm::Plain(map("mlp.dense_h_to_4h")),
            activation: activation(fields, "activation", "gelu")?,
            width: sizes.width,
        },
        outer: OuterForm {
            down: vec![map("mlp.dense_4h_to_h")],
            post_norm: None,
        },
        sum: if new || parallel {
            Sum::Parallel
        } else {
            Sum::Sequential
        },
    };
    let decoder = DecoderForm {
        layers: "transformer.h",
        embed: "transformer.word_embeddings",
        embed_scaled: false,
        positions: None,
        norm: sizes.layer_norm("transformer.ln_f"),
        head: LinearForm::new("lm_head"),
        softcap: None,
        gguf: "falcon",
    };
    Ok(sizes.config("falcon", decoder, block))
}
