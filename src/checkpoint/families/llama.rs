//! Llama, and the families that are Llama but for a few choices: Mistral, Qwen2, Qwen3, Mixtral, OLMo 2 and Phi 3.

use super::super::config::{Config, POSITIONS};
use super::super::error::Result;
use super::super::fields::Fields;
use super::super::form::{
    AttentionForm, BlockForm, DecoderForm, ExpertsForm, FusedExperts, FusedOrder, InnerForm,
    LinearForm, MapsForm, NormForm, NormKind, NormWidth, OuterForm, ProjectionsForm, Sum,
};
use super::common::{activation, layer_types};
use super::rope::{self, RopeDefaults};
use super::shape::{HeadDim, Shape};

/// What a config of such a family leaves out, and what the family adds to Llama.
struct Llama {
    model_type: &'static str,
    gguf: &'static str,
    shape: Shape,
    norm: NormKind,
    rope: RopeDefaults,
    /// Whether q, k and v have biases though the config does not say so.
    qkv_bias: bool,
    /// Whether `attention_bias` and `mlp_bias` are looked at.
    attention_bias: bool,
    mlp_bias: bool,
    /// Norms of q and k.
    qk_norms: Option<NormWidth>,
    /// Which layers have a window.
    windows: Windows,
}

/// Which layers of a family have a window.
enum Windows {
    None,
    /// All, where `sliding_window` says so; the number is its default.
    All(Option<usize>),
    /// Those of `layer_types`, or from `max_window_layers` on, where `use_sliding_window` says so.
    Qwen,
}

const LLAMA: Llama = Llama {
    model_type: "llama",
    gguf: "llama",
    shape: Shape {
        vocab_size: 32_000,
        hidden_size: ("hidden_size", 4096),
        layers: ("num_hidden_layers", 32),
        heads: ("num_attention_heads", 32),
        kv_heads: Some(("num_key_value_heads", None)),
        head_dim: HeadDim::Said { whole: true },
        width: ("intermediate_size", Some(11_008)),
        positions: ("max_position_embeddings", 2048),
        eps: ("rms_norm_eps", 1e-6),
        bos: Some(1),
        eos: Some(&[2]),
        tied: Some(false),
    },
    norm: NormKind::LLAMA,
    rope: RopeDefaults {
        theta: 1e4,
        partial: None,
    },
    qkv_bias: false,
    attention_bias: true,
    mlp_bias: true,
    qk_norms: None,
    windows: Windows::None,
};

const MISTRAL: Llama = Llama {
    model_type: "mistral",
    shape: Shape {
        kv_heads: Some(("num_key_value_heads", Some(8))),
        head_dim: HeadDim::Said { whole: false },
        width: ("intermediate_size", Some(14_336)),
        positions: ("max_position_embeddings", 131_072),
        ..LLAMA.shape
    },
    attention_bias: false,
    mlp_bias: false,
    windows: Windows::All(Some(4096)),
    ..LLAMA
};

const QWEN2: Llama = Llama {
    model_type: "qwen2",
    gguf: "qwen2",
    shape: Shape {
        vocab_size: 151_936,
        kv_heads: Some(("num_key_value_heads", Some(32))),
        head_dim: HeadDim::Said { whole: false },
        width: ("intermediate_size", Some(22_016)),
        positions: ("max_position_embeddings", 32_768),
        bos: None,
        eos: Some(&[]),
        ..LLAMA.shape
    },
    qkv_bias: true,
    attention_bias: false,
    mlp_bias: false,
    windows: Windows::Qwen,
    ..LLAMA
};

const QWEN3: Llama = Llama {
    model_type: "qwen3",
    gguf: "qwen3",
    shape: Shape {
        head_dim: HeadDim::Default(128, false),
        ..QWEN2.shape
    },
    qkv_bias: false,
    attention_bias: true,
    qk_norms: Some(NormWidth::Head),
    ..QWEN2
};

