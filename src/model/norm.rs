//! RMSNorm with a stored weight w, which scales by 1 + w.

use rayon::prelude::*;

use crate::kernels::elementwise::SHARE;
use crate::kernels::{Level, rms_norm};
use crate::tensor::{Element, Float, Matrix, Tensor};

/// One of a block's RMSNorms.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    pub(super) weight: Tensor,
    pub(super) eps: f64,
}

impl RmsNorm {
    /// m = 1 + w, in the type of sums.
    pub fn scale<A: Float>(&self) -> Vec<A> {
        let mut scale = self.weight.to_vec::<A>();
        for m in &mut scale {
            *m = A::ONE + *m;
        }
        scale
    }

    /// ε.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// n(u) ⊙ (1 + w) of every row, or of every stretch of the weight's length in a row: `[tokens, heads ·
    /// head_dim]` for the norms of q and k.
    pub(super) fn forward<E: Element>(&self, level: Level, u: &Matrix<E>) -> Matrix<E> {
        let scale = self.scale();
        let mut out = Matrix::stale(u.rows(), u.cols());
        let share = SHARE.next_multiple_of(scale.len());
        let pieces = u.as_slice().par_chunks(share);
        pieces
            .zip(out.as_mut_slice().par_chunks_mut(share))
            .for_each(|(u, out)| rms_norm(level, u, &scale, self.eps, out));
        out
    }
}
