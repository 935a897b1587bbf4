//! Symmetric positive definite systems, in halves of halves whose sums are [`matmul`]'s: the same bits at every level and thread count.
//!
//! `nalgebra` would do it without bits that differ, and takes twenty times as long for the two thousand unknowns of a layer.

use std::ops::Range;

use rayon::prelude::*;

use crate::kernels::{Level, Rows, matmul};
use crate::tensor::Matrix;

/// Unknowns that are no longer divided.
const FEW: usize = 64;

/// Right sides at once: while they are gone through, they stay in a core's second cache.
const AT_ONCE: usize = 64;

/// A = L Lᵀ.
#[derive(Clone, Debug)]
pub(super) enum Cholesky {
    /// Of few unknowns L⁻¹, and the same transposed.
    Whole([Matrix<f64>; 2]),
    Halves(Box<Halves>),
}

/// Of many unknowns the halves of L: its squares, and what is below the first and beside the second.
#[derive(Clone, Debug)]
pub(super) struct Halves {
    first: Cholesky,
    below: Matrix<f64>,
    second: Cholesky,
}

impl Cholesky {
    /// Of a symmetric matrix, of which the lower triangle is read. `None` where it is not positive definite, which a NaN is not
    /// either.
    ///
    /// First the square of the first half, then what is below it, then the square of the second half without what the first
    /// takes of it.
    pub(super) fn new(level: Level, a: Matrix<f64>) -> Option<Self> {
        let n = a.rows();
        if n <= FEW {
            let inverse = inverse_transposed(&factor(a)?);
            return Some(Self::Whole([inverse.transposed(), inverse]));
        }
        let (front, back) = halves(n);
        let first = Self::new(level, part(&a, front.clone(), front.clone()))?;
        let below = first.half_solve(level, &part(&a, back.clone(), front));
        let mut left = part(&a, back.clone(), back);
        subtract(&mut left, &gram(level, &below));
        let second = Self::new(level, left)?;
        let halves = Halves {
            first,
            below,
            second,
        };
        Some(Self::Halves(Box::new(halves)))
    }

    /// A⁻¹ b for every row b of `b` `[rows, n]`.
    pub(super) fn solve(&self, level: Level, b: &Matrix<f64>) -> Matrix<f64> {
        self.other_half(level, &self.half_solve(level, b))
    }

    /// L⁻¹ b for every row b of `b` `[rows, n]`, of which bᵀ A⁻¹ b is the square.
    pub(super) fn half_solve(&self, level: Level, b: &Matrix<f64>) -> Matrix<f64> {
        let some = (0..b.rows())
            .step_by(AT_ONCE)
            .map(|start| start..b.rows().min(start + AT_ONCE));
        let some: Vec<_> = some.collect();
        let solved = some
            .into_par_iter()
            .map(|rows| self.half_solve_some(level, &b.slice_rows(rows)));
        Matrix::stack(b.cols(), solved.collect())
    }

    fn half_solve_some(&self, level: Level, b: &Matrix<f64>) -> Matrix<f64> {
        let halves = match self {
            Self::Whole([inverse, _]) => return matmul(level, b, inverse),
            Self::Halves(halves) => halves,
        };
        let [front, mut back] = columns_of_halves(b);
        let front = halves.first.half_solve_some(level, &front);
        subtract(&mut back, &matmul(level, &front, &halves.below));
        beside(&front, &halves.second.half_solve_some(level, &back))
    }

    /// L⁻ᵀ y for every row y of `y`.
    fn other_half(&self, level: Level, y: &Matrix<f64>) -> Matrix<f64> {
        let halves = match self {
            Self::Whole([_, transposed]) => return matmul(level, y, transposed),
            Self::Halves(halves) => halves,
        };
        let [mut front, back] = columns_of_halves(y);
        let back = halves.second.other_half(level, &back);
        subtract(
            &mut front,
            &matmul(level, &back, &halves.below.transposed()),
        );
        beside(&halves.first.other_half(level, &front), &back)
    }
}

/// A Aᵀ, of which the lower triangle and the squares on the diagonal are computed; what is above them is zero.
pub(super) fn gram(level: Level, a: &Matrix<f64>) -> Matrix<f64> {
    const BLOCK: usize = 128;
    let (n, cols) = (a.rows(), a.cols());
    let mut gram = Matrix::zeros(n, n);
    for start in (0..n).step_by(BLOCK) {
        let end = n.min(start + BLOCK);
        let before = Rows::Typed(&a.as_slice()[..end * cols], cols);
        let products = matmul(level, &a.slice_rows(start..end), before);
        for (row, products) in (start..end).zip(products.iter_rows()) {
            gram.row_mut(row)[..end].copy_from_slice(products);
        }
    }
    gram
}

/// The halves of n unknowns, which are more than [`FEW`].
fn halves(n: usize) -> (Range<usize>, Range<usize>) {
    let half = n.div_ceil(2).next_multiple_of(FEW);
    (0..half, half..n)
}

/// The columns of the halves.
fn columns_of_halves(b: &Matrix<f64>) -> [Matrix<f64>; 2] {
    let (front, back) = halves(b.cols());
    [front, back].map(|columns| part(b, 0..b.rows(), columns))
}

/// Some rows and columns of a matrix.
fn part(a: &Matrix<f64>, rows: Range<usize>, columns: Range<usize>) -> Matrix<f64> {
    let mut part = Matrix::recycled(rows.len(), columns.len());
    for (row, to) in rows.zip(part.iter_rows_mut()) {
        to.copy_from_slice(&a.row(row)[columns.clone()]);
    }
    part
}

/// The columns of two matrices.
fn beside(a: &Matrix<f64>, b: &Matrix<f64>) -> Matrix<f64> {
    let mut both = Matrix::recycled(a.rows(), a.cols() + b.cols());
    for (i, row) in both.iter_rows_mut().enumerate() {
        let (front, back) = row.split_at_mut(a.cols());
        front.copy_from_slice(a.row(i));
        back.copy_from_slice(b.row(i));
    }
    both
}

fn subtract(from: &mut Matrix<f64>, what: &Matrix<f64>) {
    let pairs = from.as_mut_slice().iter_mut().zip(what.as_slice());
    pairs.for_each(|(a, b)| *a -= b);
}

/// L, entry by entry; what is above its diagonal means nothing.
fn factor(mut a: Matrix<f64>) -> Option<Matrix<f64>> {
    let n = a.rows();
    for j in 0..n {
        let row_j = a.row(j)[..=j].to_vec();
        let pivot = row_j[..j].iter().fold(row_j[j], |left, l| left - l * l);
        if pivot.is_nan() || pivot <= 0.0 || pivot.is_infinite() {
            return None;
        }
        let root = pivot.sqrt();
        a.row_mut(j)[j] = root;
        for i in j + 1..n {
            let row = a.row_mut(i);
            let pairs = row[..j].iter().zip(&row_j);
            let left = pairs.fold(row[j], |left, (a, b)| left - a * b);
            row[j] = left / root;
        }
    }
    Some(a)
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
        for n in [1, 5, FEW, FEW + 1, 2 * FEW + 1, 5 * FEW - 7] {
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
        let n = 2 * FEW + 9;
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
        for (at, value) in [(0, -1.0), (FEW + 3, 0.0), (7, f64::NAN), (2, f64::INFINITY)] {
            let mut a = definite(FEW + 5);
            a.row_mut(at)[at] = value;
            assert!(Cholesky::new(Level::best(), a).is_none(), "{at} {value}");
        }
    }
}
