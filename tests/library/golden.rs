//! The small checkpoints against the NumPy reference (f64) and Hugging Face (f32, bf16).

use crate::common::{
    FAMILIES, Golden, all_models, linf, logits, low_rank, open, scale, small_models, top_and_margin,
};
use context_patch::patch::{Method, Part, Patch, Query, Solver, Variant, solve};
use context_patch::{Model, Session};
use half::bf16;

fn ids(golden: &Golden) -> Vec<u32> {
    // The ids are whole numbers below 2²⁴, exact in every type.
    golden.get("ids").iter().map(|&id| id as u32).collect()
}

#[test]
fn f64_is_the_numpy_reference() {
    for (dir, name) in all_models() {
        let golden = Golden::open(&format!("{name}.f64"));
        let got = logits::<f64>(&open(&dir), &ids(&golden));
        let error = linf(got.as_slice(), &golden.get("logits_f64"));
        assert!(error <= 1e-9, "{name}: {error:e}");
    }
}

/// Our error against f64 is at most 1.25 × Hugging Face's own.
fn as_near_as_hugging_face<E: context_patch::tensor::Element>(theirs: &str) {
    let mut broken = Vec::new();
    for (dir, name) in all_models() {
        let golden = Golden::open(&name);
        let truth = Golden::open(&format!("{name}.f64")).get("logits_f64");
        let got = logits::<E>(&open(&dir), &ids(&golden));
        let ours = linf(got.as_slice(), &truth);
        let theirs = linf(&golden.get(theirs), &truth);
        println!(
            "{name}: ours {ours:.2e}, Hugging Face's {theirs:.2e}, ratio {:.2}",
            ours / theirs
        );
        if ours > 1.25 * theirs {
            broken.push(name);
        }
    }
    assert!(broken.is_empty(), "{broken:?}");
}

#[test]
fn f32_is_as_near_to_f64_as_hugging_face() {
    as_near_as_hugging_face::<f32>("logits_f32");
}

#[test]
fn bf16_is_as_near_to_f64_as_hugging_face() {
    as_near_as_hugging_face::<bf16>("logits_bf16");
}

#[test]
fn bf16_has_the_top_token_of_hugging_face_where_that_is_clear() {
    for (dir, name) in all_models() {
        let golden = Golden::open(&name);
        let theirs = golden.get("logits_bf16");
        let got = logits::<bf16>(&open(&dir), &ids(&golden));
        for (row, theirs) in got.iter_rows().zip(theirs.chunks(got.cols())) {
            let (top, margin) = top_and_margin(theirs);
            assert!(margin <= 0.5 || top_and_margin(row).0 == top, "{name}");
        }
    }
}

/// Theorem 1 in f64 against the NumPy reference's patch of the last token: everything else absorbed
/// (`patch`), or all but the first token (`keep_first`).
#[test]
fn theorem_1_is_the_numpy_reference() {
    for (dir, name) in small_models() {
        let golden = Golden::open(&format!("{name}.f64"));
        let (model, ids) = (open(&dir), ids(&golden));
        let (&last, context) = ids.split_last().unwrap();
        for (case, kept) in [("patch", vec![]), ("keep_first", vec![(ids[0], 0)])] {
            let mut session = Session::<f64>::new(&model);
            session.forward(context, 0).unwrap();
            let query = Query {
                kept: &kept,
                ..Query::alone(last)
            };
            let variants = [
                Variant::NoPatch,
                Variant::Without(Part::Scale),
                Variant::Without(Part::GateUp),
            ];
            let method = Method::new(Solver::Theorem1);
            let solution = solve(&mut session, query, &method, &variants).unwrap();
            compare_patch(
                &model,
                &golden,
                &format!("{name} {case}"),
                case,
                &solution.patch,
            );
            let want = golden.get(&format!("{case}.logits"));
            let error = linf(solution.reduced.row(0), &want);
            assert!(error <= 1e-9, "{name} {case}: patched logits {error:e}");
            let controls = ["no_patch", "without_dm", "without_gate_up"];
            for (row, control) in (1..).zip(controls) {
                let got = linf(solution.reduced.row(row), &solution.contextual);
                let want = golden.number(&format!("{case}.linf_{control}"));
                assert!(
                    (got - want).abs() <= 1e-6 * want,
                    "{name} {case} {control}: {got} {want}"
                );
            }
        }
    }
}