const MIXTRAL: Llama = Llama {
    model_type: "mixtral",
    shape: Shape {
        eps: ("rms_norm_eps", 1e-5),
        ..MISTRAL.shape
    },
    rope: RopeDefaults {
        theta: 1e6,
        partial: None,
    },
    windows: Windows::All(None),
    ..MISTRAL
};

const OLMO2: Llama = Llama {
    model_type: "olmo2",
    gguf: "olmo2",
    shape: Shape {
        vocab_size: 50_304,
        head_dim: HeadDim::Said { whole: false },
        eps: ("rms_norm_eps", 1e-5),
        bos: None,
        eos: Some(&[50_279]),
        ..LLAMA.shape
    },
    norm: NormKind::PLAIN,
    mlp_bias: false,
    qk_norms: Some(NormWidth::AllHeads),
    ..LLAMA
};

const PHI3: Llama = Llama {
    model_type: "phi3",
    gguf: "phi3",
    shape: Shape {
        vocab_size: 32_064,
        hidden_size: ("hidden_size", 3072),
        kv_heads: Some(("num_key_value_heads", None)),
        width: ("intermediate_size", Some(8192)),
        positions: ("max_position_embeddings", 4096),
        eps: ("rms_norm_eps", 1e-5),
        eos: Some(&[32_000]),
        ..MISTRAL.shape
    },
    rope: RopeDefaults {
        theta: 1e4,
        partial: Some(1.0),
    },
    windows: Windows::All(None),
    ..MISTRAL
};

pub(super) fn llama(fields: &Fields<'_>) -> Result<Config> {
    LLAMA.read(fields)
}

pub(super) fn mistral(fields: &Fields<'_>) -> Result<Config> {
    MISTRAL.read(fields)
}

pub(super) fn qwen2(fields: &Fields<'_>) -> Result<Config> {
    QWEN2.read(fields)
}

pub(super) fn qwen3(fields: &Fields<'_>) -> Result<Config> {
    QWEN3.read(fields)
}

/// Experts of all layers together, twice those of the largest models: each has names of its own, and a config of some bytes
/// could have them fill the memory.
const EXPERTS: usize = 1 << 16;

/// Mistral with experts in the place of the MLP.
pub(super) fn mixtral(fields: &Fields<'_>) -> Result<Config> {
    const MODULE: &str = "block_sparse_moe";
    let config = MIXTRAL.read(fields)?;
    let most = EXPERTS / config.num_hidden_layers;
    let experts = fields.size("num_local_experts", 8, 1..=most)?;
    let top_k = fields.size("num_experts_per_tok", 2, 1..=experts)?;
    let map = |expert: usize, name| LinearForm::new(format!("{MODULE}.experts.{expert}.{name}"));
    Ok(config.with_layers(|_, block| {
        block.inner.module = MODULE;
        block.inner.maps = MapsForm::Experts(ExpertsForm {
            router: LinearForm::new(format!("{MODULE}.gate")),
            experts: (0..experts).map(|e| [map(e, "w1"), map(e, "w3")]).collect(),
            top_k,
            renormalised: true,
            fused: FusedExperts {
                router: "mlp.gate.weight",
                gate_up: "mlp.experts.gate_up_proj",
                down: "mlp.experts.down_proj",
            },
        });
        block.outer.down = (0..experts).map(|e| map(e, "w2")).collect();
    }))
}

/// Queries, keys and values from one map, and gate and up from another.
pub(super) fn phi3(fields: &Fields<'_>) -> Result<Config> {
    let config = PHI3.read(fields)?;
    Ok(config.with_layers(|_, block| {
        block.attention.projections = ProjectionsForm::Fused(
            LinearForm::new("self_attn.qkv_proj"),
            FusedOrder::Concatenated,
        );
        block.inner.maps = MapsForm::Fused(LinearForm::new("mlp.gate_up_proj"));
    }))
}

