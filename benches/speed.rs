//! Decoding and prefill of the 270M, against what the machine can read and compute in the same run.
//!
//! ```text
//! python3 reference/fetch_270m.py && cargo bench --bench speed
//! ```
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops where something is wrong"
)]

use std::time::Instant;

use context_patch::model::generate::greedy;
use context_patch::tensor::Element;
use context_patch::{Model, Session};
use half::bf16;
use rayon::prelude::*;

const ROUNDS: usize = 7;
const DECODED: usize = 64;

fn main() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/gemma-3-270m");
    let Ok(model) = Model::open(path) else {
        println!("skipped: no models/gemma-3-270m (python3 reference/fetch_270m.py brings it)");
        return;
    };
    let weights = std::fs::read(format!("{path}/model.safetensors")).unwrap();
    println!("{}, medians of {ROUNDS} interleaved rounds", model.level());
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
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
        rounds[0].push(timed(|| read(weights)));
        let mut session = Session::<E>::new(model);
        let mut logits = session.forward(&prompt[..32], 1).unwrap();
        rounds[1].push(timed(|| {
            for _ in 0..DECODED {
                logits = session.forward(&[greedy(logits.row(0))], 1).unwrap();
            }
        }));
        for (i, tokens) in [128, 512].into_iter().enumerate() {
            let mut session = Session::<E>::new(model);
            rounds[2 + i].push(timed(|| {
                drop(session.forward(&prompt[..tokens], 1).unwrap())
            }));
        }
    }
    let [reading, decoding, short, long] = rounds.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    });
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

/// Reads all of the weights once.
fn read(weights: &[u8]) {
    let sum = |piece: &[u8]| {
        let (_, words, _) = bytemuck::pod_align_to::<u8, u64>(piece);
        words.iter().fold(0u64, |sum, word| sum.wrapping_add(*word))
    };
    let sum: u64 = weights
        .par_chunks(1 << 22)
        .map(sum)
        .reduce(|| 0, u64::wrapping_add);
    std::hint::black_box(sum);
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}
