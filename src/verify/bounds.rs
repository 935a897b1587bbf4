//! The table of tolerances: how far apart two computations of the same logits may be.

use super::metrics;
use crate::kernels::Backend;
use crate::model::Model;
use crate::tensor::{Dtype, Element};

/// What one step of a verification may be off by.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    dtype: Dtype,
    hidden_size: usize,
    backend: Backend,
}

impl Bounds {
    /// The bounds for a compute type, and for a model's width and backend.
    pub fn new(dtype: Dtype, model: &Model) -> Self {
        Self {
            dtype,
            hidden_size: model.config().hidden_size,
            backend: model.backend(),
        }
    }

    /// The largest difference that logits may have from those they should be, `want`.
    ///
    /// A logit is a dot product of the last hidden state: natively in 16 lanes of d/16 terms and a tree of 4, in another
    /// backend in whatever order, with up to d roundings. The roundings of a term are independent of each other and add
    /// up as a random walk, to √(d/16 + 4) or √d units of roundoff u of the logits' size; in bf16, where sums are kept in
    /// f32, there is the rounding of the logit instead, one u. The hidden state itself comes with one u, of the last
    /// residual sum. Both passes are off by as much.
    ///
    /// Without a norm behind it, the last branch of the patched pass is rounded to its own last place before it is added: one
    /// u of its length, which is `branch` times the hidden state's ([`LayerReport::branch`]), or more where W + ΔW of a span is
    /// rounded. The contextual pass's rounding of its branch is part of what the patch is solved for.
    ///
    /// [`LayerReport::branch`]: crate::patch::LayerReport::branch
    pub fn logits<E: Element>(&self, want: &[E], branch: f64) -> f64 {
        let walk = match self.dtype {
            Dtype::F64 | Dtype::F32 => self.backend.roundings(self.hidden_size).sqrt(),
            Dtype::Bf16 => 1.0,
        };
        (2.0 * (1.0 + walk) + branch) * self.dtype.unit_roundoff() * largest(want)
    }

    /// [`logits`](Self::logits) for a token of a span, which reaches c·T(C, x) where only T(C, x) would be exact: the final norm
    /// ignores length but for its ε, in a share of ε/(2·mean(T²)) of the logits (for whatever c above 1).
    pub fn span<E: Element>(&self, want: &[E], branch: f64, eps: f64, mean_square: f64) -> f64 {
        self.logits(want, branch) + largest(want) * eps / (2.0 * mean_square)
    }

    /// What the logits may be off by on another platform than the patch was solved on. `home` is what they may be off by
    /// there; `contextual` and `reduced` are what rounding may do to the logits of the two passes
    /// ([`condition`](super::condition) measures it).
    ///
    /// From the other platform's reduced pass to its contextual one there are three steps: to the home platform's
    /// reduced pass, to its contextual one, and back. The middle one is `home`. In the first and the last
    /// each platform is off by what rounding may do, so twice that; and the two are independent of each other.
    pub(super) fn crossing(home: f64, contextual: f64, reduced: f64) -> f64 {
        home + 2.0 * contextual.hypot(reduced)
    }
}

/// max |logit|.
fn largest<E: Element>(logits: &[E]) -> f64 {
    metrics::largest(logits, |logit| logit.to_f64().abs()).max(0.0)
}
