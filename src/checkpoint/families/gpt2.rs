//! GPT-2: learned positions, LayerNorm, one map for queries, keys and values, weights stored `[in, out]`.

use super::super::config::Config;
use super::super::error::Result;
use super::super::fields::Fields;
use super::super::form::{
    AttentionForm, BlockForm, DecoderForm, FusedOrder, InnerForm, LearnedPositions, LinearForm,
    MapsForm, OuterForm, ProjectionsForm, Sum,
};
use super::common::activation;
use super::shape::{HeadDim, Shape};

const GPT2: Shape = Shape {
    vocab_size: 50_257,
    hidden_size: ("n_embd", 768),
    layers: ("n_layer", 12),
    heads: ("n_head", 12),
    kv_heads: None,
    head_dim: HeadDim::Whole,
    width: ("n_inner", None),
    positions: ("n_positions", 1024),
    eps: ("layer_norm_epsilon", 1e-5),
    bos: Some(50_256),
    eos: Some(&[50_256]),
    tied: Some(true),
};

pub(super) fn gpt2(fields: &Fields<'_>) -> Result<Config> {
    if fields.flag("add_cross_attention", false)? {
        return Err(fields.unsupported("add_cross_attention", true, "a decoder alone (false)"));
    }
    let sizes = GPT2.read(fields)?;
    let conv_1d = |name: &str| LinearForm {
        transposed: true,
        ..LinearForm::new(name).biased(true)
    };
    let scaling = if fields.flag("scale_attn_weights", true)? {
        sizes.scaling()
    } else {
        1.0
    };
    let block = BlockForm {
        attention: AttentionForm {
            norm: Some(sizes.layer_norm("ln_1")),
            scaling,
            ..sizes.attention(
                "attn",
                ProjectionsForm::Fused(conv_1d("attn.c_attn"), FusedOrder::Concatenated),
                conv_1d("attn.c_proj"),
            )
        },
        inner: InnerForm {
            norm: Some(sizes.layer_norm("ln_2")),
            module: "mlp",
            maps: MapsForm::Plain(conv_1d("mlp.c_fc")),
            activation: activation(fields, "activation_function", "gelu_new")?,
            width: sizes.width,
        },
        outer: OuterForm {
            down: vec![conv_1d("mlp.c_proj")],
            post_norm: None,
        },
        sum: Sum::Sequential,
    };
    let by_layer = fields.flag("scale_attn_by_inverse_layer_idx", false)?;
    let decoder = DecoderForm {
        layers: "transformer.h",
        embed: "transformer.wte",
        embed_scaled: false,
        positions: Some(LearnedPositions {
            table: "transformer.wpe",
            sum: "transformer.drop",
            offset: 0,
        }),
        norm: sizes.layer_norm("transformer.ln_f"),
        head: LinearForm::new("lm_head"),
        softcap: None,
        gguf: "gpt2",
    };
    let config = sizes.config("gpt2", decoder, block);
    Ok(config.with_layers(|layer, block| {
        if by_layer {
            block.attention.scaling /= (layer + 1) as f64;
        }
    }))
}
