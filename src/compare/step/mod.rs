//! An operation worked out on what another engine recorded: what each number of its outcome may be.
//!
//! It is worked out in f64, with the roundings that the compute type asks for. What an engine may be off by is what its own
//! roundings in between may come to: a sum of n terms is off by √n u Σ|terms| in whatever order it is added up (n
//! roundings as a random walk), every other operation by a few u. bf16 then rounds to one number, or to either of two where
//! the error reaches over the boundary between them. What was recorded in a coarser type than it was computed in stands for all
//! numbers that round to it.

mod experts;
mod images;
mod mix;
mod norm;
mod product;
mod rope;
mod rounded;

use std::ops::Range;

use rayon::prelude::*;

use super::Precision;
use super::activations::Activations;
use super::interval::{Interval, Rounding};
use super::operation::{Kind, Operation};
use super::sequence::Images;
use crate::kernels::activation::{Activation, gelu_by_f16};
use crate::model::Model;
use crate::tensor::{Matrix, Tensor};
use product::Weight;
use rounded::Quantised;

/// The steepest that an activation is: GeLU at 1.4.
const STEEPEST: f64 = 1.13;

/// Recorded rows, and the type in which they were recorded.
pub(super) struct Input {
    pub(super) rows: Matrix<f64>,
    pub(super) stored: Precision,
}

/// What is run.
#[derive(Clone, Copy)]
pub(super) struct Run<'m> {
    pub(super) model: &'m Model,
    /// The tokens, and where those of images stand.
    pub(super) ids: &'m [u32],
    pub(super) spans: &'m [Range<usize>],
    pub(super) images: &'m Images,
    /// The token of the first row.
    pub(super) first: usize,
}

/// An operation with what it takes in.
pub(super) struct Step<'m> {
    run: Run<'m>,
    operation: Operation<'m>,
    inputs: Vec<Input>,
    rounding: Rounding,
    /// Those of the map, or of every expert gate, up and down.
    weights: Vec<Weight<'m>>,
    /// The weight of a map whose activations are rounded to 8 bits.
    quantised: Option<Quantised<'m>>,
    /// Keys and values of all tokens, for attention.
    looked_back_at: Vec<Vec<Vec<Interval>>>,
}

impl<'m> Step<'m> {
    pub(super) fn new(
        run: Run<'m>,
        operation: Operation<'m>,
        inputs: Vec<Input>,
        rounding: Rounding,
    ) -> Self {
        let weights = match &operation.kind {
            Kind::Product(map) | Kind::Logits(map, _) => vec![Weight::new(map, rounding)],
            Kind::Experts(mixture) => mixture.weights(rounding),
            _ => vec![],
        };
        let mut step = Self {
            run,
            operation,
            inputs,
            rounding,
            weights,
            quantised: None,
            looked_back_at: vec![],
        };
        if let Kind::Mix(_) = step.operation.kind {
            let rows = 0..step.inputs[1].rows.rows();
            let all = |input: usize| rows.clone().map(|row| step.row(input, row)).collect();
            step.looked_back_at = vec![all(1), all(2)];
        }
        step
    }

    /// Has the activations of a map rounded to 8 bits from now on, as ggml does where the weight is quantised, and says to what;
    /// `None` where ggml does not. Of a recording that is coarser than f32 it is not known what was rounded.
    pub(super) fn round_activations(&mut self) -> Option<Activations> {
        let (Kind::Product(map) | Kind::Logits(map, _)) = self.operation.kind else {
            return None;
        };
        let compute = self.rounding.0;
        if compute != Precision::F32 || compute.coarsened_by(self.inputs[0].stored) {
            return None;
        }
        self.quantised = Quantised::new(&map.weight);
        self.quantised.as_ref().map(Quantised::activations)
    }

    /// The type that what it takes in last was recorded in, or the compute type.
    pub(super) fn stored(&self) -> Precision {
        let last = self.inputs.last();
        last.map_or(self.rounding.0, |input| input.stored)
    }

