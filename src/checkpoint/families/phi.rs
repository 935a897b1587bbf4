//! Phi 1 and 2: GPT-J's block with biases everywhere, rotated in halves.

use super::super::config::Config;
use super::super::error::Result;
use super::super::fields::Fields;
use super::super::form::{
    AttentionForm, BlockForm, DecoderForm, InnerForm, LinearForm, MapsForm, OuterForm,
    ProjectionsForm, Sum,
};
use super::common::activation;
use super::rope::{self, RopeDefaults};
use super::shape::{HeadDim, Shape};

const PHI: Shape = Shape {
    vocab_size: 51_200,
    hidden_size: ("hidden_size", 2048),
    layers: ("num_hidden_layers", 24),
    heads: ("num_attention_heads", 32),
    kv_heads: Some(("num_key_value_heads", None)),
    head_dim: HeadDim::Said { whole: true },
    width: ("intermediate_size", Some(8192)),
    positions: ("max_position_embeddings", 2048),
    eps: ("layer_norm_eps", 1e-5),
    bos: Some(1),
    eos: Some(&[2]),
    tied: Some(false),
};

pub(super) fn phi(fields: &Fields<'_>) -> Result<Config> {
    let sizes = PHI.read(fields)?;
    let biased = |name: &str| LinearForm::new(name).biased(true);
    let qk_norms = fields.flag("qk_layernorm", false)?;
    let rope_defaults = RopeDefaults {
        theta: 1e4,
        partial: Some(0.5),
    };
    let block = BlockForm {
        attention: AttentionForm {
            norm: Some(sizes.layer_norm("input_layernorm")),
            qk_norms: qk_norms.then(|| {
                ["self_attn.q_layernorm", "self_attn.k_layernorm"]
                    .map(|name| sizes.layer_norm(name))
            }),
            rope: Some(rope::read(fields, &rope_defaults, &sizes)?),
            ..sizes.attention(
                "self_attn",
                ProjectionsForm::Separate(
                    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].map(biased),
                ),
                biased("self_attn.dense"),
            )
        },
        inner: InnerForm {
            norm: None,
            module: "mlp",
            maps: MapsForm::Plain(biased("mlp.fc1")),
            activation: activation(fields, "hidden_act", "gelu_new")?,
            width: sizes.width,
        },
        outer: OuterForm {
            down: vec![biased("mlp.fc2")],
            post_norm: None,
        },
        sum: Sum::Parallel,
    };
    let decoder = DecoderForm {
        layers: "model.layers",
        embed: "model.embed_tokens",
        embed_scaled: false,
        positions: None,
        norm: sizes.layer_norm("model.final_layernorm"),
        head: biased("lm_head"),
        softcap: None,
        gguf: "phi2",
    };
    Ok(sizes.config("phi", decoder, block))
}
