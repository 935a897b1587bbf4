//! Algorithm 1: all layers, one after the other, each correcting what the ones before it left.
//!
//! The contextual and the reduced pass go through a layer together. Layer i of the reduced pass gets
//! the actual, rounded output of the already patched layer i − 1, and its target is T_i(C, x_i) of the
//! contextual pass. The passes of several sequences may go together too: each weight is then read once for all.
//!
//! The closed form then looks ahead (`look_ahead.rs`).

use std::ops::Range;

use rayon::prelude::*;

use super::error::{Error, Result};
use super::layer::{Halfway, Layer, applied};
use super::{LayerPatch, LayerReport, Method, Part, Patch, Precondition, Report, Solver, Variant};
use crate::model::{Block, Cache, Model, Run, Sequence, Session};
use crate::tensor::{Element, Matrix};

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
pub struct Solution<E: Element> {
    /// The patch.
    pub patch: Patch,
    /// How it was solved.
    pub report: Report,
    /// The logits of the contextual pass, `[vocab]`.
    pub contextual: Vec<E>,
    /// The logits of the reduced pass for each variant asked for, `[variants, vocab]`.
    pub reduced: Matrix<E>,
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
    solve_batch(vec![(contextual, query)], method, controls).remove(0)
}

/// [`solve`] for several sequences of one model, whose passes go through the layers together. Each result is the one that it
/// has alone, to the bit where the model's backend has [such bits](crate::kernels::Backend).
pub fn solve_batch<'m, E: Element>(
    queries: Vec<(&mut Session<'m, E>, Query<'_>)>,
    method: &Method,
    controls: &[Variant],
) -> Vec<Result<Solution<E>>> {
    let each = queries.into_iter();
    let each = each.map(|(contextual, query)| Reduction::new(contextual, query, method, controls));
    let mut batch = Batch {
        each: each.collect(),
    };
    if let Some(first) = batch.going().first() {
        let model = first.model;
        batch.solve(model);
    }
    let each = batch.each.into_iter();
    each.map(|of| of.and_then(Reduction::solution)).collect()
}

/// A reduced pass under one variant of the patch.
pub(super) struct Reduced<E: Element> {
    pub(super) variant: Variant,
    pub(super) tokens: usize,
    pub(super) cache: Cache<E>,
}

/// The reduced passes of a sequence on their way through the layers, beside its contextual one.
pub(super) struct Reduction<'a, 'm, E: Element> {
    pub(super) model: &'m Model,
    pub(super) method: &'a Method,
    contextual: &'a mut Session<'m, E>,
    contextual_position: [usize; 1],
    pub(super) tokens: Vec<u32>,
    pub(super) positions: Vec<usize>,
    pub(super) passes: Vec<Reduced<E>>,
    /// What the passes say so far, of each token a row: those of the reduced passes, then the contextual one's. In the end
    /// the logits.
    pub(super) x: Matrix<E>,
    pub(super) solved: Solved,
    /// The last two layers so far, before their outer halves.
    pub(super) last_two: [Option<Halfway<E>>; 2],
}

impl<'a, 'm, E: Element> Reduction<'a, 'm, E> {
    fn new(
        contextual: &'a mut Session<'m, E>,
        query: Query<'_>,
        method: &'a Method,
        controls: &[Variant],
    ) -> Result<Self> {
        if method.solver == Solver::Span {
            return Err(Error::SpanSolver);
        }
        let model = contextual.model();
        let mut run = contextual.start(&[query.token], None)?;
        let (mut tokens, mut positions): (Vec<_>, Vec<_>) = query.kept.iter().copied().unzip();
        let position = query.position.unwrap_or(contextual.position());
        tokens.push(query.token);
        positions.push(position);
        if !positions.is_sorted_by(|a, b| a < b) {
            return Err(Error::KeptTokens { query: position });
        }
        model.check_tokens(&tokens, 0)?;
        let variants = [Variant::Whole].iter().chain(controls);
        let passes = variants.map(|&variant| Reduced {
            variant,
            tokens: tokens.len(),
            cache: model.new_cache(),
        });
        let passes: Vec<_> = passes.collect();
        let batch = [tokens.repeat(passes.len()), vec![query.token]].concat();
        Ok(Self {
            x: model.embed(&mut run, &batch),
            model,
            method,
            passes,
            tokens,
            positions,
            contextual_position: [contextual.position()],
            contextual,
            solved: Solved::default(),
            last_two: [None, None],
        })
    }

