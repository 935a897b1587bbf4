//! Symmetric positive definite systems, in blocks whose sums are [`matmul`]'s: the same bits at every level and thread count.
//!
//! `nalgebra` would do it without bits that differ, and takes twenty times as long for the two thousand unknowns of a layer.

use std::ops::Range;

use crate::kernels::{Level, Rows, matmul};
use crate::tensor::Matrix;

/// Rows and columns of a block.
const BLOCK: usize = 64;

/// A = L Lᵀ.
#[derive(Clone, Debug)]
pub(super) struct Cholesky {
    /// L `[n, n]`; what is above its squares on the diagonal means nothing.
    l: Matrix<f64>,
    /// Of each square on the diagonal its inverse, transposed.
    inverses: Vec<Matrix<f64>>,
}

impl Cholesky {
    /// Of a symmetric matrix, of which the lower triangle is read. `None` where it is not positive definite, which a NaN is not
    /// either.
    ///
    /// Block column by block column: first all that the columns before it take away, in one product, then the square on the
    /// diagonal entry by entry, then all rows below it times the inverse of the square.
    pub(super) fn new(level: Level, mut a: Matrix<f64>) -> Option<Self> {
        let n = a.rows();
        let mut inverses = Vec::with_capacity(n.div_ceil(BLOCK));
        for block in blocks(n) {
            if block.start > 0 {
                let before = columns(&a, block.start..n, 0..block.start);
                let rows = &before.as_slice()[..block.len() * block.start];
                let taken = matmul(level, &before, Rows::Typed(rows, block.start));
                let mut left = columns(&a, block.start..n, block.clone());
                subtract(&mut left, &taken);
                write(&mut a, block.start, block.start, &left);
            }
            factor_square(&mut a, block.clone())?;
            let inverse = inverse_transposed(&columns(&a, block.clone(), block.clone()));
            if block.end < n {
                let below = columns(&a, block.end..n, block.clone());
                let solved = matmul(level, &below, &inverse.transposed());
                write(&mut a, block.end, block.start, &solved);
            }
            inverses.push(inverse);
        }
        Some(Self { l: a, inverses })
    }

    /// A⁻¹ b for every row b of `b` `[rows, n]`.
    pub(super) fn solve(&self, level: Level, b: &Matrix<f64>) -> Matrix<f64> {
        let n = self.l.rows();
        let mut x = self.half_solve(level, b);
        for (block, inverse) in blocks(n).zip(&self.inverses).rev() {
            let mut left = columns(&x, 0..x.rows(), block.clone());
            if block.end < n {
                let done = columns(&x, 0..x.rows(), block.end..n);
                let l = columns(&self.l, block.end..n, block.clone()).transposed();
                subtract(&mut left, &matmul(level, &done, &l));
            }
            write(&mut x, 0, block.start, &matmul(level, &left, inverse));
        }
        x
    }

    /// L⁻¹ b for every row b of `b` `[rows, n]`, of which bᵀ A⁻¹ b is the square.
    pub(super) fn half_solve(&self, level: Level, b: &Matrix<f64>) -> Matrix<f64> {
        let mut y = b.clone();
        for (block, inverse) in blocks(self.l.rows()).zip(&self.inverses) {
            let mut left = columns(&y, 0..y.rows(), block.clone());
            if block.start > 0 {
                let done = columns(&y, 0..y.rows(), 0..block.start);
                let l = columns(&self.l, block.clone(), 0..block.start);
                subtract(&mut left, &matmul(level, &done, &l));
            }
            write(
                &mut y,
                0,
                block.start,
                &matmul(level, &left, &inverse.transposed()),
            );
        }
        y
    }
}

/// The blocks of n rows or columns.
fn blocks(n: usize) -> impl DoubleEndedIterator<Item = Range<usize>> + ExactSizeIterator {
    (0..n.div_ceil(BLOCK)).map(move |block| block * BLOCK..n.min((block + 1) * BLOCK))
}

/// Some rows and columns of a matrix.
fn columns(a: &Matrix<f64>, rows: Range<usize>, columns: Range<usize>) -> Matrix<f64> {
    let mut part = Matrix::recycled(rows.len(), columns.len());
    for (row, to) in rows.zip(part.iter_rows_mut()) {
        to.copy_from_slice(&a.row(row)[columns.clone()]);
    }
    part
}

/// Writes a part of a matrix, of which the first number has this row and column.
fn write(a: &mut Matrix<f64>, row: usize, column: usize, part: &Matrix<f64>) {
    for (row, part) in (row..).zip(part.iter_rows()) {
        a.row_mut(row)[column..column + part.len()].copy_from_slice(part);
    }
}

fn subtract(from: &mut Matrix<f64>, what: &Matrix<f64>) {
    let pairs = from.as_mut_slice().iter_mut().zip(what.as_slice());
    pairs.for_each(|(a, b)| *a -= b);
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

/// L⁻ᵀ of a lower triangle: row j is L⁻¹ e_j.
fn inverse_transposed(l: &Matrix<f64>) -> Matrix<f64> {
    let n = l.rows();
    let columns = l.transposed();
    let mut inverse = Matrix::zeros(n, n);
    for (j, row) in inverse.iter_rows_mut().enumerate() {
        row[j] = 1.0;
        for i in j..n {
            let (done, left) = row.split_at_mut(i + 1);
            let column = &columns.row(i)[i..];
            done[i] /= column[0];
            let pairs = left.iter_mut().zip(&column[1..]);
            pairs.for_each(|(left, l)| *left -= done[i] * l);
        }
    }
    inverse
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
