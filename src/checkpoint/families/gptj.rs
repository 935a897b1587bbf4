//! GPT-J: both branches see one norm, and a part of each head rotates in neighbours.

use super::super::config::Config;
use super::super::error::Result;
use super::super::fields::Fields;
use super::super::form::{
    AttentionForm, BlockForm, DecoderForm, InnerForm, LinearForm, MapsForm, OuterForm,
    ProjectionsForm, Rope, RopeForm, RopePairing, Sum,
};
use super::common::activation;
use super::shape::{HeadDim, Shape};

const GPTJ: Shape = Shape {
    vocab_size: 50_400,
    hidden_size: ("n_embd", 4096),
    layers: ("n_layer", 28),
    heads: ("n_head", 16),
    kv_heads: None,
    head_dim: HeadDim::Whole,
    width: ("n_inner", None),
    positions: ("n_positions", 2048),
    eps: ("layer_norm_epsilon", 1e-5),
    bos: Some(50_256),
    eos: Some(&[50_256]),
    tied: Some(false),
};

pub(super) fn gptj(fields: &Fields<'_>) -> Result<Config> {
    let sizes = GPTJ.read(fields)?;
    let head_dim = sizes.head_dim;
    let dims = match fields.is_null("rotary_dim") {
        true => head_dim,
        false => fields.size("rotary_dim", 64.min(head_dim), 2..=head_dim)?,
    };
    if !dims.is_multiple_of(2) {
        return Err(fields.value("rotary_dim", dims, "even"));
    }
    let biased = |name: &str| LinearForm::new(name).biased(true);
    let block = BlockForm {
        attention: AttentionForm {
            norm: Some(sizes.layer_norm("ln_1")),
            rope: Some(RopeForm {
                rope: Rope::linear(1e4, 1.0),
                dims,
                pairing: RopePairing::Interleaved,
                rounded_once: false,
            }),
            rounded_scores: false,
            ..sizes.attention(
                "attn",
                ProjectionsForm::Separate(
                    ["attn.q_proj", "attn.k_proj", "attn.v_proj"].map(LinearForm::new),
                ),
                LinearForm::new("attn.out_proj"),
            )
        },
        inner: InnerForm {
            norm: None,
            module: "mlp",
            maps: MapsForm::Plain(biased("mlp.fc_in")),
            activation: activation(fields, "activation_function", "gelu_new")?,
            width: sizes.width,
        },
        outer: OuterForm {
            down: vec![biased("mlp.fc_out")],
            post_norm: None,
        },
        sum: Sum::Parallel,
    };
    let decoder = DecoderForm {
        layers: "transformer.h",
        embed: "transformer.wte",
        embed_scaled: false,
        positions: None,
        norm: sizes.layer_norm("transformer.ln_f"),
        head: biased("lm_head"),
        softcap: None,
        gguf: "gptj",
    };
    Ok(sizes.config("gptj", decoder, block))
}
