//! Gemma 1 and 2, whose parts Gemma 3 shares.

use super::super::config::{COUNT, Config, EPS, LENGTH, POSITIONS, VOCAB};
use super::super::error::Result;
use super::super::fields::Fields;
use super::super::form::{
    AttentionForm, BlockForm, DecoderForm, InnerForm, LinearForm, MapsForm, NormKind, NormWidth,
    OuterForm, ProjectionsForm, RopeForm, Sum,
};
use super::common::{activation, bos_token_id, eos_token_ids, heads, layer_types, norm};
use super::rope::{self, RopeDefaults};
use crate::kernels::activation::Activation;

/// What decides the parts of a Gemma block.
pub(super) struct Parts {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) width: usize,
    pub(super) eps: f64,
    pub(super) scaling: f64,
    pub(super) rope: RopeForm,
    pub(super) bias: bool,
    pub(super) activation: Activation,
}

/// A block with a norm in front of each sub-layer, as in Gemma 1.
pub(super) fn block(parts: &Parts) -> BlockForm {
    let rms = |name| norm(name, NormKind::GEMMA, parts.eps);
    let map = |name: &str| LinearForm::new(name).biased(parts.bias);
    BlockForm {
        attention: AttentionForm {
            module: "self_attn",
            norm: Some(rms("input_layernorm")),
            projections: ProjectionsForm::Separate(
                ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].map(map),
            ),
            qk_norms: None,
            qk_norm_width: NormWidth::Head,
            norm_after_rope: false,
            rope: Some(parts.rope),
            heads: parts.heads,
            kv_heads: parts.kv_heads,
            head_dim: parts.head_dim,
            window: None,
            scaling: parts.scaling,
            rounded_scores: true,
            softcap: None,
            out: map("self_attn.o_proj"),
            post_norm: None,
        },
        inner: InnerForm {
            norm: Some(rms("post_attention_layernorm")),
            module: "mlp",
            maps: MapsForm::Gated {
                gate: LinearForm::new("mlp.gate_proj"),
                up: LinearForm::new("mlp.up_proj"),
            },
            activation: parts.activation,
            width: parts.width,
        },
        outer: OuterForm {
            down: vec![LinearForm::new("mlp.down_proj")],
            post_norm: None,
        },
        sum: Sum::Sequential,
    }
}

/// The same with a norm behind each sub-layer too, as in Gemma 2 and 3.
pub(super) fn with_post_norms(block: BlockForm, eps: f64) -> BlockForm {
    let rms = |name| Some(norm(name, NormKind::GEMMA, eps));
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
pub(super) fn decoder(gguf: &'static str, eps: f64, softcap: Option<f64>) -> DecoderForm {
    DecoderForm {
        layers: "model.layers",
        embed: "model.embed_tokens",
        embed_scaled: true,
        positions: None,
        norm: norm("model.norm", NormKind::GEMMA, eps),
        head: LinearForm::new("lm_head"),
        softcap,
        gguf,
    }
}

/// Caps that keep tanh's argument a number.
pub(super) const CAP: std::ops::RangeInclusive<f64> = 1e-6..=1e6;

pub(super) fn gemma(fields: &Fields<'_>) -> Result<Config> {
    read(fields, "gemma", [3072, 24_576, 28, 16, 16])
}

pub(super) fn gemma2(fields: &Fields<'_>) -> Result<Config> {
    let config = read(fields, "gemma2", [2304, 9216, 26, 8, 4])?;
    let layers = config.num_hidden_layers;
    let eps = config.norm_eps();
    let cap = |name, default| match (fields.is_null(name), fields.has(name)) {
        (true, _) => Ok(None),
        (false, false) => Ok(Some(default)),
        (false, true) => fields.number(name, CAP),
    };
    let (scores_cap, logits_cap) = (
        cap("attn_logit_softcapping", 50.0)?,
        cap("final_logit_softcapping", 30.0)?,
    );
    let scalar = fields.size("query_pre_attn_scalar", 256, POSITIONS)? as f64;
    let window = fields.size("sliding_window", 4096, POSITIONS)?;
    let every_other = || (0..layers).map(|layer| layer % 2 == 0).collect();
    let slides = layer_types(fields, layers)?.unwrap_or_else(every_other);
    let config = Config {
        decoder: decoder("gemma2", eps, logits_cap),
        ..config
    };
    Ok(config.with_layers(|layer, block| {
        *block = with_post_norms(block.clone(), eps);
        block.attention.scaling = 1.0 / scalar.sqrt();
        block.attention.softcap = scores_cap;
        block.attention.window = slides[layer].then_some(window);
    }))
}

/// Gemma 1, with the sizes that a config leaves out.
fn read(
    fields: &Fields<'_>,
    model_type: &str,
    [hidden, width, layers, query_heads, key_heads]: [usize; 5],
) -> Result<Config> {
    const BIDIRECTIONAL: &str = "use_bidirectional_attention";
    if fields.get(BIDIRECTIONAL).is_some() && fields.flag(BIDIRECTIONAL, false)? {
        return Err(fields.unsupported(BIDIRECTIONAL, true, "false"));
    }
    let hidden_size = fields.size("hidden_size", hidden, LENGTH)?;
    let vocab_size = fields.size("vocab_size", 256_000, VOCAB)?;
    let layers = fields.size("num_hidden_layers", layers, COUNT)?;
    let (heads, kv_heads) = heads(
        fields,
        ["num_attention_heads", "num_key_value_heads"],
        [query_heads, key_heads],
        Some(hidden_size),
    )?;
    let head_dim = fields.size("head_dim", 256, 2..=1 << 14)?;
    let positions = fields.size("max_position_embeddings", 8192, POSITIONS)?;
    let width = fields.size("intermediate_size", width, LENGTH)?;
    let eps = fields.real("rms_norm_eps", 1e-6, EPS)?;
    let rope = rope::read(
        fields,
        &RopeDefaults {
            theta: 1e4,
            partial: None,
        },
        head_dim,
        positions,
    )?;
    // Gemma 1 calls it hidden_act, and its first configs say "gelu" where they mean the tanh form.
    let activation = match (model_type, activation(fields, "hidden_act", "gelu_new")?) {
        ("gemma", Activation::Gelu) => Activation::GeluTanh,
        ("gemma", other) => other,
        _ => activation(fields, "hidden_activation", "gelu_pytorch_tanh")?,
    };
    let block = block(&Parts {
        heads,
        kv_heads,
        head_dim,
        width,
        eps,
        scaling: 1.0 / (head_dim as f64).sqrt(),
        rope,
        bias: fields.flag("attention_bias", false)?,
        activation,
    });
    Ok(Config {
        model_type: model_type.into(),
        vocab_size,
        hidden_size,
        intermediate_size: width,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        max_position_embeddings: positions,
        tie_word_embeddings: fields.flag("tie_word_embeddings", true)?,
        bos_token_id: bos_token_id(fields, Some(2))?,
        eos_token_ids: eos_token_ids(fields, &[1], vocab_size)?,
        multimodal: false,
        decoder: decoder("gemma", eps, None),
        blocks: vec![block; layers],
    })
}
