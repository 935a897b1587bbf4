//! g of Theorem 5: the outer function, last linear map and post-norm.

use super::norm::RmsNorm;
use super::overlay::{Changed, LayerChange, overlaid};
use super::run::Run;
use crate::kernels::rms_norm;
use crate::tensor::{Element, Matrix, Tensor};

/// g = m ⊙ n(d) with d = W_down h and m = 1 + post_feedforward_layernorm.weight.
#[derive(Clone, Debug)]
pub struct Outer {
    pub(crate) down_proj: Tensor,
    pub(crate) post_feedforward_layernorm: RmsNorm,
}

impl Outer {
    /// W_down `[hidden, intermediate]`.
    pub fn down_proj(&self) -> &Tensor {
        &self.down_proj
    }

    /// The post-norm, whose scale is m.
    pub fn post_feedforward_layernorm(&self) -> &RmsNorm {
        &self.post_feedforward_layernorm
    }

    /// d for every row of h, `[tokens, hidden]`.
    pub(crate) fn project<E: Element>(
        &self,
        run: &mut Run<'_>,
        h: &Matrix<E>,
        changes: &[Changed<'_, LayerChange<E>>],
    ) -> Matrix<E> {
        let d = self.products(run, h);
        self.with_changes(run, h, d, changes)
    }

    /// W_down h for every row of h, not yet rounded.
    pub(crate) fn products<E: Element>(&self, run: &mut Run<'_>, h: &Matrix<E>) -> Matrix<E::Acc> {
        run.matmul(h, &self.down_proj)
    }

    /// d, where `d` is W_down h.
    pub(crate) fn with_changes<E: Element>(
        &self,
        run: &mut Run<'_>,
        h: &Matrix<E>,
        d: Matrix<E::Acc>,
        changes: &[Changed<'_, LayerChange<E>>],
    ) -> Matrix<E> {
        let down = changes
            .iter()
            .filter_map(|(rows, c)| c.down.as_ref().map(|down| (rows.clone(), down)));
        let d = overlaid(run, h, d, down);
        run.record("mlp.down_proj", &d);
        d
    }

    /// g for every row of d, `[tokens, hidden]`.
    pub(crate) fn output<E: Element>(
        &self,
        run: &mut Run<'_>,
        d: &Matrix<E>,
        changes: &[Changed<'_, LayerChange<E>>],
    ) -> Matrix<E> {
        let norm = &self.post_feedforward_layernorm;
        let mut g = norm.forward(run.level, d);
        for (rows, change) in changes {
            let Some(scale) = &change.scale else { continue };
            for row in rows.clone() {
                rms_norm(run.level, d.row(row), scale, norm.eps, g.row_mut(row));
            }
        }
        run.record("post_feedforward_layernorm", &g);
        g
    }
}
