//! Algorithm 1: all layers, one after the other, each correcting what the ones before it left.
//!
//! The contextual and the reduced pass go through a layer together. Layer i of the reduced pass gets
//! the actual, rounded output of the already patched layer i − 1, and its target is T_i(C, x_i) of the
//! contextual pass.

use std::ops::Range;

use serde::{Serialize, Serializer};

use super::lemmas::{check_finite, lemma_9, norm};
use super::overlay;
use super::{
    Case, LayerPatch, LayerReport, Method, Part, Patch, Precondition, Report, Solver, appendix_b,
    closed_form, theorem_1,
};
use crate::error::{Error, Result};
use crate::kernels::{Level, unscaled_rms_norm};
use crate::model::{Block, Cache, Changed, LayerChange, RmsNorm, Run, Sequence, Session};
use crate::tensor::{Element, Matrix};

/// What of a solved patch a reduced pass runs under: the whole of it, or a negative control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// All of it.
    Whole,
    /// Nothing.
    NoPatch,
    /// All of it but one part.
    Without(Part),
}

impl Variant {
    /// The negative controls of a solver: no patch, and each part of it left out.
    pub fn controls(solver: Solver) -> Vec<Self> {
        let parts = solver.parts();
        let each = parts.iter().map(|&part| Self::Without(part));
        // Without the only part there is no patch.
        let each = each.filter(|_| parts.len() > 1);
        std::iter::once(Self::NoPatch).chain(each).collect()
    }

    fn has(self, part: Part) -> bool {
        match self {
            Self::Whole => true,
            Self::NoPatch => false,
            Self::Without(other) => part != other,
        }
    }
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole => f.pad("patched"),
            Self::NoPatch => f.pad("no patch"),
            Self::Without(part) => f.pad(&format!("{part} left out")),
        }
    }
}

impl Serialize for Variant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The token a patch is solved for, and what else the reduced pass sees.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The token.
    pub token: u32,
    /// Its position in the reduced pass; `None` is the contextual one.
    pub position: Option<usize>,
    /// The tokens of the context that stay, with their positions in the reduced pass. They run through the
    /// same patched weights.
    pub kept: &'a [(u32, usize)],
}

impl Query<'_> {
    /// A token alone at its place, everything before it absorbed.
    pub fn alone(token: u32) -> Self {
        Self {
            token,
            position: None,
            kept: &[],
        }
    }
}

/// A solved patch, and what both passes said.
#[derive(Clone, Debug)]
pub struct Solution<E> {
    /// The patch.
    pub patch: Patch,
    /// How it was solved.
    pub report: Report,
    /// The logits of the contextual pass, `[vocab]`.
    pub contextual: Vec<E>,
    /// The logits of the reduced pass for each variant asked for, `[variants, vocab]`.
    pub reduced: Matrix<E>,
}

/// A reduced pass under one variant of the patch.
struct Reduced<E: Element> {
    variant: Variant,
    rows: Range<usize>,
    cache: Cache<E>,
}

