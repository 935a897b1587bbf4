//! How the closed form leaves no bit of a logit different: it looks ahead.
//!
//! Where v of the last layer is much larger than T, its last place is too coarse for v + g to hit T. So the layer before is
//! asked to bring v to T itself. The last attention answers to what it sees, which moves v again: going half the way each
//! time settles it.

use std::ops::Range;

use super::before_outer::BeforeOuter;
use super::error::Result;
use super::layer::LayerSolver;
use super::reduced_pass::sequences;
use super::sequence::SequenceSolver;
use crate::model::{Attended, ForwardRun, LayerOverlay, Pass};
use crate::tensor::{Element, Matrix};

/// How often the last two layers are solved again at most.
const ROUNDS: usize = 24;

impl<E: Element> SequenceSolver<'_, '_, E> {
    /// Goes through the last two layers again until every entry of the last one's output is T(C, x), bit for
    /// bit. x is that output; where something is found, it becomes that of the reduced passes alone.
    ///
    /// Of the layer before, only the outer half has to be done again. The controls go through both layers once, under what
    /// came out.
    pub(super) fn look_ahead(&mut self) -> Result<()> {
        let [Some(before), Some(last)] = std::mem::take(&mut self.last_two) else {
            return Ok(());
        };
        let (layer, tokens) = (self.model.layers().len() - 1, self.tokens.len());
        let block = &self.model.layers()[layer];
        let mut run = self.enter(layer - 1)?;
        let controls = [&before, &last].map(|layer| layer.rows(tokens..self.rows()));
        let (mut before, mut last) = (before.rows(0..tokens), last.rows(0..tokens));
        let mut found = None;
        for _ in 0..ROUNDS {
            if self.solved.report.layers[layer].hidden_off == 0 {
                break;
            }
            for (target, t) in before.target.iter_mut().zip(last.t(tokens - 1)) {
                *target += 0.5 * t;
            }
            let (y, change_before) = self.solve_outer(&mut run, layer - 1, &before)?;
            let v = self.last_attention(&mut run, y, 0..1)?;
            last = last.with_attention(&mut run, block, v);
            let (whole, change) = self.solve_outer(&mut run, layer, &last)?;
            let report = &mut self.solved.report;
            report.passes.push(report.layers[layer].hidden_error);
            found = Some((whole, [change_before, change]));
        }
        let Some((whole, changes)) = found else {
            return Ok(());
        };
        let mut outputs = vec![whole];
        if self.passes.len() > 1 {
            outputs.push(self.controls(&mut run, controls, &changes)?);
        }
        self.x = Matrix::stack(self.x.cols(), outputs);
        Ok(())
    }

    /// Solves the outer half of a layer again for the whole patch, whose inner half is unpatched. Returns the layer's output
    /// and its change.
    fn solve_outer(
        &mut self,
        run: &mut ForwardRun<'_>,
        layer: usize,
        before: &BeforeOuter<E>,
    ) -> Result<(Matrix<E>, LayerOverlay<E>)> {
        let block = &self.model.layers()[layer];
        let mut solver = LayerSolver::new(block, self.method, self.parts, self.tokens.len() - 1);
        let x = solver.solve_outer(run, &self.passes[..1], before);
        let x = x.map_err(|failed| failed.at_layer(layer))?;
        self.model.check_layer(layer, &x)?;
        self.solved.set(layer, solver.patch, solver.report);
        Ok((x, solver.change))
    }

    /// The last layer's attention again, of some of the passes: v.
    fn last_attention(
        &mut self,
        run: &mut ForwardRun<'_>,
        x: Matrix<E>,
        passes: Range<usize>,
    ) -> Result<Attended<Matrix<E>>> {
        let layer = self.model.layers().len() - 1;
        run.enter(layer)?;
        for pass in &mut self.passes[passes.clone()] {
            pass.cache = self.model.new_cache();
        }
        let sequences = sequences(&mut self.passes[passes], &self.positions, 0);
        let mut sequences: Vec<_> = sequences.collect();
        let mut pass = Pass::new(run, &mut sequences, &[]);
        Ok(self.model.layers()[layer].attend(&mut pass, x))
    }

    /// The last layer's output of the controls, from the outer half of the layer before it on, under the changes that were
    /// solved for the whole patch.
    fn controls(
        &mut self,
        run: &mut ForwardRun<'_>,
        [before, last]: [BeforeOuter<E>; 2],
        [change_before, change]: &[LayerOverlay<E>; 2],
    ) -> Result<Matrix<E>> {
        let layers = self.model.layers();
        let [block_before, block] = [&layers[layers.len() - 2], &layers[layers.len() - 1]];
        let y = before.patched_output(run, block_before, &self.passes[1..], change_before);
        let v = self.last_attention(run, y, 1..self.passes.len())?;
        let last = last.with_attention(run, block, v);
        Ok(last.patched_output(run, block, &self.passes[1..], change))
    }
}
