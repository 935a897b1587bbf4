//! SmolLM2 135M and Qwen2.5-Coder 0.5B: without a norm behind the MLP.

use crate::common::pinned;
use crate::common::real::{Check, GOLDEN, Real, apply_writes_what_the_prompt_would};
use crate::common::ways::{FEW_TOKENS, LEVELS};
use context_patch::patch::{ApplyMode, Positions, Solver};
use context_patch::tensor::Element;
use context_patch::verify::{Keep, PROMPTS, Summary};
use half::bf16;
use libtest_mimic::{Failed, Trial};

static MODELS: [Real; 2] = [
    Real::new("smollm2-135m-instruct"),
    Real::new("qwen2.5-coder-0.5b-instruct"),
];

const TESTS: [(&str, Check); 6] = [
    ("verify_f64", verify_f64),
    ("verify_f32", verify_f32),
    ("verify_bf16", verify_bf16),
    ("span_absolute", span_absolute),
    ("span_natural", span_natural),
    (
        "apply_writes_what_the_prompt_would",
        apply_writes_what_the_prompt_would,
    ),
];

/// Tokens of most pinned hashes.
const LONG: usize = 60;

/// Tokens of each prompt that are patched anew; the tables of docs/verify.md have 20, by `context-patch verify`.
const TOKENS: usize = 1;

pub fn trials() -> Vec<Trial> {
    // What differs from Gemma's is the blocks, which these reach. The second model, four times as large, has the first one's but
    // for biases, and takes more than a minute without vectors.
    let (_, with_vectors) = LEVELS.split_first().unwrap();
    let all = (&LEVELS[..], &FEW_TOKENS[..]);
    let mut trials = Vec::new();
    for (i, real) in MODELS.iter().enumerate() {
        let absent = real.absent();
        let checks = GOLDEN.into_iter().chain(TESTS);
        trials.extend(checks.map(|(name, check)| real.trial(name, check, absent)));
        let (levels, ways) = if i == 0 { all } else { (with_vectors, &[][..]) };
        trials.extend(pinned::trials(real, LONG, levels, ways, absent));
    }
    trials
}

/// Every solver that applies, in both forms.
fn verify<E: Element>(real: &Real) -> Vec<Summary> {
    let mut summaries = Vec::new();
    for form in [ApplyMode::Overlay, ApplyMode::Materialise] {
        for solver in Solver::of(real.model()) {
            if solver != Solver::Span {
                summaries.push(real.protocol::<E>(solver, form, TOKENS));
            }
        }
    }
    assert_eq!(summaries.len(), 4);
    summaries
}

/// [`verify`], where every token is the contextual pass's.
fn verify_every_token<E: Element>(real: &Real) -> Result<(), Failed> {
    let mut each = verify::<E>(real).into_iter();
    assert!(each.all(|summary| summary.matching == summary.tokens));
    Ok(())
}

fn verify_f64(real: &Real) -> Result<(), Failed> {
    verify_every_token::<f64>(real)
}

fn verify_f32(real: &Real) -> Result<(), Failed> {
    verify_every_token::<f32>(real)
}

/// Two likeliest tokens may be less than the bound apart, so bounds and controls are what holds.
fn verify_bf16(real: &Real) -> Result<(), Failed> {
    verify::<bf16>(real);
    Ok(())
}

fn span_absolute(real: &Real) -> Result<(), Failed> {
    let (form, keep) = (ApplyMode::Materialise, Keep::Nothing);
    real.span::<f64>(form, keep, Positions::Absolute, 24, &PROMPTS[..1]);
    real.span::<f32>(form, keep, Positions::Absolute, 24, &PROMPTS[..2]);
    Ok(())
}

/// Token for token the same: the decode that generates gives the bits of the pass that checks.
fn span_natural(real: &Real) -> Result<(), Failed> {
    let (form, keep) = (ApplyMode::Overlay, Keep::Bos);
    real.span::<f32>(form, keep, Positions::Natural, 24, &PROMPTS);
    Ok(())
}
