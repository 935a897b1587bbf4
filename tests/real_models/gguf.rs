//! The GGUF files of all real models, with their quantised weights.

use context_patch::patch::{ApplyMode, Positions, Solver};
use context_patch::verify::{Keep, PROMPTS};
use half::bf16;
use libtest_mimic::{Failed, Trial};

use crate::common::real::{Check, Real};

static FILES: [Real; 3] = [
    Real::gguf("gemma-3-270m"),
    Real::gguf("smollm2-135m-instruct"),
    Real::gguf("qwen2.5-coder-0.5b-instruct"),
];

const TESTS: [(&str, Check); 3] = [
    ("the_folder_has_its_weights", the_folder_has_its_weights),
    ("closed_form", closed_form),
    ("span", span),
];

/// Tokens of each prompt that are patched anew.
const TOKENS: usize = 2;

pub fn trials() -> Vec<Trial> {
    let of_file = |file: &'static Real| {
        let absent = file.absent();
        TESTS.map(|(name, check)| file.trial(name, check, absent))
    };
    FILES.iter().flat_map(of_file).collect()
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

fn closed_form(real: &Real) -> Result<(), Failed> {
    let f64 = real.protocol::<f64>(Solver::ClosedForm, ApplyMode::Overlay, 1);
    let f32 = real.protocol::<f32>(Solver::ClosedForm, ApplyMode::Materialise, TOKENS);
    assert!(
        [f64, f32]
            .iter()
            .all(|summary| summary.matching == summary.tokens)
    );
    Ok(())
}

fn span(real: &Real) -> Result<(), Failed> {
    let (form, keep) = (ApplyMode::Overlay, Keep::Bos);
    real.span::<f32>(form, keep, Positions::Natural, 24, &PROMPTS[..2]);
    Ok(())
}
