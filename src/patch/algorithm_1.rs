//! Algorithm 1: all layers, one after the other, each correcting what the ones before it left.
//!
//! The contextual and the reduced pass go through a layer together. Layer i of the reduced pass gets
//! the actual, rounded output of the already patched layer i − 1, and its target is T_i(C, x_i) of the
//! contextual pass.

use std::ops::Range;

use super::layer::{Contextual, Layer};
use super::{Method, Patch, Report, Solver, Variant};
use crate::error::{Error, Result};
use crate::model::{Cache, Model, Run, Sequence, Session};
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
pub(super) struct Reduced<E: Element> {
    pub(super) variant: Variant,
    pub(super) rows: Range<usize>,
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
    let layers = reduced.model.layers().len();
    let mut before = x.clone();
    for layer in 0..layers {
        if layer + 2 == layers {
            before = x.slice_rows(0..reduced.rows());
        }
        x = reduced.layer(&mut run, layer, &x, Some(contextual))?;
    }
    let contextual_row = x.slice_rows(reduced.rows()..x.rows());
    contextual.skip(1);
    reduced.refine(&mut run, &before, &mut x)?;

    let rows = reduced.passes.iter().map(|pass| pass.rows.end - 1);
    let hidden = rows
        .flat_map(|row| x.row(row))
        .chain(contextual_row.as_slice());
    let hidden = Matrix::from_vec(x.cols(), hidden.copied().collect());
    let logits = reduced.model.logits(&mut run, &hidden)?;
    let reduced_logits = logits.slice_rows(0..logits.rows() - 1);
    Ok(Solution {
        patch: reduced.patch,
        report: reduced.report,
        contextual: logits.row(logits.rows() - 1).to_vec(),
        reduced: reduced_logits,
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
    patch: Patch,
    report: Report,
    /// What the contextual pass said, for each layer.
    said: Vec<Contextual>,
    v: Vec<f64>,
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
        let variants = [Variant::Whole].iter().chain(controls).enumerate();
        let passes = variants.map(|(i, &variant)| Reduced {
            variant,
            rows: i * tokens.len()..(i + 1) * tokens.len(),
            cache: model.new_cache(),
        });
        Ok(Self {
            model,
            method,
            passes: passes.collect(),
            tokens,
            positions,
            contextual_position: contextual.position(),
            patch: Patch::default(),
            report: Report::default(),
            said: Vec::new(),
            v: Vec::new(),
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
        contextual: Option<&mut Session<'_, E>>,
    ) -> Result<Matrix<E>> {
        run.enter(layer)?;
        let rows = self.rows();
        let mut sequences: Vec<_> = self
            .passes
            .iter_mut()
            .map(|pass| Sequence {
                rows: pass.rows.clone(),
                positions: &self.positions,
                cache: &mut pass.cache,
            })
            .collect();
        let position = [self.contextual_position];
        sequences
            .extend(contextual.map(|contextual| contextual.as_rows(rows..rows + 1, &position)));
        let block = &self.model.layers()[layer];
        let v = block.attention.forward(run, x, &mut sequences);
        let mut solving = Layer::new(block, &self.passes, self.method);
        let said = solving.solve(run, &v, self.said.get(layer));
        let (x, said) = said.map_err(|failed| failed.at_layer(layer))?;
        self.model.check_layer(layer, &x)?;
        self.patch.layers.truncate(layer);
        self.patch.layers.push(solving.patch);
        self.report.layers.truncate(layer);
        self.report.layers.push(solving.report);
        self.said.truncate(layer);
        self.said.push(said);
        self.v = solving.v;
        Ok(x)
    }

    /// Look-ahead.
    fn refine(&mut self, run: &mut Run<'_>, before: &Matrix<E>, x: &mut Matrix<E>) -> Result<()> {
        let last = self.model.layers().len() - 1;
        let rounds: usize = std::env::var("ROUNDS").map_or(0, |r| r.parse().unwrap());
        let all: bool = std::env::var("ALL").is_ok();
        let query = self.passes[0].rows.end - 1;
        for _ in 0..rounds {
            if self.report.layers[last].hidden_off == 0 {
                break;
            }
            for pass in &mut self.passes {
                pass.cache = self.model.new_cache();
            }
            let target = self.said[last].target.clone();
            for j in 0..target.len() {
                if all || x.row(query)[j].to_f64() != target[j] {
                    self.said[last - 1].target[j] += target[j] - self.v[j];
                }
            }
            let y = self.layer_again(run, last - 1, before)?;
            *x = self.layer_again(run, last, &y)?;
        }
        Ok(())
    }

    fn layer_again(&mut self, run: &mut Run<'_>, layer: usize, x: &Matrix<E>) -> Result<Matrix<E>> {
        let said = self.said.clone();
        let x = self.layer(run, layer, x, None)?;
        self.said = said;
        Ok(x)
    }
}
