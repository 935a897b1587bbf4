//! The table of tolerances: how far apart two computations of the same logits may be.

use crate::tensor::Dtype;

/// What one step of a verification may be off by.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    dtype: Dtype,
    hidden_size: usize,
}

/// A control must be further off than this many logits: a probability changed by a factor e.
pub(super) const CONTROL: f64 = 1.0;

impl Bounds {
    /// The bounds for a compute type and a width.
    pub fn new(dtype: Dtype, hidden_size: usize) -> Self {
        Self { dtype, hidden_size }
    }

    /// The largest difference a logit may have where the largest |logit| is `largest`.
    ///
    /// The patched pass ends in the contextual pass's last hidden state but for the rounding of the last
    /// block: Δm n(d) and the residual sum, so each coordinate is off by at most two units of roundoff u.
    /// A logit is a dot product of it in 16 lanes of d/16 terms and a tree of 4: the roundings of a lane
    /// are independent of each other and add up as a random walk, to √(d/16 + 4) u of the logits'
    /// size. In bf16 sums are kept in f32, so instead of the walk there is the rounding of the two
    /// logits compared, u each.
    pub fn logits(&self, largest: f64) -> f64 {
        let walk = match self.dtype {
            Dtype::F64 | Dtype::F32 => (self.hidden_size as f64 / 16.0 + 4.0).sqrt(),
            Dtype::Bf16 => 2.0,
        };
        (2.0 + walk) * self.dtype.unit_roundoff() * largest
    }
}
