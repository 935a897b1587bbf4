//! Patches: a context turned into a change of weights.
//!
//! [`lemmas`] says how each part of a block is controlled, [`theorem_5`] what that means (Definitions 3 and 4)
//! and why any two such parts give a perfect patch. There are five [`Solver`]s: [`theorem_5`] and [`closed_form`] for one
//! token of every family, [`theorem_1`] and [`appendix_b`] for blocks with a post-norm, layer by layer in [`algorithm_1`],
//! and [`span`] for several tokens. What a patch is of is its [`Split`]; [`Overlay`] lends it to a forward pass,
//! [`materialise`] writes it into the weights, [`SavedPatch`] is its file, and [`export`] gives it to other programs.
//!
//! Solvers are pure: f64 states in, a patch out, no model changed.

pub mod algorithm_1;
pub mod appendix_b;
mod before_outer;
mod branch;
pub mod closed_form;
pub mod compile;
mod controllable;
mod error;
pub mod export;
mod layer;
pub mod lemmas;
mod look_ahead;
mod merged;
mod overlay;
mod reduced_pass;
mod report;
mod saved;
mod sequence;
mod solver;
pub mod span;
pub mod sphere;
mod split;
pub mod theorem_1;
pub mod theorem_5;
mod variant;

pub use crate::model::Overlay;
pub use algorithm_1::{solve, solve_batch};
pub(crate) use controllable::{ByWeight, active};
pub use error::{Error, Result};
pub use merged::{Materialised, StoredAs, materialise};
pub use overlay::ApplyMode;
pub(crate) use overlay::layer_overlay;
pub use report::{Case, LayerReport, SolverReport};
pub use saved::{SavedPatch, Solved, Source};
pub use sequence::{Query, Solution};
pub use solver::{Method, Solver};
pub(crate) use split::refuse_kept_images;
pub use split::{Positions, Split};
pub use variant::Variant;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::kernels::{Level, add_outer_products};
use crate::model::{Block, Linear, Model};
use crate::tensor::{Element, Matrix, Tensor};

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
    pub(crate) fn sum_rows(&self, w: &Tensor, first: usize, sums: &mut [f64]) {
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
    /// W_gate and W_up, or whatever first linear maps the inner function has.
    GateUp,
    /// W_down and its bias: the linear map of the outer function, or each expert's.
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

impl Part {
    /// The part that a tensor of a layer belongs to, by its name relative to the layer; `None` where no patch changes it.
    pub fn of(block: &Block, tensor: &str) -> Option<Self> {
        let (module, _) = tensor.rsplit_once('.')?;
        let is = |map: &Linear| map.name() == module;
        if block.inner.first_maps().into_iter().any(is) {
            Some(Self::GateUp)
        } else if block.outer.down().iter().any(is) {
            Some(Self::Down)
        } else {
            let norm = block.outer.post_norm()?;
            (norm.name() == module).then_some(Self::Scale)
        }
    }
}

/// What a patch makes of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorChange {
    /// W + U V, of a linear map's weight as `[out, in]`, however it is stored.
    LowRank(LowRank),
    /// What a vector becomes: a bias b + Δb, or a norm's scale m + Δm (where w is stored and m is 1 + w, m it is). The sum
    /// and not the change, which could not say it exactly where it is small.
    Vector(Vec<f64>),
}

/// The patch of one layer, by the names of its tensors relative to the layer: `mlp.down_proj.weight`.
pub type LayerPatch = BTreeMap<String, TensorChange>;

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
    /// [`Error::PatchShape`], and [`Error::PatchTensor`] for a tensor that no patch of the model changes.
    pub fn check(&self, model: &Model) -> Result<()> {
        let expect = |part: String, found: &[usize], expected: &[usize]| {
            if found == expected {
                return Ok(());
            }
            Err(Error::PatchShape {
                part,
                found: found.into(),
                expected: expected.into(),
            })
        };
        expect(
            "the number of layers".into(),
            &[self.layers.len()],
            &[model.layers().len()],
        )?;
        for (i, (layer, block)) in self.layers.iter().zip(model.layers()).enumerate() {
            for (name, change) in layer {
                let Some(place) = place(block, name) else {
                    return Err(Error::PatchTensor {
                        layer: i,
                        tensor: name.clone(),
                        allowed: changeable(block),
                    });
                };
                let short = name.trim_end_matches(".weight").trim_start_matches("mlp.");
                let part = format!("layer {i}: {short}");
                match (change, place) {
                    (TensorChange::LowRank(LowRank { u, v }), Place::Weight(w)) => {
                        let found = [u.rows(), u.cols(), v.rows(), v.cols()];
                        let part = part + " [out, rank, rank, in]";
                        expect(part, &found, &[w.rows(), v.rows(), v.rows(), w.cols()])?;
                    }
                    (TensorChange::LowRank(LowRank { u, v }), Place::Vector(length)) => {
                        expect(part, &[u.rows(), v.cols()], &[length])?;
                    }
                    (TensorChange::Vector(vector), Place::Vector(length)) => {
                        expect(part, &[vector.len()], &[length])?;
                    }
                    (TensorChange::Vector(vector), Place::Weight(w)) => {
                        expect(part, &[vector.len()], &[w.rows(), w.cols()])?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// What a name stands for in a block: the weight of a map, or a vector of some length.
pub(crate) enum Place<'m> {
    Weight(&'m Tensor),
    Vector(usize),
}

/// The place of a tensor that a patch may change.
pub(crate) fn place<'m>(block: &'m Block, tensor: &str) -> Option<Place<'m>> {
    let (module, kind) = tensor.rsplit_once('.')?;
    let maps = block.inner.first_maps().into_iter();
    let mut maps = maps.chain(block.outer.down());
    match (maps.find(|map| map.name() == module), kind) {
        (Some(map), "weight") => Some(Place::Weight(map.weight())),
        (Some(map), "bias") => map.bias.as_ref().map(|bias| Place::Vector(bias.cols())),
        (None, "weight") => {
            let norm = block.outer.post_norm().filter(|norm| norm.name() == module);
            norm.map(|norm| Place::Vector(norm.scale::<f64>().len()))
        }
        _ => None,
    }
}

/// The names of a block's tensors that a patch may change, those of the experts once, with a `*` for their number.
fn changeable(block: &Block) -> Vec<String> {
    let maps = block.inner.first_maps().into_iter();
    let maps = maps.chain(block.outer.down()).flat_map(|map| {
        let kinds = [Some("weight"), map.bias.as_ref().map(|_| "bias")];
        kinds.into_iter().flatten().map(|kind| (map.name(), kind))
    });
    let norm = block.outer.post_norm().map(|norm| (norm.name(), "weight"));
    let mut names = Vec::new();
    for (module, kind) in maps.chain(norm) {
        let starred = module.split('.').map(|part| match part.parse::<usize>() {
            Ok(_) => "*",
            Err(_) => part,
        });
        let name = format!("{}.{kind}", starred.collect::<Vec<_>>().join("."));
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
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
    /// The error that this is in a layer.
    pub fn at_layer(self, layer: usize) -> Error {
        Error::Precondition {
            layer,
            quantity: self.quantity,
            value: self.value,
        }
    }
}

/// A row in f64.
fn wide<E: Element>(matrix: &Matrix<E>, row: usize) -> Vec<f64> {
    matrix.row(row).iter().map(|x| x.to_f64()).collect()
}
