//! Patches as files of other programs: a PEFT adapter, a llama.cpp adapter, a merged checkpoint.
//!
//! | form | what it can hold | who reads it |
//! |---|---|---|
//! | [`merged`] | every patch | whatever reads the original checkpoint |
//! | [`merged_gguf`] | every patch of a model that GGUF can hold | llama.cpp |
//! | [`peft`] | every patch | Hugging Face PEFT; vLLM where no norm is changed |
//! | [`gguf`] | patches that change no norm | llama.cpp |
//!
//! Folders and files appear whole or not at all.

mod gguf;
mod merged;
mod peft;

pub use gguf::gguf;
pub use merged::{MergedGguf, merged, merged_gguf};
pub use peft::peft;

use std::collections::BTreeMap;

use super::merged::{TensorDelta, changes};
use super::{LowRank, Patch};
use crate::checkpoint::TensorData;
use crate::checkpoint::hub::Origin;
use crate::model::{Block, Maps, Model};
use crate::patch::{Error, Result};
use crate::tensor::{Matrix, Storage};

/// The largest rank in a patch: that of every pair of factors in a file.
fn rank(changes: &BTreeMap<String, TensorDelta<'_>>) -> usize {
    let ranks = changes.values().map(|change| match change {
        TensorDelta::Linear(delta, _) => delta.v.rows(),
        TensorDelta::Vector(_) => 1,
    });
    ranks.max().unwrap_or(1)
}

/// Both factors of ΔW at rank `rank`, V `[rank, in]` and U `[out, rank]`, filled with zeros and rounded to
/// f32.
fn factors(name: &str, delta: &LowRank, rank: usize) -> Result<[TensorData<'static>; 2]> {
    let (mut v, mut u) = (
        Matrix::zeros(rank, delta.v.cols()),
        Matrix::zeros(delta.u.rows(), rank),
    );
    for (padded, row) in v.iter_rows_mut().zip(delta.v.iter_rows()) {
        padded.copy_from_slice(row);
    }
    for (padded, row) in u.iter_rows_mut().zip(delta.u.iter_rows()) {
        padded[..row.len()].copy_from_slice(row);
    }
    let data = |m: &Matrix<f64>| f32_data(name, vec![m.rows(), m.cols()], m.as_slice());
    Ok([data(&v)?, data(&u)?])
}

/// Numbers rounded to f32.
fn f32_data(name: &str, shape: Vec<usize>, values: &[f64]) -> Result<TensorData<'static>> {
    let storage = Storage::F32;
    let data = TensorData::rounded(storage, shape, values);
    data.ok_or_else(|| Error::StorageOverflow {
        tensor: name.into(),
        storage,
    })
}

/// The model that an adapter belongs to: called `base`, or by a name that is good in any folder.
fn base_of(model: &Model, base: Option<&str>) -> Origin {
    match base {
        Some(name) => Origin {
            name: name.into(),
            revision: None,
        },
        None => model.checkpoint().origin(),
    }
}

/// The layer and the module of a canonical name: `model.layers.3.mlp.up_proj.weight` gives
/// `("3", "mlp.up_proj")`.
fn layer_and_module<'n>(model: &Model, name: &'n str) -> Option<(&'n str, &'n str)> {
    let path = model.decoder().form.layers;
    let rest = name.strip_prefix(path)?.strip_prefix('.')?;
    rest.strip_suffix(".weight")?.split_once('.')
}

/// The block of a layer, by its number as a name has it.
fn block_of<'m>(model: &'m Model, layer: &str) -> Option<&'m Block> {
    model.layers().get(layer.parse::<usize>().ok()?)
}

/// Whether a block's maps are those of experts, which other programs keep in one tensor.
fn has_experts(block: &Block) -> bool {
    matches!(block.inner.maps(), Maps::Experts(_))
}

/// What `patch` changes of `model`, which must be something.
fn some_changes<'a>(model: &Model, patch: &'a Patch) -> Result<BTreeMap<String, TensorDelta<'a>>> {
    let changes = changes(model, patch)?;
    if changes.is_empty() {
        return Err(Error::EmptyPatch);
    }
    Ok(changes)
}
