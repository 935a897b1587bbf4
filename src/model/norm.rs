//! RMSNorm with a stored weight w, which scales by 1 + w.

use rayon::prelude::*;

use crate::kernels::elementwise::ELEMENTS_PER_TASK;
use crate::kernels::{Level, rms_norm, unscaled_rms_norm};
use crate::tensor::{Element, Float, Matrix, Tensor};

/// One of a block's RMSNorms.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    pub(super) weight: Tensor,
    pub(super) eps: f64,
    pub(super) scaling: Scaling,
}

/// What an RMSNorm does with its weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Scaling {
    /// n(u) ⊙ (1 + w), rounded once.
    #[default]
    OnePlus,
    /// n(u) ⊙ w, as in Llama.
    Plain,
    /// n(u), rounded to the compute type, ⊙ (1 + w): Llama's order.
    Rounded,
}

impl RmsNorm {
    /// m = 1 + w in the type of sums, where w is rounded to the compute type, as all weights are.
    pub fn scale<E: Element>(&self) -> Vec<E::Acc> {
        let weight = self.weight.to_vec::<E>();
        let plus = |w: E| match self.scaling {
            Scaling::OnePlus | Scaling::Rounded => E::Acc::ONE + w.acc(),
            Scaling::Plain => w.acc(),
        };
        weight.into_iter().map(plus).collect()
    }

    /// ε.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// What is done with the weight.
    pub(crate) fn scaling(&self) -> Scaling {
        self.scaling
    }

    /// n(u) ⊙ (1 + w) of every row, or of every stretch of the weight's length in a row: `[tokens, heads ·
    /// head_dim]` for the norms of q and k.
    pub(super) fn forward<E: Element>(&self, level: Level, u: &Matrix<E>) -> Matrix<E> {
        let scale = self.scale::<E>();
        if self.scaling == Scaling::Rounded {
            return self.rounded_before(level, u, &scale);
        }
        let mut out = Matrix::stale(u.rows(), u.cols());
        let per_task = ELEMENTS_PER_TASK.next_multiple_of(scale.len());
        let pieces = u.as_slice().par_chunks(per_task);
        pieces
            .zip(out.as_mut_slice().par_chunks_mut(per_task))
            .for_each(|(u, out)| rms_norm(level, u, &scale, self.eps, out));
        out
    }

    /// [`Scaling::Rounded`].
    fn rounded_before<E: Element>(
        &self,
        level: Level,
        u: &Matrix<E>,
        scale: &[E::Acc],
    ) -> Matrix<E> {
        let heads = u.as_slice().chunks_exact(scale.len());
        let scaled = heads.flat_map(|u| {
            let n = unscaled_rms_norm(level, u, self.eps).into_iter();
            n.zip(scale).map(|(n, &m)| E::round(E::round(n).acc() * m))
        });
        Matrix::from_vec(u.cols(), scaled.collect())
    }
}
