//! What candle-transformers says on the conformance kit, in f32 on the CPU.
//!
//! ```text
//! context-patch conformance --output kit
//! cargo run --release --manifest-path reference/candle/Cargo.toml -- kit prefill results-prefill
//! cargo run --release --manifest-path reference/candle/Cargo.toml -- kit decode results-decode
//! context-patch conformance --check results-prefill
//! ```
//!
//! Its Gemma 3 gives the last token's logits and nothing else. So `prefill` runs every beginning of the ids from an empty
//! cache, and `decode` puts in one token after the other; both record the logits of every token as `lm_head`. What candle
//! cannot read is said and left out.

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::gemma3::{Config, Model};
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [kit, mode, results] = &arguments[..] else {
        return Err("usage: candle-conformance KIT prefill|decode RESULTS".into());
    };
    let mut cases: Vec<_> = fs::read_dir(kit)?.collect::<std::io::Result<_>>()?;
    cases.sort_by_key(|case| case.file_name());
    for case in cases.iter().filter(|case| case.path().is_dir()) {
        let name = case.file_name();
        let name = name.to_string_lossy();
        match run(&case.path(), mode) {
            Ok(logits) => {
                let folder = Path::new(results).join(&*name);
                fs::create_dir_all(&folder)?;
                let tensors = HashMap::from([("lm_head", logits)]);
                candle_core::safetensors::save(&tensors, folder.join("f32.safetensors"))?;
                println!("{name}: recorded");
            }
            Err(error) => {
                let error = error.to_string();
                let why = error.lines().next().unwrap_or_default();
                println!("{name}: candle cannot run it: {why}");
            }
        }
    }
    Ok(())
}

/// The logits of every token, `[tokens, vocab]`.
fn run(case: &Path, mode: &str) -> Result<Tensor> {
    let ids: Vec<u32> = serde_json::from_slice(&fs::read(case.join("ids.json"))?)?;
    let mut model = open(&case.join("model"))?;
    let mut rows = Vec::new();
    for i in 0..ids.len() {
        let (first, position) = match mode {
            "prefill" => (0, 0),
            "decode" => (i, i),
            _ => return Err("the mode is prefill or decode".into()),
        };
        if mode == "prefill" {
            model.clear_kv_cache();
        }
        let tokens = Tensor::new(&ids[first..=i], &Device::Cpu)?.unsqueeze(0)?;
        rows.push(model.forward(&tokens, position)?.flatten_all()?);
    }
    Ok(Tensor::stack(&rows, 0)?)
}

fn open(model: &Path) -> Result<Model> {
    let config: Value = serde_json::from_slice(&fs::read(model.join("config.json"))?)?;
    let tied = config["tie_word_embeddings"].as_bool().unwrap_or(true);
    if !tied {
        return Err("it takes the embedding for lm_head".into());
    }
    let config: Config = serde_json::from_value(spelled(config)?)?;
    let mut files: Vec<PathBuf> = fs::read_dir(model)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|end| end == "safetensors"));
    // SAFETY: nobody changes the checkpoint while it is mapped.
    let tensors = unsafe { VarBuilder::from_mmaped_safetensors(&files, DType::F32, &Device::Cpu)? };
    Ok(Model::new(false, &config, tensors)?)
}

/// The config in the spelling that candle reads, with Hugging Face's defaults for what is left out.
fn spelled(mut config: Value) -> Result<Value> {
    if config.get("text_config").is_some() {
        return Err("it does not read a nested text_config".into());
    }
    let ropes = config["rope_parameters"].clone();
    let theta = |kind: &str| ropes[kind]["rope_theta"].clone();
    for (field, value) in [
        ("rope_theta", theta("full_attention")),
        ("rope_local_base_freq", theta("sliding_attention")),
    ] {
        if !value.is_null() {
            config[field] = value;
        }
    }
    if let Some(kinds) = config["layer_types"].as_array() {
        config["sliding_window_pattern"] = json!(pattern(kinds)?);
    }
    let defaults = json!({
        "attention_bias": false, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window": 4096, "sliding_window_pattern": 6,
    });
    for (field, value) in defaults.as_object().into_iter().flatten() {
        if config[field].is_null() {
            config[field] = value.clone();
        }
    }
    Ok(config)
}

/// Every how manyth layer is a full one.
fn pattern(kinds: &[Value]) -> Result<usize> {
    let full: Vec<_> = kinds.iter().map(|kind| kind == "full_attention").collect();
    let fits = |pattern: usize| (1..).zip(&full).all(|(i, &full)| (i % pattern == 0) == full);
    let pattern = (1..=kinds.len() + 1).find(|&pattern| fits(pattern));
    pattern.ok_or_else(|| "it takes full layers at regular places alone".into())
}
