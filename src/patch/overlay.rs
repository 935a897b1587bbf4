//! A patch in the compute type, lent to a forward pass.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{LayerPatch, LowRank, Patch};
use crate::model::{Block, LayerChange, LinearChange, Model, Overlay};
use crate::tensor::{Element, Float, Matrix, Tensor};

/// How the change of a linear map is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// W x + U (V x): nothing is copied.
    Overlay,
    /// (W + U V) x with the sum rounded to the compute type, as in a merged checkpoint.
    Materialise,
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Overlay => "overlay",
            Self::Materialise => "materialise",
        })
    }
}

impl std::str::FromStr for Form {
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
    pub fn new(model: &Model, patch: &Patch, form: Form) -> Self {
        let layers = model.layers().iter().zip(&patch.layers);
        let layers = layers.map(|(block, patch)| change(block, patch, form));
        Self::from_layers(layers.collect())
    }
}

/// One layer's patch in a compute type.
fn change<E: Element>(block: &Block, patch: &LayerPatch, form: Form) -> LayerChange<E> {
    let of = |delta: &Option<LowRank>, w| delta.as_ref().map(|delta| linear(w, delta, form));
    LayerChange {
        gate: of(&patch.gate, block.inner.gate_proj()),
        up: of(&patch.up, block.inner.up_proj()),
        down: of(&patch.down, block.outer.down_proj()),
        scale: patch.scale.as_ref().map(|m| scale::<E>(m, form)),
    }
}

/// The change of one linear map in a compute type.
pub(super) fn linear<E: Element>(w: &Tensor, delta: &LowRank, form: Form) -> LinearChange<E> {
    match form {
        Form::Overlay => LinearChange::LowRank {
            u: delta.u.map(E::Acc::from_f64),
            v: delta.v.map(E::Acc::from_f64),
        },
        Form::Materialise => LinearChange::Replaced(materialise(w, delta)),
    }
}

/// Rows of a weight that are summed at once.
pub(super) const ROWS: usize = 32;

/// W + U V, summed in f64 and rounded once to the compute type.
fn materialise<E: Element>(w: &Tensor, delta: &LowRank) -> Matrix<E> {
    let mut out = Matrix::stale(w.rows(), w.cols());
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

/// m + Δm. A checkpoint stores w = m − 1, so that is what is rounded when it is materialised.
pub(super) fn scale<E: Element>(scale: &[f64], form: Form) -> Vec<E::Acc> {
    let entries = scale.iter();
    entries
        .map(|&m| match form {
            Form::Overlay => E::Acc::from_f64(m),
            Form::Materialise => E::Acc::ONE + E::from_f64(m - 1.0).acc(),
        })
        .collect()
}
