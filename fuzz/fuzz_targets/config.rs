//! Any bytes as config.json: a config whose numbers are safe to compute with, or an error of one line.
#![no_main]

use std::path::Path;

use context_patch::checkpoint::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    match Config::parse(Path::new("config.json"), json) {
        Ok(config) => {
            assert_eq!(config.layer_types.len(), config.num_hidden_layers);
            assert_eq!(config.num_attention_heads % config.num_key_value_heads, 0);
            assert_eq!(config.head_dim % 2, 0);
            assert!(config.sliding_window > 0 && config.query_pre_attn_scalar > 0.0);
            let embedding = config.vocab_size.checked_mul(config.hidden_size);
            assert!(
                embedding
                    .and_then(|numbers| numbers.checked_mul(8))
                    .is_some()
            );
        }
        Err(error) => assert_eq!(error.to_string().lines().count(), 1),
    }
});
