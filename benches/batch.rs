//! Sequences of the 270M in bf16 that write together, and beside them llama.cpp's in turn, where it is given.
//!
//! ```text
//! python3 reference/fetch_models.py gemma-3-270m && cargo bench --bench batch
//! context-patch convert models/gemma-3-270m bf16.gguf --dtype bf16
//! cargo bench --bench batch -- PYTHON bf16.gguf       # a Python with llama-cpp-python
//! cargo bench --bench batch -- 16 64                  # only so many sequences
//! ```
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops where something is wrong"
)]

mod common;

use std::collections::BTreeMap;
use std::time::Instant;

use common::median;
use common::peer::Peer;
use context_patch::Model;
use context_patch::model::batch::{Batch, BatchOptions, Entry};
use context_patch::model::generate::greedy;
use half::bf16;
use rayon::prelude::*;
use serde_json::json;

const SEQUENCES: [usize; 4] = [1, 4, 16, 64];
/// Tokens of each prompt, and of each answer.
const PROMPT: usize = 64;
const ANSWER: usize = 64;
const ROUNDS: usize = 5;
const THREADS: usize = 2;

/// The seconds of a run: with the prompts, and from where all of them are taken in.
#[derive(Clone, Copy)]
struct Times {
    whole: f64,
    writing: f64,
}

fn main() {
    let Some(path) = common::gemma_270m() else {
        return;
    };
    let (counts, peer): (Vec<_>, Vec<_>) = common::arguments()
        .into_iter()
        .partition(|argument| argument.parse::<usize>().is_ok());
    let mut peer = match &peer[..] {
        [python, gguf] => Some(Peer::start(
            python,
            "worker_llama_batch.py",
            &[gguf, &THREADS.to_string()],
        )),
        _ => None,
    };
    let asked = |count: usize| counts.is_empty() || counts.contains(&count.to_string());
    let model = Model::open(path).unwrap();
    let pool = common::pool(THREADS);
    println!(
        "{THREADS} threads, {}, bf16, prompts of {PROMPT}, answers of {ANSWER}; tokens/s of all answers, medians of {ROUNDS} rounds",
        model.level()
    );
    for sequences in SEQUENCES.into_iter().filter(|&count| asked(count)) {
        let prompts: Vec<_> = (0..sequences).map(prompt).collect();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(pool.install(|| run(&model, &prompts)));
            theirs.extend(peer.as_mut().map(|peer| run_peer(peer, &prompts)));
        }
        report(sequences, &ours, &theirs);
    }
}

/// Tokens of which no two prompts have the same first one.
fn prompt(sequence: usize) -> Vec<u32> {
    let token = |i| 2 + ((sequence * PROMPT + i) as u32 * 7919) % 200_000;
    (0..PROMPT).map(token).collect()
}

fn run(model: &Model, prompts: &[Vec<u32>]) -> Times {
    let options = BatchOptions {
        prefix_cache: 0,
        ..BatchOptions::default()
    };
    let mut batch = Batch::<bf16>::new(model, options);
    let mut written = BTreeMap::new();
    let (start, mut read) = (Instant::now(), 0.0);
    for prompt in prompts {
        let id = batch.join(Entry::new(prompt.clone(), ANSWER)).unwrap();
        written.insert(id, 0);
    }
    while !batch.is_idle() {
        let step = batch.step().unwrap();
        let said: Vec<_> = step.said().collect();
        let next = said.par_iter().map(|said| (said.id, greedy(said.logits)));
        for (id, token) in next.collect::<Vec<_>>() {
            *written.get_mut(&id).unwrap() += 1;
            if written[&id] < ANSWER {
                batch.push(id, token).unwrap();
            } else {
                batch.leave(id);
            }
        }
        if read == 0.0 && written.values().all(|&written| written > 0) {
            read = start.elapsed().as_secs_f64();
        }
    }
    let whole = start.elapsed().as_secs_f64();
    Times {
        whole,
        writing: whole - read,
    }
}

fn report(sequences: usize, ours: &[Times], theirs: &[Times]) {
    let tokens = (sequences * ANSWER) as f64;
    let rate =
        |times: &[Times], of: fn(&Times) -> f64| tokens / median(times.iter().map(of).collect());
    let line = |times: &[Times]| {
        format!(
            "{:6.1} with prompts, {:6.1} without",
            rate(times, |times| times.whole),
            rate(times, |times| times.writing)
        )
    };
    println!("{sequences:2} sequences: {}", line(ours));
    if theirs.is_empty() {
        return;
    }
    let pairs = || ours.iter().zip(theirs);
    let times = |of: fn(&Times) -> f64| {
        median(
            pairs()
                .map(|(ours, theirs)| of(theirs) / of(ours))
                .collect(),
        )
    };
    println!(
        "    llama.cpp: {}; {:.2} and {:.2} times",
        line(theirs),
        times(|times| times.whole),
        times(|times| times.writing)
    );
}

/// The times of llama.cpp.
fn run_peer(peer: &mut Peer, prompts: &[Vec<u32>]) -> Times {
    let reply = peer.ask(&json!({ "prompts": prompts, "tokens": ANSWER }));
    let seconds = |name: &str| reply[name].as_f64().unwrap();
    Times {
        whole: seconds("whole"),
        writing: seconds("writing"),
    }
}
