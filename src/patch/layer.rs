//! The solver of one layer, for the last token of the first of its reduced passes.

use super::before_outer::BeforeOuter;
use super::controllable::{ByWeight, active, weight};
use super::lemmas::{check_finite, norm, rms};
use super::reduced_pass::ReducedPass;
use super::theorem_5::{InputControllable, OutputControllable};
use super::{
    Case, LayerPatch, LayerReport, Method, Part, Precondition, Solver, TensorChange, appendix_b,
    closed_form, overlay, theorem_1, wide,
};
use crate::model::{Block, ForwardRun, LayerOverlay, Norm};
use crate::tensor::{Element, Matrix};

/// By how much of what rounding left of T(C, x) the change of a branch without a norm is corrected, one time after the other:
/// rounding may take more of a correction than there is to correct, or less.
const CORRECTIONS: [f64; 12] = [
    1.0, 1.0, 0.5, 1.5, 0.75, 1.25, 2.0, 0.625, 0.875, 1.125, 1.75, 3.0,
];

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
        self.report.says(norm(&t), &before.target);
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
