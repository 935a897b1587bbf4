//! What the tests share: where things are, golden data, and distances.
#![allow(dead_code, reason = "every test file uses a part of this")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

pub mod compared;
pub mod files;
pub mod gguf;
pub mod images;
pub mod page;
pub mod pinned;
pub mod processor;
pub mod real;
pub mod ways;

use std::path::{Path, PathBuf};
use std::process::Command;

use context_patch::patch::{LayerPatch, LowRank, TensorChange};
use context_patch::tensor::{Element, Matrix};
use context_patch::{Model, Session};
use safetensors::tensor::{Dtype, SafeTensors};

/// The small random checkpoints.
pub const RANDOM: [&str; 8] = [
    "all-global",
    "grouped-queries",
    "multimodal",
    "odd-sizes",
    "rope-factor-8",
    "untied-head",
    "window-1",
    "window-3",
];

/// The random checkpoints of the other families, and of forms of Gemma 3 that only some have.
pub const FAMILIES: [&str; 17] = [
    "falcon-40b",
    "falcon-7b",
    "falcon-rw",
    "gemma",
    "gemma2",
    "gemma3-bias",
    "gpt2",
    "gptj",
    "llama-2",
    "llama-3",
    "llama-biases",
    "mistral",
    "mixtral",
    "olmo2",
    "phi",
    "qwen2",
    "qwen3",
];

/// Every committed model of every family: its directory and the name of its golden files.
pub fn all_models() -> Vec<(String, String)> {
    let families = FAMILIES.map(|name| (format!("checkpoints/{name}"), name.to_owned()));
    small_models().into_iter().chain(families).collect()
}

/// ΔW of a module in a layer's patch.
pub fn low_rank<'p>(layer: &'p LayerPatch, module: &str) -> Option<&'p LowRank> {
    match layer.get(&format!("{module}.weight"))? {
        TensorChange::LowRank(delta) => Some(delta),
        TensorChange::Vector(_) => None,
    }
}

/// What a norm's scale becomes in a layer's patch.
pub fn scale<'p>(layer: &'p LayerPatch, module: &str) -> Option<&'p Vec<f64>> {
    match layer.get(&format!("{module}.weight"))? {
        TensorChange::Vector(scale) => Some(scale),
        TensorChange::LowRank(_) => None,
    }
}

/// Every committed Gemma 3: its directory and the name of its golden files.
pub fn small_models() -> Vec<(String, String)> {
    let random = RANDOM
        .iter()
        .map(|name| (format!("checkpoints/{name}"), (*name).to_owned()));
    random
        .chain([("tiny".to_owned(), "tiny".to_owned())])
        .collect()
}

/// A file or folder of `reference/`.
pub fn reference(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("reference")
        .join(path)
}

/// The program by its name, as a user calls it, in the folder `dir`.
pub fn program(dir: &Path) -> Command {
    in_path("context-patch", dir)
}

/// A command that finds the program in its path, in the folder `dir`.
pub fn in_path(command: &str, dir: &Path) -> Command {
    let bin = Path::new(env!("CARGO_BIN_EXE_context-patch"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        std::iter::once(bin.parent().unwrap().to_owned()).chain(std::env::split_paths(&path));
    let mut command = Command::new(command);
    command
        .current_dir(dir)
        .env("PATH", std::env::join_paths(folders).unwrap());
    command
}

pub fn open(dir: &str) -> Model {
    let dir = reference(dir);
    Model::open(dir.to_str().unwrap()).unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
}

/// Golden data: the bytes of `reference/golden/NAME.safetensors`.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(name: &str) -> Self {
        Self(std::fs::read(reference(&format!("golden/{name}.safetensors"))).unwrap())
    }

    /// A tensor of any type, as f64.
    pub fn get(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file
            .tensor(name)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let (eights, _) = tensor.data().as_chunks::<8>();
        match tensor.dtype() {
            Dtype::F64 => eights.iter().map(|&b| f64::from_le_bytes(b)).collect(),
            Dtype::I64 => eights
                .iter()
                .map(|&b| i64::from_le_bytes(b) as f64)
                .collect(),
            Dtype::F32 => {
                let (fours, _) = tensor.data().as_chunks::<4>();
                fours
                    .iter()
                    .map(|&b| f32::from_le_bytes(b).into())
                    .collect()
            }
            other => panic!("{name} is {other}"),
        }
    }

    pub fn number(&self, name: &str) -> f64 {
        self.get(name)[0]
    }
}

/// The logits of all tokens, `[tokens, vocab]`.
pub fn logits<E: Element>(model: &Model, ids: &[u32]) -> Matrix<f64> {
    Session::<E>::new(model)
        .forward(ids, ids.len())
        .unwrap()
        .map(E::to_f64)
}

/// max |a − b|, NaN if there is one.
pub fn linf(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |max, d| if d > max || d.is_nan() { d } else { max })
}

/// The largest and second largest number's index and the margin between them.
pub fn top_and_margin(logits: &[f64]) -> (usize, f64) {
    let mut order: Vec<_> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    (order[0], logits[order[0]] - logits[order[1]])
}

/// Numbers in (−1, 1) times `base`^±`spread`, from a seed.
pub fn numbers(seed: u64, base: f64, spread: i32) -> impl FnMut() -> f64 {
    let mut state = seed;
    let mut next = move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        state >> 33
    };
    move || {
        let exponent = (next() % (2 * spread as u64 + 1)) as i32 - spread;
        (next() as f64 / f64::from(1u32 << 30) - 1.0) * base.powi(exponent)
    }
}
