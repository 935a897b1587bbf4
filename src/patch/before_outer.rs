//! A layer between its two halves: what its inner function gave, before its outer function is patched.

use std::ops::Range;

use super::reduced_pass::{ReducedPass, changed_rows};
use super::{Part, wide};
use crate::model::{Attended, Block, ForwardRun, Hidden, LayerOverlay, Linear, Ops, Pass, Rest};
use crate::tensor::{Element, Matrix};

/// A layer before its outer half is solved. The rows of its matrices are those of the reduced passes, followed by the
/// contextual one's unless its output is known already.
pub(super) struct BeforeOuter<E: Element> {
    /// What the branch is added to: v `[rows, hidden]`, or x and A(C, x).
    rest: Rest<Matrix<E>>,
    /// h `[rows, intermediate]`.
    pub(super) h: Hidden<Matrix<E>>,
    /// W_down h `[rows, hidden]`, not yet rounded; of every active expert, where there are experts.
    products: Vec<Matrix<E::Acc>>,
    /// d_C.
    pub(super) d_ctx: Vec<f64>,
    /// T(C, x).
    pub(super) target: Vec<f64>,
}

/// W_down h, not yet rounded; of every active expert, where there are experts.
pub(super) fn products<E: Element>(
    run: &mut ForwardRun<'_>,
    block: &Block,
    h: &Hidden<Matrix<E>>,
) -> Vec<Matrix<E::Acc>> {
    let mut pass = Pass::of_rows(run, &[]);
    match h {
        Hidden::Dense(h) => vec![pass.products(&block.outer.down()[0], h)],
        Hidden::Experts { active, .. } => {
            let each = active.iter();
            each.map(|(active, h)| pass.products(&block.outer.down()[active.expert], h))
                .collect()
        }
    }
}

/// Some rows of [`products`] of `h`.
pub(super) fn slice_products<E: Element>(
    h: &Hidden<Matrix<E>>,
    products: &[Matrix<E::Acc>],
    rows: &Range<usize>,
) -> Vec<Matrix<E::Acc>> {
    match h {
        Hidden::Dense(_) => vec![products[0].slice_rows(rows.clone())],
        Hidden::Experts { active, .. } => {
            let each = active.iter().zip(products);
            each.map(|((active, _), products)| products.slice_rows(active.among(rows).1))
                .collect()
        }
    }
}

/// d, from [`products`] under the changes of a pass.
pub(super) fn finished<E: Element>(
    pass: &mut Pass<'_, '_, '_, E>,
    block: &Block,
    h: &Hidden<Matrix<E>>,
    products: &[Matrix<E::Acc>],
) -> Matrix<E> {
    let down = block.outer.down();
    match h {
        Hidden::Dense(h) => pass.finish(&down[0], h, products[0].clone(), None),
        Hidden::Experts { router, active } => {
            let each = active.iter().zip(products);
            let said = each.map(|((active, h), products)| {
                let rows = Some(&*active.rows);
                let said = pass.finish(&down[active.expert], h, products.clone(), rows);
                (active, said)
            });
            let said: Vec<_> = said.collect();
            pass.combine(router, &said)
        }
    }
}

/// What W_down gives at `row` before a change, in f64: d, `[hidden]`, without its rounding.
pub(super) fn d_of<E: Element>(
    block: &Block,
    h: &Hidden<Matrix<E>>,
    products: &[Matrix<E::Acc>],
    row: usize,
    hidden: usize,
) -> Vec<f64> {
    let with_bias = |map: &Linear, y: &Matrix<E::Acc>, row: usize| -> Vec<f64> {
        let y = wide(y, row);
        match map.bias::<E>() {
            None => y,
            Some(bias) => y.iter().zip(bias).map(|(y, b)| y + b.to_f64()).collect(),
        }
    };
    let down = block.outer.down();
    match h {
        Hidden::Dense(_) => with_bias(&down[0], &products[0], row),
        Hidden::Experts { active, .. } => {
            let mut sum = vec![0.0; hidden];
            for ((active, _), y) in active.iter().zip(products) {
                let Ok(at) = active.rows.binary_search(&row) else {
                    continue;
                };
                let said = with_bias(&down[active.expert], y, at);
                for (sum, said) in sum.iter_mut().zip(said) {
                    *sum += active.gates[at] * said;
                }
            }
            sum
        }
    }
}

