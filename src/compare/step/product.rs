//! W x + b.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::Step;
use crate::compare::Precision;
use crate::compare::interval::{Interval, Rounding};
use crate::kernels::{Level, matmul};
use crate::model::Linear;
use crate::tensor::{Matrix, Storage, Tensor};

impl Step<'_> {
    /// Some rows of the map's outcome, `finish`ed.
    pub(super) fn products(
        &self,
        rows: Range<usize>,
        finish: impl Fn(Interval) -> Interval + Send + Sync,
    ) -> Vec<Interval> {
        let Some(weight) = self.weights.first() else {
            return vec![];
        };
        let x = self.inputs[0].rows.slice_rows(rows);
        let sums = match &self.quantised {
            Some(quantised) => {
                let sums = quantised.apply(&x, self.rounding).into_iter().enumerate();
                let columns = weight.w.rows();
                let biased = |(i, y)| weight.with_bias(y, i % columns, self.rounding);
                sums.map(biased).collect()
            }
            None => {
                let halves = x.iter_rows();
                let halves = halves.map(|x| length(x.iter().map(|&x| self.recorded(0, x).half())));
                weight.apply(&x, &halves.collect::<Vec<_>>(), self.rounding)
            }
        };
        sums.into_par_iter().map(finish).collect()
    }
}

/// A weight as the compute type sees it, and the bias.
pub(super) struct Weight<'m> {
    w: Cow<'m, Tensor>,
    /// ‖w‖ of every row.
    norms: Vec<f64>,
    /// The length of what f16 takes from every row.
    lost: Vec<f64>,
    /// Empty where there is none.
    bias: Vec<Interval>,
    /// Whether W x is rounded before the bias is added.
    rounded_first: bool,
}

impl<'m> Weight<'m> {
    pub(super) fn new(map: &'m Linear, rounding: Rounding) -> Self {
        let stored = &map.weight;
        let w = match (rounding.0, stored.storage()) {
            (Precision::F64, _) | (_, Storage::Bf16) => Cow::Borrowed(stored),
            (Precision::Bf16, quantised) if quantised.is_quantised() => {
                Cow::Owned(narrowed(&narrowed(stored, Storage::F32), Storage::Bf16).into_owned())
            }
            (Precision::Bf16, _) => narrowed(stored, Storage::Bf16),
            (_, Storage::F32 | Storage::F16) => Cow::Borrowed(stored),
            // F64, or quantised: its f32 numbers are the exact ones rounded.
            (Precision::F32 | Precision::F16, _) => narrowed(stored, Storage::F32),
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
        let bias = map.bias.iter().flat_map(Tensor::to_vec::<f64>);
        Self {
            w,
            norms,
            lost,
            bias: bias.map(|b| rounding.stored(b)).collect(),
            rounded_first: map.form.rounded_first,
        }
    }

    /// W x + b for every row of x, which is off by a vector as long as `halves` says.
    pub(super) fn apply(
        &self,
        x: &Matrix<f64>,
        halves: &[f64],
        rounding: Rounding,
    ) -> Vec<Interval> {
        let w = &self.w;
        let y = matmul(Level::best(), x, w.as_ref());
        let walk = rounding.walk(w.cols());
        // Denormal numbers may count as zero.
        let denormal = w.cols() as f64 * f64::from(f32::MIN_POSITIVE);
        let rows = y.as_slice().par_chunks(w.rows());
        let rows = rows.zip(x.as_slice().par_chunks(w.cols())).zip(halves);
        let sums = rows.flat_map_iter(|((y, x), halves)| {
            let length = length(x.iter().copied());
            let columns = y.iter().zip(&self.norms).zip(&self.lost).enumerate();
            // Σ|wᵢ xᵢ| ≤ ‖w‖ ‖x‖, and so for what x and w may be off.
            columns.map(move |(column, ((&y, norm), lost))| {
                let off = walk * norm * length + rounding.unit() * y.abs() + denormal;
                let off = off + norm * halves + lost * length;
                self.with_bias(Interval::around(y, off), column, rounding)
            })
        });
        sums.collect()
    }

    fn with_bias(&self, y: Interval, column: usize, rounding: Rounding) -> Interval {
        let Some(&bias) = self.bias.get(column) else {
            return rounding.of(y);
        };
        let y = if self.rounded_first {
            rounding.of(y)
        } else {
            // One more term of the sum, which may begin with it, as in BLAS: the other terms then round at its size.
            y.off(rounding.walk(self.w.cols()) * bias.size())
        };
        rounding.once(y.plus(bias))
    }
}

/// √Σx².
pub(super) fn length(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.map(|x| x * x).sum::<f64>().sqrt()
}

/// A weight in a narrower type, each number rounded once.
fn narrowed(stored: &Tensor, storage: Storage) -> Cow<'_, Tensor> {
    let narrow = Tensor::from_f64(storage, stored.shape().into(), &stored.to_vec::<f64>());
    narrow.map_or(Cow::Borrowed(stored), Cow::Owned)
}