fn compare_patch(model: &Model, golden: &Golden, what: &str, case: &str, patch: &Patch) {
    for (i, layer) in patch.layers.iter().enumerate() {
        let relative = |part: &str, got: Vec<f64>, want: Vec<f64>| {
            let size = want.iter().fold(0.0f64, |max, x| max.max(x.abs()));
            // A patch of nothing (one token sees itself alone) is rounding noise on both sides.
            let error = linf(&got, &want) / size.max(1e-3);
            assert!(error <= 1e-9, "{what} layer {i} {part}: {error:e}");
        };
        let z = golden.get(&format!("{case}.{i}.z"));
        for (part, module) in [("gate_u", "mlp.gate_proj"), ("up_u", "mlp.up_proj")] {
            // Theirs is u zᵀ, ours (u ‖z‖) (z/‖z‖)ᵀ: one row of ΔW tells both factors.
            let ours = low_rank(layer, module).unwrap();
            let theirs = golden.get(&format!("{case}.{i}.{part}"));
            let scale = ours.v.row(0)[0] / z[0];
            let unscaled = ours.u.as_slice().iter().map(|u| u * scale).collect();
            relative(part, unscaled, theirs);
            relative(
                "v",
                ours.v.as_slice().iter().map(|v| v / scale).collect(),
                z.clone(),
            );
        }
        let norm = model.layers()[i].outer.post_norm().unwrap();
        let m = norm.scale::<f64>().into_iter();
        let scale = scale(layer, norm.name()).unwrap();
        let delta_m = scale.iter().zip(m).map(|(scale, m)| scale - m);
        relative(
            "Δm",
            delta_m.collect(),
            golden.get(&format!("{case}.{i}.dm")),
        );
    }
}

/// The families whose last linear map has a bias, which is what Lemma 8 patches.
const BIASED: [&str; 5] = ["falcon-rw", "gpt2", "gptj", "llama-biases", "phi"];

/// Theorem 5 in f64 against the NumPy reference, which patches a bare weight where ours patches a bias: both reach the same
/// logits, and are as far off without their parts.
#[test]
fn theorem_5_is_the_numpy_reference() {
    let mut bare = 0;
    for name in FAMILIES {
        let golden = Golden::open(&format!("{name}.f64"));
        let model = open(&format!("checkpoints/{name}"));
        if model.layers()[0].outer.post_norm().is_some() {
            continue;
        }
        bare += 1;
        let ids = ids(&golden);
        let (&last, context) = ids.split_last().unwrap();
        for (case, kept) in [("patch", vec![]), ("keep_first", vec![(ids[0], 0)])] {
            let mut session = Session::<f64>::new(&model);
            session.forward(context, 0).unwrap();
            let query = Query {
                kept: &kept,
                ..Query::alone(last)
            };
            let variants = [Variant::NoPatch, Variant::Without(Part::Down)];
            let method = Method::new(Solver::Theorem5);
            let solution = solve(&mut session, query, &method, &variants).unwrap();
            let want = golden.get(&format!("{case}.logits"));
            let error = linf(solution.reduced.row(0), &want);
            assert!(error <= 1e-9, "{name} {case}: patched logits {error:e}");
            // Under a bias of another size a token that stays is another one.
            if case == "keep_first" && BIASED.contains(&name) {
                continue;
            }
            for (row, control) in (1..).zip(["no_patch", "without_outer"]) {
                let got = linf(solution.reduced.row(row), &solution.contextual);
                let want = golden.number(&format!("{case}.linf_{control}"));
                assert!(
                    (got - want).abs() <= 1e-6 * want,
                    "{name} {case} {control}: {got} {want}"
                );
            }
        }
    }
    assert_eq!(bare, 14);
}
