//! Gemma 1 and 2, whose parts Gemma 3 shares.

use super::super::config::{Config, POSITIONS};
use super::super::error::Result;
use super::super::fields::Fields;
use super::super::form::{
    AttentionForm, BlockForm, DecoderForm, InnerForm, LinearForm, MapsForm, NormKind, OuterForm,
    ProjectionsForm, RopeForm, Sum,
};
use super::common::{activation, layer_types};
use super::rope::{self, RopeDefaults};
use super::shape::{HeadDim, Shape, Sizes};
use crate::kernels::activation::Activation;

/// A block with a norm in front of each sub-layer, as in Gemma 1.
pub(super) fn block(
    sizes: &Sizes,
    bias: bool,
    rope: RopeForm,
    activation: Activation,
) -> BlockForm {
    let rms = |name| sizes.norm(name, NormKind::GEMMA);
    let map = |name: &str| LinearForm::new(name).biased(bias);
    BlockForm {
        attention: AttentionForm {
            norm: Some(rms("input_layernorm")),
            rope: Some(rope),
            ..sizes.attention(
                "self_attn",
                ProjectionsForm::Separate(
                    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].map(map),
                ),
                map("self_attn.o_proj"),
            )
        },
        inner: InnerForm {
            norm: Some(rms("post_attention_layernorm")),
            module: "mlp",
            maps: MapsForm::Gated {
                gate: LinearForm::new("mlp.gate_proj"),
                up: LinearForm::new("mlp.up_proj"),
            },
            activation,
            width: sizes.width,
        },
        outer: OuterForm {
            down: vec![LinearForm::new("mlp.down_proj")],
            post_norm: None,
        },
        sum: Sum::Sequential,
    }
}

/// The same with a norm behind each sub-layer too, as in Gemma 2 and 3.
pub(super) fn with_post_norms(block: BlockForm, sizes: &Sizes) -> BlockForm {
    let rms = |name| Some(sizes.norm(name, NormKind::GEMMA));
    BlockForm {
        attention: AttentionForm {
            post_norm: rms("post_attention_layernorm"),
            ..block.attention
        },
        inner: InnerForm {
            norm: rms("pre_feedforward_layernorm"),
            ..block.inner
        },
        outer: OuterForm {
            post_norm: rms("post_feedforward_layernorm"),
            ..block.outer
        },
        ..block
    }
}

/// What is around the blocks of every Gemma.
pub(super) fn decoder(gguf: &'static str, sizes: &Sizes, softcap: Option<f64>) -> DecoderForm {
    DecoderForm {
        layers: "model.layers",
        embed: "model.embed_tokens",
        embed_scaled: true,
        positions: None,
        norm: sizes.norm("model.norm", NormKind::GEMMA),
        head: LinearForm::new("lm_head"),
        softcap,
        gguf,
    }
}

/// A soft-cap: null is none, and `default` what is left out.
pub(super) fn cap(fields: &Fields<'_>, name: &str, default: Option<f64>) -> Result<Option<f64>> {
    match (fields.is_null(name), fields.has(name)) {
        (true, _) => Ok(None),
        (false, false) => Ok(default),
        (false, true) => fields.number(name, 1e-6..=1e6),
    }
}

const GEMMA: Shape = Shape {
    vocab_size: 256_000,
    hidden_size: ("hidden_size", 3072),
    layers: ("num_hidden_layers", 28),
    heads: ("num_attention_heads", 16),
    kv_heads: Some(("num_key_value_heads", Some(16))),
    head_dim: HeadDim::Default(256, false),
    width: ("intermediate_size", Some(24_576)),
    positions: ("max_position_embeddings", 8192),
    eps: ("rms_norm_eps", 1e-6),
    bos: Some(2),
    eos: Some(&[1]),
    tied: Some(true),
};

const GEMMA2: Shape = Shape {
    hidden_size: ("hidden_size", 2304),
    layers: ("num_hidden_layers", 26),
    heads: ("num_attention_heads", 8),
    kv_heads: Some(("num_key_value_heads", Some(4))),
    head_dim: HeadDim::Default(256, true),
    width: ("intermediate_size", Some(9216)),
    ..GEMMA
};

const ROPE: RopeDefaults = RopeDefaults {
    theta: 1e4,
    partial: None,
};

pub(super) fn gemma(fields: &Fields<'_>) -> Result<Config> {
    refuse_bidirectional(fields)?;
    let sizes = GEMMA.read(fields)?;
    let rope = rope::read(fields, &ROPE, &sizes)?;
    let activation = match activation(fields, "hidden_act", "gelu_pytorch_tanh")? {
        // The first configs say it where they mean the tanh form.
        Activation::Gelu => Activation::GeluTanh,
        other => other,
    };
    let bias = fields.flag("attention_bias", false)?;
    let block = block(&sizes, bias, rope, activation);
    let decoder = decoder("gemma", &sizes, None);
    Ok(sizes.config("gemma", decoder, block))
}

pub(super) fn gemma2(fields: &Fields<'_>) -> Result<Config> {
    refuse_bidirectional(fields)?;
    let sizes = GEMMA2.read(fields)?;
    let scores_cap = cap(fields, "attn_logit_softcapping", Some(50.0))?;
    let logits_cap = cap(fields, "final_logit_softcapping", Some(30.0))?;
    let scalar = fields.size("query_pre_attn_scalar", 256, POSITIONS)? as f64;
    let window = fields.size("sliding_window", 4096, POSITIONS)?;
    let layers = sizes.layers;
    let every_other = || (0..layers).map(|layer| layer % 2 == 0).collect();
    let slides = layer_types(fields, layers)?.unwrap_or_else(every_other);
    let rope = rope::read(fields, &ROPE, &sizes)?;
    let activation = activation(fields, "hidden_activation", "gelu_pytorch_tanh")?;
    let bias = fields.flag("attention_bias", false)?;
    let mut block = with_post_norms(block(&sizes, bias, rope, activation), &sizes);
    block.attention.scaling = 1.0 / scalar.sqrt();
    block.attention.softcap = scores_cap;
    let decoder = decoder("gemma2", &sizes, logits_cap);
    let config = sizes.config("gemma2", decoder, block);
    Ok(config.with_layers(|layer, block| {
        block.attention.window = slides[layer].then_some(window);
    }))
}

fn refuse_bidirectional(fields: &Fields<'_>) -> Result<()> {
    const NAME: &str = "use_bidirectional_attention";
    if fields.get(NAME).is_some() && fields.flag(NAME, false)? {
        return Err(fields.unsupported(NAME, true, "false"));
    }
    Ok(())
}
