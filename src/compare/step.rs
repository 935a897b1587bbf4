//! An operation worked out on what another engine recorded: what each number of its outcome may be.
//!
//! It is worked out in f64, with the roundings that the compute type asks for. What an engine may be off by is what its own
//! roundings in between may come to: a sum of n terms is off by √n u Σ|terms| in whatever order it is added up (n
//! roundings as a random walk), every other operation by a few u. bf16 then rounds to one number, or to either of two where
//! the error reaches over the boundary between them. What was recorded in a coarser type than it was computed in stands for all
//! numbers that round to it.

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::Precision;
use super::interval::{Interval, Rounding};
use super::operation::{Kind, Operation};
use crate::checkpoint::form::{NormKind, RopePairing};
use crate::kernels::activation::{Activation, gelu_by_f16};
use crate::kernels::{Level, matmul};
use crate::model::{Attention, Linear, Model, Norm};
use crate::tensor::{Matrix, Storage, Tensor};

/// The steepest that an activation is: GeLU at 1.4.
const STEEPEST: f64 = 1.13;

/// Recorded rows, and the type in which they were recorded.
pub(super) struct Input {
    pub(super) rows: Matrix<f64>,
    pub(super) stored: Precision,
}

/// An operation with what it takes in.
pub(super) struct Step<'m> {
    pub(super) model: &'m Model,
    pub(super) operation: Operation<'m>,
    /// The tokens of the rows, and the position of the first.
    pub(super) tokens: &'m [u32],
    pub(super) first_position: usize,
    pub(super) inputs: Vec<Input>,
    pub(super) rounding: Rounding,
    weight: Option<Weight<'m>>,
    /// Keys and values of all tokens, for attention.
    looked_back_at: Vec<Vec<Vec<Interval>>>,
}

