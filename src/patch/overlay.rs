//! A patch in the compute type, lent to a forward pass.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{LayerPatch, LowRank, Patch, Place, TensorChange, place};
use crate::model::{Block, LayerOverlay, Model, Overlay, TensorOverlay};
use crate::tensor::{Element, Float, Matrix, Tensor};

/// How the change of a linear map is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApplyMode {
    /// W x + U (V x): nothing is copied.
    Overlay,
    /// (W + U V) x with the sum rounded to the compute type, as in a merged checkpoint.
    Materialise,
}

impl std::fmt::Display for ApplyMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Overlay => "overlay",
            Self::Materialise => "materialise",
        })
    }
}

impl std::str::FromStr for ApplyMode {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "overlay" => Ok(Self::Overlay),
            "materialise" | "materialize" => Ok(Self::Materialise),
            _ => Err(format!(
                "'{s}' is no way to apply a patch: use overlay or materialise"
            )),
        }
    }
}

impl<E: Element> Overlay<E> {
    /// `patch`, which must have the model's layers and shapes, in the given form.
    pub fn new(model: &Model, patch: &Patch, form: ApplyMode) -> Self {
        let layers = model.layers().iter().zip(&patch.layers);
        let layers = layers.map(|(block, patch)| layer_overlay(block, patch, form));
        Self::from_layers(layers.collect())
    }
}

/// One layer's patch in a compute type; what is no tensor of the block is left out.
pub(crate) fn layer_overlay<E: Element>(
    block: &Block,
    patch: &LayerPatch,
    form: ApplyMode,
) -> LayerOverlay<E> {
    let tensors = patch.iter().filter_map(|(name, change)| {
        let overlay = match (change, place(block, name)?) {
            (TensorChange::LowRank(delta), Place::Weight(w)) => low_rank(w, delta, form),
            (TensorChange::Vector(vector), _) => vector_of(block, name, vector, form),
            _ => return None,
        };
        Some((name.clone(), overlay))
    });
    tensors.collect()
}

/// The change of one linear map in a compute type.
pub(super) fn low_rank<E: Element>(
    w: &Tensor,
    delta: &LowRank,
    form: ApplyMode,
) -> TensorOverlay<E> {
    match form {
        ApplyMode::Overlay => TensorOverlay::LowRank {
            u: delta.u.map(E::Acc::from_f64),
            v: delta.v.map(E::Acc::from_f64),
        },
        ApplyMode::Materialise => TensorOverlay::Replaced(materialise(w, delta)),
    }
}

/// A bias or a scale in a compute type. A checkpoint may store w = m − 1, so that is what is rounded when it is materialised.
fn vector_of<E: Element>(
    block: &Block,
    name: &str,
    vector: &[f64],
    form: ApplyMode,
) -> TensorOverlay<E> {
    let norm = block.outer.post_norm();
    let offset = norm.is_some_and(|norm| {
        norm.unit_offset() && name.strip_suffix(".weight") == Some(norm.name())
    });
    let entries = vector.iter().map(|&x| match (form, offset) {
        (ApplyMode::Overlay, _) => E::Acc::from_f64(x),
        (ApplyMode::Materialise, true) => E::Acc::ONE + E::from_f64(x - 1.0).acc(),
        (ApplyMode::Materialise, false) => E::from_f64(x).acc(),
    });
    TensorOverlay::Vector(entries.collect())
}

/// Rows of a weight that are summed at once.
pub(super) const ROWS: usize = 32;

/// W + U V, summed in f64 and rounded once to the compute type.
fn materialise<E: Element>(w: &Tensor, delta: &LowRank) -> Matrix<E> {
    let mut out = Matrix::recycled(w.rows(), w.cols());
    let pieces = out.as_mut_slice().par_chunks_mut(ROWS * w.cols());
    pieces.enumerate().for_each(|(i, out)| {
        let mut sums = vec![0.0; out.len()];
        delta.sum_rows(w, i * ROWS, &mut sums);
        for (out, &sum) in out.iter_mut().zip(&sums) {
            *out = E::from_f64(sum);
        }
    });
    out
}
