//! What a patch changes during a pass. The model itself is never changed.

use std::collections::BTreeMap;
use std::ops::Range;

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

/// What a patch makes of one layer, by the names of its tensors relative to the layer: `mlp.down_proj.weight`.
pub(crate) type LayerOverlay<E> = BTreeMap<String, TensorOverlay<E>>;

/// What a patch makes of one tensor.
#[derive(Clone, Debug)]
pub(crate) enum TensorOverlay<E: Element> {
    /// W x + U (V x), with U `[out, rank]` and V `[rank, in]` in the type of sums and one rounding at
    /// the end.
    LowRank {
        u: Matrix<E::Acc>,
        v: Matrix<E::Acc>,
    },
    /// Another W `[out, in]`, rounded to the compute type.
    Replaced(Matrix<E>),
    /// Another bias, or another scale m of a norm.
    Vector(Vec<E::Acc>),
}

/// The rows of a batch, and what applies to them.
pub(crate) type OverlaidRows<'a, E> = (Range<usize>, &'a LayerOverlay<E>);
