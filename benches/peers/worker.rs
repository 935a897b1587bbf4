//! Our side of benches/peers.py: commands on standard input, one JSON object a line, and a line back for each.
//!
//! ```text
//! cargo run --release --example peer -- models/gemma-3-270m f32 mapped best 2
//! {"run": "decode", "ids": [2, 7921], "tokens": 4}
//! {"run": "prefill", "ids": [2, 7921]}
//! {"run": "text", "text": "Hello"}
//! ```
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops where something is wrong"
)]

use std::str::FromStr;
use std::time::Instant;

use context_patch::checkpoint::Access;
use context_patch::kernels::Level;
use context_patch::model::ModelOptions;
use context_patch::model::generate::greedy;
use context_patch::tensor::Element;
use context_patch::{Model, Session};
use half::bf16;
use serde::Deserialize;
use serde_json::{Value, json};

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

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, dtype, access, level, threads] = &arguments[..] else {
        panic!("usage: peer MODEL f32|bf16 mapped|read LEVEL|best THREADS")
    };
    let options = ModelOptions {
        access: match &access[..] {
            "mapped" => Access::Mapped,
            "read" => Access::Read,
            other => panic!("no access {other}"),
        },
        level: (level != "best").then(|| Level::from_str(level).unwrap()),
        ..ModelOptions::default()
    };
    let model = Model::open_with(path, options).unwrap();
    let threads = threads.parse().unwrap();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap();
    println!("{}", json!({ "detail": model.level().to_string() }));
    for line in std::io::stdin().lines() {
        let command = serde_json::from_str(&line.unwrap()).unwrap();
        let reply = pool.install(|| match &dtype[..] {
            "f32" => answer::<f32>(&model, command),
            "bf16" => answer::<bf16>(&model, command),
            other => panic!("no compute type {other}"),
        });
        println!("{reply}");
    }
}

fn answer<E: Element>(model: &Model, command: Command) -> Value {
    match command {
        Command::Decode { ids, tokens } => decode::<E>(model, &ids, tokens),
        Command::Prefill { ids } => prefill::<E>(model, &ids),
        Command::Text { text } => {
            let tokenizer = model.checkpoint().tokenizer().unwrap();
            prefill::<E>(model, &tokenizer.encode(&text).unwrap())
        }
    }
}

fn decode<E: Element>(model: &Model, ids: &[u32], count: usize) -> Value {
    let mut session = Session::<E>::new(model);
    let mut logits = session.forward(ids, 1).unwrap();
    let mut tokens = Vec::new();
    let start = Instant::now();
    for _ in 0..count {
        tokens.push(greedy(logits.row(0)));
        logits = session.forward(&tokens[tokens.len() - 1..], 1).unwrap();
    }
    json!({ "seconds": start.elapsed().as_secs_f64(), "tokens": tokens })
}

fn prefill<E: Element>(model: &Model, ids: &[u32]) -> Value {
    let mut session = Session::<E>::new(model);
    let start = Instant::now();
    let logits = session.forward(ids, 1).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    json!({ "seconds": seconds, "tokens": [greedy(logits.row(0))] })
}