    /// What some rows of the outcome may be, one after the other.
    pub(super) fn rows(&self, rows: Range<usize>) -> Vec<Interval> {
        let mut outcome = self.replayed(rows.clone());
        let width = outcome.len() / rows.len().max(1);
        for (row, outcome) in rows.zip(outcome.chunks_mut(width.max(1))) {
            if !self.is_known(row) {
                outcome.fill(Interval::anything());
            }
        }
        outcome
    }

    /// Whether nothing overflowed in the recorded rows that a row of the outcome comes from.
    fn is_known(&self, row: usize) -> bool {
        let finite = |input: &Input, row: usize| input.rows.row(row).iter().all(|x| x.is_finite());
        let mut inputs = self.inputs.iter();
        match &self.operation.kind {
            Kind::Mix(attention) => {
                let seen = self.seen(attention, row);
                inputs.all(|input| seen.clone().all(|row| finite(input, row)))
            }
            Kind::Pool(grid) => {
                let mut patches = self.pooled(*grid, row);
                patches.all(|patch| finite(&self.inputs[0], patch))
            }
            Kind::PutImages => {
                let (input, row) = self.put(row);
                finite(&self.inputs[input], row)
            }
            _ => inputs.all(|input| finite(input, row)),
        }
    }

    /// What a recorded number may have been.
    fn recorded(&self, input: usize, x: f64) -> Interval {
        Interval::recorded(self.rounding.0, self.inputs[input].stored, x)
    }

    /// What the numbers of a recorded row may have been.
    fn row(&self, input: usize, row: usize) -> Vec<Interval> {
        let numbers = self.inputs[input].rows.row(row).iter();
        numbers.map(|&x| self.recorded(input, x)).collect()
    }

    fn replayed(&self, rows: Range<usize>) -> Vec<Interval> {
        match &self.operation.kind {
            Kind::Embedding => rows.flat_map(|row| self.embedding(row)).collect(),
            Kind::Pixels => rows.flat_map(|row| self.pixels(row)).collect(),
            Kind::Positions(table, first) => {
                let at = |row: usize| self.position(table, first + self.run.first + row);
                rows.flat_map(at).collect()
            }
            Kind::Pool(grid) => rows.flat_map(|row| self.pool(*grid, row)).collect(),
            Kind::PutImages => rows.flat_map(|row| self.put_images(row)).collect(),
            Kind::Norm(norm) => self.each(rows, |x| self.norm(norm, x)),
            Kind::Product(_) | Kind::Logits(_, None) => self.products(rows, |y| y),
            Kind::Logits(_, Some(cap)) => self.products(rows, |y| self.capped(y, *cap)),
            Kind::Rope(attention) => rows.flat_map(|row| self.rope(attention, row)).collect(),
            Kind::Mix(attention) => {
                let each = rows.into_par_iter().map(|row| self.mix(attention, row));
                each.flatten_iter().collect()
            }
            Kind::Activation(f) => self.each(rows, |x| {
                x.iter().map(|&x| self.activation(*f, x)).collect()
            }),
            Kind::Gated(f) => self.pairs(rows, |gate, up| self.activation(*f, gate).times(up)),
            Kind::Times => self.pairs(rows, Interval::times),
            Kind::Sum => rows.flat_map(|row| self.sum(row)).collect(),
            Kind::Experts(mixture) => self.experts(mixture, rows),
        }
    }

    fn each(
        &self,
        rows: Range<usize>,
        f: impl Fn(&[Interval]) -> Vec<Interval> + Sync,
    ) -> Vec<Interval> {
        let rows = rows.into_par_iter().map(|row| f(&self.row(0, row)));
        rows.flatten_iter().collect()
    }

