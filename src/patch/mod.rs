//! Patches: a context turned into a change of weights.
//!
//! [`lemmas`] says how each part of a block is controlled, [`theorem_5`] what that means (Definitions 3 and 4)
//! and why any two such parts give a perfect patch, [`theorem_1`] puts them together for one Gemma block,
//! [`algorithm_1`] goes through all layers, and [`Overlay`] lends the result to a forward pass. Solvers are pure: f64
//! states in, a patch out, no model changed.

pub mod algorithm_1;
pub mod lemmas;
mod overlay;
pub mod theorem_1;
pub mod theorem_5;

pub use algorithm_1::{LayerReport, Solution, Variant, solve};
pub use overlay::{Form, Overlay};

use crate::error::Error;
use crate::tensor::Matrix;

/// A change of a linear map, ΔW = U V.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// `[out, rank]`
    pub u: Matrix<f64>,
    /// `[rank, in]`
    pub v: Matrix<f64>,
}

impl LowRank {
    /// ΔW = u vᵀ.
    pub fn rank_1(u: Vec<f64>, v: Vec<f64>) -> Self {
        Self {
            u: Matrix::from_vec(1, u),
            v: Matrix::from_vec(v.len(), v),
        }
    }

    /// ΔWᵀ = Vᵀ Uᵀ.
    pub fn transposed(&self) -> Self {
        Self {
            u: self.v.transposed(),
            v: self.u.transposed(),
        }
    }

    /// ‖ΔW‖ in the Frobenius norm; for rank 1 that is ‖u‖‖v‖.
    pub fn frobenius(&self) -> f64 {
        // ‖UV‖² = Σ (UᵀU) ⊙ (VVᵀ)
        let rank = self.v.rows();
        let mut sum = 0.0;
        for i in 0..rank {
            for j in 0..rank {
                let uu: f64 = self.u.iter_rows().map(|u| u[i] * u[j]).sum();
                let vv: f64 = self
                    .v
                    .row(i)
                    .iter()
                    .zip(self.v.row(j))
                    .map(|(a, b)| a * b)
                    .sum();
                sum += uu * vv;
            }
        }
        sum.max(0.0).sqrt()
    }
}

/// The patch of one layer, under the names of its parts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerPatch {
    /// ΔW_gate.
    pub gate: Option<LowRank>,
    /// ΔW_up.
    pub up: Option<LowRank>,
    /// ΔW_down.
    pub down: Option<LowRank>,
    /// Δm, added to m = 1 + `post_feedforward_layernorm.weight`.
    pub delta_m: Option<Vec<f64>>,
}

impl LayerPatch {
    /// The largest |Δm|, 0 where the scale is not changed.
    pub fn largest_delta_m(&self) -> f64 {
        self.delta_m
            .iter()
            .flatten()
            .fold(0.0, |max, dm| max.max(dm.abs()))
    }
}

/// A patch: for every layer what is added to its weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patch {
    /// One for each layer of the model.
    pub layers: Vec<LayerPatch>,
}

/// A precondition that does not hold: what is zero or not finite, and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Precondition {
    /// In the paper's names: `‖z‖`, `n(d)[17]`.
    pub quantity: String,
    /// Its value.
    pub value: f64,
}

impl Precondition {
    /// The same as an error of a layer.
    pub fn at_layer(self, layer: usize) -> Error {
        Error::Precondition {
            layer,
            quantity: self.quantity,
            value: self.value,
        }
    }
}
