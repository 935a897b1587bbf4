//! Patches: a context turned into a change of weights.
//!
//! [`lemmas`] says how each part of a block is controlled, [`theorem_5`] what that means (Definitions 3 and 4)
//! and why any two such parts give a perfect patch. For Gemma's blocks there are four [`Solver`]s:
//! [`theorem_1`], [`appendix_b`] and [`closed_form`] for one token, layer by layer in [`algorithm_1`], and
//! [`span`] for several. What a patch is of is its [`Split`]; [`Overlay`] lends it to a forward pass,
//! [`materialise`] writes it into the weights, [`SavedPatch`] is its file, and [`export`] gives it to other programs.
//!
//! Solvers are pure: f64 states in, a patch out, no model changed.

pub mod algorithm_1;
pub mod appendix_b;
pub mod closed_form;
mod error;
pub mod export;
mod layer;
pub mod lemmas;
mod look_ahead;
mod merged;
mod overlay;
mod report;
mod saved;
mod solver;
pub mod span;
pub mod sphere;
mod split;
pub mod theorem_1;
pub mod theorem_5;
mod variant;

pub use crate::model::Overlay;
pub use algorithm_1::{Query, Solution, solve, solve_batch};
pub use error::{Error, Result};
pub use merged::{Materialised, materialise};
pub use overlay::Form;
pub use report::{Case, LayerReport, Report};
pub use saved::SavedPatch;
pub use solver::{Method, Solver};
pub use split::{Positions, Split};
pub use variant::Variant;

use serde::{Deserialize, Serialize};

use crate::kernels::{Level, add_outer_products};
use crate::model::Model;
use crate::tensor::{Matrix, Tensor};

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

    /// Rows `first`… of W + U V, summed in f64: as many as `sums` has room for.
    fn sum_rows(&self, w: &Tensor, first: usize, sums: &mut [f64]) {
        let (rank, cols) = (self.v.rows(), self.v.cols());
        for (r, sum) in sums.chunks_exact_mut(cols).enumerate() {
            w.read_row(first + r, sum);
        }
        let u = &self.u.as_slice()[first * rank..][..sums.len() / cols * rank];
        add_outer_products(Level::best(), u, self.v.as_slice(), cols, sums);
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

/// A part of a layer that a patch changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// W_gate and W_up: the inner function.
    GateUp,
    /// W_down: the linear map of the outer function.
    Down,
    /// m, the scale of the outer function's norm.
    Scale,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::GateUp => "gate/up",
            Self::Down => "ΔW_down",
            Self::Scale => "Δm",
        })
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
    /// m + Δm, in place of m = 1 + `post_feedforward_layernorm.weight`. The sum and not Δm, which could not
    /// say it exactly where it is small.
    pub scale: Option<Vec<f64>>,
}

/// A patch: for every layer what is changed of its weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patch {
    /// One for each layer of the model.
    pub layers: Vec<LayerPatch>,
}

impl Patch {
    /// Whether every part has the shape that `model` gives it.
    ///
    /// # Errors
    ///
    /// [`Error::PatchShape`].
    pub fn check(&self, model: &Model) -> Result<()> {
        let expect = |part: String, found: &[usize], expected: &[usize]| match found == expected {
            true => Ok(()),
            false => Err(Error::PatchShape {
                part,
                found: found.into(),
                expected: expected.into(),
            }),
        };
        expect(
            "the number of layers".into(),
            &[self.layers.len()],
            &[model.layers().len()],
        )?;
        for (i, (layer, block)) in self.layers.iter().zip(model.layers()).enumerate() {
            let parts = [
                ("gate_proj", &layer.gate, block.inner.gate_proj()),
                ("up_proj", &layer.up, block.inner.up_proj()),
                ("down_proj", &layer.down, block.outer.down_proj()),
            ];
            for (name, delta, w) in parts {
                let Some(LowRank { u, v }) = delta else {
                    continue;
                };
                let found = [u.rows(), u.cols(), v.rows(), v.cols()];
                let name = format!("layer {i}: {name} [out, rank, rank, in]");
                expect(name, &found, &[w.rows(), v.rows(), v.rows(), w.cols()])?;
            }
            if let Some(scale) = &layer.scale {
                let name = format!("layer {i}: post_feedforward_layernorm");
                expect(name, &[scale.len()], &[model.config().hidden_size])?;
            }
        }
        Ok(())
    }
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
