//! What verifying costs, against generating the same tokens in the same run.
//!
//! ```text
//! python3 reference/fetch_models.py gemma-3-270m && cargo bench --bench cost
//! cargo bench --bench cost -- closed-form f32     # one solver, one compute type
//! ```
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops where something is wrong"
)]

mod common;

use common::timed;
use context_patch::model::Inputs;
use context_patch::model::generate::greedy;
use context_patch::patch::{Method, Positions, Solver};
use context_patch::tensor::Element;
use context_patch::verify::{Begun, Keep, PROMPTS, Step, Verification};
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

/// All in turn, so that a slow spell of the machine hits all; medians of the ratios.
fn measure<E: Element>(model: &Model, prompts: &[Vec<u32>], solver: Solver) {
    let (mut seconds, mut alone, mut together) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (generating, written) = timed(|| generate::<E>(model, prompts));
        for (at_once, ratios) in [(1, &mut alone), (prompts.len(), &mut together)] {
            let (verifying, verified) = timed(|| verify::<E>(model, prompts, solver, at_once));
            assert_eq!(written, verified, "not the same tokens");
            ratios.push(verifying / generating);
        }
        seconds.push(generating);
    }
    let [seconds, alone, together] = [seconds, alone, together].map(|mut numbers| {
        numbers.sort_by(f64::total_cmp);
        numbers[ROUNDS / 2]
    });
    println!(
        "{solver} {:4}: generating takes {seconds:.2} s; verifying {alone:.2} times as long prompt by prompt, \
         {together:.2} times with the prompts together",
        E::DTYPE,
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

fn verify<E: Element>(
    model: &Model,
    prompts: &[Vec<u32>],
    solver: Solver,
    at_once: usize,
) -> Vec<u32> {
    let verification = Verification {
        model,
        tokens: TOKENS,
        method: Method::new(solver),
        keep: Keep::Nothing,
        positions: Positions::Absolute,
    };
    let begun = prompts.iter().enumerate().map(|(prompt, ids)| Begun {
        prompt,
        inputs: Inputs::text(ids),
        written: Vec::new(),
    });
    let mut steps = Vec::new();
    for batch in begun.collect::<Vec<_>>().chunks(at_once) {
        let on_step = |step: Step| {
            steps.push(step);
            Ok(())
        };
        let done = verification.batch::<E>(batch, on_step).unwrap();
        assert!(done.iter().all(Result::is_ok));
    }
    steps.sort_by_key(|step| (step.prompt, step.step));
    steps.iter().map(|step| step.next).collect()
}
