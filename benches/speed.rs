//! Decoding and prefill of the 270M, against what the machine can read and compute in the same run.
//!
//! ```text
//! python3 reference/fetch_models.py gemma-3-270m && cargo bench --bench speed
//! ```
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops where something is wrong"
)]

mod common;

use common::machine::read;
use common::{median, timed};
use context_patch::model::generate::greedy;
use context_patch::tensor::Element;
use context_patch::{Model, Session};
use half::bf16;

const ROUNDS: usize = 7;
const DECODED: usize = 64;

fn main() {
    let Some(path) = common::gemma_270m() else {
        return;
    };
    let model = Model::open(path).unwrap();
    let weights = std::fs::read(format!("{path}/model.safetensors")).unwrap();
    println!("{}, medians of {ROUNDS} interleaved rounds", model.level());
    for threads in [1, 2] {
        common::pool(threads).install(|| {
            measure::<f32>(&model, &weights, threads);
            measure::<bf16>(&model, &weights, threads);
        });
    }
}

/// Each in turn, so that a slow spell of the machine hits all.
fn measure<E: Element>(model: &Model, weights: &[u8], threads: usize) {
    let prompt: Vec<u32> = (0..512).map(|i| 2 + (i * 7919) % 200_000).collect();
    let mut rounds: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        rounds[0].push(timed(|| read(weights)).0);
        let mut session = Session::<E>::new(model);
        let mut logits = session.forward(&prompt[..32], 1).unwrap();
        let (decoding, ()) = timed(|| {
            for _ in 0..DECODED {
                logits = session.forward(&[greedy(logits.row(0))], 1).unwrap();
            }
        });
        rounds[1].push(decoding);
        for (i, tokens) in [128, 512].into_iter().enumerate() {
            let mut session = Session::<E>::new(model);
            rounds[2 + i].push(timed(|| session.forward(&prompt[..tokens], 1).unwrap()).0);
        }
    }
    let [reading, decoding, short, long] = rounds.map(median);
    let token = decoding / DECODED as f64;
    println!(
        "{threads} threads {:4}: reading {:.1} GB/s; decode {:.1} tokens/s, {:.0} % of that; prefill 128 {:.0}, 512 {:.0} tokens/s",
        E::DTYPE,
        weights.len() as f64 / reading / 1e9,
        1.0 / token,
        100.0 * reading / token,
        128.0 / short,
        512.0 / long,
    );
}