    /// The rows of all reduced passes.
    pub(super) fn rows(&self) -> usize {
        self.tokens.len() * self.passes.len()
    }

    /// All passes in a batch in which they have the rows from `first` on: the reduced ones, then the contextual one.
    fn sequences(&mut self, first: usize) -> impl Iterator<Item = Sequence<'_, E>> {
        let row = first + self.rows();
        let position = &self.contextual_position;
        let contextual = self.contextual.as_rows(row..row + 1, position);
        sequences_of(&mut self.passes, &self.positions, first).chain([contextual])
    }

    /// A pass through a layer for this sequence alone, unless it is cancelled.
    pub(super) fn enter(&self, layer: usize) -> Result<Run<'static>> {
        let mut run = self.contextual.pass(None);
        run.enter(layer)?;
        Ok(run)
    }

    /// Solves the outer half of a layer, where `solving` has what the inner one needed.
    fn go_on(
        &mut self,
        layer: usize,
        solving: Result<Layer<'_, E>, Precondition>,
        halfway: impl FnOnce(&mut Run<'_>) -> Halfway<E>,
    ) -> Result<()> {
        let at_layer = |failed: Precondition| failed.at_layer(layer);
        let mut solving = solving.map_err(at_layer)?;
        let mut run = self.enter(layer)?;
        let halfway = halfway(&mut run);
        let x = solving.outer_half(&mut run, &self.passes, &halfway);
        self.x = x.map_err(at_layer)?;
        self.model.check_layer(layer, &self.x)?;
        self.solved.keep(layer, solving.patch, solving.report);
        self.last_two.rotate_left(1);
        self.last_two[1] = Some(halfway);
        Ok(())
    }

    /// After the last layer: leaves what the logits are of, of each reduced pass the last row, then the contextual one.
    fn finish(&mut self) -> Result<()> {
        self.contextual.skip(1);
        let contextual = self.x.slice_rows(self.rows()..self.x.rows());
        if self.method.solver == Solver::ClosedForm {
            self.look_ahead()?;
        }
        let rows = rows_of(&self.passes).map(|rows| rows.end - 1);
        let hidden = rows.flat_map(|row| self.x.row(row));
        let hidden = hidden.chain(contextual.as_slice()).copied().collect();
        self.x = Matrix::from_vec(contextual.cols(), hidden);
        Ok(())
    }

    /// Once x is the logits.
    fn solution(self) -> Result<Solution<E>> {
        let mut logits = self.x;
        self.model.check_logits(&logits)?;
        let last = logits.rows() - 1;
        let contextual = logits.row(last).to_vec();
        logits.truncate(last);
        Ok(Solution {
            patch: self.solved.patch,
            report: self.solved.report,
            contextual,
            reduced: logits,
        })
    }
}

/// Sequences whose passes go through the layers together, but for those that failed.
struct Batch<'a, 'm, E: Element> {
    each: Vec<Result<Reduction<'a, 'm, E>>>,
}

impl<'a, 'm, E: Element> Batch<'a, 'm, E> {
    /// Those that did not fail so far.
    fn going(&mut self) -> Vec<&mut Reduction<'a, 'm, E>> {
        let each = self.each.iter_mut();
        each.filter_map(|of| of.as_mut().ok()).collect()
    }

    /// Takes down which of them failed.
    fn settle(&mut self, done: Vec<Result<()>>) {
        let going = self.each.iter_mut().filter(|of| of.is_ok());
        for (of, done) in going.zip(done) {
            if let Err(error) = done {
                *of = Err(error);
            }
        }
    }

    /// All layers and the logits.
    fn solve(&mut self, model: &Model) {
        let mut run = Run::new(model, None, None);
        for layer in 0..model.layers().len() {
            let entered = self.going().into_iter().map(|of| of.enter(layer).map(drop));
            let entered = entered.collect();
            self.settle(entered);
            if self.going().is_empty() {
                return;
            }
            run.layer = layer;
            let solved = layer_of(&mut run, &model.layers()[layer], self.going());
            self.settle(solved);
        }
        let finished = self.going().into_par_iter().map(Reduction::finish);
        let finished = finished.collect();
        self.settle(finished);
        let going = self.going();
        if going.is_empty() {
            return;
        }
        let rows: Vec<_> = going.iter().map(|of| of.x.rows()).collect();
        let logits = model
            .unchecked_logits(&mut run, &stacked(&going))
            .split(&rows);
        for (of, logits) in going.into_iter().zip(logits) {
            of.x = logits;
        }
    }
}

