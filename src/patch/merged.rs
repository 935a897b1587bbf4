//! A patch written into the weights.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::error::{Error, Result};
use super::overlay::ROWS;
use super::{LowRank, Patch};
use crate::model::Model;
use crate::tensor::{Storage, Tensor, encode};

/// A model whose weights hold a patch, and what they were before.
#[derive(Clone, Debug)]
pub struct Materialised {
    model: Model,
    originals: BTreeMap<String, Tensor>,
}

impl Materialised {
    /// The patched model; it shares every tensor that the patch does not change with the original.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The patched model alone.
    pub fn into_model(self) -> Model {
        self.model
    }

    /// The tensors that the patch replaced, by name.
    pub fn originals(&self) -> &BTreeMap<String, Tensor> {
        &self.originals
    }

    /// The model before the patch, with the bits it had.
    ///
    /// # Errors
    ///
    /// Those of [`Model::from_checkpoint`].
    pub fn revert(self) -> Result<Model> {
        Ok(self.model.replaced(self.originals)?)
    }
}

/// `model` with `patch` in its weights: W + ΔW, summed in f64 and rounded once to `storage`, or to the
/// type that each tensor has, and m′ − 1 for the weight of a norm.
///
/// # Errors
///
/// [`Error::PatchShape`] for a patch of other shapes, and [`Error::StorageOverflow`].
pub fn materialise(model: &Model, patch: &Patch, storage: Option<Storage>) -> Result<Materialised> {
    let (mut originals, mut patched) = (BTreeMap::new(), BTreeMap::new());
    for (name, change) in changes(model, patch)? {
        let old = change.tensor(model, &name)?;
        patched.insert(name.clone(), change.apply(&name, &old, storage)?);
        originals.insert(name, old);
    }
    Ok(Materialised {
        model: model.replaced(patched)?,
        originals,
    })
}

/// What a patch makes of one tensor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change<'a> {
    /// ΔW.
    Linear(&'a LowRank),
    /// m′.
    Scale(&'a [f64]),
}

/// The tensors that `patch` changes, by canonical name.
pub(super) fn changes<'a>(model: &Model, patch: &'a Patch) -> Result<BTreeMap<String, Change<'a>>> {
    patch.check(model)?;
    let mut changes = BTreeMap::new();
    for (i, layer) in patch.layers.iter().enumerate() {
        for (part, delta) in [
            ("mlp.gate_proj", &layer.gate),
            ("mlp.up_proj", &layer.up),
            ("mlp.down_proj", &layer.down),
        ] {
            let change = delta.as_ref().map(Change::Linear);
            changes.extend(change.map(|c| (format!("model.layers.{i}.{part}.weight"), c)));
        }
        let norm = format!("model.layers.{i}.post_feedforward_layernorm.weight");
        changes.extend(layer.scale.as_deref().map(|m| (norm, Change::Scale(m))));
    }
    Ok(changes)
}

impl Change<'_> {
    /// The model's tensor `name`, which has this change's shape.
    pub(super) fn tensor(&self, model: &Model, name: &str) -> Result<Tensor> {
        let shape = match self {
            Self::Linear(delta) => vec![delta.u.rows(), delta.v.cols()],
            Self::Scale(m) => vec![m.len()],
        };
        Ok(model.checkpoint().tensors().get(name, &shape)?)
    }

    /// The tensor `old`, called `name`, after this change; it must have its shape.
    pub(super) fn apply(
        &self,
        name: &str,
        old: &Tensor,
        storage: Option<Storage>,
    ) -> Result<Tensor> {
        let storage = storage.unwrap_or(old.storage());
        let stride = old.cols() * storage.size();
        let mut bytes = vec![0; old.rows() * stride];
        let rows = |(i, bytes): (usize, &mut [u8])| {
            let numbers = self.rows(old, i * ROWS, bytes.len() / storage.size());
            encode(storage, &numbers, bytes);
        };
        let pieces = bytes.par_chunks_mut(ROWS * stride);
        pieces.enumerate().for_each(rows);
        let new = Tensor::new(storage, old.shape().into(), bytes.into());
        new.filter(is_finite).ok_or_else(|| Error::StorageOverflow {
            tensor: name.into(),
            storage,
        })
    }

    /// So many numbers of the new tensor from row `first` on.
    fn rows(&self, old: &Tensor, first: usize, numbers: usize) -> Vec<f64> {
        match self {
            Self::Linear(delta) => {
                let mut sums = vec![0.0; numbers];
                delta.sum_rows(old, first, &mut sums);
                sums
            }
            Self::Scale(m) => m.iter().map(|m| m - 1.0).collect(),
        }
    }
}

/// Whether all numbers are finite.
fn is_finite(tensor: &Tensor) -> bool {
    let rows = (0..tensor.rows()).into_par_iter();
    rows.map_init(
        || vec![0.0f64; tensor.cols()],
        |buffer, row| {
            tensor.read_row(row, buffer);
            buffer.iter().all(|x| x.is_finite())
        },
    )
    .all(|finite| finite)
}
