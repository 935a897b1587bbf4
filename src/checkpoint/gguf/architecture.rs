//! What GGUF calls a family, its tensors and its fields, and how it stores what Hugging Face stores otherwise.
//!
//! | in GGUF | in Hugging Face's checkpoints |
//! |---|---|
//! | the weight of a norm of Gemma is 1 + w | w |
//! | rows of q and k of `llama` so that neighbours rotate together | halves |
//! | rows of Falcon's `attn_qkv`: all queries, all keys, all values | for each key head its queries, its key, its value |
//! | maps of GPT-2 `[out, in]` | `[in, out]` |
//! | one tensor for all gates of experts, one for all ups, one for all downs | a tensor for each |

use super::super::config::Config;
use super::super::error::Result;
use super::metadata::Metadata;

/// Names in GGUF and in Hugging Face's checkpoints.
type Names = &'static [(&'static str, &'static str)];

/// A family of GGUF's.
#[derive(Debug)]
pub(super) struct Architecture {
    /// `general.architecture`.
    pub(super) name: &'static str,
    /// `model_type` of config.json, where no expert is in the file.
    pub(super) model_type: &'static str,
    /// Fields of config.json, and the keys that they are taken from, after the architecture's name.
    pub(super) fields: Names,
    /// The module of the layers, and the tensors of each.
    pub(super) layers: &'static str,
    pub(super) in_layer: Names,
    /// The tensors that are in no layer.
    pub(super) outside: Names,
    /// Whether norms are stored as 1 + w.
    pub(super) norm_offset: bool,
    /// The order of rows in q and k, or in what holds both.
    pub(super) order: Order,
}

/// An order of rows that is not Hugging Face's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// It is.
    Same,
    /// In q and k, the two numbers of a rotation follow one another.
    Neighbours,
    /// In `attn_qkv`, all queries come first, then all keys, then all values.
    Concatenated,
}

const LLAMA_FIELDS: Names = &[
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("max_position_embeddings", "context_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("rope_theta", "rope.freq_base"),
];

const LLAMA: Architecture = Architecture {
    name: "llama",
    model_type: "llama",
    fields: LLAMA_FIELDS,
    layers: "model.layers",
    in_layer: &[
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
        ("ffn_gate_inp", "block_sparse_moe.gate"),
    ],
    outside: &[
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("output", "lm_head"),
    ],
    norm_offset: false,
    order: Order::Neighbours,
};

const QWEN2: Architecture = Architecture {
    name: "qwen2",
    model_type: "qwen2",
    order: Order::Same,
    ..LLAMA
};

const QWEN3: Architecture = Architecture {
    name: "qwen3",
    model_type: "qwen3",
    in_layer: &[
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ],
    ..QWEN2
};

const GEMMA: Architecture = Architecture {
    name: "gemma",
    model_type: "gemma",
    norm_offset: true,
    order: Order::Same,
    ..LLAMA
};

const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    model_type: "gemma2",
    in_layer: &[
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("attn_output", "self_attn.o_proj"),
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ],
    ..GEMMA
};

const GEMMA3: Architecture = Architecture {
    name: "gemma3",
    model_type: "gemma3_text",
    ..GEMMA2
};

const FALCON: Architecture = Architecture {
    name: "falcon",
    model_type: "falcon",
    fields: &[
        ("hidden_size", "embedding_length"),
        ("num_hidden_layers", "block_count"),
        ("ffn_hidden_size", "feed_forward_length"),
        ("num_attention_heads", "attention.head_count"),
        ("num_kv_heads", "attention.head_count_kv"),
        ("max_position_embeddings", "context_length"),
        ("layer_norm_epsilon", "attention.layer_norm_epsilon"),
        ("rope_theta", "rope.freq_base"),
    ],
    layers: "transformer.h",
    in_layer: &[
        ("attn_norm", "input_layernorm"),
        ("attn_qkv", "self_attention.query_key_value"),
        ("attn_output", "self_attention.dense"),
        ("ffn_up", "mlp.dense_h_to_4h"),
        ("ffn_down", "mlp.dense_4h_to_h"),
    ],
    outside: &[
        ("token_embd", "transformer.word_embeddings"),
        ("output_norm", "transformer.ln_f"),
        ("output", "lm_head"),
    ],
    norm_offset: false,
    order: Order::Concatenated,
};

/// Falcon with a norm for each branch.
const FALCON_40B: Architecture = Architecture {
    in_layer: &[
        ("attn_norm", "ln_mlp"),
        ("attn_norm_2", "ln_attn"),
        ("attn_qkv", "self_attention.query_key_value"),
        ("attn_output", "self_attention.dense"),
        ("ffn_up", "mlp.dense_h_to_4h"),
        ("ffn_down", "mlp.dense_4h_to_h"),
    ],
    ..FALCON
};