impl<'m> Step<'m> {
    pub(super) fn new(
        model: &'m Model,
        operation: Operation<'m>,
        (tokens, first_position): (&'m [u32], usize),
        inputs: Vec<Input>,
        rounding: Rounding,
    ) -> Self {
        let weight = match operation.kind {
            Kind::Product(map) | Kind::Logits(map, _) => Some(Weight::new(map, rounding)),
            _ => None,
        };
        let mut step = Self {
            model,
            operation,
            tokens,
            first_position,
            inputs,
            rounding,
            weight,
            looked_back_at: vec![],
        };
        if step.operation.looks_back() {
            let rows = 0..step.inputs[1].rows.rows();
            let all = |input: usize| rows.clone().map(|row| step.row(input, row)).collect();
            step.looked_back_at = vec![all(1), all(2)];
        }
        step
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
        let rows = match self.operation.kind {
            Kind::Mix(attention) => seen(attention, row),
            _ => row..row + 1,
        };
        let mut inputs = self.inputs.iter();
        inputs.all(|input| {
            let numbers = rows.clone().flat_map(|row| input.rows.row(row));
            numbers.into_iter().all(|x| x.is_finite())
        })
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
        match self.operation.kind {
            Kind::Embedding => rows.flat_map(|row| self.embedding(row)).collect(),
            Kind::Norm(norm) => self.each(rows, |x| self.norm(norm, x)),
            Kind::Product(_) | Kind::Logits(_, None) => {
                self.products(rows, |y| self.rounding.of(y))
            }
            Kind::Logits(_, Some(cap)) => {
                self.products(rows, |y| self.capped(self.rounding.of(y), cap))
            }
            Kind::Rope(attention) => rows.flat_map(|row| self.rope(attention, row)).collect(),
            Kind::Mix(attention) => {
                let each = rows.into_par_iter().map(|row| self.mix(attention, row));
                each.flatten_iter().collect()
            }
            Kind::Activation(f) => {
                self.each(rows, |x| x.iter().map(|&x| self.activation(f, x)).collect())
            }
            Kind::Gated(f) => self.pairs(rows, |gate, up| self.activation(f, gate).times(up)),
            Kind::Times => self.pairs(rows, Interval::times),
            Kind::Plus => self.pairs(rows, Interval::plus),
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
        weight.read_row(self.tokens[row] as usize, &mut x);
        // The row is of the compute type before it is scaled.
        let scaled = x.into_iter().map(|x| self.narrow(x).times(factor));
        scaled.map(|x| self.rounding.once(x)).collect()
    }

    /// The embedding, and what its rows are multiplied by.
    fn embedding_factor(&self) -> (&Tensor, Interval) {
        let (weight, factor) = self.model.embedding(self.rounding.0.pass());
        let factor = Interval::exactly(factor);
        match self.rounding.0 {
            Precision::F16 => (weight, self.rounding.of(factor)),
            // It is of the type that the model gives it, which is what a known bug is about.
            _ => (weight, factor),
        }
    }

    /// A number of the model in the compute type, or in f16 either of that and of what f32 makes of it.
    fn narrow(&self, x: f64) -> Interval {
        match self.rounding.0 {
            Precision::F16 => self.rounding.of(Interval::exactly(x)),
            _ => Interval::exactly(self.rounding.nearest(x)),
        }
    }

    /// u · (mean(u²) + ε)^−½ · m: the mean of squares has no cancellation, and everything after it is one operation
    /// each.
    fn norm(&self, norm: &Norm, u: &[Interval]) -> Vec<Interval> {
        let scale = self.scale(norm);
        let relative = self.rounding.walk(scale.len()) + 8.0 * self.rounding.unit();
        let heads = u.chunks_exact(scale.len());
        let normed = heads.flat_map(|u| {
            let squares = |of: fn(&Interval) -> f64| {
                let mean = u.iter().map(|u| of(u).powi(2)).sum::<f64>() / u.len() as f64;
                (mean + norm.eps()).sqrt().recip()
            };
            let inverse = Interval {
                low: squares(|u| u.size()),
                value: squares(|u| u.value),
                high: squares(|u| u.least_size()),
            };
            u.iter().zip(&scale).map(move |(&u, &m)| {
                let n = u.times(inverse);
                let n = n.off(relative * n.size());
                let n = match norm.form.kind {
                    NormKind::Rms { rounded_first, .. } if rounded_first => self.rounding.of(n),
                    _ => n,
                };
                self.rounding.of(n.times(Interval::exactly(m)))
            })
        });
        normed.collect()
    }

    fn scale(&self, norm: &Norm) -> Vec<f64> {
        match self.rounding.0 {
            Precision::F64 | Precision::F32 | Precision::F16 => norm.scale::<f64>(),
            Precision::Bf16 => norm.scale::<bf16>().into_iter().map(f64::from).collect(),
        }
    }

    fn products(
        &self,
        rows: Range<usize>,
        finish: impl Fn(Interval) -> Interval + Sync,
    ) -> Vec<Interval> {
        let Some(Weight { w, norms, lost }) = &self.weight else {
            return vec![];
        };
        let x = self.inputs[0].rows.slice_rows(rows);
        let y = matmul(Level::best(), &x, w.as_ref());
        let walk = self.rounding.walk(w.cols());
        // Denormal numbers may count as zero.
        let denormal = w.cols() as f64 * f64::from(f32::MIN_POSITIVE);
        let rows = y.as_slice().par_chunks(w.rows());
        let rows = rows.zip(x.as_slice().par_chunks(w.cols()));
        let sums = rows.flat_map_iter(|(y, x)| {
            let finish = &finish;
            let length = length(x.iter().copied());
            let halves = length_of_halves(x, |x| self.recorded(0, x));
            // Σ|wᵢ xᵢ| ≤ ‖w‖ ‖x‖, and so for what x and w may be off.
            y.iter()
                .zip(norms)
                .zip(lost)
                .map(move |((&y, norm), lost)| {
                    let off = walk * norm * length + self.rounding.unit() * y.abs() + denormal;
                    let off = off + norm * halves + lost * length;
                    finish(Interval::around(y, off))
                })
        });
        sums.collect()
    }

    fn capped(&self, x: Interval, cap: f64) -> Interval {
        let capped = x.map(|x| cap * libm::tanh(x / cap));
        self.rounding
            .of(capped.off(4.0 * self.rounding.unit() * cap))
    }

    fn activation(&self, f: Activation, x: Interval) -> Interval {
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

    /// q · cos + rotate_half(q) · sin, head by head.
    fn rope(&self, attention: &Attention, row: usize) -> Vec<Interval> {
        let cos_sin = self.cos_sin(attention, self.first_position + row);
        let once = |x| self.rounding.once(x);
        let mut out = Vec::new();
        for head in self.row(0, row).chunks_exact(attention.form.head_dim) {
            let half = head.len() / 2;
            let interleaved =
                attention.form.rope.map(|rope| rope.pairing) == Some(RopePairing::Interleaved);
            let place = |i: usize| {
                if interleaved {
                    (2 * i, 2 * i + 1)
                } else {
                    (i, i + half)
                }
            };
            let mut rotated = vec![Interval::exactly(0.0); head.len()];
            for (i, &(cos, sin)) in cos_sin.iter().enumerate() {
                let (a, b) = place(i);
                let [x, y] = [head[a], head[b]];
                rotated[a] = once(once(x.times(cos)).minus(once(y.times(sin))));
                rotated[b] = once(once(y.times(cos)).plus(once(x.times(sin))));
            }
            out.extend(rotated);
        }
        out
    }

    /// cos and sin at a position. Engines work out the angle in the type of sums: θ to a power, or a product of up to i
    /// factors, is off by as many u and ln θ (below 16) more.
    fn cos_sin(&self, attention: &Attention, position: usize) -> Vec<(Interval, Interval)> {
        let Some(rotation) = &attention.rotation else {
            return Vec::new();
        };
        let (cos, sin) = rotation.at(position);
        let angles = rotation.angles(position);
        let turns = cos.iter().zip(&sin).zip(angles).enumerate();
        let of = |x: f64, off: f64| self.rounding.of(Interval::around(x, off));
        turns
            .map(|(i, ((&cos, &sin), angle))| {
                let off = self.rounding.unit() * ((2 * i + 16) as f64 * angle + 2.0);
                (of(cos, off), of(sin, off))
            })
            .collect()
    }

    /// softmax(q kᵀ · scaling) v of one token, all heads.
    fn mix(&self, attention: &Attention, row: usize) -> Vec<Interval> {
        let seen = seen(attention, row);
        let width = attention.form.head_dim;
        let q = self.row(0, row);
        let [keys, values] = [0, 1].map(|i| &self.looked_back_at[i][seen.clone()]);
        let group = q.len() / keys[0].len();
        let heads = q.chunks_exact(width).enumerate();
        heads
            .flat_map(|(head, q)| {
                let of = head / group * width..(head / group + 1) * width;
                let scores = keys
                    .iter()
                    .map(|k| self.score(attention, q, &k[of.clone()]));
                let p = self.probabilities(&scores.collect::<Vec<_>>());
                let values: Vec<_> = values.iter().map(|v| &v[of.clone()]).collect();
                self.average(&p, &values)
            })
            .collect()
    }

    fn score(&self, attention: &Attention, q: &[Interval], k: &[Interval]) -> Interval {
        let (mut sum, mut sizes, mut off) = (0.0, 0.0, 0.0);
        for (q, k) in q.iter().zip(k) {
            sum += q.value * k.value;
            sizes += (q.value * k.value).abs();
            off += q.times(*k).half();
        }
        let walk = self.rounding.walk(q.len()) * sizes;
        let product = self.rounding.of(Interval::around(sum, walk + off));
        let scaling = Interval::exactly(attention.form.scaling);
        let scaling = scaling.off(self.rounding.unit() * attention.form.scaling);
        let score = self.rounding.once(product.times(scaling));
        match attention.form.softcap {
            None => score,
            Some(cap) => self.capped(score, cap),
        }
    }

    /// The largest p there may be has its own score at its highest and all others at their lowest.
    fn probabilities(&self, scores: &[Interval]) -> Vec<Interval> {
        let most = scores
            .iter()
            .fold(f64::NEG_INFINITY, |most, s| most.max(s.value));
        let e: Vec<_> = scores.iter().map(|s| s.map(|s| (s - most).exp())).collect();
        let sum = |of: fn(&Interval) -> f64| e.iter().map(of).sum::<f64>();
        let (low, value, high) = (sum(|e| e.low), sum(|e| e.value), sum(|e| e.high));
        let of_each = scores.iter().zip(&e).map(|(s, e)| {
            let share = |e: f64, others: f64| {
                if e == 0.0 {
                    0.0
                } else {
                    e / (e + others.max(0.0))
                }
            };
            let p = Interval {
                low: share(e.low, high - e.high),
                value: e.value / value,
                high: share(e.high, low - e.low),
            };
            // An error of the exponent is a relative one of the power.
            let exponent = self.rounding.unit() * ((s.value - most).abs() + 8.0);
            self.rounding
                .of(p.off((exponent + self.rounding.walk(scores.len())) * p.high))
        });
        of_each.collect()
    }

    /// Σ pⱼ vⱼ.
    fn average(&self, p: &[Interval], values: &[&[Interval]]) -> Vec<Interval> {
        let mut sums = vec![Interval::exactly(0.0); values[0].len()];
        let mut sizes = vec![0.0; sums.len()];
        for (p, v) in p.iter().zip(values) {
            for ((sum, size), &v) in sums.iter_mut().zip(&mut sizes).zip(*v) {
                let term = p.times(v);
                *sum = sum.plus(term);
                *size += term.size();
            }
        }
        let walk = self.rounding.walk(p.len()) + self.rounding.unit();
        let sums = sums.into_iter().zip(sizes);
        sums.map(|(sum, size)| self.rounding.of(sum.off(walk * size)))
            .collect()
    }
}

/// The tokens that attention sees from a row on.
fn seen(attention: &Attention, row: usize) -> Range<usize> {
    let window = attention.form.window.unwrap_or(usize::MAX);
    (row + 1).saturating_sub(window)..row + 1
}

/// A weight as the compute type sees it.
struct Weight<'m> {
    w: Cow<'m, Tensor>,
    /// ‖w‖ of every row.
    norms: Vec<f64>,
    /// The length of what f16 takes from every row.
    lost: Vec<f64>,
}

impl<'m> Weight<'m> {
    fn new(map: &'m Linear, rounding: Rounding) -> Self {
        let stored = &map.weight;
        let w = match (rounding.0, stored.storage()) {
            (Precision::Bf16, Storage::F64 | Storage::F32 | Storage::F16) => {
                narrowed(stored, Storage::Bf16)
            }
            (Precision::F32 | Precision::F16, Storage::F64) => narrowed(stored, Storage::F32),
            _ => Cow::Borrowed(stored),
        };
        let lost = |w: f64| match rounding.0 {
            Precision::F16 => w - rounding.nearest(w),
            _ => 0.0,
        };
        let lengths = |row: usize| {
            let mut numbers = vec![0.0; w.cols()];
            w.read_row(row, &mut numbers);
            let numbers = numbers.iter().copied();
            (length(numbers.clone()), length(numbers.map(lost)))
        };
        let (norms, lost) = (0..w.rows()).into_par_iter().map(lengths).unzip();
        Self { w, norms, lost }
    }
}

fn length(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.map(|x| x * x).sum::<f64>().sqrt()
}

/// The length of what recorded numbers may be off.
fn length_of_halves(numbers: &[f64], recorded: impl Fn(f64) -> Interval) -> f64 {
    length(numbers.iter().map(|&x| recorded(x).half()))
}

/// A weight in a narrower type, each number rounded once.
fn narrowed(stored: &Tensor, storage: Storage) -> Cow<'_, Tensor> {
    let narrow = Tensor::from_f64(storage, stored.shape().into(), &stored.to_vec::<f64>());
    narrow.map_or(Cow::Borrowed(stored), Cow::Owned)
}
