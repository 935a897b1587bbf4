//! The largest eigenvectors of a symmetric matrix without negative eigenvalues.

use rand_core::Rng;
use rand_pcg::Pcg64;

use crate::kernels::{Level, Rows, add_outer_products, matmul};
use crate::patch::lemmas::norm;
use crate::tensor::Matrix;

/// Vectors that are carried along beyond those that are asked for: the more, the faster the last of these are found.
const MORE: usize = 16;

/// Products with the matrix. What is left out of the best subspace shrinks with each by the ratio of two eigenvalues.
const ROUNDS: usize = 12;

/// Sweeps of Jacobi's method over a small matrix, which converges quadratically.
const SWEEPS: usize = 12;

/// The eigenvectors of the `count` largest eigenvalues of `a` `[n, n]`, as near as [`ROUNDS`] products bring them, the largest
/// first: `[count, n]`, orthonormal. Rows that there is nothing to be found for are zero.
pub(super) fn largest(level: Level, a: &Matrix<f64>, count: usize) -> Matrix<f64> {
    let n = a.rows();
    let carried = n.min(count + MORE);
    let mut random = Pcg64::new(1, 0);
    let numbers =
        (0..carried * n).map(|_| (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 - 0.5);
    let mut q = Matrix::from_vec(n, numbers.collect());
    orthonormalise(level, &mut q);
    for _ in 0..ROUNDS {
        q = matmul(level, &q, a);
        orthonormalise(level, &mut q);
    }
    // Within the subspace that is found, the eigenvectors exactly.
    let inside = matmul(level, &matmul(level, &q, a), &q);
    let turned = jacobi(inside);
    matmul(level, &turned.slice_rows(0..count), &q.transposed())
}

/// Makes rows orthonormal, each against all before it at once; twice, which rounding asks for. A row that is nothing but rounding beside
/// what it was becomes zero.
fn orthonormalise(level: Level, q: &mut Matrix<f64>) {
    let n = q.cols();
    for i in 0..q.rows() {
        let (before, rest) = q.as_mut_slice().split_at_mut(i * n);
        let row = &mut rest[..n];
        let length = norm(row);
        for _ in 0..2 {
            let along = matmul(level, &Matrix::from_slice(n, row), Rows::Typed(before, n));
            let taken: Vec<_> = along.as_slice().iter().map(|along| -along).collect();
            add_outer_products(level, &taken, before, n, row);
        }
        let left = norm(row);
        let keep = if left > 1e-14 * length {
            1.0 / left
        } else {
            0.0
        };
        row.iter_mut().for_each(|a| *a *= keep);
    }
}

/// The eigenvectors of a small symmetric matrix, as rows, that of the largest eigenvalue first.
fn jacobi(mut a: Matrix<f64>) -> Matrix<f64> {
    let n = a.rows();
    let mut vectors = Matrix::zeros(n, n);
    (0..n).for_each(|i| vectors.row_mut(i)[i] = 1.0);
    for _ in 0..SWEEPS {
        for p in 0..n {
            for q in p + 1..n {
                if let Some(turn) = Turn::new(a.row(p)[p], a.row(q)[q], a.row(p)[q]) {
                    turn.rows(&mut a, p, q);
                    turn.columns(&mut a, p, q);
                    turn.rows(&mut vectors, p, q);
                }
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a.row(j)[j].total_cmp(&a.row(i)[i]).then(i.cmp(&j)));
    let rows = order.iter().flat_map(|&i| vectors.row(i).to_vec());
    Matrix::from_vec(n, rows.collect())
}

/// A rotation of two coordinates.
struct Turn {
    cos: f64,
    sin: f64,
}

impl Turn {
    /// The one that makes a diagonal matrix of (pp, pq; pq, qq), unless it is one.
    fn new(pp: f64, qq: f64, pq: f64) -> Option<Self> {
        if pq == 0.0 {
            return None;
        }
        let theta = (qq - pp) / (2.0 * pq);
        let tan = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
        let cos = 1.0 / (tan * tan + 1.0).sqrt();
        Some(Self {
            cos,
            sin: tan * cos,
        })
    }

    fn pair(&self, a: f64, b: f64) -> (f64, f64) {
        (self.cos * a - self.sin * b, self.sin * a + self.cos * b)
    }

    fn rows(&self, a: &mut Matrix<f64>, p: usize, q: usize) {
        for column in 0..a.cols() {
            let turned = self.pair(a.row(p)[column], a.row(q)[column]);
            (a.row_mut(p)[column], a.row_mut(q)[column]) = turned;
        }
    }

    fn columns(&self, a: &mut Matrix<f64>, p: usize, q: usize) {
        for row in a.iter_rows_mut() {
            (row[p], row[q]) = self.pair(row[p], row[q]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Qᵀ diag(values) Q for an orthonormal Q.
    fn with_values(values: &[f64]) -> (Matrix<f64>, Matrix<f64>) {
        let n = values.len();
        let numbers = (0..n * n).map(|i| ((i * i * 7 + 3 * i) % 23) as f64 + (i % n) as f64);
        let mut q = Matrix::from_vec(n, numbers.collect());
        orthonormalise(Level::best(), &mut q);
        let mut scaled = q.transposed();
        for row in scaled.iter_rows_mut() {
            row.iter_mut()
                .zip(values)
                .for_each(|(x, value)| *x *= value);
        }
        (matmul(Level::best(), &scaled, &q.transposed()), q)
    }

    #[test]
    fn it_finds_the_largest() {
        let values: Vec<f64> = (0..60).map(|i| 0.7f64.powi(i)).collect();
        let (a, q) = with_values(&values);
        let found = largest(Level::best(), &a, 5);
        for (found, want) in found.iter_rows().zip(q.iter_rows()) {
            let along: f64 = found.iter().zip(want).map(|(a, b)| a * b).sum();
            assert!((along.abs() - 1.0).abs() < 1e-10, "{along}");
        }
    }

    #[test]
    fn what_is_not_there_is_zero() {
        let (a, _) = with_values(&[3.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
        let found = largest(Level::best(), &a, 4);
        let norms: Vec<_> = found.iter_rows().map(norm).collect();
        assert!(norms[..2].iter().all(|n| (n - 1.0).abs() < 1e-12));
        let product = matmul(Level::best(), &found, &a);
        assert!(
            product
                .slice_rows(2..4)
                .as_slice()
                .iter()
                .all(|x| x.abs() < 1e-12)
        );
    }
}