impl<E: Element> BeforeOuter<E> {
    /// `rest`, `h` and `products` as in the fields. The last row of each is the contextual pass's.
    pub(super) fn new(
        run: &mut ForwardRun<'_>,
        block: &Block,
        rest: Rest<Matrix<E>>,
        h: Hidden<Matrix<E>>,
        products: Vec<Matrix<E::Acc>>,
    ) -> Self {
        let ctx = match &rest {
            Rest::Sequential(v) => v.rows() - 1,
            Rest::Parallel { x, .. } => x.rows() - 1,
        };
        // The contextual row runs under no change, so its output is known before the outer patch is.
        let ctx = ctx..ctx + 1;
        let mut pass = Pass::of_rows(run, &[]);
        let products_ctx = slice_products(&h, &products, &ctx);
        let d = finished(&mut pass, block, &h.slice_rows(ctx.clone()), &products_ctx);
        let d_ctx = wide(&d, 0);
        let g = block.outer.output(&mut pass, d);
        let target = block.add(&mut pass, &rest.slice_rows(ctx), &g);
        Self {
            d_ctx,
            target: wide(&target, 0),
            rest,
            h,
            products,
        }
    }

    /// The branch output required at `row`: t = T(C, x) less the rest.
    pub(super) fn t(&self, row: usize) -> Vec<f64> {
        let pairs = self.target.iter().zip(self.rest.to_f64(row));
        pairs.map(|(target, rest)| target - rest).collect()
    }

    /// [`d_of`] this layer.
    pub(super) fn d(&self, block: &Block, row: usize) -> Vec<f64> {
        d_of(block, &self.h, &self.products, row, self.target.len())
    }

    /// Some of the rows, with the same target.
    pub(super) fn rows(&self, rows: Range<usize>) -> Self {
        Self {
            rest: self.rest.slice_rows(rows.clone()),
            h: self.h.slice_rows(rows.clone()),
            products: slice_products(&self.h, &self.products, &rows),
            d_ctx: self.d_ctx.clone(),
            target: self.target.clone(),
        }
    }

    /// d in the rows of `passes`, each under its part of `change`.
    pub(super) fn down(
        &self,
        run: &mut ForwardRun<'_>,
        block: &Block,
        passes: &[ReducedPass<E>],
        change: &LayerOverlay<E>,
    ) -> Matrix<E> {
        let change = changed_rows(passes, Part::Down, change, 0);
        let mut pass = Pass::of_rows(run, &change);
        finished(&mut pass, block, &self.h, &self.products)
    }

    /// The layer's output for that d.
    pub(super) fn output(
        &self,
        run: &mut ForwardRun<'_>,
        block: &Block,
        passes: &[ReducedPass<E>],
        change: &LayerOverlay<E>,
        d: Matrix<E>,
    ) -> Matrix<E> {
        let change = changed_rows(passes, Part::Scale, change, 0);
        let mut pass = Pass::of_rows(run, &change);
        let g = block.outer.output(&mut pass, d);
        block.add(&mut pass, &self.rest, &g)
    }

    /// The layer's output in the rows of `passes`, under a change that is solved already.
    pub(super) fn patched_output(
        &self,
        run: &mut ForwardRun<'_>,
        block: &Block,
        passes: &[ReducedPass<E>],
        change: &LayerOverlay<E>,
    ) -> Matrix<E> {
        let d = self.down(run, block, passes, change);
        self.output(run, block, passes, change, d)
    }

    /// Replaces what attention gives, and computes the inner half again, unpatched. The target stays.
    pub(super) fn with_attention(
        self,
        run: &mut ForwardRun<'_>,
        block: &Block,
        attended: Attended<Matrix<E>>,
    ) -> Self {
        let h = block
            .inner
            .output(&mut Pass::of_rows(run, &[]), &attended.z);
        let products = products(run, block, &h);
        Self {
            rest: attended.rest,
            h,
            products,
            ..self
        }
    }
}
