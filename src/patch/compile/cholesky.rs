//! Symmetric positive definite systems, in blocks whose sums are [`matmul`]'s: the same bits at every level and thread count.
//!
//! `nalgebra` would do it without bits that differ, and takes twenty times as long for the two thousand unknowns of a layer.

use std::ops::Range;

use rayon::prelude::*;

use crate::kernels::{Level, matmul};
use crate::tensor::Matrix;

/// Rows and columns of a block.
const BLOCK: usize = 64;

/// A = L Lᵀ.
#[derive(Clone, Debug)]
pub(super) struct Cholesky {
    /// L `[n, n]`; what is above its diagonal means nothing.
    l: Matrix<f64>,
}

impl Cholesky {
    /// Of a symmetric matrix, of which the lower triangle is read. `None` where it is not positive definite, which a NaN is not
    /// either.
    ///
    /// Block column by block column: first all that the columns before it take away, in one product, then the square on the
    /// diagonal entry by entry, then each row below it.
    pub(super) fn new(level: Level, mut a: Matrix<f64>) -> Option<Self> {
        let n = a.rows();
        for start in (0..n).step_by(BLOCK) {
            let end = n.min(start + BLOCK);
            if start > 0 {
                let before = columns(&a, start..n, 0..start);
                let taken = matmul(level, &before, &before.slice_rows(0..end - start));
                for (row, taken) in (start..n).zip(taken.iter_rows()) {
                    let row = &mut a.row_mut(row)[start..end];
                    row.iter_mut().zip(taken).for_each(|(a, taken)| *a -= taken);
                }
            }
            factor_square(&mut a, start..end)?;
            let square = columns(&a, start..end, start..end);
            let below = &mut a.as_mut_slice()[end * n..];
            below.par_chunks_mut(n).for_each(|row| {
                forward(&square, &mut row[start..end]);
            });
        }
        Some(Self { l: a })
    }

    /// A⁻¹ b for every row b of `b` `[rows, n]`.
    pub(super) fn solve(&self, level: Level, b: &Matrix<f64>) -> Matrix<f64> {
        let n = self.l.rows();
        let mut x = b.clone();
        let starts = || {
            (0..n)
                .step_by(BLOCK)
                .map(|start| start..n.min(start + BLOCK))
        };
        for block in starts() {
            if block.start > 0 {
                let done = columns(&x, 0..x.rows(), 0..block.start);
                let l = columns(&self.l, block.clone(), 0..block.start);
                subtract(&mut x, block.start, &matmul(level, &done, &l));
            }
            let square = columns(&self.l, block.clone(), block.clone());
            let rows = x.as_mut_slice().par_chunks_mut(n);
            rows.for_each(|row| forward(&square, &mut row[block.clone()]));
        }
        for block in starts().rev() {
            if block.end < n {
                let done = columns(&x, 0..x.rows(), block.end..n);
                let l = columns(&self.l, block.end..n, block.clone()).transposed();
                subtract(&mut x, block.start, &matmul(level, &done, &l));
            }
            let square = columns(&self.l, block.clone(), block.clone());
            let rows = x.as_mut_slice().par_chunks_mut(n);
            rows.for_each(|row| backward(&square, &mut row[block.clone()]));
        }
        x
    }
}

/// Some rows and columns of a matrix.
fn columns(a: &Matrix<f64>, rows: Range<usize>, columns: Range<usize>) -> Matrix<f64> {
    let mut part = Matrix::recycled(rows.len(), columns.len());
    for (row, to) in rows.zip(part.iter_rows_mut()) {
        to.copy_from_slice(&a.row(row)[columns.clone()]);
    }
    part
}

/// Takes `taken` from the columns of `x` that begin at `start`.
fn subtract(x: &mut Matrix<f64>, start: usize, taken: &Matrix<f64>) {
    for (x, taken) in x.iter_rows_mut().zip(taken.iter_rows()) {
        let x = &mut x[start..start + taken.len()];
        x.iter_mut().zip(taken).for_each(|(x, taken)| *x -= taken);
    }
}

