//! The solver of one layer, for the last token of the first of its reduced passes.

use std::ops::Range;

use super::lemmas::{check_finite, lemma_9, norm, rms};
use super::reduced_pass::{ReducedPass, changed_rows};
use super::{
    Case, LayerPatch, LayerReport, Method, Part, Precondition, Solver, appendix_b, closed_form,
    overlay, theorem_1, wide,
};
use crate::kernels::{Level, unscaled_rms_norm};
use crate::model::{Block, ForwardRun, LayerOverlay, RmsNorm};
use crate::tensor::{Element, Matrix};

/// A layer before its outer half is solved. The rows of its matrices are those of the reduced passes, followed by the
/// contextual one's unless its output is known already.
pub(super) struct BeforeOuter<E: Element> {
    /// v `[rows, hidden]`.
    v: Matrix<E>,
    /// h `[rows, intermediate]`.
    h: Matrix<E>,
    /// W_down h `[rows, hidden]`, not yet rounded.
    d: Matrix<E::Acc>,
    /// d_C.
    d_ctx: Vec<f64>,
    /// T(C, x).
    pub(super) target: Vec<f64>,
}

impl<E: Element> BeforeOuter<E> {
    /// `v` and `h` as in the fields; `d` is W_down h. The last row of each is the contextual pass's.
    pub(super) fn new(
        run: &mut ForwardRun<'_>,
        block: &Block,
        v: Matrix<E>,
        h: Matrix<E>,
        d: Matrix<E::Acc>,
    ) -> Self {
        // The contextual row runs under no change, so its output is known before the outer patch is.
        let ctx = v.rows() - 1;
        let d_ctx = d.slice_rows(ctx..ctx + 1).map(E::round);
        let g = block.outer.output(run, &d_ctx, &[]);
        let target = block.add(run, &v.slice_rows(ctx..ctx + 1), &g);
        Self {
            d_ctx: wide(&d_ctx, 0),
            target: wide(&target, 0),
            v,
            h,
            d,
        }
    }

    /// The branch output required at `row`: t = T(C, x) − v.
    pub(super) fn t(&self, row: usize) -> Vec<f64> {
        let pairs = self.target.iter().zip(self.v.row(row));
        pairs.map(|(target, v)| target - v.to_f64()).collect()
    }

    /// Some of the rows, with the same target.
    pub(super) fn rows(&self, rows: Range<usize>) -> Self {
        Self {
            v: self.v.slice_rows(rows.clone()),
            h: self.h.slice_rows(rows.clone()),
            d: self.d.slice_rows(rows),
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
        block
            .outer
            .with_changes(run, &self.h, self.d.clone(), &change)
    }

    /// The layer's output for that d.
    fn output(
        &self,
        run: &mut ForwardRun<'_>,
        block: &Block,
        passes: &[ReducedPass<E>],
        change: &LayerOverlay<E>,
        d: &Matrix<E>,
    ) -> Matrix<E> {
        let change = changed_rows(passes, Part::Scale, change, 0);
        let g = block.outer.output(run, d, &change);
        block.add(run, &self.v, &g)
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
        self.output(run, block, passes, change, &d)
    }

    /// Replaces v, and computes the inner half again, unpatched. The target stays.
    pub(super) fn with_attention(
        self,
        run: &mut ForwardRun<'_>,
        block: &Block,
        v: Matrix<E>,
    ) -> Self {
        let z = block.inner.input(run, &v);
        let h = block.inner.output(run, &z, &[]);
        let d = block.outer.products(run, &h);
        Self { v, h, d, ..self }
    }
}

/// One layer while it is solved.
pub(super) struct LayerSolver<'a, E: Element> {
    block: &'a Block,
    method: &'a Method,
    /// The row of the token that is solved for.
    query: usize,
    pub(super) patch: LayerPatch,
    /// The patch in the compute type.
    pub(super) change: LayerOverlay<E>,
    pub(super) report: LayerReport,
}

impl<'a, E: Element> LayerSolver<'a, E> {
    /// The layer `block`; `query` is the row of the token that is solved for.
    pub(super) fn new(block: &'a Block, method: &'a Method, query: usize) -> Self {
        Self {
            block,
            method,
            query,
            patch: LayerPatch::default(),
            change: LayerOverlay::default(),
            report: LayerReport::default(),
        }
    }

