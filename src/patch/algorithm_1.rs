//! Algorithm 1: all layers, one after the other, each correcting what the ones before it left.
//!
//! The contextual and the reduced pass go through a layer together. Layer i of the reduced pass gets
//! the actual, rounded output of the already patched layer i − 1, and its target is T_i(C, x_i) of the
//! contextual pass.
//!
//! The closed form then looks ahead: the last two layers are solved again, the earlier one so that the last
//! can say T(C, x) bit for bit.

use std::ops::Range;

use super::layer::{Halfway, Layer};
use super::{Method, Patch, Report, Solver, Variant};
use crate::error::{Error, Result};
use crate::model::{Cache, LayerChange, Model, Run, Sequence, Session};
use crate::tensor::{Element, Matrix};

/// How often the last two layers are solved again at most.
const LOOKS_AHEAD: usize = 24;

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

/// A reduced pass under one variant of the patch.
pub(super) struct Reduced<E: Element> {
    pub(super) variant: Variant,
    pub(super) tokens: usize,
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
    let mut run = contextual.start(&[query.token], None)?;
    let mut reduced = Reduction::new(contextual, query, method, controls)?;
    let mut x = reduced.model.embed(&mut run, &reduced.batch(query.token));
    for layer in 0..reduced.model.layers().len() {
        x = reduced.layer(&mut run, layer, &x, contextual)?;
    }
    let contextual_row = x.slice_rows(reduced.rows()..x.rows());
    contextual.skip(1);
    if method.solver == Solver::ClosedForm {
        reduced.look_ahead(&mut run, &mut x)?;
    }

    let rows = rows_of(&reduced.passes).map(|rows| rows.end - 1);
    let hidden = rows
        .flat_map(|row| x.row(row))
        .chain(contextual_row.as_slice());
    let hidden = Matrix::from_vec(x.cols(), hidden.copied().collect());
    let mut logits = reduced.model.logits(&mut run, &hidden)?;
    let last = logits.rows() - 1;
    let contextual = logits.row(last).to_vec();
    logits.truncate(last);
    Ok(Solution {
        patch: reduced.solved.patch,
        report: reduced.solved.report,
        contextual,
        reduced: logits,
    })
}

/// The reduced passes on their way through the layers.
struct Reduction<'a, E: Element> {
    model: &'a Model,
    method: &'a Method,
    tokens: Vec<u32>,
    positions: Vec<usize>,
    contextual_position: usize,
    passes: Vec<Reduced<E>>,
    solved: Solved,
    /// The last two layers so far, before their outer halves.
    last_two: [Option<Halfway<E>>; 2],
}

impl<'a, E: Element> Reduction<'a, E> {
    fn new(
        contextual: &Session<'a, E>,
        query: Query<'_>,
        method: &'a Method,
        controls: &[Variant],
    ) -> Result<Self> {
        let model = contextual.model();
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
        Ok(Self {
            model,
            method,
            passes: passes.collect(),
            tokens,
            positions,
            contextual_position: contextual.position(),
            solved: Solved::default(),
            last_two: [None, None],
        })
    }

    /// The tokens of all reduced passes, then the contextual one's.
    fn batch(&self, query: u32) -> Vec<u32> {
        let mut batch = self.tokens.repeat(self.passes.len());
        batch.push(query);
        batch
    }

    /// The rows of all reduced passes.
    fn rows(&self) -> usize {
        self.tokens.len() * self.passes.len()
    }

    /// Solves a layer and takes x through it: the reduced passes and, behind them, the contextual one.
    fn layer(
        &mut self,
        run: &mut Run<'_>,
        layer: usize,
        x: &Matrix<E>,
        contextual: &mut Session<'_, E>,
    ) -> Result<Matrix<E>> {
        run.enter(layer)?;
        let rows = self.rows();
        let position = [self.contextual_position];
        let contextual = contextual.as_rows(rows..rows + 1, &position);
        let v = self.attention(run, layer, x, 0..self.passes.len(), Some(contextual));
        let mut solving = Layer::new(&self.model.layers()[layer], &self.passes, self.method);
        let solved = solving.solve(run, v);
        let (x, halfway) = solved.map_err(|failed| failed.at_layer(layer))?;
        self.model.check_layer(layer, &x)?;
        self.solved.keep(layer, solving);
        self.last_two.rotate_left(1);
        self.last_two[1] = Some(halfway);
        Ok(x)
    }

