//! The points of a model that are recorded.

use crate::checkpoint::Config;

/// The names of a layer's tensors, in forward order, relative to `model.layers.I`.
pub(crate) const LAYER_NAMES: [&str; 20] = [
    ".input_layernorm",
    ".self_attn.q_proj",
    ".self_attn.k_proj",
    ".self_attn.v_proj",
    ".self_attn.q_norm",
    ".self_attn.k_norm",
    ".self_attn.q_rope",
    ".self_attn.k_rope",
    ".self_attn.mixed",
    ".self_attn.o_proj",
    ".post_attention_layernorm",
    ".residual_mid",
    ".pre_feedforward_layernorm",
    ".mlp.gate_proj",
    ".mlp.act_fn",
    ".mlp.up_proj",
    ".mlp.product",
    ".mlp.down_proj",
    ".post_feedforward_layernorm",
    "",
];

/// Every name a pass of this model records, in forward order.
pub fn names(config: &Config) -> Vec<String> {
    let layers = (0..config.num_hidden_layers).flat_map(|layer| {
        LAYER_NAMES
            .iter()
            .map(move |name| format!("model.layers.{layer}{name}"))
    });
    let first = std::iter::once("model.embed_tokens".to_owned());
    let last = ["model.norm", "lm_head"].map(str::to_owned);
    first.chain(layers).chain(last).collect()
}

/// A point of the model that a tensor can be of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its name, one of [`names`].
    pub name: String,
    /// The numbers of one token.
    pub width: usize,
    /// How many heads they are of, where they are of heads.
    pub heads: Option<usize>,
}

impl Point {
    /// Every point of a model, in forward order.
    pub fn all(config: &Config) -> Vec<Self> {
        let names = names(config).into_iter();
        names.map(|name| Self::new(name, config)).collect()
    }

    fn new(name: String, config: &Config) -> Self {
        let last = name.rsplit('.').next().unwrap_or_default();
        let heads = match last {
            "q_proj" | "q_norm" | "q_rope" | "mixed" => Some(config.num_attention_heads),
            "k_proj" | "k_norm" | "k_rope" | "v_proj" => Some(config.num_key_value_heads),
            _ => None,
        };
        let width = match last {
            "gate_proj" | "up_proj" | "act_fn" | "product" => config.intermediate_size,
            "lm_head" => config.vocab_size,
            _ => heads.map_or(config.hidden_size, |heads| heads * config.head_dim),
        };
        Self { name, width, heads }
    }
}
