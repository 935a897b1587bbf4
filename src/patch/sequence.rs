//! One sequence while its patch is solved: its contextual pass, and its reduced passes beside it.

use super::before_outer::BeforeOuter;
use super::error::{Error, Result};
use super::layer::LayerSolver;
use super::reduced_pass::{ReducedPass, row_ranges, sequences};
use super::{
    LayerPatch, LayerReport, Method, Part, Patch, Precondition, Solver, SolverReport, Variant,
};
use crate::model::{ForwardRun, Model, Sequence, Session};
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

/// A solved patch, and the logits of both passes.
#[derive(Clone, Debug)]
pub struct Solution<E: Element> {
    /// The patch.
    pub patch: Patch,
    /// How it was solved.
    pub report: SolverReport,
    /// The logits of the contextual pass, `[vocab]`.
    pub contextual: Vec<E>,
    /// The logits of the reduced pass for each variant asked for, `[variants, vocab]`.
    pub reduced: Matrix<E>,
}

/// The passes of one sequence on their way through the layers.
pub(super) struct SequenceSolver<'a, 'm, E: Element> {
    pub(super) model: &'m Model,
    pub(super) method: &'a Method,
    /// The parts of a layer that are changed.
    pub(super) parts: &'static [Part],
    contextual: &'a mut Session<'m, E>,
    contextual_position: [usize; 1],
    /// The tokens of a reduced pass: those that are kept, then the query.
    pub(super) tokens: Vec<u32>,
    /// Of each token.
    pub(super) positions: Vec<usize>,
    /// Under the whole patch, then under each control.
    pub(super) passes: Vec<ReducedPass<E>>,
    /// The output of the last layer so far, a row for each token: those of the reduced passes, then the contextual one's.
    /// In the end the logits.
    pub(super) x: Matrix<E>,
    pub(super) solved: Solved,
    /// The last two layers so far.
    pub(super) last_two: [Option<BeforeOuter<E>>; 2],
}

impl<'a, 'm, E: Element> SequenceSolver<'a, 'm, E> {
    pub(super) fn new(
        contextual: &'a mut Session<'m, E>,
        query: Query<'_>,
        method: &'a Method,
        controls: &[Variant],
    ) -> Result<Self> {
        if method.solver == Solver::Span {
            return Err(Error::SpanSolver);
        }
        let model = contextual.model();
        if !Solver::of(model).contains(&method.solver) {
            return Err(Error::NoPostNorm {
                solver: method.solver,
            });
        }
        let mut run = contextual.start((&[query.token]).into(), None)?;
        let (mut tokens, mut positions): (Vec<_>, Vec<_>) = query.kept.iter().copied().unzip();
        let position = query.position.unwrap_or(contextual.position());
        tokens.push(query.token);
        positions.push(position);
        if !positions.is_sorted_by(|a, b| a < b) {
            return Err(Error::KeptTokens { query: position });
        }
        model.check_tokens(&tokens, 0)?;
        let variants = [Variant::Whole].iter().chain(controls);
        let passes = variants.map(|&variant| ReducedPass {
            variant,
            tokens: tokens.len(),
            cache: model.new_cache(),
        });
        let passes: Vec<_> = passes.collect();
        let batch = [tokens.repeat(passes.len()), vec![query.token]].concat();
        let places = [positions.repeat(passes.len()), vec![contextual.position()]].concat();
        Ok(Self {
            x: model.embed(&mut run, &batch, &places),
            model,
            method,
            parts: method.solver.parts(model),
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

    /// All passes as sequences of a batch in which their rows begin at row `first`: the reduced ones, then the contextual
    /// one.
    pub(super) fn sequences(&mut self, first: usize) -> impl Iterator<Item = Sequence<'_, E>> {
        let row = first + self.rows();
        let position = &self.contextual_position;
        let contextual = self.contextual.as_rows(row..row + 1, position);
        sequences(&mut self.passes, &self.positions, first).chain([contextual])
    }

    /// A pass through a layer for this sequence alone, unless it is cancelled.
    pub(super) fn enter(&self, layer: usize) -> Result<ForwardRun<'static>> {
        let mut run = self.contextual.pass(None);
        run.enter(layer)?;
        Ok(run)
    }

    /// Solves the outer half of a layer whose inner half `solver` has solved, unless it could not, and takes x through the
    /// patched layer.
    pub(super) fn finish_layer(
        &mut self,
        layer: usize,
        solver: Result<LayerSolver<'_, E>, Precondition>,
        before_outer: impl FnOnce(&mut ForwardRun<'_>) -> BeforeOuter<E>,
    ) -> Result<()> {
        let at_layer = |failed: Precondition| failed.at_layer(layer);
        let mut solver = solver.map_err(at_layer)?;
        let mut run = self.enter(layer)?;
        let before_outer = before_outer(&mut run);
        let x = solver.solve_outer(&mut run, &self.passes, &before_outer);
        self.x = x.map_err(at_layer)?;
        self.model.check_layer(layer, &self.x)?;
        self.solved.set(layer, solver.patch, solver.report);
        self.last_two.rotate_left(1);
        self.last_two[1] = Some(before_outer);
        Ok(())
    }

    /// After the last layer: counts the query as seen by the contextual session, and gives the contextual row of x.
    pub(super) fn finish_contextual(&mut self) -> Matrix<E> {
        self.contextual.skip(1);
        self.x.slice_rows(self.rows()..self.x.rows())
    }

    /// Leaves of x the last row of each reduced pass, followed by the `contextual` row.
    pub(super) fn keep_last_rows(&mut self, contextual: &Matrix<E>) {
        let rows = row_ranges(&self.passes, 0).map(|rows| rows.end - 1);
        let hidden = rows.flat_map(|row| self.x.row(row));
        let hidden = hidden.chain(contextual.as_slice()).copied().collect();
        self.x = Matrix::from_vec(contextual.cols(), hidden);
    }

    /// Once x is the logits.
    pub(super) fn solution(self) -> Result<Solution<E>> {
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

/// The layers that are solved so far.
#[derive(Default)]
pub(super) struct Solved {
    patch: Patch,
    pub(super) report: SolverReport,
}

impl Solved {
    /// Sets a layer, which may be the next one.
    pub(super) fn set(&mut self, layer: usize, patch: LayerPatch, report: LayerReport) {
        set(&mut self.patch.layers, layer, patch);
        set(&mut self.report.layers, layer, report);
    }
}

/// Sets an entry, which may be the next one.
fn set<T>(entries: &mut Vec<T>, at: usize, entry: T) {
    match entries.get_mut(at) {
        Some(old) => *old = entry,
        None => entries.push(entry),
    }
}
