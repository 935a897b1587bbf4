//! Prompts with images: the vision part and the logits against the NumPy reference (f64) and Hugging Face (f32, bf16), and
//! images absorbed.

mod common;

use common::images::{Modules, PROMPTS, Pixels, Prompt, SEEING};
use common::{Golden, linf, logits, open, top_and_margin};
use context_patch::Model;
use context_patch::patch::{ApplyMode, Method, Overlay, Positions, Solver, Split, span};
use context_patch::tensor::{Dtype, Element};
use context_patch::verify::{self, Keep, Step, Summary, Verification};
use half::bf16;

/// A random checkpoint that sees, and its golden data: Hugging Face's, and NumPy's.
fn seeing(name: &str) -> (Model, Golden, Golden) {
    (
        open(&format!("checkpoints/{name}")),
        Golden::open(&format!("{name}.images")),
        Golden::open(&format!("{name}.images.f64")),
    )
}

/// What comes out of the tower and out of the projector, for all images.
fn vision_part<E: Element>(model: &Model, pixels: &Pixels) -> [Vec<f64>; 2] {
    let mut modules = Modules::new([
        "model.vision_tower.post_layernorm",
        "model.multi_modal_projector",
    ]);
    let vision = model.vision().unwrap();
    let features = vision.features::<E>(&pixels.all(), Some(&mut modules));
    assert_eq!(
        features.unwrap().map(E::to_f64).as_slice(),
        modules.numbers[1]
    );
    modules.numbers
}

#[test]
fn f64_is_the_numpy_reference() {
    for name in SEEING {
        let (model, golden, truth) = seeing(name);
        let pixels = Pixels::of(&golden);
        let parts = vision_part::<f64>(&model, &pixels).into_iter();
        for (part, got) in ["tower", "projector"].into_iter().zip(parts) {
            let error = linf(&got, &truth.get(&format!("{part}_f64")));
            assert!(error <= 1e-9, "{name} {part}: {error:e}");
        }
        for prompt in PROMPTS {
            let got = Prompt::of(&golden, prompt, &pixels).logits::<f64>(&model);
            let error = linf(got.as_slice(), &truth.get(&format!("{prompt}.logits_f64")));
            assert!(error <= 1e-9, "{name} {prompt}: {error:e}");
        }
    }
}

/// Our error against f64 is at most 1.25 × Hugging Face's own: the root mean square, over all tokens of all prompts, of the
/// largest error of each. The largest of all would be that of the token whose attention is worst conditioned, which is
/// chance: Hugging Face's own goes from 3e-6 to 2e-5 there when its linear maps are half a last place off at random.
fn as_near_as_hugging_face<E: Element>(dtype: &str) {
    for name in SEEING {
        let (model, golden, truth) = seeing(name);
        let pixels = Pixels::of(&golden);
        let [tower, projector] = vision_part::<E>(&model, &pixels);
        let logits = PROMPTS.map(|prompt| {
            let logits = Prompt::of(&golden, prompt, &pixels).logits::<E>(&model);
            (format!("{prompt}.logits"), logits.into_vec())
        });
        for (what, width, all) in [
            (
                "tower",
                model.vision().unwrap().config().hidden_size,
                vec![("tower".into(), tower)],
            ),
            (
                "projector",
                model.config().hidden_size,
                vec![("projector".into(), projector)],
            ),
            ("logits", model.config().vocab_size, logits.into()),
        ] {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for (what, got) in all {
                let truth = truth.get(&format!("{what}_f64"));
                let golden = golden.get(&format!("{what}_{dtype}"));
                ours.extend(of_each_token(&got, &truth, width));
                theirs.extend(of_each_token(&golden, &truth, width));
            }
            let ratio = root_mean_square(&ours) / root_mean_square(&theirs);
            println!(
                "{name} {what}: {:.2e}, ratio {ratio:.2}",
                root_mean_square(&ours)
            );
            assert!(ratio <= 1.25, "{name} {what}: {ratio}");
        }
    }
}

/// The largest error of each token.
fn of_each_token(got: &[f64], truth: &[f64], width: usize) -> Vec<f64> {
    let pairs = got.chunks_exact(width).zip(truth.chunks_exact(width));
    pairs.map(|(got, truth)| linf(got, truth)).collect()
}

