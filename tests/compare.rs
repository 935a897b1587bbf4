//! Known bugs are found where they enter and called by their names; without one nothing is found.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::collections::BTreeSet;

use common::compared::{Bench, with_factor_and_scalar};
use common::images::{Pixels, Prompt, all_seeing};
use common::{FAMILIES, Golden, RANDOM, open, reference};
use context_patch::Model;
use context_patch::model::KnownBug;
use context_patch::tensor::Dtype;

/// The bugs that only images show.
const OF_IMAGES: [KnownBug; 4] = [
    KnownBug::PixelsBgr,
    KnownBug::PixelsClip,
    KnownBug::ImagesScaled,
    KnownBug::ImagesCausal,
];

/// Tokens all over a vocabulary, after the one that begins a sequence.
fn ids(model: &Model, tokens: u32) -> Vec<u32> {
    let vocabulary = model.config().vocab_size as u32;
    let rest = (1..tokens).map(|i| (i * i * 7 + 3) % vocabulary);
    std::iter::once(2).chain(rest).collect()
}

fn bench(model: Model) -> Bench {
    let ids = ids(&model, 30);
    Bench::new(model, ids, &[])
}

fn in_threads(threads: usize, test: impl FnOnce() + Send) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.unwrap().install(test);
}

/// Every prompt with images of every model that sees.
fn seeing(globs: &[String]) -> Vec<(String, Bench)> {
    let models = all_seeing().into_iter();
    let each = models.flat_map(|(dir, name, prompts)| {
        let (model, golden) = (open(&dir), Golden::open(&format!("{name}.images")));
        let pixels = Pixels::of(&golden, &model);
        let bench = |prompt: &&str| {
            let inputs = Prompt::of(&golden, prompt, &pixels);
            let bench = Bench::of(model.clone(), inputs.inputs(), globs);
            (format!("{name} {prompt}"), bench)
        };
        prompts.iter().map(bench).collect::<Vec<_>>()
    });
    each.collect()
}

/// Holds a recording without a bug against the reference, tensor by tensor.
fn is_clean(bench: &Bench, what: &str, dtype: Dtype) {
    let report = bench.report(dtype, None);
    let finding = &report.finding;
    assert!(finding.is_none(), "{what} {dtype}: {finding:?}");
    let beyond = report.rows.iter().filter(|row| row.beyond.is_some());
    assert_eq!(beyond.count(), 0, "{what} {dtype}");
    assert!(report.rows.iter().all(|row| row.replayed), "{what} {dtype}");
}

#[test]
fn nothing_is_found_in_a_clean_recording_of_images() {
    for (what, bench) in seeing(&[]) {
        for dtype in [Dtype::F64, Dtype::F32, Dtype::Bf16] {
            is_clean(&bench, &what, dtype);
        }
    }
}

#[test]
fn bugs_are_found_where_there_are_images() {
    let mut found = BTreeSet::new();
    for (what, bench) in seeing(&[]) {
        for dtype in [Dtype::F64, Dtype::F32, Dtype::Bf16] {
            println!("{what} {dtype}");
            let bugs = bench.find(dtype, KnownBug::ALL).into_iter();
            found.extend(bugs.map(KnownBug::name));
        }
    }
    let missing = OF_IMAGES.iter().filter(|bug| !found.contains(bug.name()));
    assert_eq!(missing.count(), 0, "{found:?}");
}

/// Nor need it record pixels, positions, and what images are put into.
#[test]
fn what_images_are_put_into_need_not_be_recorded() {
    let globs = [
        "pixel_values",
        "*.patch_embedding",
        "*.multi_modal_projector",
        "model.layers.*",
    ];
    for (what, bench) in seeing(&globs.map(str::to_owned)) {
        for dtype in [Dtype::F64, Dtype::F32, Dtype::Bf16] {
            let report = bench.report(dtype, None);
            assert!(report.finding.is_none(), "{what}: {:?}", report.finding);
            let whole = report.rows.iter().filter(|row| !row.replayed);
            let whole: Vec<_> = whole.map(|row| row.name.as_str()).collect();
            // What goes into it was not recorded.
            assert_eq!(whole, ["model.multi_modal_projector"], "{what}");
            // A norm makes little of a factor.
            let finding = bench.report(dtype, Some(KnownBug::ImagesScaled)).finding;
            let tensor = finding.map(|finding| finding.tensor).unwrap_or_default();
            assert!(tensor.starts_with("model.layers.0."), "{what}: {tensor}");
        }
    }
}

