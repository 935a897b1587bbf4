//! Llama, and the families that are Llama but for a few choices: Mistral, Qwen2, Qwen3, Mixtral, OLMo 2 and Phi 3.

use super::super::config::{COUNT, Config, EPS, LENGTH, POSITIONS, VOCAB};
use super::super::error::Result;
use super::super::fields::Fields;
use super::super::form::{
    AttentionForm, BlockForm, DecoderForm, ExpertsForm, FusedOrder, InnerForm, LinearForm,
    MapsForm, NormForm, NormKind, NormWidth, OuterForm, ProjectionsForm, Sum,
};
use super::common::{activation, bos_token_id, eos_token_ids, head_dim, heads, layer_types, norm};
use super::rope::{self, RopeDefaults};

/// What a config of such a family leaves out, and what the family adds to Llama.
struct Llama {
    model_type: &'static str,
    gguf: &'static str,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    /// Whether the heads must divide hidden_size though head_dim says how long they are.
    whole_heads: bool,
    num_key_value_heads: Option<usize>,
    /// The length of a head, which is hidden_size / heads in most.
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    norm: NormKind,
    rms_norm_eps: f64,
    rope_theta: f64,
    /// The share of a head that is rotated, where a config may say another than all of it.
    partial_rotary: Option<f64>,
    bos: Option<u32>,
    eos: &'static [u32],
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
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 11_008,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    whole_heads: true,
    num_key_value_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
    norm: NormKind::LLAMA,
    rms_norm_eps: 1e-6,
    rope_theta: 1e4,
    partial_rotary: None,
    bos: Some(1),
    eos: &[2],
    qkv_bias: false,
    attention_bias: true,
    mlp_bias: true,
    qk_norms: None,
    windows: Windows::None,
};

const MISTRAL: Llama = Llama {
    model_type: "mistral",
    whole_heads: false,
    intermediate_size: 14_336,
    num_key_value_heads: Some(8),
    max_position_embeddings: 131_072,
    attention_bias: false,
    mlp_bias: false,
    windows: Windows::All(Some(4096)),
    ..LLAMA
};

const QWEN2: Llama = Llama {
    model_type: "qwen2",
    whole_heads: false,
    gguf: "qwen2",
    vocab_size: 151_936,
    intermediate_size: 22_016,
    num_key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    bos: None,
    eos: &[],
    qkv_bias: true,
    attention_bias: false,
    mlp_bias: false,
    windows: Windows::Qwen,
    ..LLAMA
};

const QWEN3: Llama = Llama {
    model_type: "qwen3",
    gguf: "qwen3",
    head_dim: Some(128),
    qkv_bias: false,
    attention_bias: true,
    qk_norms: Some(NormWidth::Head),
    ..QWEN2
};

const MIXTRAL: Llama = Llama {
    model_type: "mixtral",
    rms_norm_eps: 1e-5,
    rope_theta: 1e6,
    windows: Windows::All(None),
    ..MISTRAL
};

const OLMO2: Llama = Llama {
    model_type: "olmo2",
    whole_heads: false,
    gguf: "olmo2",
    vocab_size: 50_304,
    norm: NormKind::PLAIN,
    rms_norm_eps: 1e-5,
    bos: None,
    eos: &[50_279],
    mlp_bias: false,
    qk_norms: Some(NormWidth::AllHeads),
    ..LLAMA
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
            softmax_of_chosen: false,
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

const PHI3: Llama = Llama {
    model_type: "phi3",
    gguf: "phi3",
    vocab_size: 32_064,
    hidden_size: 3072,
    intermediate_size: 8192,
    num_key_value_heads: None,
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
    partial_rotary: Some(1.0),
    eos: &[32_000],
    windows: Windows::All(None),
    ..MISTRAL
};

impl Llama {
    fn read(&self, fields: &Fields<'_>) -> Result<Config> {
        let hidden_size = fields.size("hidden_size", self.hidden_size, LENGTH)?;
        let vocab_size = fields.size("vocab_size", self.vocab_size, VOCAB)?;
        let layers = fields.size("num_hidden_layers", self.num_hidden_layers, COUNT)?;
        let defaults = self.num_attention_heads;
        let keys = self.num_key_value_heads;
        let heads_said = fields.size("num_attention_heads", defaults, COUNT)?;
        let (heads, kv_heads) = heads(
            fields,
            ["num_attention_heads", "num_key_value_heads"],
            [defaults, keys.unwrap_or(heads_said)],
            self.whole_heads.then_some(hidden_size),
        )?;
        let head_dim = match self.head_dim {
            Some(default) => fields.size("head_dim", default, 1..=1 << 14)?,
            None => head_dim(fields, hidden_size, heads)?,
        };
        let width = fields.size("intermediate_size", self.intermediate_size, LENGTH)?;
        let positions = fields.size(
            "max_position_embeddings",
            self.max_position_embeddings,
            POSITIONS,
        )?;
        let eps = fields.real("rms_norm_eps", self.rms_norm_eps, EPS)?;
        let rope_defaults = RopeDefaults {
            theta: self.rope_theta,
            partial: self.partial_rotary,
        };
        let bias = self.attention_bias && fields.flag("attention_bias", false)?;
        let map = |name: &str, bias| LinearForm::new(name).biased(bias);
        let mlp_bias = self.mlp_bias && fields.flag("mlp_bias", false)?;
        let rms = |name: &str| norm(name, self.norm, eps);
        let block = BlockForm {
            attention: AttentionForm {
                module: "self_attn",
                norm: Some(rms("input_layernorm")),
                projections: ProjectionsForm::Separate(
                    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
                        .map(|name| map(name, bias || self.qkv_bias)),
                ),
                qk_norms: self
                    .qk_norms
                    .map(|_| ["self_attn.q_norm", "self_attn.k_norm"].map(rms)),
                qk_norm_width: self.qk_norms.unwrap_or(NormWidth::Head),
                norm_after_rope: false,
                rope: Some(rope::read(fields, &rope_defaults, head_dim, positions)?),
                heads,
                kv_heads,
                head_dim,
                window: None,
                scaling: 1.0 / (head_dim as f64).sqrt(),
                rounded_scores: true,
                softcap: None,
                out: map("self_attn.o_proj", bias),
                post_norm: None,
            },
            inner: InnerForm {
                norm: Some(rms("post_attention_layernorm")),
                module: "mlp",
                maps: MapsForm::Gated {
                    gate: map("mlp.gate_proj", mlp_bias),
                    up: map("mlp.up_proj", mlp_bias),
                },
                activation: activation(fields, "hidden_act", "silu")?,
                width,
            },
            outer: OuterForm {
                down: vec![map("mlp.down_proj", mlp_bias)],
                post_norm: None,
            },
            sum: Sum::Sequential,
        };
        let windows = self.windows(fields, layers)?;
        let config = Config {
            model_type: self.model_type.into(),
            vocab_size,
            hidden_size,
            intermediate_size: width,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            max_position_embeddings: positions,
            tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
            bos_token_id: bos_token_id(fields, self.bos)?,
            eos_token_ids: eos_token_ids(fields, self.eos, vocab_size)?,
            multimodal: false,
            decoder: DecoderForm {
                layers: "model.layers",
                embed: "model.embed_tokens",
                embed_scaled: false,
                positions: None,
                norm: rms("model.norm"),
                head: LinearForm::new("lm_head"),
                softcap: None,
                gguf: self.gguf,
            },
            blocks: vec![block; layers],
        };
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
