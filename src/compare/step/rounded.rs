//! W x as ggml has it where W is quantised: x rounded to 8 bits, integers multiplied and summed block by block, and the sums of the
//! blocks in f32.

use bytes::Bytes;
use rayon::prelude::*;

use super::product::length;
use crate::compare::activations::{Activations, Rounded};
use crate::compare::interval::{Interval, Rounding};
use crate::kernels::{Level, matmul};
use crate::tensor::{Matrix, Storage, Tensor};

/// The least numbers whose products are summed as integers.
const BLOCK: usize = 32;

/// A quantised weight, of exactly the numbers that its blocks mean.
pub(super) struct Quantised<'m> {
    w: &'m Tensor,
    activations: Activations,
    /// What the numbers are where their codes are 0: a kernel may sum codes and offsets apart. `None` where it has no reason to.
    offsets: Option<Tensor>,
    /// Of every row the length of |w − offset| + |offset|, or more.
    lengths: Vec<f64>,
}

impl<'m> Quantised<'m> {
    /// `None` where the weight is not quantised.
    pub(super) fn new(w: &'m Tensor) -> Option<Self> {
        let activations = Activations::of(w.storage())?;
        let mut quantised = Self {
            w,
            activations,
            offsets: offsets(w),
            lengths: vec![],
        };
        let rows = (0..w.rows()).into_par_iter();
        let lengths = rows.map(|row| {
            let numbers = quantised.row(row).into_iter();
            match quantised.offsets(row) {
                Some(offsets) => length(numbers.zip(offsets).map(|(w, o)| w.abs() + 2.0 * o.abs())),
                None => length(numbers),
            }
        });
        quantised.lengths = lengths.collect();
        Some(quantised)
    }

    pub(super) fn activations(&self) -> Activations {
        self.activations
    }

    fn row(&self, row: usize) -> Vec<f64> {
        let mut numbers = vec![0.0; self.w.cols()];
        self.w.read_row(row, &mut numbers);
        numbers
    }

    fn offsets(&self, row: usize) -> Option<Vec<f64>> {
        let offsets = self.offsets.as_ref()?;
        let mut numbers = vec![0.0; offsets.cols()];
        offsets.read_row(row, &mut numbers);
        Some(numbers)
    }

    /// W x for every row of x.
    pub(super) fn apply(&self, x: &Matrix<f64>, rounding: Rounding) -> Vec<Interval> {
        let cols = self.w.cols();
        let rounded: Vec<_> = x.iter_rows().map(|x| self.activations.round(x)).collect();
        let numbers = rounded.iter().flat_map(|x| x.x.iter().copied()).collect();
        let x = Matrix::from_vec(cols, numbers);
        let y = matmul(Level::best(), &x, self.w);
        // What a block adds is rounded six times at most: d twice, the product of the scales, the integer, the product of both, and
        // where codes and offsets are summed apart, the sum of the two.
        let walk = rounding.walk(cols / BLOCK) + 6.0 * rounding.unit();
        let denormal = cols as f64 * f64::from(f32::MIN_POSITIVE);
        let sizes: Vec<_> = x
            .iter_rows()
            .map(|x| walk * length(x.iter().copied()))
            .collect();
        let columns = (0..self.w.rows()).into_par_iter().map(|row| {
            let column = y.iter_rows().map(|y| y[row]);
            let mut column: Vec<_> = column.map(Interval::exactly).collect();
            self.add_offsets(row, &rounded, &mut column);
            self.allow_ties(row, &rounded, &mut column);
            for (y, size) in column.iter_mut().zip(&sizes) {
                let off = size * self.lengths[row] + rounding.unit() * y.value.abs() + denormal;
                *y = y.off(off);
            }
            column
        });
        let columns: Vec<_> = columns.collect();
        let rows = 0..rounded.len();
        rows.flat_map(|row| columns.iter().map(move |column| column[row]))
            .collect()
    }

    /// What the sums that are kept for offsets change, where some are.
    fn add_offsets(&self, row: usize, rounded: &[Rounded], column: &mut [Interval]) {
        if rounded.iter().all(|x| x.sums.is_empty()) {
            return;
        }
        let offsets = self.offsets(row).unwrap_or_default();
        for (y, x) in column.iter_mut().zip(rounded) {
            for (&[low, value, high], offset) in x.sums.iter().zip(offsets.chunks(BLOCK)) {
                let sum = Interval { low, value, high };
                *y = y.plus(sum.times(Interval::exactly(offset[0])));
            }
        }
    }

    /// What activations change that may have been rounded to either side.
    fn allow_ties(&self, row: usize, rounded: &[Rounded], column: &mut [Interval]) {
        if rounded.iter().all(|x| x.ties.is_empty()) {
            return;
        }
        let w = self.row(row);
        for (y, x) in column.iter_mut().zip(rounded) {
            for &(place, step) in &x.ties {
                let change = w[place] * step;
                y.low += change.min(0.0);
                y.high += change.max(0.0);
            }
        }
    }
}

/// The weight with codes of 0, of the types whose codes ggml multiplies without their offset. The others' are signed.
fn offsets(w: &Tensor) -> Option<Tensor> {
    let codes = match w.storage() {
        Storage::Q4_1 => 4..20,
        Storage::Q5_1 => 4..24,
        Storage::Q2K => 16..80,
        Storage::Q4K => 16..144,
        Storage::Q5K => 16..176,
        Storage::Q6K => 0..192,
        _ => return None,
    };
    let mut blocks = w.bytes().to_vec();
    for block in blocks.chunks_mut(w.storage().block().bytes) {
        block[codes.clone()].fill(0);
    }
    Tensor::new(w.storage(), w.shape().into(), Bytes::from(blocks))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each number is its group's offset and a multiple of the group's scale, which is of one sign.
    #[test]
    fn codes_of_zero_leave_the_offsets() {
        for (storage, f16) in [
            (Storage::Q4_1, vec![0, 2]),
            (Storage::Q5_1, vec![0, 2]),
            (Storage::Q2K, vec![80, 82]),
            (Storage::Q4K, vec![0, 2]),
            (Storage::Q5K, vec![0, 2]),
            (Storage::Q6K, vec![208]),
        ] {
            let size = storage.block();
            let mut block: Vec<_> = (0..size.bytes)
                .map(|i| (i * i * 41 + 7 * i) as u8)
                .collect();
            for at in f16 {
                block[at..at + 2].copy_from_slice(&[0, 0x3c]);
            }
            let w = Tensor::new(storage, vec![size.numbers], block.into()).unwrap();
            let offsets = offsets(&w).unwrap().to_vec::<f64>();
            assert!(offsets.iter().any(|&offset| offset != 0.0), "{storage}");
            let w = w.to_vec::<f64>();
            assert_ne!(w, offsets, "{storage}");
            for (w, offsets) in w.chunks(16).zip(offsets.chunks(16)) {
                assert!(
                    offsets.iter().all(|&offset| offset == offsets[0]),
                    "{storage}"
                );
                let signs = w.iter().map(|w| w - offsets[0]).filter(|&code| code != 0.0);
                let signs: Vec<_> = signs.map(f64::signum).collect();
                assert!(signs.iter().all(|&sign| sign == signs[0]), "{storage}");
            }
        }
    }
}