    /// Solves ΔW_down and Δm; returns the layer's output for all rows, of which the first ones are those of `passes`.
    pub(super) fn solve_outer(
        &mut self,
        run: &mut ForwardRun<'_>,
        passes: &[ReducedPass<E>],
        before: &BeforeOuter<E>,
    ) -> Result<Matrix<E>, Precondition> {
        let (block, query) = (self.block, self.query);
        let t = before.t(query);
        let (h, d) = (wide(&before.h, query), wide(&before.d, query));
        let m = self.solve_down(&h, &d, &before.d_ctx, &t)?;
        let d = before.down(run, block, passes, &self.change);
        let n = unscaled_rms_norm(run.level, d.row(query), self.norm().eps());
        let n: Vec<f64> = n.into_iter().map(Element::to_f64).collect();
        self.solve_scale(&m, &n, &t)?;
        let out = before.output(run, block, passes, &self.change, &d);

        self.report.measure(&self.patch, block);
        self.report
            .compare(E::DTYPE, &wide(&out, query), &before.target);
        Ok(out)
    }

    /// Solves ΔW_gate and ΔW_up, from z of the reduced and the contextual pass.
    pub(super) fn solve_inner(
        &mut self,
        level: Level,
        z: &[E],
        z_ctx: &[E],
    ) -> Result<(), Precondition> {
        if !self.changes(Part::GateUp) {
            return Ok(());
        }
        let [z, z_ctx] = [z, z_ctx].map(|z| z.iter().map(|z| z.to_f64()).collect::<Vec<_>>());
        let (w_gate, w_up) = (self.block.inner.gate_proj(), self.block.inner.up_proj());
        let (gate, up) = theorem_1::inner(level, w_gate.into(), w_up.into(), &z, &z_ctx)?;
        self.report.divided_by(norm(&z));
        self.change.gate = Some(overlay::linear(w_gate, &gate, self.method.form));
        self.change.up = Some(overlay::linear(w_up, &up, self.method.form));
        (self.patch.gate, self.patch.up) = (Some(gate), Some(up));
        Ok(())
    }

    /// Solves ΔW_down, where `d` is W_down h and the branch must give t. Returns the scale that goes with it.
    fn solve_down(
        &mut self,
        h: &[f64],
        d: &[f64],
        d_ctx: &[f64],
        t: &[f64],
    ) -> Result<Vec<f64>, Precondition> {
        let (m, eps) = (self.stored_scale(), self.norm().eps());
        let (wanted, m, case) = match self.method.solver {
            Solver::Theorem1 | Solver::Span => {
                self.report.case = Case::Regular;
                return Ok(m);
            }
            Solver::AppendixB => {
                let solved = appendix_b::down(&m, t, rms(d_ctx).max(eps.sqrt()), eps);
                self.report.zeros = solved.zeros;
                (solved.d, m, solved.case)
            }
            Solver::ClosedForm => {
                let length = self.method.length(d, d_ctx, eps);
                let (wanted, m) = closed_form::down_and_scale(&m, t, length, eps);
                (wanted, m, Case::Regular)
            }
        };
        let delta_y: Vec<f64> = wanted.iter().zip(d).map(|(wanted, d)| wanted - d).collect();
        let down = lemma_9(h, &delta_y)?;
        self.report.case = case;
        self.report.divided_by(norm(h));
        self.change.down = Some(overlay::linear(
            self.block.outer.down_proj(),
            &down,
            self.method.form,
        ));
        self.patch.down = Some(down);
        Ok(m)
    }

    /// Solves Δm for the n(d) that there really is; `m` is the scale that ΔW_down was solved for.
    fn solve_scale(&mut self, m: &[f64], n: &[f64], t: &[f64]) -> Result<(), Precondition> {
        let stored = self.stored_scale();
        let plus = |delta_m: Vec<f64>| {
            stored
                .iter()
                .zip(delta_m)
                .map(|(m, delta_m)| m + delta_m)
                .collect()
        };
        let (scale, unserved): (Vec<f64>, usize) = match self.method.solver {
            Solver::Theorem1 => (plus(theorem_1::outer(m, n, t)?), 0),
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
        self.change.scale = Some(overlay::scale::<E>(&scale, self.method.form));
        self.patch.scale = Some(scale);
        Ok(())
    }

    /// m.
    fn stored_scale(&self) -> Vec<f64> {
        let m = self.norm().scale::<E>().into_iter();
        m.map(Element::to_f64).collect()
    }

    fn norm(&self) -> &RmsNorm {
        self.block.outer.post_feedforward_layernorm()
    }

    fn changes(&self, part: Part) -> bool {
        self.method.solver.parts().contains(&part)
    }
}
