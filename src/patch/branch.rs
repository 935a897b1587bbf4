//! A layer of a span before its outer half.

use crate::model::{Block, ForwardRun, Hidden, LayerOverlay, Pass, Rest};
use crate::patch::before_outer::finished;
use crate::tensor::{Element, Matrix};

/// A layer before its outer half.
pub(super) struct Branch<'b, E: Element> {
    pub(super) block: &'b Block,
    pub(super) h: Hidden<Matrix<E>>,
    pub(super) products: Vec<Matrix<E::Acc>>,
    pub(super) rest: &'b Rest<Matrix<E>>,
}

impl<E: Element> Branch<'_, E> {
    /// The layer's output under a change of W_down, the same for all rows.
    pub(super) fn output(&self, run: &mut ForwardRun<'_>, change: &LayerOverlay<E>) -> Matrix<E> {
        let (Rest::Sequential(rows) | Rest::Parallel { x: rows, .. }) = self.rest;
        let change = [(0..rows.rows(), change)];
        let d = finished(
            &mut Pass::of_rows(run, &change),
            self.block,
            &self.h,
            &self.products,
        );
        let mut pass = Pass::of_rows(run, &[]);
        let g = self.block.outer.output(&mut pass, d);
        self.block.add(&mut pass, self.rest, &g)
    }
}