/// Solves the patch of the token that comes next in `contextual`, a session that has seen the whole context;
/// it takes the query in. What of the context is not kept is absorbed.
///
/// The reduced pass runs once under the whole patch, and once under each of `controls`;
/// [`Solution::reduced`] has them in this order.
///
/// # Errors
///
/// [`Error::SpanSolver`] for [`Solver::Span`], which is [`span::solve`](super::span::solve);
/// [`Error::KeptTokens`] where the kept tokens' positions do not ascend to the query's;
/// [`Error::Precondition`] of the solver, with the layer; those of [`Session::forward`].
pub fn solve<E: Element>(
    contextual: &mut Session<'_, E>,
    query: Query<'_>,
    method: &Method,
    controls: &[Variant],
) -> Result<Solution<E>> {
    if method.solver == Solver::Span {
        return Err(Error::SpanSolver);
    }
    let model = contextual.model();
    let mut run = contextual.start(&[query.token], None)?;
    let position = contextual.position();
    let (mut tokens, mut positions): (Vec<_>, Vec<_>) = query.kept.iter().copied().unzip();
    tokens.push(query.token);
    positions.push(query.position.unwrap_or(position));
    if !positions.is_sorted_by(|a, b| a < b) {
        return Err(Error::KeptTokens {
            query: query.position.unwrap_or(position),
        });
    }
    model.check_tokens(&tokens, 0)?;

    let mut batch = vec![query.token];
    let mut passes = Vec::new();
    for &variant in [Variant::Whole].iter().chain(controls) {
        let rows = batch.len()..batch.len() + tokens.len();
        batch.extend(&tokens);
        let cache = model.new_cache();
        passes.push(Reduced {
            variant,
            rows,
            cache,
        });
    }
    let mut x = model.embed(&mut run, &batch);
    let mut patch = Patch::default();
    let mut report = Report::default();
    for (layer, block) in model.layers().iter().enumerate() {
        run.enter(layer)?;
        let mut sequences = vec![contextual.as_rows(0..1, std::slice::from_ref(&position))];
        sequences.extend(passes.iter_mut().map(|pass| Sequence {
            rows: pass.rows.clone(),
            positions: &positions,
            cache: &mut pass.cache,
        }));
        let v = block.attention.forward(&mut run, &x, &mut sequences);
        let mut solving = Layer {
            block,
            passes: &passes,
            method,
            patch: LayerPatch::default(),
            change: LayerChange::default(),
            report: LayerReport::default(),
        };
        x = solving
            .solve(&mut run, &v)
            .map_err(|failed| failed.at_layer(layer))?;
        model.check_layer(layer, &x)?;
        patch.layers.push(solving.patch);
        report.layers.push(solving.report);
    }
    contextual.skip(1);

    let last_rows = passes.iter().map(|pass| pass.rows.end - 1);
    let rows = std::iter::once(0).chain(last_rows);
    let hidden = rows.flat_map(|row| x.row(row).to_vec()).collect();
    let logits = model.logits(&mut run, &Matrix::from_vec(x.cols(), hidden))?;
    Ok(Solution {
        patch,
        report,
        contextual: logits.row(0).to_vec(),
        reduced: logits.slice_rows(1..logits.rows()),
    })
}

/// One layer while it is solved: row 0 of its matrices is the contextual pass, the last row of the first
/// reduced pass the one that is solved for.
struct Layer<'a, E: Element> {
    block: &'a Block,
    passes: &'a [Reduced<E>],
    method: &'a Method,
    patch: LayerPatch,
    /// The patch in the compute type.
    change: LayerChange<E>,
    report: LayerReport,
}

