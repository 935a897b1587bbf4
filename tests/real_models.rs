//! SmolLM2 135M and Qwen2.5-Coder 0.5B, which `python3 reference/fetch_models.py` brings: real models without a norm behind
//! the MLP. And the GGUF files of all real models, with their quantised weights.
//!
//! A model that is absent has its tests reported as ignored, by name; with `CONTEXT_PATCH_REQUIRE_MODELS=1`, as in CI, that is
//! a failure. This is what fits into a few minutes; `docs/verify.md` has the commands that check all of it.

mod common;

use common::pinned;
use common::real::{Check, GOLDEN, Real, apply_writes_what_the_prompt_would};
use common::ways::{OTHERS, levels_here};
use context_patch::patch::{ApplyMode, Positions, Solver};
use context_patch::tensor::Element;
use context_patch::verify::{Keep, PROMPTS, Summary};
use half::bf16;
use libtest_mimic::{Arguments, Failed};

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

static GGUF_FILES: [Real; 3] = [
    Real::gguf("gemma-3-270m"),
    Real::gguf("smollm2-135m-instruct"),
    Real::gguf("qwen2.5-coder-0.5b-instruct"),
];

const GGUF_TESTS: [(&str, Check); 3] = [
    ("the_folder_has_its_weights", the_folder_has_its_weights),
    ("closed_form", gguf_closed_form),
    ("span", gguf_span),
];

/// Tokens of most pinned hashes.
const LONG: usize = 60;

/// The ways in which a sequence goes through the first of these models: what differs from Gemma's is the blocks, which these
/// reach. The second, four times as large, has the same blocks but for biases.
const WAYS: [&str; 2] = [
    "chunks_of_7_and_decoding_by_three_threads",
    "token_by_token",
];

/// Tokens of each prompt that are patched anew.
const TOKENS: usize = 2;

fn main() {
    eprintln!("{}", levels_here());
    let ways = OTHERS.into_iter().filter(|(name, _)| WAYS.contains(name));
    let ways: Vec<_> = ways.collect();
    let mut trials = Vec::new();
    for (i, real) in MODELS.iter().enumerate() {
        let absent = real.absent();
        let checks = GOLDEN.into_iter().chain(TESTS);
        trials.extend(
            checks.map(|(name, check)| real.trial(format!("{}::{name}", real.name), check, absent)),
        );
        let prefix = format!("{}::bits", real.name);
        let ways = if i == 0 { &ways[..] } else { &[] };
        trials.extend(pinned::trials(real, &prefix, LONG, ways, absent));
    }
    for real in &GGUF_FILES {
        let absent = real.absent();
        let trial =
            |(name, check)| real.trial(format!("{}.gguf::{name}", real.name), check, absent);
        trials.extend(GGUF_TESTS.map(trial));
    }
    // One at a time: each uses all cores.
    let arguments = Arguments {
        test_threads: Some(1),
        ..Arguments::from_args()
    };
    libtest_mimic::run(&arguments, trials).exit();
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

/// The numbers of every tensor rounded once to bf16, as the folder was made; and not more alike than that.
fn the_folder_has_its_weights(gguf: &Real) -> Result<(), Failed> {
    let folder = Real::new(gguf.name);
    let [gguf, folder] = [gguf.model(), folder.model()].map(|model| model.checkpoint().tensors());
    assert!(gguf.names().eq(folder.names()));
    let mut exact = 0;
    for (name, tensor) in folder.iter() {
        let stored = gguf.get(name, tensor.shape())?;
        assert!(stored.to_vec::<bf16>() == tensor.to_vec::<bf16>(), "{name}");
        exact += usize::from(stored.to_vec::<f32>() == tensor.to_vec::<f32>());
    }
    println!("{exact} of {} tensors are not rounded", folder.len());
    assert!(exact < folder.len() / 2 + 1);
    Ok(())
}

fn gguf_closed_form(real: &Real) -> Result<(), Failed> {
    let f64 = real.protocol::<f64>(Solver::ClosedForm, ApplyMode::Overlay, 1);
    let f32 = real.protocol::<f32>(Solver::ClosedForm, ApplyMode::Materialise, TOKENS);
    assert!(
        [f64, f32]
            .iter()
            .all(|summary| summary.matching == summary.tokens)
    );
    Ok(())
}

fn gguf_span(real: &Real) -> Result<(), Failed> {
    let (form, keep) = (ApplyMode::Overlay, Keep::Bos);
    real.span::<f32>(form, keep, Positions::Natural, 24, &PROMPTS[..2]);
    Ok(())
}
