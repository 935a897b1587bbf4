//! A prompt compiled from any tokens by any recipe: a patch of finite numbers, or an error that says why not.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use context_patch::Model;
use context_patch::patch::TensorChange;
use context_patch::patch::compile::{Lesson, Recipe, Sample, compile};
use libfuzzer_sys::fuzz_target;

/// One with a norm behind its branches, one with experts.
static MODELS: LazyLock<[Model; 2]> = LazyLock::new(|| {
    ["window-3", "mixtral"].map(|name| {
        let checkpoints = Path::new(env!("CARGO_MANIFEST_DIR")).join("../reference/checkpoints");
        Model::open(checkpoints.join(name).to_str().unwrap()).unwrap()
    })
});

#[derive(Arbitrary, Debug)]
struct Input {
    experts: bool,
    samples: Vec<(Vec<u8>, Vec<u8>, Vec<u8>, bool)>,
    first: u8,
    rank: u8,
    lambda: f64,
    gain: f64,
    anchor_weight: f64,
}

fuzz_target!(|input: Input| {
    let model = &MODELS[usize::from(input.experts)];
    let vocab = model.config().vocab_size as u32;
    let ids = |bytes: &[u8]| -> Vec<u32> {
        bytes
            .iter()
            .take(24)
            .map(|byte| u32::from(*byte) % (vocab + 1))
            .collect()
    };
    let each = input.samples.iter().take(6);
    let samples: Vec<_> = each
        .enumerate()
        .map(|(i, (with, without, answer, anchor))| match anchor {
            true => Sample::anchor(i, ids(with)),
            false => Sample::query(i, &ids(with), &ids(without), &ids(answer)),
        })
        .collect();
    let Ok(lessons) = Lesson::<f32>::all(model, &samples, || {}) else {
        return;
    };
    let recipe = Recipe {
        first: input.first.into(),
        lambda: input.lambda,
        gain: input.gain,
        rank: input.rank.into(),
        anchor_weight: input.anchor_weight,
        ..Recipe::new(model)
    };
    let all: Vec<_> = lessons.iter().collect();
    let Ok(patch) = compile(model, &all, &recipe, || {}) else {
        return;
    };
    patch.check(model).unwrap();
    for change in patch.layers.iter().flat_map(|layer| layer.values()) {
        let TensorChange::LowRank(change) = change else {
            panic!("a compiled patch changes matrices alone");
        };
        assert!(change.u.is_finite() && change.v.is_finite());
    }
});
