//! What a patch changes during a pass. The model itself is never changed.

use std::ops::Range;

use super::ForwardRun;
use crate::kernels::elementwise;
use crate::tensor::{Element, Matrix};

/// A patch rounded to a compute type, lent to the passes of a [`Session`](super::Session).
#[derive(Clone, Debug)]
pub struct Overlay<E: Element> {
    layers: Vec<LayerOverlay<E>>,
}

impl<E: Element> Overlay<E> {
    /// An overlay of the changes of each layer.
    pub(crate) fn from_layers(layers: Vec<LayerOverlay<E>>) -> Self {
        Self { layers }
    }

    /// The changes of a layer.
    pub(crate) fn layer(&self, layer: usize) -> &LayerOverlay<E> {
        &self.layers[layer]
    }
}

/// What a patch makes of one linear map.
#[derive(Clone, Debug)]
pub(crate) enum LinearOverlay<E: Element> {
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
pub(crate) struct LayerOverlay<E: Element> {
    pub(crate) gate: Option<LinearOverlay<E>>,
    pub(crate) up: Option<LinearOverlay<E>>,
    pub(crate) down: Option<LinearOverlay<E>>,
    /// In place of m = 1 + `post_feedforward_layernorm.weight`.
    pub(crate) scale: Option<Vec<E::Acc>>,
}

impl<E: Element> Default for LayerOverlay<E> {
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
pub(crate) type OverlaidRows<'a, C> = (Range<usize>, &'a C);

/// `y`, which is W x, with what patches make of some rows, rounded to the compute type.
pub(super) fn overlaid<'a, E: Element>(
    run: &mut ForwardRun<'_>,
    x: &Matrix<E>,
    mut y: Matrix<E::Acc>,
    changes: impl IntoIterator<Item = OverlaidRows<'a, LinearOverlay<E>>>,
) -> Matrix<E> {
    for (rows, change) in changes {
        let x = x.slice_rows(rows.clone());
        let cols = y.cols();
        let y = &mut y.as_mut_slice()[rows.start * cols..rows.end * cols];
        match change {
            LinearOverlay::LowRank { u, v } => {
                let vx = run.matmul(&elementwise::map(run.level, &x, E::acc), v);
                let delta = run.matmul(&vx, u);
                for (y, &delta) in y.iter_mut().zip(delta.as_slice()) {
                    *y = *y + delta;
                }
            }
            LinearOverlay::Replaced(w) => y.copy_from_slice(run.matmul(&x, w).as_slice()),
        }
    }
    elementwise::round(run.level, y)
}