/// No norm in front of a sub-layer, one behind it.
pub(super) fn olmo2(fields: &Fields<'_>) -> Result<Config> {
    let config = OLMO2.read(fields)?;
    Ok(config.with_layers(|_, block| {
        block.attention.norm = None;
        if let Some(rope) = &mut block.attention.rope {
            rope.rounded_once = true;
        }
        block.attention.post_norm = block.inner.norm.take();
        let post_norm = block.attention.post_norm.clone();
        block.outer.post_norm = post_norm.map(|norm| NormForm {
            name: "post_feedforward_layernorm".into(),
            ..norm
        });
    }))
}

impl Llama {
    fn read(&self, fields: &Fields<'_>) -> Result<Config> {
        let sizes = self.shape.read(fields)?;
        let bias = self.attention_bias && fields.flag("attention_bias", false)?;
        let map = |name: &str, bias| LinearForm::new(name).biased(bias);
        let mlp_bias = self.mlp_bias && fields.flag("mlp_bias", false)?;
        let rms = |name: &str| sizes.norm(name, self.norm);
        let block = BlockForm {
            attention: AttentionForm {
                norm: Some(rms("input_layernorm")),
                qk_norms: self
                    .qk_norms
                    .map(|_| ["self_attn.q_norm", "self_attn.k_norm"].map(rms)),
                qk_norm_width: self.qk_norms.unwrap_or(NormWidth::Head),
                rope: Some(rope::read(fields, &self.rope, &sizes)?),
                ..sizes.attention(
                    "self_attn",
                    ProjectionsForm::Separate(
                        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
                            .map(|name| map(name, bias || self.qkv_bias)),
                    ),
                    map("self_attn.o_proj", bias),
                )
            },
            inner: InnerForm {
                norm: Some(rms("post_attention_layernorm")),
                module: "mlp",
                maps: MapsForm::Gated {
                    gate: map("mlp.gate_proj", mlp_bias),
                    up: map("mlp.up_proj", mlp_bias),
                },
                activation: activation(fields, "hidden_act", "silu")?,
                width: sizes.width,
            },
            outer: OuterForm {
                down: vec![map("mlp.down_proj", mlp_bias)],
                post_norm: None,
            },
            sum: Sum::Sequential,
        };
        let windows = self.windows(fields, sizes.layers)?;
        let decoder = DecoderForm {
            layers: "model.layers",
            embed: "model.embed_tokens",
            embed_scaled: false,
            positions: None,
            norm: rms("model.norm"),
            head: LinearForm::new("lm_head"),
            softcap: None,
            gguf: self.gguf,
        };
        let config = sizes.config(self.model_type, decoder, block);
        Ok(config.with_layers(|layer, block| block.attention.window = windows[layer]))
    }

    /// The window of each layer.
    fn windows(&self, fields: &Fields<'_>, layers: usize) -> Result<Vec<Option<usize>>> {
        const NAME: &str = "sliding_window";
        let size = |default: Option<usize>| match (fields.is_null(NAME), fields.has(NAME)) {
            (true, _) => Ok(None),
            (false, false) => Ok(default),
            (false, true) => fields.size(NAME, 0, POSITIONS).map(Some),
        };
        match self.windows {
            Windows::None => Ok(vec![None; layers]),
            Windows::All(default) => Ok(vec![size(default)?; layers]),
            Windows::Qwen => {
                let used = fields.flag("use_sliding_window", false)?;
                let window = if used { size(Some(4096))? } else { None };
                let first = fields.size("max_window_layers", 28, 0..=usize::MAX)?;
                let sliding = layer_types(fields, layers)?
                    .unwrap_or_else(|| (0..layers).map(|layer| layer >= first).collect());
                let each = sliding.into_iter();
                Ok(each.map(|slides| window.filter(|_| slides)).collect())
            }
        }
    }
}
