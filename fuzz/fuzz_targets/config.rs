//! Any bytes as config.json, and any fields of any family: a config whose numbers are safe to compute with, or an error of
//! one line.
#![no_main]

mod any_config;

use any_config::check;
use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    if let Ok(config) = config(&mut Unstructured::new(bytes)) {
        check(config.to_string().as_bytes());
    }
});

const FAMILIES: [&str; 15] = [
    "gemma3_text",
    "gemma3",
    "gemma2",
    "gemma",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "mixtral",
    "olmo2",
    "falcon",
    "gpt2",
    "gptj",
    "phi",
    "phi3",
];

const SIZES: [&str; 24] = [
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "max_window_layers",
    "n_embd",
    "n_head",
    "n_inner",
    "n_layer",
    "n_positions",
    "num_attention_heads",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_kv_heads",
    "num_ln_in_parallel_attn",
    "num_local_experts",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "query_pre_attn_scalar",
    "rotary_dim",
    "sliding_window",
    "sliding_window_pattern",
    "vocab_size",
];

const FLAGS: [&str; 10] = [
    "alibi",
    "attention_bias",
    "bias",
    "mlp_bias",
    "multi_query",
    "new_decoder_architecture",
    "parallel_attn",
    "qk_layernorm",
    "tie_word_embeddings",
    "use_sliding_window",
];

const REALS: [&str; 15] = [
    "attn_logit_softcapping",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "factor",
    "final_logit_softcapping",
    "high_freq_factor",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "low_freq_factor",
    "mscale",
    "mscale_all_dim",
    "rms_norm_eps",
    "rope_local_base_freq",
    "rope_theta",
];

const WORDS: [(&str, &[&str]); 4] = [
    ("hidden_act", &["silu", "gelu", "relu", "tanh"]),
    (
        "activation_function",
        &["gelu_new", "gelu_pytorch_tanh", "x"],
    ),
    (
        "rope_type",
        &["default", "linear", "llama3", "yarn", "dynamic", "longrope"],
    ),
    ("type", &["linear", "yarn"]),
];

/// A config of a family with some fields changed, two of which may be objects with more.
fn config(u: &mut Unstructured<'_>) -> Result<Value> {
    let mut config = fields(u)?;
    for name in ["rope_scaling", "rope_parameters", "text_config"] {
        if u.ratio(1, 3)? {
            let mut inner = fields(u)?;
            if u.ratio(1, 3)? {
                inner.insert("full_attention".into(), fields(u)?.into());
            }
            config.insert(name.into(), inner.into());
        }
    }
    config.insert("model_type".into(), (*u.choose(&FAMILIES)?).into());
    Ok(config.into())
}

fn fields(u: &mut Unstructured<'_>) -> Result<Map<String, Value>> {
    let mut fields = Map::new();
    for _ in 0..u.int_in_range(0..=8)? {
        let (name, value): (&str, Value) = match u.int_in_range(0..=5)? {
            0 | 1 => (u.choose(&SIZES)?, u.int_in_range(0..=64_u64)?.into()),
            2 => (u.choose(&SIZES)?, u.arbitrary::<i64>()?.into()),
            3 => (u.choose(&FLAGS)?, u.arbitrary::<bool>()?.into()),
            4 => (u.choose(&REALS)?, json!(u.arbitrary::<f64>()?)),
            _ => {
                let (name, words) = *u.choose(&WORDS)?;
                (name, (*u.choose(words)?).into())
            }
        };
        let value = if u.ratio(1, 16)? { Value::Null } else { value };
        fields.insert(name.into(), value);
    }
    Ok(fields)
}
