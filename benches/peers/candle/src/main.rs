//! candle's side of benches/peers.py: commands on standard input, one JSON object a line, and a line back for each.
//! They are those of benches/peers/worker.rs. The number of threads is in `RAYON_NUM_THREADS`.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::gemma3::{Config, Model};
use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

/// Positions that caches and rotations are made for on loading; the checkpoint's 32 768 would take 800 MB.
const POSITIONS: usize = 1024;

/// What the script can ask for.
#[derive(Deserialize)]
#[serde(tag = "run", rename_all = "lowercase")]
enum Command {
    /// `tokens` greedy tokens, each put back in; taking in the prompt before them is not timed.
    Decode { ids: Vec<u32>, tokens: usize },
    /// The logits after a prompt.
    Prefill { ids: Vec<u32> },
    /// The same from a text.
    Text { text: String },
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let path = std::env::args()
        .nth(1)
        .ok_or("usage: candle-worker MODEL")?;
    let path = Path::new(&path);
    let mut model = open(path)?;
    println!("{}", json!({ "detail": "gemm with x86-v4" }));
    for line in std::io::stdin().lines() {
        let reply = match serde_json::from_str(&line?)? {
            Command::Decode { ids, tokens } => decode(&mut model, &ids, tokens)?,
            Command::Prefill { ids } => prefill(&mut model, &ids)?,
            Command::Text { text } => {
                let tokenizer = Tokenizer::from_file(path.join("tokenizer.json"))
                    .map_err(|e| e as Box<dyn Error>)?;
                let encoding = tokenizer
                    .encode(text, true)
                    .map_err(|e| e as Box<dyn Error>)?;
                prefill(&mut model, encoding.get_ids())?
            }
        };
        println!("{reply}");
    }
    Ok(())
}

/// The model in f32: candle's CPU has no matrix product in bf16.
fn open(path: &Path) -> std::result::Result<Model, Box<dyn Error>> {
    let mut config: Value = serde_json::from_slice(&std::fs::read(path.join("config.json"))?)?;
    // candle knows the name without the underscore.
    config["sliding_window_pattern"] = config["_sliding_window_pattern"].take();
    let mut config: Config = serde_json::from_value(config)?;
    config.max_position_embeddings = POSITIONS;
    let files = [path.join("model.safetensors")];
    // SAFETY: nobody changes the checkpoint while it is mapped.
    let tensors = unsafe { VarBuilder::from_mmaped_safetensors(&files, DType::F32, &Device::Cpu)? };
    Ok(Model::new(false, &config, tensors)?)
}

fn decode(model: &mut Model, ids: &[u32], count: usize) -> Result<Value> {
    model.clear_kv_cache();
    let mut logits = forward(model, ids, 0)?;
    let mut tokens = Vec::new();
    let start = Instant::now();
    for i in 0..count {
        tokens.push(greedy(&logits)?);
        logits = forward(model, &tokens[i..], ids.len() + i)?;
    }
    Ok(json!({ "seconds": start.elapsed().as_secs_f64(), "tokens": tokens }))
}

fn prefill(model: &mut Model, ids: &[u32]) -> Result<Value> {
    model.clear_kv_cache();
    let start = Instant::now();
    let logits = forward(model, ids, 0)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(json!({ "seconds": seconds, "tokens": [greedy(&logits)?] }))
}

/// The last token's logits.
fn forward(model: &mut Model, ids: &[u32], position: usize) -> Result<Tensor> {
    let ids = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
    model.forward(&ids, position)?.flatten_all()
}

fn greedy(logits: &Tensor) -> Result<u32> {
    logits.argmax(0)?.to_scalar()
}