fn root_mean_square(x: &[f64]) -> f64 {
    (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt()
}

#[test]
fn f32_is_as_near_to_f64_as_hugging_face() {
    as_near_as_hugging_face::<f32>("f32");
}

#[test]
fn bf16_is_as_near_to_f64_as_hugging_face() {
    as_near_as_hugging_face::<bf16>("bf16");
}

#[test]
fn bf16_has_the_top_token_of_hugging_face_where_that_is_clear() {
    for name in SEEING {
        let (model, golden, _) = seeing(name);
        let pixels = Pixels::of(&golden);
        for prompt in PROMPTS {
            let theirs = golden.get(&format!("{prompt}.logits_bf16"));
            let got = Prompt::of(&golden, prompt, &pixels).logits::<bf16>(&model);
            for (row, theirs) in got.iter_rows().zip(theirs.chunks(got.cols())) {
                let (top, margin) = top_and_margin(theirs);
                let same = top_and_margin(row).0 == top;
                assert!(margin <= 0.5 || same, "{name} {prompt}");
            }
        }
    }
}

/// The models are those of text too, whatever their vision part is.
#[test]
fn text_needs_no_vision_part() {
    for name in SEEING {
        let golden = Golden::open(&format!("{name}.f64"));
        let ids: Vec<u32> = golden.get("ids").iter().map(|&id| id as u32).collect();
        let got = logits::<f64>(&open(&format!("checkpoints/{name}")), &ids);
        let error = linf(got.as_slice(), &golden.get("logits_f64"));
        assert!(error <= 1e-9, "{name}: {error:e}");
    }
}

/// The numbers of a step, which hold or not.
fn summary<E: Element>(model: &Model, prompt: &Prompt<'_>, method: Method) -> Summary {
    if method.solver == Solver::Span {
        return Summary::new(&span::<E>(model, prompt, &method));
    }
    let verification = Verification {
        model,
        tokens: 4,
        method,
        keep: Keep::Nothing,
        positions: Positions::Absolute,
    };
    let mut steps = Vec::new();
    let on_step = |step: Step| {
        steps.push(step);
        Ok(())
    };
    let done = verification.prompt::<E>(0, prompt.inputs(), on_step);
    done.unwrap();
    Summary::new(&steps)
}

/// The span of three tokens behind the prompt, which random weights would not write: they write the same one again and again,
/// and states that repeat have no span.
fn span<E: Element>(model: &Model, prompt: &Prompt<'_>, method: &Method) -> Vec<Step> {
    let images = prompt.images::<E>(model);
    let ids = [&prompt.ids[..], &[7, 40, 21]].concat();
    let split = Split::new(ids, vec![], 4, Positions::Absolute).unwrap();
    let (patch, report) = span::solve(model, &split, Some(&images), method, drop).unwrap();
    let overlay = Overlay::<E>::new(model, &patch, method.form);
    let report = Some(report);
    verify::span::check(model, &split, Some(&images), &overlay, 0, report).unwrap()
}

/// Every prompt by every solver in both forms: every token, and every control far off.
fn every_prompt_is_absorbed<E: Element>() {
    let mut broken = Vec::new();
    for name in SEEING {
        let (model, golden, _) = seeing(name);
        let pixels = Pixels::of(&golden);
        for prompt in PROMPTS {
            let ids = Prompt::of(&golden, prompt, &pixels);
            for solver in Solver::of(&model) {
                for form in [ApplyMode::Overlay, ApplyMode::Materialise] {
                    let method = Method {
                        form,
                        gain: Method::gain(solver, E::DTYPE),
                        ..Method::new(solver)
                    };
                    let summary = summary::<E>(&model, &ids, method);
                    // In bf16 the two likeliest tokens are often less than a bound apart.
                    let tokens = summary.matching == summary.tokens || E::DTYPE == Dtype::Bf16;
                    if !(summary.holds && tokens && summary.controls_fail) {
                        broken.push(format!("{name} {prompt} {solver} {form}: {summary:?}"));
                    }
                }
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_prompt_is_absorbed_in_f64() {
    every_prompt_is_absorbed::<f64>();
}

#[test]
fn every_prompt_is_absorbed_in_f32() {
    every_prompt_is_absorbed::<f32>();
}

#[test]
fn every_prompt_is_absorbed_in_bf16() {
    every_prompt_is_absorbed::<bf16>();
}