    fn pairs(
        &self,
        rows: Range<usize>,
        f: impl Fn(Interval, Interval) -> Interval,
    ) -> Vec<Interval> {
        let pairs = rows.flat_map(|row| self.row(0, row).into_iter().zip(self.row(1, row)));
        pairs.map(|(a, b)| self.rounding.once(f(a, b))).collect()
    }

    fn embedding(&self, row: usize) -> Vec<Interval> {
        let (weight, factor) = self.embedding_factor();
        let mut x = vec![0.0; weight.cols()];
        weight.read_row(self.run.ids[self.run.first + row] as usize, &mut x);
        // The row is of the compute type before it is scaled.
        let scaled = x.into_iter().map(|x| self.rounding.stored(x).times(factor));
        scaled.map(|x| self.rounding.once(x)).collect()
    }

    fn position(&self, table: &Tensor, position: usize) -> Vec<Interval> {
        let mut x = vec![0.0; table.cols()];
        table.read_row(position, &mut x);
        x.into_iter().map(|x| self.rounding.stored(x)).collect()
    }

    /// The sum of the inputs from the left; in any order, but for the roundings of bf16 in between.
    fn sum(&self, row: usize) -> Vec<Interval> {
        let inputs: Vec<_> = (0..self.inputs.len()).map(|i| self.row(i, row)).collect();
        let columns = 0..inputs[0].len();
        let sums = columns.map(|column| {
            let mut terms = inputs.iter().map(|input| input[column]);
            let first = terms.next().unwrap_or(Interval::exactly(0.0));
            let mut sizes = first.size();
            terms.enumerate().fold(first, |sum, (i, term)| {
                sizes += term.size();
                if i == 0 {
                    return self.rounding.once(sum.plus(term));
                }
                let off = 2.0 * self.rounding.unit() * sizes;
                self.rounding.of(sum.plus(term).off(off))
            })
        });
        sums.collect()
    }

    /// The embedding, and what its rows are multiplied by.
    fn embedding_factor(&self) -> (&Tensor, Interval) {
        let (weight, factor) = self.run.model.embedding(self.rounding.0.pass());
        let factor = Interval::exactly(factor);
        match self.rounding.0 {
            Precision::F16 => (weight, self.rounding.of(factor)),
            // It is of the type that the model gives it, which is what a known bug is about.
            _ => (weight, factor),
        }
    }

    /// cap · tanh(x / cap), operation by operation.
    fn capped(&self, x: Interval, cap: f64) -> Interval {
        let x = self.rounding.once(x.map(|x| x / cap));
        let tanh = self.tanh(x);
        self.rounding.once(tanh.map(|tanh| cap * tanh))
    }

    fn tanh(&self, x: Interval) -> Interval {
        let tanh = x.map(libm::tanh);
        self.rounding.of(tanh.off(4.0 * self.rounding.unit()))
    }

    /// x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))), operation by operation.
    fn gelu_new(&self, x: Interval) -> Interval {
        let once = |x| self.rounding.once(x);
        let cube = once(once(x.times(x)).times(x));
        let sum = once(x.plus(once(cube.map(|x| 0.044_715 * x))));
        let tanh = self.tanh(once(sum.map(|x| std::f64::consts::FRAC_2_PI.sqrt() * x)));
        let one = once(tanh.map(|tanh| 1.0 + tanh));
        once(once(x.map(|x| 0.5 * x)).times(one))
    }

    fn activation(&self, f: Activation, x: Interval) -> Interval {
        if f == Activation::GeluNew {
            return self.gelu_new(x);
        }
        // 1 + tanh cancels for negative x: the error is one of x, not of the outcome.
        let off = 8.0 * self.rounding.unit() * x.size() + STEEPEST * x.half();
        let x = x.value;
        let y = match f {
            Activation::GeluByF16 => Interval {
                low: gelu_by_f16(x, -off),
                value: gelu_by_f16(x, 0.0),
                high: gelu_by_f16(x, off),
            },
            _ => Interval::around(f.apply(x), off),
        };
        self.rounding.of(y)
    }
}
