//! Any bytes as config.json, shared by the fuzz target and `tests/bad_input.rs`.

use std::path::Path;

use context_patch::checkpoint::Config;

/// A config whose numbers are safe to compute with, or an error of one line. Gives the `model_type` of a sound one.
pub fn check(json: &[u8]) -> Option<String> {
    let config = match Config::parse(Path::new("config.json"), json) {
        Ok(config) => config,
        Err(error) => {
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
            return None;
        }
    };
    assert_eq!(config.num_attention_heads % config.num_key_value_heads, 0);
    assert!(config.max_position_embeddings > 0 && config.norm_eps() >= 0.0);
    for layer in 0..config.num_hidden_layers {
        assert_ne!(config.window(layer), Some(0));
        let scaling = config.scaling(layer);
        assert!(scaling.is_finite() && scaling > 0.0, "{scaling}");
        if let Some(rope) = config.rope(layer) {
            assert!(rope.theta.is_finite() && rope.theta > 0.0, "{rope:?}");
        }
    }
    let heads = config.num_attention_heads + 2 * config.num_key_value_heads;
    for rows in [
        config.vocab_size,
        config.max_position_embeddings,
        2 * config.intermediate_size,
        heads * config.head_dim,
    ] {
        let numbers = rows.checked_mul(config.hidden_size);
        let bytes = numbers.and_then(|numbers| numbers.checked_mul(8));
        assert!(bytes.is_some_and(|bytes| bytes > 0), "{config:?}");
    }
    Some(config.model_type)
}
