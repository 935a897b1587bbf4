//! Patches written into weights and into files, and read back.

mod adapters;
mod merged;
mod refused;
mod weights;

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::open;
use context_patch::Model;
use context_patch::checkpoint::{Access, Tensors};
use context_patch::patch::{LayerPatch, LowRank, Patch, TensorChange, export};
use context_patch::tensor::{Matrix, Tensor};

const IDS: [u32; 6] = [2, 17, 5, 33, 8, 60];

/// Numbers without a pattern, the same each time.
fn numbers(seed: usize, count: usize, size: f64) -> Vec<f64> {
    let number = |i: usize| ((seed * 7919 + i) as f64 * 0.618_033_988_749_895).fract() - 0.5;
    (0..count).map(|i| size * number(i)).collect()
}

/// A change of one of the MLP's maps.
fn low_rank(
    map: &str,
    seed: usize,
    [out, input]: [usize; 2],
    rank: usize,
) -> (String, TensorChange) {
    let delta = LowRank {
        u: Matrix::from_vec(rank, numbers(seed, out * rank, 0.3)),
        v: Matrix::from_vec(input, numbers(seed + 1, rank * input, 0.3)),
    };
    (format!("mlp.{map}.weight"), TensorChange::LowRank(delta))
}

/// A changed post-norm.
fn scale(m: Vec<f64>) -> (String, TensorChange) {
    let name = "post_feedforward_layernorm.weight";
    (name.into(), TensorChange::Vector(m))
}

fn delta<'p>(patch: &'p Patch, layer: usize, map: &str) -> &'p LowRank {
    crate::common::low_rank(&patch.layers[layer], &format!("mlp.{map}")).unwrap()
}

fn scale_of(patch: &Patch, layer: usize) -> &Vec<f64> {
    crate::common::scale(&patch.layers[layer], "post_feedforward_layernorm").unwrap()
}

/// ΔW_down of rank 2, on the layers given.
fn some_down(model: &Model, layers: &[usize]) -> Patch {
    let (hidden, inner) = sizes(model);
    let mut patch = empty(model);
    for &layer in layers {
        patch.layers[layer].extend([low_rank("down_proj", layer, [hidden, inner], 2)]);
    }
    patch
}

/// Everything of every layer, at ranks 1 and 3.
fn all_parts(model: &Model) -> Patch {
    let (hidden, inner) = sizes(model);
    let layers = model.layers().iter().enumerate().map(|(i, block)| {
        let m = block.outer.post_norm().unwrap().scale::<f64>();
        let change = numbers(i + 50, hidden, 0.2);
        LayerPatch::from([
            low_rank("gate_proj", i + 10, [inner, hidden], 1),
            low_rank("up_proj", i + 20, [inner, hidden], 3),
            scale(m.iter().zip(change).map(|(m, d)| m + d).collect()),
        ])
    });
    let layers = layers.collect();
    Patch { layers }
}

fn empty(model: &Model) -> Patch {
    let layers = vec![LayerPatch::default(); model.layers().len()];
    Patch { layers }
}

fn sizes(model: &Model) -> (usize, usize) {
    let config = model.config();
    (config.hidden_size, config.intermediate_size)
}

fn hash(model: &Model) -> String {
    model.checkpoint().tensors().content_hash()
}

fn tensor(model: &Model, name: &str, shape: &[usize]) -> Tensor {
    model.checkpoint().tensors().get(name, shape).unwrap()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The names and tensors of a safetensors file that holds none of a checkpoint.
fn adapter(dir: &Path) -> BTreeMap<String, Tensor> {
    let file = dir.join("adapter_model.safetensors");
    let tensors = Tensors::open_file(&file, Access::Read).unwrap();
    let owned = tensors.iter().map(|(name, t)| (name.to_owned(), t.clone()));
    owned.collect()
}

#[test]
fn the_same_patch_gives_the_same_bytes() {
    let tmp = tempfile::tempdir().unwrap();
    let model = open("tiny");
    let patch = some_down(&model, &[1, 4]);
    let files = [0, 1].map(|i| {
        let dir = tmp.path().join(i.to_string());
        export::peft(&model, &patch, None, &dir).unwrap();
        export::gguf(&model, &patch, None, &dir.join("lora.gguf")).unwrap();
        [
            "adapter_config.json",
            "adapter_model.safetensors",
            "lora.gguf",
        ]
        .map(|name| std::fs::read(dir.join(name)).unwrap())
    });
    assert_eq!(files[0], files[1]);
}