/// Factors a square on the diagonal, from which everything before it is taken already.
fn factor_square(a: &mut Matrix<f64>, square: Range<usize>) -> Option<()> {
    let start = square.start;
    for j in square.clone() {
        let row_j = a.row(j)[start..=j].to_vec();
        let pivot = row_j[..j - start]
            .iter()
            .fold(row_j[j - start], |left, l| left - l * l);
        if pivot.is_nan() || pivot <= 0.0 || pivot.is_infinite() {
            return None;
        }
        let root = pivot.sqrt();
        a.row_mut(j)[j] = root;
        for i in j + 1..square.end {
            let row = &mut a.row_mut(i)[start..=j];
            let pairs = row[..j - start].iter().zip(&row_j);
            let left = pairs.fold(row[j - start], |left, (a, b)| left - a * b);
            row[j - start] = left / root;
        }
    }
    Some(())
}

/// L⁻¹ b in place, for the lower triangle of a square.
fn forward(l: &Matrix<f64>, b: &mut [f64]) {
    for i in 0..b.len() {
        let row = l.row(i);
        let left = row[..i]
            .iter()
            .zip(&*b)
            .fold(b[i], |left, (l, b)| left - l * b);
        b[i] = left / row[i];
    }
}

/// L⁻ᵀ b in place.
fn backward(l: &Matrix<f64>, b: &mut [f64]) {
    for i in (0..b.len()).rev() {
        b[i] /= l.row(i)[i];
        let (before, at) = b.split_at_mut(i);
        for (b, l) in before.iter_mut().zip(l.row(i)) {
            *b -= l * at[0];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BᵀB + I, which is well conditioned, of `n` rows.
    fn definite(n: usize) -> Matrix<f64> {
        let number = |i: usize| ((i * i * 7 + 3 * i) % 23) as f64 / 11.0 - 1.0;
        let b = Matrix::from_vec(n, (0..n * n).map(number).collect());
        let mut a = matmul(Level::best(), &b, &b);
        (0..n).for_each(|i| a.row_mut(i)[i] += 1.0);
        a
    }

    #[test]
    fn it_solves() {
        for n in [1, 5, BLOCK, BLOCK + 1, 3 * BLOCK - 7] {
            let a = definite(n);
            let want = Matrix::from_vec(n, (0..3 * n).map(|i| (i as f64).sin()).collect());
            let b = matmul(Level::best(), &want, &a);
            let cholesky = Cholesky::new(Level::best(), a).unwrap();
            let x = cholesky.solve(Level::best(), &b);
            for (x, want) in x.as_slice().iter().zip(want.as_slice()) {
                assert!((x - want).abs() < 1e-9, "{n}: {x} {want}");
            }
        }
    }

    #[test]
    fn every_level_and_thread_count_gives_the_same_bits() {
        let n = 2 * BLOCK + 9;
        let b = Matrix::from_vec(n, (0..3 * n).map(|i| (i as f64).cos()).collect());
        let bits = |level, threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let x = pool.install(|| {
                let cholesky = Cholesky::new(level, definite(n)).unwrap();
                cholesky.solve(level, &b)
            });
            x.as_slice().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let want = bits(Level::Scalar, 1);
        for level in Level::available() {
            for threads in [1, 3] {
                assert_eq!(bits(level, threads), want, "{level} {threads}");
            }
        }
    }

    #[test]
    fn what_is_not_definite_is_refused() {
        for (at, value) in [
            (0, -1.0),
            (BLOCK + 3, 0.0),
            (7, f64::NAN),
            (2, f64::INFINITY),
        ] {
            let mut a = definite(BLOCK + 5);
            a.row_mut(at)[at] = value;
            assert!(Cholesky::new(Level::best(), a).is_none(), "{at} {value}");
        }
    }
}
