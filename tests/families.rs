//! Every family's random checkpoint through the paper's protocol: all solvers that apply, every compute type, both forms.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{FAMILIES, Golden, open};
use context_patch::Model;
use context_patch::patch::{ApplyMode, Case, Method, Overlay, Positions, Solver, Split, span};
use context_patch::tensor::{Dtype, Element};
use context_patch::verify::{self, Begun, Keep, Step, Summary, Verification};
use half::bf16;

fn ids(name: &str) -> Vec<u32> {
    let golden = Golden::open(&format!("{name}.f64"));
    // The ids are whole numbers below 2²⁴, exact in every type.
    golden.get("ids").iter().map(|&id| id as u32).collect()
}

/// The span of the last four tokens, which random weights would not write: they write the same one again and again, and
/// states that repeat have no span.
fn span<E: Element>(model: &Model, ids: &[u32], method: &Method) -> Vec<Step> {
    let split = Split::new(ids.to_vec(), vec![], 4, Positions::Absolute).unwrap();
    let (patch, report) = span::solve::<E>(model, &split, method, drop).unwrap();
    let overlay = Overlay::<E>::new(model, &patch, method.form);
    verify::span::check(model, &split, &overlay, 0, Some(report)).unwrap()
}

fn steps<E: Element>(model: &Model, ids: &[u32], method: Method, keep: Keep) -> Vec<Step> {
    let verification = Verification {
        model,
        tokens: 6,
        method,
        keep,
        positions: Positions::Absolute,
    };
    let begun = Begun {
        prompt: 0,
        ids,
        written: Vec::new(),
    };
    let mut steps = Vec::new();
    let done = verification.batch::<E>(&[begun], |step| {
        steps.push(step);
        Ok(())
    });
    done.unwrap().into_iter().for_each(|done| done.unwrap());
    steps
}

/// Six tokens, each patched anew (a span: at once): every token and bound, every control far off.
fn holds<E: Element>(name: &str, solver: Solver, form: ApplyMode) -> String {
    let model = open(&format!("checkpoints/{name}"));
    let method = Method {
        form,
        gain: Method::gain(solver, E::DTYPE),
        ..Method::new(solver)
    };
    let steps = match solver {
        Solver::Span => span::<E>(&model, &ids(name), &method),
        _ => steps::<E>(&model, &ids(name), method, Keep::Nothing),
    };
    let summary = Summary::new(&steps);
    let reports = steps.iter().filter_map(|step| step.report.as_ref());
    let mut layers = reports.flat_map(|report| &report.layers);
    let out_of_reach = layers.any(|layer| layer.case == Case::OutOfReach);
    // In bf16 the two likeliest tokens are often less than a bound apart.
    let tokens = summary.matching == summary.tokens || E::DTYPE == Dtype::Bf16;
    // A few random layers with a norm behind each branch may not reach a span's target, and say so.
    let broken = !summary.controls_fail || !(out_of_reach || summary.holds && tokens);
    let figures = format!(
        "{name} {solver} {} {form}: {} of {} tokens, {:.1e}, out of reach {out_of_reach}, bound {}, controls {}",
        E::DTYPE,
        summary.matching,
        summary.tokens,
        summary.worst_linf,
        summary.holds,
        summary.controls_fail,
    );
    println!("{}{figures}", if broken { "BROKEN " } else { "" });
    if broken { figures } else { String::new() }
}

fn every_family<E: Element>() {
    let mut broken = Vec::new();
    for name in FAMILIES {
        let model = open(&format!("checkpoints/{name}"));
        for solver in Solver::of(&model) {
            for form in [ApplyMode::Overlay, ApplyMode::Materialise] {
                broken.push(holds::<E>(name, solver, form));
            }
        }
    }
    broken.retain(|figures| !figures.is_empty());
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_family_is_patched_in_f64() {
    every_family::<f64>();
}

#[test]
fn every_family_is_patched_in_f32() {
    every_family::<f32>();
}

#[test]
fn every_family_is_patched_in_bf16() {
    every_family::<bf16>();
}