/// x of all of them, of which there is at least one.
fn stacked<E: Element>(each: &[&mut Reduction<'_, '_, E>]) -> Matrix<E> {
    let rows = each.iter().flat_map(|of| of.x.as_slice());
    Matrix::from_vec(each[0].x.cols(), rows.copied().collect())
}

/// Solves a layer for some sequences and takes their x through it.
fn layer_of<E: Element>(
    run: &mut Run<'_>,
    block: &Block,
    mut each: Vec<&mut Reduction<'_, '_, E>>,
) -> Vec<Result<()>> {
    let rows = each.iter().scan(0, |first, of| {
        let rows = *first..*first + of.x.rows();
        *first = rows.end;
        Some(rows)
    });
    let rows: Vec<_> = rows.collect();
    let x = stacked(&each);
    let pairs = each.iter_mut().zip(&rows);
    let sequences = pairs.flat_map(|(of, rows)| of.sequences(rows.start));
    let v = block
        .attention
        .forward(run, &x, &mut sequences.collect::<Vec<_>>());
    let z = block.inner.input(run, &v);
    let level = run.level;
    let solving = each.par_iter().zip(&rows).map(|(of, rows)| {
        let mut solving = Layer::new(block, of.method, of.tokens.len() - 1);
        let query = rows.start + of.tokens.len() - 1;
        solving.solve_inner(level, z.row(query), z.row(rows.end - 1))?;
        Ok(solving)
    });
    let solving: Vec<Result<_, Precondition>> = solving.collect();
    let changes = each.iter().zip(&solving).zip(&rows);
    let changes = changes.filter_map(|((of, solving), rows)| {
        let change = &solving.as_ref().ok()?.change;
        Some(applied(&of.passes, Part::GateUp, change, rows.start))
    });
    let changes: Vec<_> = changes.flatten().collect();
    let h = block.inner.output(run, &z, &changes);
    let d = block.outer.products(run, &h);
    drop(changes);
    let layer = run.layer;
    let pairs = each.into_par_iter().zip(solving).zip(rows);
    let done = pairs.map(|((of, solving), rows)| {
        of.go_on(layer, solving, |run| {
            let [v, h] = [&v, &h].map(|all| all.slice_rows(rows.clone()));
            Halfway::new(run, block, v, h, d.slice_rows(rows))
        })
    });
    done.collect()
}

/// The layers so far.
#[derive(Default)]
pub(super) struct Solved {
    patch: Patch,
    pub(super) report: Report,
}

impl Solved {
    /// Takes down a layer, which may be the next one.
    pub(super) fn keep(&mut self, layer: usize, patch: LayerPatch, report: LayerReport) {
        set(&mut self.patch.layers, layer, patch);
        set(&mut self.report.layers, layer, report);
    }
}

/// Sets the entry of a layer, which may be the next one.
fn set<T>(entries: &mut Vec<T>, layer: usize, entry: T) {
    match entries.get_mut(layer) {
        Some(old) => *old = entry,
        None => entries.push(entry),
    }
}

/// The rows of some passes, of which the first has the first ones.
pub(super) fn rows_of<E: Element>(passes: &[Reduced<E>]) -> impl Iterator<Item = Range<usize>> {
    passes.iter().scan(0, |first, pass| {
        let rows = *first..*first + pass.tokens;
        *first = rows.end;
        Some(rows)
    })
}

/// Some reduced passes in a batch in which they have the rows from `first` on.
pub(super) fn sequences_of<'p, E: Element>(
    passes: &'p mut [Reduced<E>],
    positions: &'p [usize],
    first: usize,
) -> impl Iterator<Item = Sequence<'p, E>> {
    let rows: Vec<_> = rows_of(passes).collect();
    let pairs = passes.iter_mut().zip(rows);
    pairs.map(move |(pass, rows)| Sequence {
        rows: first + rows.start..first + rows.end,
        positions,
        cache: &mut pass.cache,
    })
}

/// A row in f64.
pub(super) fn wide<E: Element>(matrix: &Matrix<E>, row: usize) -> Vec<f64> {
    matrix.row(row).iter().map(|x| x.to_f64()).collect()
}
