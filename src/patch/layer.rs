//! The solver of one layer, for the last token of the first of its reduced passes.

use std::ops::Range;

use super::controllable::{ByWeight, active, weight};
use super::lemmas::{check_finite, norm, rms};
use super::reduced_pass::{ReducedPass, changed_rows};
use super::theorem_5::{InputControllable, OutputControllable};
use super::{
    Case, LayerPatch, LayerReport, Method, Part, Precondition, Solver, TensorChange, appendix_b,
    closed_form, overlay, theorem_1, wide,
};
use crate::model::{
    Attended, Block, ForwardRun, Hidden, LayerOverlay, Linear, Norm, Ops, Pass, Rest,
};
use crate::tensor::{Element, Matrix};

/// By how much of what rounding left of T(C, x) the change of a branch without a norm is corrected, one time after the other:
/// rounding may take more of a correction than there is to correct, or less.
const CORRECTIONS: [f64; 12] = [
    1.0, 1.0, 0.5, 1.5, 0.75, 1.25, 2.0, 0.625, 0.875, 1.125, 1.75, 3.0,
];

/// A layer before its outer half is solved. The rows of its matrices are those of the reduced passes, followed by the
/// contextual one's unless its output is known already.
pub(super) struct BeforeOuter<E: Element> {
    /// What the branch is added to: v `[rows, hidden]`, or x and A(C, x).
    rest: Rest<Matrix<E>>,
    /// h `[rows, intermediate]`.
    h: Hidden<Matrix<E>>,
    /// W_down h `[rows, hidden]`, not yet rounded; of every active expert, where there are experts.
    products: Vec<Matrix<E::Acc>>,
    /// d_C.
    d_ctx: Vec<f64>,
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
    fn d(&self, block: &Block, row: usize) -> Vec<f64> {
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
    fn down(
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
    fn output(
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

/// One layer while it is solved.
pub(super) struct LayerSolver<'a, E: Element> {
    block: &'a Block,
    method: &'a Method,
    parts: &'static [Part],
    /// The row of the token that is solved for.
    query: usize,
    pub(super) patch: LayerPatch,
    /// The patch in the compute type.
    pub(super) change: LayerOverlay<E>,
    pub(super) report: LayerReport,
}

impl<'a, E: Element> LayerSolver<'a, E> {
    /// The layer `block`, of which `parts` are changed; `query` is the row of the token that is solved for.
    pub(super) fn new(
        block: &'a Block,
        method: &'a Method,
        parts: &'static [Part],
        query: usize,
    ) -> Self {
        Self {
            block,
            method,
            parts,
            query,
            patch: LayerPatch::new(),
            change: LayerOverlay::new(),
            report: LayerReport::default(),
        }
    }

    /// Solves ΔW of the first maps, from z of the reduced and the contextual pass.
    pub(super) fn solve_inner(
        &mut self,
        run: &mut ForwardRun<'_>,
        z: &[E],
        z_ctx: &[E],
    ) -> Result<(), Precondition> {
        if !self.parts.contains(&Part::GateUp) {
            return Ok(());
        }
        let delta = self.block.inner.delta(run, z, z_ctx)?;
        self.apply(delta);
        let z: Vec<_> = z.iter().map(|z| z.to_f64()).collect();
        self.report.divided_by(norm(&z));
        Ok(())
    }

    /// Solves the outer half; returns the layer's output for all rows, of which the first ones are those of `passes`.
    pub(super) fn solve_outer(
        &mut self,
        run: &mut ForwardRun<'_>,
        passes: &[ReducedPass<E>],
        before: &BeforeOuter<E>,
    ) -> Result<Matrix<E>, Precondition> {
        let (block, query) = (self.block, self.query);
        let out = match block.outer.post_norm() {
            Some(post_norm) => self.solve_normed(run, passes, before, post_norm)?,
            None => self.solve_bare(run, passes, before)?,
        };
        self.report.measure(&self.patch, block);
        self.report
            .compare(E::DTYPE, &wide(&out, query), &before.target);
        Ok(out)
    }

    /// The outer half without a norm behind it: Lemma 8, 9 or 11, corrected by what rounding leaves of T(C, x).
    fn solve_bare(
        &mut self,
        run: &mut ForwardRun<'_>,
        passes: &[ReducedPass<E>],
        before: &BeforeOuter<E>,
    ) -> Result<Matrix<E>, Precondition> {
        let (block, query) = (self.block, self.query);
        let t = before.t(query);
        let d = before.d(block, query);
        let mut delta_y: Vec<f64> = t.iter().zip(&d).map(|(t, d)| t - d).collect();
        // What came nearest so far, coordinate by coordinate: each depends on its own δy alone.
        let mut nearest: Vec<(f64, f64)> = delta_y.iter().map(|&y| (y, f64::INFINITY)).collect();
        self.report.case = Case::Regular;
        for step in CORRECTIONS {
            self.say_more(run, before, &delta_y)?;
            let out = before.patched_output(run, block, passes, &self.change);
            let pairs = before.target.iter().zip(out.row(query));
            for ((nearest, &delta_y), (target, out)) in nearest.iter_mut().zip(&delta_y).zip(pairs)
            {
                let off = target - out.to_f64();
                if off.abs() < nearest.1.abs() {
                    *nearest = (delta_y, off);
                }
            }
            if nearest.iter().all(|(_, off)| *off == 0.0) {
                break;
            }
            let next = nearest.iter().map(|(delta_y, off)| delta_y + step * off);
            delta_y = next.collect();
        }
        let (nearest, off): (Vec<_>, Vec<_>) = nearest.into_iter().unzip();
        self.say_more(run, before, &nearest)?;
        self.report.residual = norm(&off) / norm(&t).max(f64::MIN_POSITIVE);
        Ok(before.patched_output(run, block, passes, &self.change))
    }

    /// Makes the outer function say `delta_y` more of the query's h.
    fn say_more(
        &mut self,
        run: &mut ForwardRun<'_>,
        before: &BeforeOuter<E>,
        delta_y: &[f64],
    ) -> Result<(), Precondition> {
        let outer = &self.block.outer;
        let h = before.h.slice_rows(self.query..self.query + 1);
        let delta = match self.method.solver {
            Solver::Theorem5 => outer.delta(run, &h, delta_y)?,
            _ => ByWeight(outer).delta(run, &h, delta_y)?,
        };
        let of_matrix = |change| matches!(change, &TensorChange::LowRank(_));
        if delta.values().any(of_matrix) {
            let lengths = active(&h).into_iter().map(|(_, _, h)| norm(&h));
            for length in lengths.filter(|length| *length != 0.0) {
                self.report.divided_by(length);
            }
        }
        self.apply(delta);
        Ok(())
    }

    /// The outer half with a norm behind it: ΔW_down and Δm.
    fn solve_normed(
        &mut self,
        run: &mut ForwardRun<'_>,
        passes: &[ReducedPass<E>],
        before: &BeforeOuter<E>,
        post_norm: &Norm,
    ) -> Result<Matrix<E>, Precondition> {
        let (block, query) = (self.block, self.query);
        let t = before.t(query);
        let m = self.solve_down(run, before, post_norm, &t)?;
        let d = before.down(run, block, passes, &self.change);
        let n = post_norm.unscaled(run.level, d.row(query));
        let n: Vec<f64> = n.into_iter().map(Element::to_f64).collect();
        self.solve_scale(post_norm, &m, &n, &t)?;
        Ok(before.output(run, block, passes, &self.change, d))
    }

    /// Solves ΔW_down, where the branch must give t. Returns the scale that goes with it.
    fn solve_down(
        &mut self,
        run: &mut ForwardRun<'_>,
        before: &BeforeOuter<E>,
        post_norm: &Norm,
        t: &[f64],
    ) -> Result<Vec<f64>, Precondition> {
        let (m, eps) = (stored_scale::<E>(post_norm), post_norm.eps());
        let (d, d_ctx) = (before.d(self.block, self.query), &before.d_ctx);
        let (wanted, m, case) = match self.method.solver {
            Solver::Theorem1 | Solver::Theorem5 | Solver::Span => {
                self.report.case = Case::Regular;
                return Ok(m);
            }
            Solver::AppendixB => {
                let solved = appendix_b::down(&m, t, rms(d_ctx).max(eps.sqrt()), eps);
                self.report.zeros = solved.zeros;
                (solved.d, m, solved.case)
            }
            Solver::ClosedForm => {
                let length = self.method.length(&d, d_ctx, eps);
                let (wanted, m) = closed_form::down_and_scale(&m, t, length, eps);
                (wanted, m, Case::Regular)
            }
        };
        let delta_y: Vec<f64> = wanted.iter().zip(d).map(|(wanted, d)| wanted - d).collect();
        self.report.case = case;
        self.say_more(run, before, &delta_y)?;
        Ok(m)
    }

    /// Solves Δm for the n(d) that there really is; `m` is the scale that ΔW_down was solved for.
    fn solve_scale(
        &mut self,
        post_norm: &Norm,
        m: &[f64],
        n: &[f64],
        t: &[f64],
    ) -> Result<(), Precondition> {
        let stored = stored_scale::<E>(post_norm);
        let plus = |delta_m: Vec<f64>| {
            stored
                .iter()
                .zip(delta_m)
                .map(|(m, delta_m)| m + delta_m)
                .collect()
        };
        let (scale, unserved): (Vec<f64>, usize) = match self.method.solver {
            Solver::Theorem1 | Solver::Theorem5 => (plus(theorem_1::outer(m, n, t)?), 0),
            Solver::AppendixB | Solver::Span => {
                let (delta_m, unserved) = appendix_b::scale(m, n, t);
                (plus(delta_m), unserved)
            }
            Solver::ClosedForm => closed_form::refit(m, n, t),
        };
        check_finite("m + Δm", &scale)?;
        self.report.unserved = unserved;
        let divided = (0..n.len()).filter(|&j| scale[j] != stored[j] && scale[j] != 0.0);
        self.report.divided_by_each(divided.map(|j| n[j]));
        let left: Vec<f64> = (0..n.len()).map(|j| scale[j] * n[j] - t[j]).collect();
        self.report.residual = norm(&left) / norm(t).max(f64::MIN_POSITIVE);
        let scale = (weight(post_norm.name()), TensorChange::Vector(scale));
        self.apply([scale].into());
        Ok(())
    }

    /// Takes changes into the patch.
    fn apply(&mut self, delta: LayerPatch) {
        self.change
            .extend(overlay::layer_overlay(self.block, &delta, self.method.form));
        self.patch.extend(delta);
    }
}

/// m.
fn stored_scale<E: Element>(norm: &Norm) -> Vec<f64> {
    let m = norm.scale::<E>().into_iter();
    m.map(Element::to_f64).collect()
}
