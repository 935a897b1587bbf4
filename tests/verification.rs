//! What `verify` leaves of a prompt: the reduced pass is the one that was asked for.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::open;
use context_patch::kernels::Backend;
use context_patch::patch::{Method, Positions, Solver, Variant};
use context_patch::verify::{Comparison, Keep, Verification};
use context_patch::{Model, Session};

const TEXT: &str = "Ann likes plums. Ben likes pears. Ann likes";

/// The logits of an unpatched pass.
fn logits(model: &Model, tokens: &[u32], positions: &[usize]) -> Vec<f64> {
    let mut session = Session::<f64>::new(model);
    let logits = session.forward_at(tokens, positions, 1).unwrap();
    logits.row(0).to_vec()
}

#[test]
fn the_reduced_pass_sees_what_is_kept() {
    let model = open("tiny");
    let ids = model
        .checkpoint()
        .tokenizer()
        .unwrap()
        .encode(TEXT)
        .unwrap();
    let context = ids.len() - 1;
    let mut off = Vec::new();
    for (keep, kept) in [
        (Keep::Nothing, 0),
        (Keep::Bos, 1),
        (Keep::Half, context / 2),
    ] {
        for (positions, query) in [(Positions::Absolute, context), (Positions::Natural, kept)] {
            let verification = Verification {
                model: &model,
                tokens: 2,
                method: Method::new(Solver::ClosedForm),
                keep,
                positions,
            };
            let mut steps = Vec::new();
            let on_step = |step| {
                steps.push(step);
                Ok(())
            };
            verification.prompt::<f64>(0, &ids, on_step).unwrap();
            let mut all = ids.clone();
            for (i, step) in steps.iter().enumerate() {
                let name = format!("{keep}, {positions}, token {i}");
                assert!(step.holds(), "{name}");
                // The second token comes a place later, or, with the gaps closed, behind the same ones again.
                let at = if positions == Positions::Absolute {
                    query + i
                } else {
                    query
                };
                assert_eq!(step.position, at, "{name}");
                let places: Vec<_> = (0..kept).chain([at]).collect();
                let tokens = [&ids[..kept], &[step.token]].concat();
                let unpatched = logits(&model, &tokens, &places);
                let contextual = logits(&model, &all, &(0..all.len()).collect::<Vec<_>>());
                let control = step.controls[0];
                assert_eq!(control.variant, Variant::NoPatch);
                assert_eq!(
                    control.reduced,
                    Comparison::new(&unpatched, &contextual),
                    "{name}"
                );
                all.push(step.next);
            }
            off.push(steps[0].controls[0].reduced.linf);
        }
    }
    // What is kept, and where, makes a difference.
    off.sort_by(f64::total_cmp);
    off.dedup();
    assert!(off.len() > 4, "{off:?}");
}

/// The steps after some that the model has written already, as JSON, which says every bit.
fn resumed(model: &Model, ids: &[u32], written: &[u32]) -> Vec<String> {
    let verification = Verification {
        model,
        tokens: 5,
        method: Method::new(Solver::ClosedForm),
        keep: Keep::Bos,
        positions: Positions::Absolute,
    };
    let mut steps = Vec::new();
    let on_step = |step| {
        steps.push(serde_json::to_string(&step).unwrap());
        Ok(())
    };
    let resumed = verification.resume::<f32>(0, ids, written, on_step);
    resumed.unwrap();
    steps
}

/// Natively without computing what is there; elsewhere all over again.
#[test]
fn a_prompt_goes_on_with_the_same_bits() {
    let native = open("tiny");
    let ids = native.checkpoint().tokenizer().unwrap();
    let ids = ids.encode(TEXT).unwrap();
    let gemm = native.clone().on(Backend::Gemm);
    let all = resumed(&native, &ids, &[]);
    let all_gemm = resumed(&gemm, &ids, &[]);
    let next = |step: &String| {
        let step: serde_json::Value = serde_json::from_str(step).unwrap();
        step["next"].as_u64().unwrap() as u32
    };
    let written: Vec<_> = all.iter().map(next).collect();
    assert_eq!(all.len(), 5);
    for done in 0..=5 {
        assert_eq!(resumed(&native, &ids, &written[..done]), all[done..]);
        assert_eq!(resumed(&gemm, &ids, &written[..done]), all_gemm);
    }
    // The control: after another token other figures.
    let other = [written[0] + 1];
    assert_ne!(resumed(&native, &ids, &other), all[1..]);
}
