//! Algorithm 1: all layers, one after the other, each correcting what the ones before it left.
//!
//! A token comes after a context C. The contextual pass sees C, the reduced pass does not: it runs under the patch. Both go
//! through layer i together:
//!
//! 1. Attention: v = A(x) in the reduced pass, where x is the actual, rounded output of the already patched layer
//!    i − 1, and v_C = A(C, x_C) in the contextual one.
//! 2. The inner function: ΔW_gate and ΔW_up, so that h in the reduced pass is what it is in the contextual one.
//! 3. The target: T_i(C, x_C) = v_C + g(f(v_C)), the contextual pass's output.
//! 4. The outer function: ΔW_down and Δm, so that v + g(f(v)) is the target.
//! 5. The patched layer's output, rounded as it is, goes to layer i + 1.
//!
//! Not every [solver](Solver) changes all four parts. The closed form then looks ahead (`look_ahead.rs`).
//!
//! Several sequences may go through the layers together, and each has several reduced passes, one for each variant of its
//! patch: all are rows of one batch, so that each weight is read once for all.

use rayon::prelude::*;

use super::before_outer::{BeforeOuter, products, slice_products};
use super::error::Result;
use super::layer::LayerSolver;
use super::reduced_pass::changed_rows;
use super::sequence::{Query, SequenceSolver, Solution};
use super::solver::has_post_norm;
use super::{Method, Part, Precondition, Solver, Variant};
use crate::model::{Attended, Block, ForwardRun, Model, Pass, Session, consecutive};
use crate::tensor::{Element, Matrix};

/// Solves the patch of the token that comes next in `contextual`, a session that has seen the whole context;
/// it takes the query in. What of the context is not kept is absorbed.
///
/// The reduced pass runs once under the whole patch, and once under each of `controls`;
/// [`Solution::reduced`] has them in this order.
///
/// # Errors
///
/// [`SpanSolver`](super::Error::SpanSolver) for [`Solver::Span`], which is [`span::solve`](super::span::solve);
/// [`KeptTokens`](super::Error::KeptTokens) where the kept tokens' positions do not ascend to the query's;
/// [`Precondition`](super::Error::Precondition) of the solver, with the layer; those of [`Session::forward`].
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
    let Some((first, _)) = queries.first() else {
        return Vec::new();
    };
    let model = first.model();
    let sequences = queries
        .into_iter()
        .map(|(contextual, query)| SequenceSolver::new(contextual, query, method, controls));
    let mut batch = Batch(sequences.collect());
    solve_layers(model, &mut batch);
    let solved = batch.0.into_iter();
    solved
        .map(|seq| seq.and_then(SequenceSolver::solution))
        .collect()
}

/// All layers, and the logits.
fn solve_layers<E: Element>(model: &Model, batch: &mut Batch<'_, '_, E>) {
    let mut run = ForwardRun::new(model, None, None);
    for (layer, block) in model.layers().iter().enumerate() {
        batch.for_each(|seq| seq.enter(layer).map(drop));
        if batch.active().is_empty() {
            return;
        }
        run.layer = layer;
        let solved = solve_layer(&mut run, block, batch.active());
        batch.record_failures(solved);
    }
    batch.for_each(finish);
    let active = batch.active();
    if active.is_empty() {
        return;
    }
    let rows: Vec<_> = active.iter().map(|seq| seq.x.rows()).collect();
    let logits = model.unchecked_logits(&mut run, &stacked(&active));
    for (seq, logits) in active.into_iter().zip(logits.split(&rows)) {
        seq.x = logits;
    }
}

