//! A block of Theorem 5: T(C, x) = v + g(f(v)) with v = A(C, x).

use super::attention::{Attention, Sequence};
use super::inner::Inner;
use super::outer::Outer;
use super::overlay::{Changed, LayerChange};
use super::run::Run;
use crate::kernels::elementwise;
use crate::tensor::{Element, Matrix};

/// One layer.
#[derive(Clone, Debug)]
pub struct Block {
    /// A.
    pub attention: Attention,
    /// f.
    pub inner: Inner,
    /// g.
    pub outer: Outer,
}

impl Block {
    /// T(C, x) for every row of x, `[tokens, hidden]`.
    pub(crate) fn forward<E: Element>(
        &self,
        run: &mut Run<'_>,
        x: &Matrix<E>,
        sequences: &mut [Sequence<'_, E>],
        changes: &[Changed<'_, LayerChange<E>>],
    ) -> Matrix<E> {
        let v = self.attention.forward(run, x, sequences);
        let z = self.inner.input(run, &v);
        let h = self.inner.output(run, &z, changes);
        let d = self.outer.project(run, &h, changes);
        let g = self.outer.output(run, &d, changes);
        self.add(run, &v, &g)
    }

    /// v + g, the block's output.
    pub(crate) fn add<E: Element>(
        &self,
        run: &mut Run<'_>,
        v: &Matrix<E>,
        g: &Matrix<E>,
    ) -> Matrix<E> {
        let t = elementwise::add(run.level, v, g);
        run.record("", &t);
        t
    }
}
