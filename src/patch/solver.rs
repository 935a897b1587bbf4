//! The solvers and how they are used.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::lemmas::rms;
use super::{ApplyMode, Part};
use crate::checkpoint::form::Sum;
use crate::model::Model;
use crate::tensor::Dtype;

/// A way to solve a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// [Theorem 1](super::theorem_1): gate, up and scale.
    #[serde(rename = "theorem-1")]
    Theorem1,
    /// The paper's [Appendix B](super::appendix_b): gate, up, down and scale.
    AppendixB,
    /// The [closed form](super::closed_form): down and scale, or down alone where no norm is behind it.
    ClosedForm,
    /// [Theorem 5](super::theorem_5) as its proof goes: the inner function by Lemmas 6 and 7, the outer one by 8 (a bias), 9 (a
    /// weight), 10 (a norm's scale) or 11 (experts); in a parallel block the outer one alone (Lemma 12).
    #[serde(rename = "theorem-5")]
    Theorem5,
    /// A [span](super::span) of tokens at once: down alone, a plain LoRA.
    Span,
}

impl Solver {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Theorem1,
        Self::AppendixB,
        Self::Theorem5,
        Self::ClosedForm,
        Self::Span,
    ];

    /// Those that can solve patches of `model`.
    pub fn of(model: &Model) -> Vec<Self> {
        let needs_norm = |solver: &Self| matches!(solver, Self::Theorem1 | Self::AppendixB);
        let all = Self::ALL.into_iter();
        all.filter(|solver| has_post_norm(model) || !needs_norm(solver))
            .collect()
    }

    /// The parts of a layer that it changes in `model`.
    pub fn parts(self, model: &Model) -> &'static [Part] {
        let parallel = model
            .layers()
            .iter()
            .any(|block| block.sum == Sum::Parallel);
        match (self, has_post_norm(model)) {
            (Self::AppendixB, _) => &[Part::GateUp, Part::Down, Part::Scale],
            (Self::Theorem1, _) | (Self::Theorem5, true) => &[Part::GateUp, Part::Scale],
            // Lemma 12: the inner function sees x, which is the same with and without the context.
            (Self::Theorem5, false) if parallel => &[Part::Down],
            (Self::Theorem5, false) => &[Part::GateUp, Part::Down],
            (Self::ClosedForm, true) => &[Part::Down, Part::Scale],
            (Self::ClosedForm, false) | (Self::Span, _) => &[Part::Down],
        }
    }
}

impl fmt::Display for Solver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Theorem1 => "theorem-1",
            Self::AppendixB => "appendix-b",
            Self::Theorem5 => "theorem-5",
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
            format!("'{s}' is no solver: use theorem-1, appendix-b, theorem-5, closed-form or span")
        })
    }
}

/// Whether a norm is behind the MLPs of a model.
pub(super) fn has_post_norm(model: &Model) -> bool {
    let mut blocks = model.layers().iter();
    blocks.all(|block| block.outer.post_norm().is_some())
}

/// How a patch is solved and applied.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Method {
    /// The solver.
    pub solver: Solver,
    /// How the patch is applied while it is solved.
    pub form: ApplyMode,
    /// By how much d' exceeds W_down h, where the solver chooses it: more makes the patch larger and
    /// safer to run elsewhere.
    pub gain: f64,
    /// How many of the last layers a span changes.
    pub layers: usize,
    /// How many passes a span is solved in at most.
    pub passes: usize,
}

impl Method {
    /// The number of layers that a span changes unless told otherwise: what another engine's rounding comes to in the
    /// logits no longer shrinks with more (`docs/solvers.md`).
    pub const LAYERS: usize = 12;

    /// The passes after which a span is left as it is.
    pub const PASSES: usize = 40;

    /// The gain at which a patch runs elsewhere as exactly as at home.
    pub const GAIN: f64 = 10.0;

    /// The gain that does best: [`GAIN`](Self::GAIN), but 1 for a span in bf16, where a smaller change is rounded to
    /// smaller errors.
    pub fn gain(solver: Solver, dtype: Dtype) -> f64 {
        match (solver, dtype) {
            (Solver::Span, Dtype::Bf16) => 1.0,
            _ => Self::GAIN,
        }
    }

    /// A solver with the default figures, applied as an overlay.
    pub fn new(solver: Solver) -> Self {
        Self {
            solver,
            form: ApplyMode::Overlay,
            gain: Self::GAIN,
            layers: Self::LAYERS,
            passes: Self::PASSES,
        }
    }

    /// R, the length of the d' that replaces `d` = W_down h, in the root mean square; at least √ε, below which the
    /// norm's ε would eat it.
    pub(super) fn length(&self, d: &[f64], d_ctx: &[f64], eps: f64) -> f64 {
        self.gain * rms(d).max(rms(d_ctx)).max(eps.sqrt())
    }
}