const GPT2: Architecture = Architecture {
    name: "gpt2",
    model_type: "gpt2",
    fields: &[
        ("n_embd", "embedding_length"),
        ("n_layer", "block_count"),
        ("n_inner", "feed_forward_length"),
        ("n_head", "attention.head_count"),
        ("n_positions", "context_length"),
        ("layer_norm_epsilon", "attention.layer_norm_epsilon"),
    ],
    layers: "transformer.h",
    in_layer: &[
        ("attn_norm", "ln_1"),
        ("attn_qkv", "attn.c_attn"),
        ("attn_output", "attn.c_proj"),
        ("ffn_norm", "ln_2"),
        ("ffn_up", "mlp.c_fc"),
        ("ffn_down", "mlp.c_proj"),
    ],
    outside: &[
        ("token_embd", "transformer.wte"),
        ("position_embd", "transformer.wpe"),
        ("output_norm", "transformer.ln_f"),
        ("output", "lm_head"),
    ],
    norm_offset: false,
    order: Order::Same,
};

const GPTJ: Architecture = Architecture {
    name: "gptj",
    model_type: "gptj",
    fields: &[
        ("n_embd", "embedding_length"),
        ("n_layer", "block_count"),
        ("n_inner", "feed_forward_length"),
        ("n_head", "attention.head_count"),
        ("n_positions", "context_length"),
        ("layer_norm_epsilon", "attention.layer_norm_epsilon"),
        ("rotary_dim", "rope.dimension_count"),
    ],
    in_layer: &[
        ("attn_norm", "ln_1"),
        ("attn_q", "attn.q_proj"),
        ("attn_k", "attn.k_proj"),
        ("attn_v", "attn.v_proj"),
        ("attn_output", "attn.out_proj"),
        ("ffn_up", "mlp.fc_in"),
        ("ffn_down", "mlp.fc_out"),
    ],
    ..GPT2
};

const ALL: [&Architecture; 9] = [
    &LLAMA, &QWEN2, &QWEN3, &GEMMA, &GEMMA2, &GEMMA3, &FALCON, &GPT2, &GPTJ,
];

impl Architecture {
    /// What `general.architecture` says; `has` tells whether there is a tensor of a name.
    ///
    /// # Errors
    ///
    /// [`FieldType`](super::super::Error::FieldType) and [`FieldValue`](super::super::Error::FieldValue).
    pub(super) fn of(metadata: &Metadata, has: impl Fn(&str) -> bool) -> Result<&'static Self> {
        const KEY: &str = "general.architecture";
        let name = metadata.string(KEY)?.unwrap_or_default();
        match ALL.into_iter().find(|known| known.name == name) {
            Some(known) if known.name == FALCON.name && has("blk.0.attn_norm_2.weight") => {
                Ok(&FALCON_40B)
            }
            Some(known) => Ok(known),
            None => Err(metadata.wrong(
                KEY,
                format!("one of {}", ALL.map(|known| known.name).join(", ")),
            )),
        }
    }

    /// The architecture of a config's family, or `None` where GGUF has none that is known here.
    pub(super) fn of_config(config: &Config) -> Option<&'static Self> {
        let known = ALL
            .into_iter()
            .find(|known| known.name == config.decoder.gguf)?;
        let two_norms = config.blocks.iter().any(|block| block.inner.norm.is_some());
        Some(if known.name == FALCON.name && two_norms {
            &FALCON_40B
        } else {
            known
        })
    }

    /// A key of this architecture.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }

    /// Hugging Face's name for a tensor, or `None` for one that such models do not have.
    pub(super) fn hf_name(&self, name: &str) -> Option<String> {
        let (module, kind) = name.rsplit_once('.')?;
        let found = |names: Names, module: &str| {
            let (_, hf) = names.iter().find(|(gguf, _)| *gguf == module)?;
            Some(*hf)
        };
        match module
            .strip_prefix("blk.")
            .and_then(|rest| rest.split_once('.'))
        {
            Some((layer, module)) => {
                let layer: usize = layer.parse().ok()?;
                let hf = found(self.in_layer, module)?;
                Some(format!("{}.{layer}.{hf}.{kind}", self.layers))
            }
            None => Some(format!("{}.{kind}", found(self.outside, module)?)),
        }
    }

    /// GGUF's name for a tensor that is not an expert's, or `None` for one that it does not have.
    pub(super) fn gguf_name(&self, name: &str) -> Option<String> {
        let (module, kind) = name.rsplit_once('.')?;
        let found = |names: Names, module: &str| {
            let (gguf, _) = names.iter().find(|(_, hf)| *hf == module)?;
            Some(*gguf)
        };
        let in_layer = module
            .strip_prefix(self.layers)
            .and_then(|rest| rest.strip_prefix('.'));
        match in_layer.and_then(|rest| rest.split_once('.')) {
            Some((layer, module)) => Some(format!(
                "blk.{layer}.{}.{kind}",
                found(self.in_layer, module)?
            )),
            None => Some(format!("{}.{kind}", found(self.outside, module)?)),
        }
    }
}
