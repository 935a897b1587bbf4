//! The solvers, and what they report.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Form, Part};

/// A way to solve a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// [Theorem 1](super::theorem_1): gate, up and scale.
    #[serde(rename = "theorem-1")]
    Theorem1,
    /// The paper's [Appendix B](super::appendix_b): gate, up, down and scale.
    AppendixB,
    /// The [closed form](super::closed_form): down and scale.
    ClosedForm,
    /// A [span](super::span) of tokens at once: down alone, a plain LoRA.
    Span,
}

impl Solver {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Theorem1,
        Self::AppendixB,
        Self::ClosedForm,
        Self::Span,
    ];

    /// The parts of a layer that it changes.
    pub fn parts(self) -> &'static [Part] {
        match self {
            Self::Theorem1 => &[Part::GateUp, Part::Scale],
            Self::AppendixB => &[Part::GateUp, Part::Down, Part::Scale],
            Self::ClosedForm => &[Part::Down, Part::Scale],
            Self::Span => &[Part::Down],
        }
    }
}

impl fmt::Display for Solver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Theorem1 => "theorem-1",
            Self::AppendixB => "appendix-b",
            Self::ClosedForm => "closed-form",
            Self::Span => "span",
        })
    }
}

impl FromStr for Solver {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|solver| solver.to_string() == s);
        named.ok_or_else(|| {
            format!("'{s}' is no solver: use theorem-1, appendix-b, closed-form or span")
        })
    }
}

/// How a patch is solved and applied.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Method {
    /// The solver.
    pub solver: Solver,
    /// How the patch is applied while it is solved.
    pub form: Form,
    /// By how much d' exceeds W_down h, where the solver chooses it: more makes the patch larger and
    /// safer to run elsewhere.
    pub gain: f64,
}

impl Method {
    /// The gain at which a patch runs elsewhere as exactly as at home.
    pub const GAIN: f64 = 10.0;

    /// A solver with the default gain, applied as an overlay.
    pub fn new(solver: Solver) -> Self {
        Self {
            solver,
            form: Form::Overlay,
            gain: Self::GAIN,
        }
    }
}

/// How a patch was solved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// One for each layer.
    pub layers: Vec<LayerReport>,
    /// For a span: the largest error of a logit after each pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passes: Vec<f64>,
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
    /// The branch has nothing to say: t = 0.
    Silent,
    /// The last layer of a span, whose length is free.
    Last,
}

/// How one layer was solved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Which case ran.
    pub case: Case,
    /// The largest rank of a ΔW.
    pub rank: usize,
    /// ‖ΔW_gate‖/‖W_gate‖, Frobenius; 0 where it is not changed.
    pub delta_gate: f64,
    /// The same of W_up.
    pub delta_up: f64,
    /// The same of W_down.
    pub delta_down: f64,
    /// The largest |Δm|, 0 where the scale is not changed.
    pub largest_delta_m: f64,
    /// How many entries of the scale are changed.
    pub scale_entries_changed: usize,
    /// How many coordinates no change of the scale can serve.
    pub unserved: usize,
    /// The smallest number that the solver divided by.
    pub smallest_divisor: f64,
    /// The condition of what was inverted: for a span H's, else the largest divisor over the smallest.
    pub condition: f64,
    /// What the solved branch leaves, ‖t − m' ⊙ n(d')‖/‖t‖, before it is rounded.
    pub residual: f64,
    /// max |T − T_C| / max |T_C| of the patched layer's output.
    pub hidden_error: f64,
    /// max |T − T_C| in units of the last place of each entry.
    pub hidden_ulps: f64,
    /// How many entries of T are not T_C's, bit for bit.
    pub hidden_off: usize,
}
