//! The norms in front of and behind the parts of a block.

use rayon::prelude::*;

use crate::checkpoint::form::{NormForm, NormKind};
use crate::kernels::elementwise::ELEMENTS_PER_TASK;
use crate::kernels::{Level, layer_norm, rms_norm, unscaled_rms_norm};
use crate::tensor::{Element, Float, Matrix, Tensor};

/// A norm under its name: RMSNorm or LayerNorm.
#[derive(Clone, Debug)]
pub struct Norm {
    pub(crate) form: NormForm,
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
}

impl Norm {
    /// The module's path, relative to its layer: `input_layernorm`.
    pub fn name(&self) -> &str {
        &self.form.name
    }

    /// m in the type of sums: w, or 1 + w, where w is rounded to the compute type, as all weights are.
    pub fn scale<E: Element>(&self) -> Vec<E::Acc> {
        let weight = self.weight.to_vec::<E>();
        let plus = |w: E| {
            if self.unit_offset() {
                E::Acc::ONE + w.acc()
            } else {
                w.acc()
            }
        };
        weight.into_iter().map(plus).collect()
    }

    /// Whether m is 1 + w and not w.
    pub(crate) fn unit_offset(&self) -> bool {
        matches!(self.form.kind, NormKind::Rms { unit_offset, .. } if unit_offset)
    }

    /// The bias of a LayerNorm in the type of sums; empty where there is none.
    pub(crate) fn bias<E: Element>(&self) -> Vec<E::Acc> {
        let bias = self.bias.iter().flat_map(Tensor::to_vec::<E>);
        bias.map(E::acc).collect()
    }

    /// ε.
    pub fn eps(&self) -> f64 {
        self.form.eps
    }

    /// n(u) of one vector, which the scale multiplies, not rounded to the compute type.
    pub(crate) fn unscaled<E: Element>(&self, level: Level, u: &[E]) -> Vec<E::Acc> {
        unscaled_rms_norm(level, u, self.form.eps)
    }

    /// The norm of every row, or of every stretch of the weight's length in a row: `[tokens, heads · head_dim]` for the norms
    /// of q and k.
    pub(crate) fn forward<E: Element>(&self, level: Level, u: &Matrix<E>) -> Matrix<E> {
        let (scale, bias) = (self.scale::<E>(), self.bias::<E>());
        let mut out = Matrix::recycled(u.rows(), u.cols());
        let per_task = ELEMENTS_PER_TASK.next_multiple_of(scale.len());
        let pieces = u.as_slice().par_chunks(per_task);
        pieces
            .zip(out.as_mut_slice().par_chunks_mut(per_task))
            .for_each(|(u, out)| self.stretches(level, u, (&scale, &bias), out));
        out
    }

    /// The norm of every stretch of the scale's length, with that scale and bias.
    pub(crate) fn stretches<E: Element>(
        &self,
        level: Level,
        u: &[E],
        (scale, bias): (&[E::Acc], &[E::Acc]),
        out: &mut [E],
    ) {
        let eps = self.form.eps;
        match self.form.kind {
            NormKind::Layer { .. } => layer_norm(level, u, (scale, bias), eps, out),
            NormKind::Rms { rounded_first, .. } if rounded_first && E::DTYPE != E::Acc::DTYPE => {
                let stretches = u.chunks_exact(scale.len());
                for (u, out) in stretches.zip(out.chunks_exact_mut(scale.len())) {
                    let n = self.unscaled(level, u).into_iter().zip(scale);
                    for (out, (n, &m)) in out.iter_mut().zip(n) {
                        *out = E::round(E::round(n).acc() * m);
                    }
                }
            }
            // Where the compute type is the type of sums there is nothing to round first.
            NormKind::Rms { .. } => rms_norm(level, u, scale, eps, out),
        }
    }
}