#[test]
fn nothing_is_found_in_a_clean_recording() {
    for threads in [1, 2] {
        in_threads(threads, || {
            let small = RANDOM.iter().chain(&FAMILIES);
            let small = small.map(|name| format!("checkpoints/{name}"));
            for dir in small.chain(["tiny".to_owned()]) {
                let bench = bench(open(&dir));
                for dtype in [Dtype::F64, Dtype::F32, Dtype::Bf16] {
                    is_clean(&bench, &dir, dtype);
                }
            }
        });
    }
}

/// An engine need not record the embedding: what comes of it is replayed from the model's own.
#[test]
fn an_embedding_that_was_not_recorded_is_looked_up() {
    for dir in ["tiny", "checkpoints/qwen2"] {
        let model = open(dir);
        let ids = ids(&model, 30);
        let bench = Bench::new(model, ids, &["model.layers.*".to_owned()]);
        for dtype in [Dtype::F64, Dtype::F32, Dtype::Bf16] {
            let report = bench.report(dtype, None);
            assert!(
                report.finding.is_none(),
                "{dir} {dtype}: {:?}",
                report.finding
            );
            assert!(report.rows.iter().all(|row| row.replayed), "{dir} {dtype}");
            let finding = bench.report(dtype, Some(KnownBug::NormWeight)).finding;
            let finding = finding.unwrap();
            assert_eq!(finding.tensor, "model.layers.0.input_layernorm");
            assert_eq!(finding.causes[0].name, KnownBug::NormWeight.name());
        }
    }
}

/// Every bug of Gemma 3, but for the type of the embedding's scale, which is a whole number for the tiny model.
#[test]
fn the_tiny_models_bugs_are_found() {
    for threads in [1, 2] {
        in_threads(threads, || {
            let mut found = BTreeSet::new();
            for model in [open("tiny"), with_factor_and_scalar(&reference("tiny"))] {
                let bench = bench(model);
                for dtype in [Dtype::F32, Dtype::Bf16] {
                    let bugs = bench.find(dtype, KnownBug::ALL).into_iter();
                    found.extend(bugs.map(KnownBug::name));
                }
            }
            let expected = [
                "embedding-unscaled",
                "gelu-erf",
                "gelu-f16",
                "missing-bos",
                "norm-after-rope",
                "norm-eps",
                "norm-rounded",
                "norm-weight",
                "qk-permuted",
                "rope-interleaved",
                "rope-local-theta",
                "rope-no-factor",
                "scale-head-dim",
                "silu",
                "soft-capping",
                "window-everywhere",
                "window-minus-1",
                "window-missing",
                "window-plus-1",
            ];
            let missing = expected.iter().filter(|bug| !found.contains(*bug));
            assert_eq!(missing.count(), 0, "{found:?}");
        });
    }
}

#[test]
fn bugs_are_found_in_random_models_too() {
    for name in RANDOM {
        let bench = bench(open(&format!("checkpoints/{name}")));
        for dtype in [Dtype::F64, Dtype::F32, Dtype::Bf16] {
            let found = bench.find(dtype, KnownBug::ALL).len();
            assert!(found >= 7, "{name} {dtype}: {found}");
        }
    }
}

/// Where a bug can be seen in a model of a family it is found and called by its name, and every bug can be in one of the models
/// here.
#[test]
fn every_bug_is_found_in_a_family() {
    let mut found = BTreeSet::new();
    let small = RANDOM
        .iter()
        .chain(&FAMILIES)
        .map(|name| format!("checkpoints/{name}"));
    for dir in small {
        let bench = bench(open(&dir));
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let bugs = bench.find(dtype, KnownBug::ALL).into_iter();
            found.extend(bugs.map(KnownBug::name));
        }
    }
    let missing = KnownBug::ALL
        .iter()
        .filter(|bug| !found.contains(bug.name()) && !OF_IMAGES.contains(bug));
    let missing: Vec<_> = missing.map(|bug| bug.name()).collect();
    assert_eq!(missing, [""; 0]);
}
