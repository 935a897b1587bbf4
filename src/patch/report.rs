//! How a patch was solved, as its solver reports it.

use serde::{Deserialize, Serialize};

use super::lemmas::norm;
use super::{LayerPatch, TensorChange};
use crate::json::or_nan;
use crate::model::{Block, Linear};
use crate::tensor::Dtype;

/// How a patch was solved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SolverReport {
    /// One for each layer.
    pub layers: Vec<LayerReport>,
    /// The error after each pass over the last layers: of a logit for a span, of the last layer's output
    /// ([`hidden_error`](LayerReport::hidden_error)) for the closed form.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passes: Vec<f64>,
}

impl SolverReport {
    /// [`LayerReport::branch`] of the last layer.
    pub fn last_branch(&self) -> f64 {
        self.layers.last().map_or(0.0, |layer| layer.branch)
    }
}

/// Which way a layer was solved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// The layer is left as it is.
    #[default]
    Untouched,
    /// The formula as it stands.
    Regular,
    /// The trust-region problem of section 6 has no root below the smallest m²: the hard case.
    Hard,
    /// The last layer of a span, whose length is free.
    Last,
    /// The last layer of a span where some token is out of reach: attention alone takes it further from the
    /// target than the branch can take it back.
    OutOfReach,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Untouched => "untouched",
            Self::Regular => "regular",
            Self::Hard => "hard",
            Self::Last => "last",
            Self::OutOfReach => "out of reach",
        })
    }
}

/// How one layer was solved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Which case ran.
    pub case: Case,
    /// The largest rank of a ΔW.
    pub rank: usize,
    /// ‖ΔW_gate‖/‖W_gate‖, Frobenius; 0 where it is not changed.
    #[serde(deserialize_with = "or_nan")]
    pub delta_gate: f64,
    /// ‖ΔW_up‖/‖W_up‖.
    #[serde(deserialize_with = "or_nan")]
    pub delta_up: f64,
    /// ‖ΔW_down‖/‖W_down‖.
    #[serde(deserialize_with = "or_nan")]
    pub delta_down: f64,
    /// The largest |Δm|, 0 where the scale is not changed.
    #[serde(deserialize_with = "or_nan")]
    pub largest_delta_m: f64,
    /// How many entries of the scale are changed.
    pub scale_entries_changed: usize,
    /// How many coordinates got a share of the norm because there was nothing to scale.
    pub zeros: usize,
    /// How many coordinates no change of the scale can serve.
    pub unserved: usize,
    /// The smallest number that the solver divided by.
    #[serde(deserialize_with = "or_nan")]
    pub smallest_divisor: f64,
    /// The condition of what was inverted: for a span H's, else the largest coordinate that the scale was
    /// divided by over the smallest.
    #[serde(deserialize_with = "or_nan")]
    pub condition: f64,
    /// What the solved branch leaves, ‖t − m' ⊙ n(d')‖/‖t‖, before it is rounded.
    #[serde(deserialize_with = "or_nan")]
    pub residual: f64,
    /// max |T − T_C| / max |T_C| of the patched layer's output.
    #[serde(deserialize_with = "or_nan")]
    pub hidden_error: f64,
    /// max |T − T_C| in units of the last place of the larger of the two, entry by entry.
    #[serde(deserialize_with = "or_nan")]
    pub hidden_ulps: f64,
    /// How many entries of T are not T_C's, bit for bit.
    pub hidden_off: usize,
    /// ‖T − v‖/‖T‖: how long the branch is beside the layer's output, of several tokens the most; where a change of several
    /// tokens is added to W, what rounding leaves of the branch, in its units of roundoff, if that is more. 0 where a norm is
    /// behind the branch, whose scale is fitted to T's own last place.
    #[serde(default, skip_serializing_if = "is_zero", deserialize_with = "or_nan")]
    pub branch: f64,
}

fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

impl LayerReport {
    /// Records a number that the solver divided by.
    pub(super) fn divided_by(&mut self, divisor: f64) {
        let none_yet = self.smallest_divisor == 0.0;
        if none_yet || divisor < self.smallest_divisor {
            self.smallest_divisor = divisor;
        }
    }

    /// Records the coordinates that the scale was divided by.
    pub(super) fn divided_by_each(&mut self, divisors: impl Iterator<Item = f64>) {
        let (mut least, mut most) = (f64::INFINITY, 0.0f64);
        for divisor in divisors.map(f64::abs).filter(|divisor| *divisor > 0.0) {
            (least, most) = (least.min(divisor), most.max(divisor));
        }
        if most > 0.0 {
            self.divided_by(least);
            self.condition = (most / least).min(f64::MAX);
        }
    }

    /// Records a branch without a norm that is as long as `length` where the layer gives `target`.
    pub(super) fn says(&mut self, length: f64, target: &[f64]) {
        self.branch = self
            .branch
            .max(length / norm(target).max(f64::MIN_POSITIVE));
    }

    /// Records how large the patch is; of several experts the largest change counts.
    pub(super) fn measure(&mut self, patch: &LayerPatch, block: &Block) {
        let relative = |map: &Linear| {
            let weight = patch.get(&format!("{}.weight", map.name()));
            let Some(TensorChange::LowRank(delta)) = weight else {
                return 0.0;
            };
            delta.frobenius() / map.weight().frobenius().max(f64::MIN_POSITIVE)
        };
        let largest = |maps: Vec<&Linear>| maps.into_iter().map(relative).fold(0.0, f64::max);
        let (gates, ups) = block.inner.gates_and_ups();
        self.delta_gate = largest(gates);
        self.delta_up = largest(ups);
        self.delta_down = largest(block.outer.down().iter().collect());
        let ranks = patch.values().filter_map(|change| match change {
            TensorChange::LowRank(delta) => Some(delta.v.rows()),
            TensorChange::Vector(_) => None,
        });
        self.rank = ranks.max().unwrap_or(0);
        let Some(norm) = block.outer.post_norm() else {
            return;
        };
        let scale = patch.get(&format!("{}.weight", norm.name()));
        let Some(TensorChange::Vector(scale)) = scale else {
            return;
        };
        let stored = norm.scale::<f64>();
        let delta_m = scale
            .iter()
            .zip(&stored)
            .map(|(scale, m)| (scale - m).abs());
        self.largest_delta_m = delta_m.clone().fold(0.0, f64::max);
        self.scale_entries_changed = delta_m.filter(|delta_m| *delta_m != 0.0).count();
    }

    /// Records how far the layer's output is from what it should be; for several tokens the worst.
    pub(super) fn compare(&mut self, dtype: Dtype, out: &[f64], target: &[f64]) {
        let largest = target.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        let mut worst = 0.0f64;
        for (out, target) in out.iter().zip(target) {
            let error = (out - target).abs();
            worst = worst.max(error);
            let ulp = dtype.ulp(out.abs().max(target.abs()));
            self.hidden_ulps = self.hidden_ulps.max(error / ulp);
            self.hidden_off += usize::from(error != 0.0);
        }
        self.hidden_error = self
            .hidden_error
            .max(worst / largest.max(f64::MIN_POSITIVE));
    }
}