    /// v of some of the reduced passes and of what else goes through a layer with them.
    fn attention<'b>(
        &'b mut self,
        run: &mut Run<'_>,
        layer: usize,
        x: &Matrix<E>,
        passes: Range<usize>,
        beside: Option<Sequence<'b, E>>,
    ) -> Matrix<E> {
        let passes = &mut self.passes[passes];
        let rows: Vec<_> = rows_of(passes).collect();
        let reduced = passes.iter_mut().zip(rows).map(|(pass, rows)| Sequence {
            rows,
            positions: &self.positions,
            cache: &mut pass.cache,
        });
        let mut sequences: Vec<_> = reduced.chain(beside).collect();
        let attention = &self.model.layers()[layer].attention;
        attention.forward(run, x, &mut sequences)
    }

    /// v of some of the passes in the last layer, once more.
    fn last_attention(
        &mut self,
        run: &mut Run<'_>,
        x: &Matrix<E>,
        passes: Range<usize>,
    ) -> Result<Matrix<E>> {
        let layer = self.model.layers().len() - 1;
        run.enter(layer)?;
        for pass in &mut self.passes[passes.clone()] {
            pass.cache = self.model.new_cache();
        }
        Ok(self.attention(run, layer, x, passes, None))
    }

    /// Solves the outer half of a layer anew for the whole patch, the inner one being under no change. The second result is
    /// the change of the layer.
    fn outer_half(
        &mut self,
        run: &mut Run<'_>,
        layer: usize,
        halfway: &Halfway<E>,
    ) -> Result<(Matrix<E>, LayerChange<E>)> {
        let mut solving = Layer::new(&self.model.layers()[layer], &self.passes[..1], self.method);
        let x = solving.outer_half(run, halfway);
        let x = x.map_err(|failed| failed.at_layer(layer))?;
        self.model.check_layer(layer, &x)?;
        let change = std::mem::take(&mut solving.change);
        self.solved.keep(layer, solving);
        Ok((x, change))
    }

    /// Goes through the last two layers again until every entry of the last one's output is T(C, x), bit for
    /// bit.
    ///
    /// Where v is much larger than T, its last place is too coarse for v + g to hit T. So the layer before is
    /// asked to bring v to T itself. The last attention answers to what it sees, which moves v again: going half
    /// the way each time settles it. Of the layer before, only the outer half has to be done again. The controls go through
    /// both layers once, under what came out.
    fn look_ahead(&mut self, run: &mut Run<'_>, x: &mut Matrix<E>) -> Result<()> {
        let [Some(before), Some(last)] = std::mem::take(&mut self.last_two) else {
            return Ok(());
        };
        let (layer, tokens) = (self.model.layers().len() - 1, self.tokens.len());
        let block = &self.model.layers()[layer];
        let controls = [&before, &last].map(|halfway| halfway.rows(tokens..self.rows()));
        let (mut before, mut last) = (before.rows(0..tokens), last.rows(0..tokens));
        let mut found = None;
        for _ in 0..LOOKS_AHEAD {
            if self.solved.report.layers[layer].hidden_off == 0 {
                break;
            }
            for (target, t) in before.target.iter_mut().zip(last.t(tokens - 1)) {
                *target += 0.5 * t;
            }
            let (y, change_before) = self.outer_half(run, layer - 1, &before)?;
            let v = self.last_attention(run, &y, 0..1)?;
            last = last.again(run, block, v);
            let (whole, change) = self.outer_half(run, layer, &last)?;
            let report = &mut self.solved.report;
            report.passes.push(report.layers[layer].hidden_error);
            found = Some((whole, [change_before, change]));
        }
        let Some((whole, changes)) = found else {
            return Ok(());
        };
        let mut outputs = vec![whole];
        if self.passes.len() > 1 {
            outputs.push(self.controls(run, controls, &changes)?);
        }
        *x = Matrix::stack(x.cols(), outputs);
        Ok(())
    }

    /// The last layer's output of the controls, which are halfway through the last two layers, under changes that were
    /// solved for the whole patch.
    fn controls(
        &mut self,
        run: &mut Run<'_>,
        [before, last]: [Halfway<E>; 2],
        [change_before, change]: &[LayerChange<E>; 2],
    ) -> Result<Matrix<E>> {
        let layers = self.model.layers();
        let [block_before, block] = [&layers[layers.len() - 2], &layers[layers.len() - 1]];
        let y = before.under(run, block_before, &self.passes[1..], change_before);
        let v = self.last_attention(run, &y, 1..self.passes.len())?;
        let last = last.again(run, block, v);
        Ok(last.under(run, block, &self.passes[1..], change))
    }
}

/// The layers so far.
#[derive(Default)]
struct Solved {
    patch: Patch,
    report: Report,
}

impl Solved {
    /// Takes down a layer, which may be the next one.
    fn keep<E: Element>(&mut self, layer: usize, solved: Layer<'_, E>) {
        set(&mut self.patch.layers, layer, solved.patch);
        set(&mut self.report.layers, layer, solved.report);
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

/// A row in f64.
pub(super) fn wide<E: Element>(matrix: &Matrix<E>, row: usize) -> Vec<f64> {
    matrix.row(row).iter().map(|x| x.to_f64()).collect()
}
