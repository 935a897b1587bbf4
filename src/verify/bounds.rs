//! The table of tolerances: how far apart two computations of the same logits may be.

use crate::tensor::Dtype;

/// What one step of a verification may be off by.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    dtype: Dtype,
    hidden_size: usize,
}

impl Bounds {
    /// The bounds for a compute type and a width.
    pub fn new(dtype: Dtype, hidden_size: usize) -> Self {
        Self { dtype, hidden_size }
    }

    /// The largest difference a logit may have where the largest |logit| is `largest`.
    ///
    /// A logit is a dot product of the last hidden state, in 16 lanes of d/16 terms and a tree of 4.
    /// The roundings of a lane are independent of each other and add up as a random walk, to
    /// √(d/16 + 4) units of roundoff u of the logits' size; in bf16, where sums are kept in f32, there is the
    /// rounding of the logit instead, one u. The hidden state itself comes with one u, of the last residual
    /// sum. Both passes are off by as much.
    pub fn logits(&self, largest: f64) -> f64 {
        let walk = match self.dtype {
            Dtype::F64 | Dtype::F32 => (self.hidden_size as f64 / 16.0 + 4.0).sqrt(),
            Dtype::Bf16 => 1.0,
        };
        2.0 * (1.0 + walk) * self.dtype.unit_roundoff() * largest
    }

    /// The same for a token of a span, which reaches c·T(C, x) where only T(C, x) would be exact: the final norm
    /// ignores length but for its ε, in a share of ε/(2·mean(T²)) of the logits (for whatever c above 1).
    pub fn span(&self, largest: f64, eps: f64, mean_square: f64) -> f64 {
        self.logits(largest) + largest * eps / (2.0 * mean_square)
    }
}