/// One layer of some sequences: solves their patches and takes their x through it.
fn solve_layer<E: Element>(
    run: &mut ForwardRun<'_>,
    block: &Block,
    mut active: Vec<&mut SequenceSolver<'_, '_, E>>,
) -> Vec<Result<()>> {
    let layer = run.layer;
    let rows: Vec<_> = consecutive(active.iter().map(|seq| seq.x.rows())).collect();

    // 1. Attention, of all passes of all sequences: v, and z behind the norm.
    let x = stacked(&active);
    let pairs = active.iter_mut().zip(&rows);
    let sequences = pairs.flat_map(|(seq, rows)| seq.sequences(rows.start));
    let mut sequences: Vec<_> = sequences.collect();
    let Attended { z, rest } = block.attend(&mut Pass::new(run, &mut sequences, &[]), x);
    drop(sequences);

    // 2. ΔW_gate and ΔW_up, from the z of both passes; then h and W_down h under them.
    let solving = active.par_iter().zip(&rows).map(|(seq, rows)| {
        let query = seq.tokens.len() - 1;
        let mut solver = LayerSolver::new(block, seq.method, seq.parts, query);
        let mut run = ForwardRun::new(seq.model, None, None);
        let (z, z_ctx) = (z.row(rows.start + query), z.row(rows.end - 1));
        solver.solve_inner(&mut run, z, z_ctx)?;
        Ok(solver)
    });
    let solving: Vec<Result<_, Precondition>> = solving.collect();
    let pairs = active.iter().zip(&solving).zip(&rows);
    let changes = pairs.filter_map(|((seq, solver), rows)| {
        let change = &solver.as_ref().ok()?.change;
        Some(changed_rows(&seq.passes, Part::GateUp, change, rows.start))
    });
    let changes: Vec<_> = changes.flatten().collect();
    let h = block
        .inner
        .output(&mut Pass::new(run, &mut [], &changes), &z);
    let d = products(run, block, &h);
    drop(changes);
    if run.check_device().is_err() {
        return active.iter().map(|_| Ok(run.check_device()?)).collect();
    }

    // 3. to 5. The target, ΔW_down and Δm, and the patched layer's output: for each sequence by itself.
    let each = active.into_par_iter().zip(solving).zip(rows);
    let solved = each.map(|((seq, solver), rows)| {
        seq.finish_layer(layer, solver, |run| {
            let d = slice_products(&h, &d, &rows);
            let rest = rest.slice_rows(rows.clone());
            BeforeOuter::new(run, block, rest, h.slice_rows(rows), d)
        })
    });
    solved.collect()
}

/// After the last layer: leaves the rows whose logits are asked for.
fn finish<E: Element>(seq: &mut SequenceSolver<'_, '_, E>) -> Result<()> {
    let contextual = seq.finish_contextual();
    if seq.method.solver == Solver::ClosedForm && has_post_norm(seq.model) {
        seq.look_ahead()?;
    }
    seq.keep_last_rows(&contextual);
    Ok(())
}

/// Sequences that go through the layers together; one that fails becomes its error and stays behind.
struct Batch<'a, 'm, E: Element>(Vec<Result<SequenceSolver<'a, 'm, E>>>);

impl<'a, 'm, E: Element> Batch<'a, 'm, E> {
    /// The sequences that have not failed.
    fn active(&mut self) -> Vec<&mut SequenceSolver<'a, 'm, E>> {
        self.0
            .iter_mut()
            .filter_map(|seq| seq.as_mut().ok())
            .collect()
    }

    /// Takes the outcome of each active sequence.
    fn record_failures(&mut self, outcomes: Vec<Result<()>>) {
        let active = self.0.iter_mut().filter(|seq| seq.is_ok());
        for (seq, outcome) in active.zip(outcomes) {
            if let Err(error) = outcome {
                *seq = Err(error);
            }
        }
    }

    /// Calls `step` with each active sequence.
    fn for_each(
        &mut self,
        step: impl Fn(&mut SequenceSolver<'a, 'm, E>) -> Result<()> + Send + Sync,
    ) {
        let outcomes = self.active().into_par_iter().map(step).collect();
        self.record_failures(outcomes);
    }
}

/// The x of all sequences, of which there is at least one, as one batch.
fn stacked<E: Element>(active: &[&mut SequenceSolver<'_, '_, E>]) -> Matrix<E> {
    let rows = active.iter().flat_map(|seq| seq.x.as_slice());
    Matrix::from_vec(active[0].x.cols(), rows.copied().collect())
}
