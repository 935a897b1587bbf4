//! What verifying costs, against generating the same tokens in the same run.
//!
//! ```text
//! python3 reference/fetch_270m.py && cargo bench --bench cost
//! cargo bench --bench cost -- closed-form f32     # one solver, one compute type
//! ```
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops where something is wrong"
)]

mod common;

use common::timed;
use context_patch::model::generate::greedy;
use context_patch::patch::{Method, Positions, Solver};
use context_patch::tensor::Element;
use context_patch::verify::{Keep, PROMPTS, Verification};
use context_patch::{Model, Session};
use half::bf16;

const TOKENS: usize = 20;
const ROUNDS: usize = 5;

fn main() {
    let Some(path) = common::gemma_270m() else {
        return;
    };
    let model = Model::open(path).unwrap();
    let tokenizer = model.checkpoint().tokenizer().unwrap();
    let prompts = PROMPTS.map(|prompt| tokenizer.encode(prompt).unwrap());
    println!(
        "{} threads, {}; {ROUNDS} rounds of {} tokens",
        rayon::current_num_threads(),
        model.level(),
        PROMPTS.len() * TOKENS
    );
    let arguments = common::arguments();
    let asked = |names: &[&str], name: &str| {
        let chosen = |argument: &String| names.contains(&argument.as_str());
        !arguments.iter().any(chosen) || arguments.iter().any(|argument| argument == name)
    };
    for solver in [Solver::Theorem1, Solver::ClosedForm] {
        if !asked(&["theorem-1", "closed-form"], &solver.to_string()) {
            continue;
        }
        for (dtype, measure) in [
            ("f32", measure::<f32> as fn(&Model, &[Vec<u32>], Solver)),
            ("bf16", measure::<bf16>),
            ("f64", measure::<f64>),
        ] {
            if asked(&["f32", "bf16", "f64"], dtype) {
                measure(&model, &prompts, solver);
            }
        }
    }
}

/// Both in turn, so that a slow spell of the machine hits both; the median of the ratios.
fn measure<E: Element>(model: &Model, prompts: &[Vec<u32>], solver: Solver) {
    let mut rounds: Vec<(f64, f64)> = (0..ROUNDS)
        .map(|_| {
            let (generating, written) = timed(|| generate::<E>(model, prompts));
            let (verifying, verified) = timed(|| verify::<E>(model, prompts, solver));
            assert_eq!(written, verified, "not the same tokens");
            (generating, verifying)
        })
        .collect();
    rounds.sort_by(|a, b| (a.1 / a.0).total_cmp(&(b.1 / b.0)));
    let (generating, verifying) = rounds[ROUNDS / 2];
    println!(
        "{solver} {:4}: generate {generating:.2} s, verify {verifying:.2} s, ratio {:.2}",
        E::DTYPE,
        verifying / generating
    );
}

fn generate<E: Element>(model: &Model, prompts: &[Vec<u32>]) -> Vec<u32> {
    let mut written = Vec::new();
    for prompt in prompts {
        let mut session = Session::<E>::new(model);
        let mut logits = session.forward(prompt, 1).unwrap();
        for _ in 1..TOKENS {
            let token = greedy(logits.row(0));
            written.push(token);
            logits = session.forward(&[token], 1).unwrap();
        }
        written.push(greedy(logits.row(0)));
    }
    written
}

fn verify<E: Element>(model: &Model, prompts: &[Vec<u32>], solver: Solver) -> Vec<u32> {
    let verification = Verification {
        model,
        tokens: TOKENS,
        method: Method::new(solver),
        keep: Keep::Nothing,
        positions: Positions::Absolute,
    };
    let mut written = Vec::new();
    for (i, prompt) in prompts.iter().enumerate() {
        let on_step = |step: context_patch::verify::Step| {
            written.push(step.next);
            Ok(())
        };
        verification.prompt::<E>(i, prompt, on_step).unwrap();
    }
    written
}
