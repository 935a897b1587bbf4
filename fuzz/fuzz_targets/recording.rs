//! Any bytes as a recording of each kind: tensors that can be read, or an error of one line.
#![no_main]

use std::path::Path;

use bytes::Bytes;
use context_patch::checkpoint::Config;
use context_patch::compare::{Recording, Rules};
use libfuzzer_sys::fuzz_target;

const CONFIG: &str = r#"{"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "vocab_size": 8,
    "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 2}"#;

fuzz_target!(|file: &[u8]| {
    let config =
        Config::parse(Path::new("config.json"), CONFIG.as_bytes()).expect("a sound config");
    let data = Bytes::copy_from_slice(file);
    for name in ["a.safetensors", "a.npz", "lm_head.npy"] {
        let opened = Recording::parse(Path::new(name), &data, &config, &Rules::default());
        let read = opened.and_then(|recording| {
            recording.names().try_for_each(|name| {
                let rows = recording.read(name)?.map_or(0, |matrix| matrix.rows());
                assert!(0 < rows && rows <= file.len());
                Ok(())
            })
        });
        if let Err(error) = read {
            assert_eq!(error.to_string().lines().count(), 1);
        }
    }
});
