//! f of Theorem 5: the inner function, pre-norm, first linear maps and activation.

use super::norm::RmsNorm;
use super::overlay::{Changed, LayerChange, overlaid};
use super::run::Run;
use crate::kernels::activation::Activation;
use crate::kernels::{Rows, elementwise};
use crate::tensor::{Element, Matrix, Tensor};

/// h = gelu_tanh(W_gate z) ⊙ (W_up z) with z = pre_feedforward_layernorm(v).
#[derive(Clone, Debug)]
pub struct Inner {
    pub(crate) pre_feedforward_layernorm: RmsNorm,
    pub(crate) gate_proj: Tensor,
    pub(crate) up_proj: Tensor,
    pub(crate) activation: Activation,
}

impl Inner {
    /// W_gate `[intermediate, hidden]`.
    pub fn gate_proj(&self) -> &Tensor {
        &self.gate_proj
    }

    /// W_up `[intermediate, hidden]`.
    pub fn up_proj(&self) -> &Tensor {
        &self.up_proj
    }

    /// z for every row of v, `[tokens, hidden]`.
    pub(crate) fn input<E: Element>(&self, run: &mut Run<'_>, v: &Matrix<E>) -> Matrix<E> {
        let z = self.pre_feedforward_layernorm.forward(run.level, v);
        run.record("pre_feedforward_layernorm", &z);
        z
    }

    /// h for every row of z, `[tokens, intermediate]`.
    pub(crate) fn output<E: Element>(
        &self,
        run: &mut Run<'_>,
        z: &Matrix<E>,
        changes: &[Changed<'_, LayerChange<E>>],
    ) -> Matrix<E> {
        let rows_of = |part: for<'c> fn(&'c LayerChange<E>) -> Option<&'c _>| {
            let changed = changes.iter();
            changed.filter_map(move |(rows, c)| part(c).map(|part| (rows.clone(), part)))
        };
        let projections = [&self.gate_proj, &self.up_proj];
        let [gate, up] = run.matmuls(z, projections.map(Rows::Stored));
        let gate = overlaid(run, z, gate, rows_of(|c| c.gate.as_ref()));
        run.record("mlp.gate_proj", &gate);
        let act = self.activation.map(run.level, &gate);
        run.record("mlp.act_fn", &act);
        let up = overlaid(run, z, up, rows_of(|c| c.up.as_ref()));
        run.record("mlp.up_proj", &up);
        let h = elementwise::multiply(run.level, &act, &up);
        run.record("mlp.product", &h);
        h
    }
}
