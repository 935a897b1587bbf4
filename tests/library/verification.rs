//! What `verify` leaves of a prompt: the reduced pass is the one that was asked for.

use crate::common::open;
use context_patch::kernels::Backend;
use context_patch::model::Inputs;
use context_patch::patch::{Method, Positions, Solver, Variant};
use context_patch::tensor::Element;
use context_patch::verify::{self, Begun, Keep, LogitsDistance, Verification};
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
                    LogitsDistance::new(&unpatched, &contextual),
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
    let gemm = native.clone().on(Backend::Gemm).unwrap();
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

/// Prompts of several lengths, of which the last one cannot be verified.
fn prompts(model: &Model) -> Vec<Vec<u32>> {
    let texts = [
        TEXT,
        "Bob likes figs. Bob likes",
        "Ann likes plums. Bob likes figs. Cid likes limes. Bob likes",
    ];
    let tokenizer = model.checkpoint().tokenizer().unwrap();
    let ids = texts.map(|text| tokenizer.encode(text).unwrap());
    ids.into_iter().chain([vec![2]]).collect()
}

/// Steps as JSON, which says every bit, and what became of each prompt.
fn together<E: Element>(
    verification: &Verification<'_>,
    prompts: &[Begun<'_>],
) -> (Vec<String>, Vec<verify::Result<()>>) {
    let mut steps = Vec::new();
    let on_step = |step| {
        steps.push(serde_json::to_string(&step).unwrap());
        Ok(())
    };
    let done = verification.batch::<E>(prompts, on_step).unwrap();
    (steps, done)
}

fn a_batch_is_each_of_them<E: Element>(model: &Model, solver: Solver, keep: Keep) {
    let verification = Verification {
        model,
        tokens: 3,
        method: Method::new(solver),
        keep,
        positions: Positions::Natural,
    };
    let prompts = prompts(model);
    let begun = |prompt: usize| Begun {
        prompt,
        inputs: Inputs::text(&prompts[prompt]),
        written: Vec::new(),
    };
    let alone = |prompt| together::<E>(&verification, &[begun(prompt)]).0;
    let alone = [alone(0), alone(1), alone(2)];
    assert!(alone.iter().all(|steps| steps.len() == 3));
    assert_ne!(alone[0], alone[1]);
    let all: Vec<_> = (0..4).map(begun).collect();
    let (steps, done) = together::<E>(&verification, &all);
    let in_turn = (0..3).flat_map(|step| alone.iter().map(move |steps| &steps[step]));
    assert!(steps.iter().eq(in_turn), "{solver} {keep}");
    let failed: Vec<_> = done.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, false, false, true]);

    // One that is ahead waits for the others.
    let mut ahead = all.clone();
    let next = |step: &String| {
        let step: serde_json::Value = serde_json::from_str(step).unwrap();
        step["next"].as_u64().unwrap() as u32
    };
    ahead[1].written = alone[1][..2].iter().map(next).collect();
    let (steps, _) = together::<E>(&verification, &ahead);
    let [a, b, c] = &alone;
    let in_turn = [&a[0], &c[0], &a[1], &c[1], &a[2], &b[2], &c[2]];
    assert!(steps.iter().eq(in_turn), "{solver} {keep}");
}

#[test]
fn prompts_have_the_bits_together_that_they_have_alone() {
    let model = open("tiny");
    for solver in [Solver::Theorem1, Solver::AppendixB, Solver::ClosedForm] {
        a_batch_is_each_of_them::<f64>(&model, solver, Keep::Nothing);
        a_batch_is_each_of_them::<f32>(&model, solver, Keep::Half);
        a_batch_is_each_of_them::<half::bf16>(&model, solver, Keep::Bos);
    }
}

#[test]
fn spans_in_a_batch_come_one_after_the_other() {
    let model = open("tiny");
    let verification = Verification {
        model: &model,
        tokens: 2,
        method: Method::new(Solver::Span),
        keep: Keep::Bos,
        positions: Positions::Absolute,
    };
    let prompts = prompts(&model);
    let begun = |prompt: usize| Begun {
        prompt,
        inputs: Inputs::text(&prompts[prompt]),
        written: Vec::new(),
    };
    let alone = [0, 1].map(|prompt| together::<f64>(&verification, &[begun(prompt)]).0);
    let (steps, done) = together::<f64>(&verification, &[begun(3), begun(0), begun(1)]);
    assert_eq!(steps, alone.concat());
    assert!(done[0].is_err() && done[1].is_ok() && done[2].is_ok());
}
