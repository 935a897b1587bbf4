//! A patch written into the weights.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::error::{Error, Result};
use super::overlay::ROWS;
use super::{LowRank, Patch, TensorChange};
use crate::model::{Model, Norm};
use crate::tensor::{Storage, Tensor, encode, quantise};

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

    /// The tensor of whose change rounding takes the largest share, and that share: ‖W′ − (W + ΔW)‖/‖ΔW‖ in the Frobenius norm.
    /// `patch` is what was written. `None` where that changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::PatchShape`] for another patch.
    pub fn lost(&self, patch: &Patch) -> Result<Option<(String, f64)>> {
        let mut shares = Vec::new();
        for (name, change) in changes(&self.model, patch)? {
            let new = change.tensor(&self.model, &name)?;
            let share = self.originals.get(&name).map(|old| change.lost(old, &new));
            shares.extend(share.map(|share| (name, share)));
        }
        Ok(shares.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)))
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

/// What patched tensors are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredAs {
    /// All as this type, F32 where it is quantised.
    Type(Storage),
    /// Each as the type it has, F32 where that is quantised.
    Own,
    /// Each as the type it has, quantised again where that is. Most numbers whose change is less than half the distance of
    /// two neighbours come back as they were: [`Materialised::lost`] says how much of the patch that is.
    Quantised,
}

impl StoredAs {
    /// What becomes of a tensor of type `old`.
    fn storage(self, old: Storage) -> Storage {
        match self {
            Self::Type(storage) => storage.for_new_numbers(),
            Self::Own => old.for_new_numbers(),
            Self::Quantised => old,
        }
    }
}

/// `model` with `patch` in its weights: W + ΔW, summed in f64 and rounded once to what it is `stored` as, and m′ − 1 for the weight
/// of a norm that is stored so.
///
/// # Errors
///
/// [`Error::PatchShape`] for a patch of other shapes, and [`Error::StorageOverflow`].
pub fn materialise(model: &Model, patch: &Patch, stored: StoredAs) -> Result<Materialised> {
    let (mut originals, mut patched) = (BTreeMap::new(), BTreeMap::new());
    for (name, change) in changes(model, patch)? {
        let old = change.tensor(model, &name)?;
        patched.insert(name.clone(), change.apply(&name, &old, stored)?);
        originals.insert(name, old);
    }
    Ok(Materialised {
        model: model.replaced(patched)?,
        originals,
    })
}

/// What a patch makes of one tensor as it is stored.
#[derive(Clone, Debug)]
pub(super) enum TensorDelta<'a> {
    /// ΔW of `[out, in]`, and whether the weight is stored `[in, out]`.
    Linear(&'a LowRank, bool),
    /// What is stored in place of a vector: m′ − 1 or m′ of a norm, b′ of a bias.
    Vector(Vec<f64>),
}

/// The tensors that `patch` changes, by canonical name.
pub(super) fn changes<'a>(
    model: &Model,
    patch: &'a Patch,
) -> Result<BTreeMap<String, TensorDelta<'a>>> {
    patch.check(model)?;
    let path = model.decoder().form.layers;
    let mut changes = BTreeMap::new();
    for (i, (layer, block)) in patch.layers.iter().zip(model.layers()).enumerate() {
        let maps = block.inner.first_maps().into_iter();
        let maps: Vec<_> = maps.chain(block.outer.down()).collect();
        for (tensor, change) in layer {
            let module = tensor.rsplit_once('.').map_or("", |(module, _)| module);
            let map = maps.iter().find(|map| map.name() == module);
            let offset = map.is_none() && block.outer.post_norm().is_some_and(Norm::unit_offset);
            let delta = match change {
                TensorChange::LowRank(delta) => {
                    TensorDelta::Linear(delta, map.is_some_and(|map| map.form.transposed))
                }
                TensorChange::Vector(m) if offset => {
                    TensorDelta::Vector(m.iter().map(|m| m - 1.0).collect())
                }
                TensorChange::Vector(vector) => TensorDelta::Vector(vector.clone()),
            };
            changes.insert(format!("{path}.{i}.{tensor}"), delta);
        }
    }
    Ok(changes)
}

impl TensorDelta<'_> {
    /// The model's tensor `name`, which has this change's shape.
    pub(super) fn tensor(&self, model: &Model, name: &str) -> Result<Tensor> {
        let shape = match self {
            Self::Linear(delta, false) => vec![delta.u.rows(), delta.v.cols()],
            Self::Linear(delta, true) => vec![delta.v.cols(), delta.u.rows()],
            Self::Vector(vector) => vec![vector.len()],
        };
        Ok(model.checkpoint().tensors().get(name, &shape)?)
    }

    /// The type of the tensor `old` after this change.
    pub(super) fn storage(&self, old: &Tensor, stored: StoredAs) -> Storage {
        stored.storage(old.storage())
    }

    /// The tensor `old`, called `name`, after this change; it must have its shape.
    pub(super) fn apply(&self, name: &str, old: &Tensor, stored: StoredAs) -> Result<Tensor> {
        if let Self::Linear(delta, true) = self {
            let delta = delta.transposed();
            return TensorDelta::Linear(&delta, false).apply(name, old, stored);
        }
        let storage = self.storage(old, stored);
        let overflow = || Error::StorageOverflow {
            tensor: name.into(),
            storage,
        };
        let size = storage.block();
        let stride = old.cols() / size.numbers * size.bytes;
        let mut bytes = vec![0; old.rows() * stride];
        let rows = |(i, bytes): (usize, &mut [u8])| {
            let first = i * ROWS;
            let numbers = self.rows(old, first, bytes.len() / size.bytes * size.numbers);
            if storage.is_quantised() {
                let before = &old.bytes()[first * stride..][..bytes.len()];
                bytes.copy_from_slice(&quantise(storage, &numbers, Some(before))?);
            } else {
                encode(storage, &numbers, bytes);
            }
            Some(())
        };
        let pieces = bytes.par_chunks_mut(ROWS * stride);
        pieces.enumerate().try_for_each(rows).ok_or_else(overflow)?;
        let new = Tensor::new(storage, old.shape().into(), bytes.into());
        new.filter(is_finite).ok_or_else(overflow)
    }

    /// ‖new − wanted‖/‖wanted − old‖.
    fn lost(&self, old: &Tensor, new: &Tensor) -> f64 {
        if let Self::Linear(delta, true) = self {
            let delta = delta.transposed();
            return TensorDelta::Linear(&delta, false).lost(old, new);
        }
        let (mut left, mut whole) = (0.0, 0.0);
        let (mut before, mut after) = (vec![0.0f64; old.cols()], vec![0.0f64; old.cols()]);
        for row in 0..old.rows() {
            let wanted = self.rows(old, row, old.cols());
            old.read_row(row, &mut before);
            new.read_row(row, &mut after);
            for ((wanted, before), after) in wanted.iter().zip(&before).zip(&after) {
                left += (after - wanted).powi(2);
                whole += (wanted - before).powi(2);
            }
        }
        (left / f64::max(whole, f64::MIN_POSITIVE)).sqrt()
    }

    /// So many numbers of the new tensor from row `first` on.
    fn rows(&self, old: &Tensor, first: usize, numbers: usize) -> Vec<f64> {
        match self {
            Self::Linear(delta, _) => {
                let mut sums = vec![0.0; numbers];
                delta.sum_rows(old, first, &mut sums);
                sums
            }
            Self::Vector(vector) => vector.clone(),
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
