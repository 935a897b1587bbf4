//! Checkpoints of chosen files, with the tiny model's weights.

use std::fs;
use std::path::{Path, PathBuf};

use context_patch::Checkpoint;
use serde_json::Value;

use super::reference;

/// The real models that fetch_models.py brings.
const REAL_MODELS: [&str; 3] = [
    "gemma-3-270m",
    "smollm2-135m-instruct",
    "qwen2.5-coder-0.5b-instruct",
];

/// The real models that fetch_models.py brings and that are here, by name; all of them where
/// `CONTEXT_PATCH_REQUIRE_MODELS=1` says that they must be.
pub fn real_models() -> Vec<(&'static str, PathBuf)> {
    let models = REAL_MODELS.map(|name| (name, reference("../models").join(name)));
    let (here, missing): (Vec<_>, Vec<_>) = models
        .into_iter()
        .partition(|(_, dir)| dir.join("model.safetensors").exists());
    let required = super::real::required();
    assert!(!required || missing.is_empty(), "missing: {missing:?}");
    for (name, _) in missing {
        println!("skipped: no models/{name} (python3 reference/fetch_models.py brings it)");
    }
    here
}

/// The GGUF files of real models that are here as `models/NAME.gguf`, by the model's name; all of them where
/// `CONTEXT_PATCH_REQUIRE_MODELS=1` says that they must be.
pub fn real_gguf_files() -> Vec<(&'static str, PathBuf)> {
    let files = REAL_MODELS.map(|name| (name, reference(&format!("../models/{name}.gguf"))));
    let (here, missing): (Vec<_>, Vec<_>) = files.into_iter().partition(|(_, file)| file.exists());
    let required = super::real::required();
    assert!(!required || missing.is_empty(), "missing: {missing:?}");
    for (name, _) in missing {
        println!("skipped: no models/{name}.gguf (python3 reference/fetch_models.py brings it)");
    }
    here
}

/// A checkpoint of these files and the tiny model's weights, whose embedding gets the rows that config.json says.
pub fn in_memory<'a>(files: impl Iterator<Item = (&'a str, Vec<u8>)>) -> Checkpoint {
    let mut files: Vec<_> = files.collect();
    let (_, config) = files
        .iter()
        .find(|(name, _)| *name == "config.json")
        .unwrap();
    let config: Value = serde_json::from_slice(config).unwrap();
    let rows = usize::try_from(config["vocab_size"].as_u64().unwrap()).unwrap();
    files.push(("model.safetensors", weights_of(rows)));
    let files = files.into_iter().map(|(name, bytes)| (name, bytes.into()));
    Checkpoint::from_files("tiny", files).unwrap()
}

/// The tiny model's weights with zeros behind its embedding, which is the first tensor, up to so many rows.
fn weights_of(rows: usize) -> Vec<u8> {
    let file = fs::read(reference("tiny/model.safetensors")).unwrap();
    let (length, rest) = file.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    let embedding = "model.embed_tokens.weight";
    let end = header[embedding]["data_offsets"][1].as_u64().unwrap() as usize;
    let added = rows * 64 * 2 - end;
    header[embedding]["shape"][0] = rows.into();
    for (name, tensor) in header.as_object_mut().unwrap() {
        let places = tensor.get_mut("data_offsets").and_then(Value::as_array_mut);
        for place in places.into_iter().flatten() {
            let stays = name == embedding && *place == 0;
            *place = (place.as_u64().unwrap() as usize + if stays { 0 } else { added }).into();
        }
    }
    let header = header.to_string().into_bytes();
    let length = (header.len() as u64).to_le_bytes();
    [
        &length[..],
        &header,
        &data[..end],
        &vec![0; added],
        &data[end..],
    ]
    .concat()
}

/// A model's tokenizer and template with the tiny model's config and weights, which are read faster.
pub fn with_tiny_weights(dir: &Path) -> Checkpoint {
    let parse = |path: PathBuf| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
    let (mut config, real) = (
        parse(reference("tiny/config.json")),
        parse(dir.join("config.json")),
    );
    for name in ["vocab_size", "bos_token_id", "eos_token_id"] {
        config[name] = real[name].clone();
    }
    let config = ("config.json", config.to_string().into_bytes());
    let names = [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ];
    let files = names
        .into_iter()
        .filter_map(|name| Some((name, fs::read(dir.join(name)).ok()?)));
    in_memory(files.chain([config]))
}
