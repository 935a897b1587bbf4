//! What a patch changes during a pass. The model itself is never changed.

use std::ops::Range;

use super::Run;
use crate::kernels::elementwise;
use crate::tensor::{Element, Matrix};

/// A patch rounded to a compute type, lent to the passes of a [`Session`](super::Session).
#[derive(Clone, Debug)]
pub struct Overlay<E: Element> {
    layers: Vec<LayerChange<E>>,
}

impl<E: Element> Overlay<E> {
    /// An overlay of the changes of each layer.
    pub(crate) fn from_layers(layers: Vec<LayerChange<E>>) -> Self {
        Self { layers }
    }

    /// The changes of a layer.
    pub(crate) fn layer(&self, layer: usize) -> &LayerChange<E> {
        &self.layers[layer]
    }
}

/// What a patch makes of one linear map.
#[derive(Clone, Debug)]
pub(crate) enum LinearChange<E: Element> {
    /// W x + U (V x), with U `[out, rank]` and V `[rank, in]` in the type of sums and one rounding at
    /// the end.
    LowRank {
        u: Matrix<E::Acc>,
        v: Matrix<E::Acc>,
    },
    /// Another W, rounded to the compute type.
    Replaced(Matrix<E>),
}

/// What a patch makes of one layer, under the names of its parts.
#[derive(Clone, Debug)]
pub(crate) struct LayerChange<E: Element> {
    pub(crate) gate: Option<LinearChange<E>>,
    pub(crate) up: Option<LinearChange<E>>,
    pub(crate) down: Option<LinearChange<E>>,
    /// In place of m = 1 + `post_feedforward_layernorm.weight`.
    pub(crate) scale: Option<Vec<E::Acc>>,
}

impl<E: Element> Default for LayerChange<E> {
    fn default() -> Self {
        Self {
            gate: None,
            up: None,
            down: None,
            scale: None,
        }
    }
}

/// The rows of a batch, and what applies to them.
pub(crate) type Changed<'a, C> = (Range<usize>, &'a C);

/// `y`, which is W x, with what patches make of some rows, rounded to the compute type.
pub(super) fn overlaid<'a, E: Element>(
    run: &mut Run<'_>,
    x: &Matrix<E>,
    mut y: Matrix<E::Acc>,
    changes: impl IntoIterator<Item = Changed<'a, LinearChange<E>>>,
) -> Matrix<E> {
    for (rows, change) in changes {
        let x = x.slice_rows(rows.clone());
        let cols = y.cols();
        let y = &mut y.as_mut_slice()[rows.start * cols..rows.end * cols];
        match change {
            LinearChange::LowRank { u, v } => {
                let vx = run.matmul(&elementwise::map(run.level, &x, E::acc), v);
                let delta = run.matmul(&vx, u);
                for (y, &delta) in y.iter_mut().zip(delta.as_slice()) {
                    *y = *y + delta;
                }
            }
            LinearChange::Replaced(w) => y.copy_from_slice(run.matmul(&x, w).as_slice()),
        }
    }
    elementwise::round(run.level, y)
}