impl<E: Element> Layer<'_, E> {
    /// Solves the layer and returns its output for all rows of v.
    fn solve(&mut self, run: &mut Run<'_>, v: &Matrix<E>) -> Result<Matrix<E>, Precondition> {
        let (block, query) = (self.block, self.passes[0].rows.end - 1);
        let z = block.inner.input(run, v);
        self.solve_inner(run.level, &wide(&z, query), &wide(&z, 0))?;
        let h = block.inner.output(run, &z, &self.applied(Part::GateUp));
        let d = block.outer.products(run, &h);

        // Row 0 runs under no change, so its output is known before the outer patch is.
        let d_ctx = d.slice_rows(0..1).map(E::round);
        let g = block.outer.output(run, &d_ctx, &[]);
        let target = wide(&block.add(run, &v.slice_rows(0..1), &g), 0);
        let t: Vec<f64> = (target.iter().zip(wide(v, query)))
            .map(|(target, v)| target - v)
            .collect();

        let m = self.solve_down(&wide(&h, query), &wide(&d, query), &wide(&d_ctx, 0), &t)?;
        let d = block
            .outer
            .with_changes(run, &h, d, &self.applied(Part::Down));
        let n = unscaled_rms_norm(run.level, d.row(query), self.norm().eps());
        let n: Vec<f64> = n.into_iter().map(Element::to_f64).collect();
        self.solve_scale(&m, &n, &t)?;
        let g = block.outer.output(run, &d, &self.applied(Part::Scale));
        let out = block.add(run, v, &g);

        self.report.measure(&self.patch, block);
        self.report.compare(E::DTYPE, &wide(&out, query), &target);
        Ok(out)
    }

    /// ΔW_gate and ΔW_up, from z of the reduced and the contextual pass.
    fn solve_inner(&mut self, level: Level, z: &[f64], z_ctx: &[f64]) -> Result<(), Precondition> {
        if !self.changes(Part::GateUp) {
            return Ok(());
        }
        let (w_gate, w_up) = (self.block.inner.gate_proj(), self.block.inner.up_proj());
        let (gate, up) = theorem_1::inner(level, w_gate.into(), w_up.into(), z, z_ctx)?;
        self.report.divided_by(norm(z));
        self.change.gate = Some(overlay::linear(w_gate, &gate, self.method.form));
        self.change.up = Some(overlay::linear(w_up, &up, self.method.form));
        (self.patch.gate, self.patch.up) = (Some(gate), Some(up));
        Ok(())
    }

    /// ΔW_down, where h goes to `d` as it is and the branch must say t. Returns the scale that goes with it.
    fn solve_down(
        &mut self,
        h: &[f64],
        d: &[f64],
        d_ctx: &[f64],
        t: &[f64],
    ) -> Result<Vec<f64>, Precondition> {
        let (m, eps) = (self.norm().scale::<f64>(), self.norm().eps());
        let (wanted, m, case) = match self.method.solver {
            Solver::Theorem1 | Solver::Span => return Ok(m),
            Solver::AppendixB => {
                let solved = appendix_b::down(&m, t, rms(d_ctx, eps), eps);
                self.report.zeros = solved.zeros;
                (solved.d, m, solved.case)
            }
            Solver::ClosedForm => {
                let length = self.method.gain * rms(d_ctx, eps).max(rms(d, eps));
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

    /// Δm, for the n(d) that there really is: `m` is the scale that the solver had in mind.
    fn solve_scale(&mut self, m: &[f64], n: &[f64], t: &[f64]) -> Result<(), Precondition> {
        let stored = self.norm().scale::<f64>();
        let delta_m = match self.method.solver {
            Solver::Theorem1 => theorem_1::outer(m, n, t)?,
            Solver::AppendixB | Solver::Span => {
                let (delta_m, unserved) = appendix_b::scale(m, n, t);
                self.report.unserved = unserved;
                delta_m
            }
            Solver::ClosedForm => {
                let (fitted, unserved) = closed_form::refit(m, n, t);
                self.report.unserved = unserved;
                fitted
                    .iter()
                    .zip(&stored)
                    .map(|(fitted, m)| fitted - m)
                    .collect()
            }
        };
        check_finite("Δm", &delta_m)?;
        let divided = n
            .iter()
            .zip(&delta_m)
            .filter(|(_, delta_m)| **delta_m != 0.0);
        self.report.divided_by_each(divided.map(|(n, _)| *n));
        let said = (0..n.len()).map(|j| (stored[j] + delta_m[j]) * n[j] - t[j]);
        self.report.residual = norm(&said.collect::<Vec<_>>()) / norm(t).max(f64::MIN_POSITIVE);
        self.change.scale = Some(overlay::scale::<E>(self.block, &delta_m, self.method.form));
        self.patch.delta_m = Some(delta_m);
        Ok(())
    }

    fn norm(&self) -> &RmsNorm {
        self.block.outer.post_feedforward_layernorm()
    }

    fn changes(&self, part: Part) -> bool {
        self.method.solver.parts().contains(&part)
    }

    /// The change so far for the rows of the passes whose variant has a part.
    fn applied(&self, part: Part) -> Vec<Changed<'_, LayerChange<E>>> {
        let taking = self.passes.iter().filter(|pass| pass.variant.has(part));
        taking
            .map(|pass| (pass.rows.clone(), &self.change))
            .collect()
    }
}

/// A row in f64.
fn wide<E: Element>(matrix: &Matrix<E>, row: usize) -> Vec<f64> {
    matrix.row(row).iter().map(|x| x.to_f64()).collect()
}

/// The length that d is compared with: the root mean square of its coordinates where that is worth the name.
fn rms(d: &[f64], eps: f64) -> f64 {
    (norm(d) / (d.len() as f64).sqrt()).max(eps.sqrt())
}
