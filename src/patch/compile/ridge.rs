//! The change of a linear map by weighted least squares, held small: ΔW = (Σ ω δ hᵀ)(Σ ω h hᵀ + λI)⁻¹.

use rayon::prelude::*;

use super::cholesky::{Cholesky, gram};
use super::eigen::largest;
use crate::kernels::{Level, dot, matmul};
use crate::patch::lemmas::{check_finite, norm};
use crate::patch::{LowRank, Precondition};
use crate::tensor::Matrix;

/// What a linear map is to add on some inputs.
pub(super) struct Rows {
    /// h `[rows, in]`.
    pub(super) h: Matrix<f64>,
    /// δ `[rows, out]`: what ΔW h is to be.
    pub(super) delta: Matrix<f64>,
    /// ω, how much each row counts.
    pub(super) weights: Vec<f64>,
}

/// What the change must leave alone, how far it is held small, and what counts of it.
pub(super) struct Ridge<'a> {
    /// An input on which ΔW is zero: the token that begins every sequence, whose state is much longer than all others.
    pub(super) still: Option<&'a [f64]>,
    /// λ in units of ‖S‖²_F / tr S.
    pub(super) lambda: f64,
    /// The rank of ΔW; 0 is all.
    pub(super) rank: usize,
    /// By what each coordinate of ΔW h is multiplied behind it: M, in which the parts of ΔW that are left out are least.
    pub(super) scale: Option<&'a [f64]>,
}

impl Ridge<'_> {
    /// ΔW.
    ///
    /// # Errors
    ///
    /// Numbers that are not finite, and inputs that are all zero.
    pub(super) fn solve(&self, level: Level, rows: Rows) -> Result<LowRank, Precondition> {
        check_finite("h", rows.h.as_slice())?;
        check_finite("δ", rows.delta.as_slice())?;
        check_finite("ω", &rows.weights)?;
        let (h, delta) = self.weighted(level, rows);
        // S or H Hᵀ, whichever is smaller; both have the same trace and norm.
        let dual = h.rows() < h.cols();
        let h_t = h.transposed();
        let mut gram = gram(level, if dual { &h } else { &h_t });
        let trace: f64 = (0..gram.rows()).map(|i| gram.row(i)[i]).sum();
        let lambda = self.lambda * square_norm(&gram) / trace;
        let fail = |quantity: &str, value| Precondition {
            quantity: quantity.into(),
            value,
        };
        if !lambda.is_finite() || trace <= 0.0 {
            return Err(fail("tr Σ ω h hᵀ", trace));
        }
        (0..gram.rows()).for_each(|i| gram.row_mut(i)[i] += lambda);
        let cholesky = Cholesky::new(level, gram)
            .ok_or_else(|| fail("λ, too small for Σ ω h hᵀ + λI to have an inverse,", lambda))?;
        let mut right = delta.transposed();
        if !dual {
            right = matmul(level, &right, &h_t);
        }
        let system = System {
            cholesky,
            right,
            lambda: dual.then_some(lambda),
        };
        let mut change = self.low_rank(level, &system);
        check_finite("ΔW", change.v.as_slice())?;
        if dual {
            change.v = matmul(level, &change.v, &h_t);
        }
        check_finite("U", change.u.as_slice())?;
        check_finite("V", change.v.as_slice())?;
        Ok(change)
    }

    /// √ω h without what is along `still`, and √ω δ.
    fn weighted(&self, level: Level, rows: Rows) -> (Matrix<f64>, Matrix<f64>) {
        let Rows {
            mut h,
            mut delta,
            weights,
        } = rows;
        let still = self
            .still
            .map(|still| (still, norm(still)))
            .filter(|(_, norm)| *norm > 0.0);
        let (h_cols, delta_cols) = (h.cols(), delta.cols());
        let h_rows = h.as_mut_slice().par_chunks_mut(h_cols);
        let delta_rows = delta.as_mut_slice().par_chunks_mut(delta_cols);
        let rows = h_rows.zip(delta_rows).zip(&weights);
        rows.for_each(|((h, delta), weight)| {
            if let Some((still, norm)) = still {
                let along = dot(level, h, still) / norm / norm;
                h.iter_mut().zip(still).for_each(|(h, q)| *h -= along * q);
            }
            let root = weight.sqrt();
            h.iter_mut().chain(delta).for_each(|x| *x *= root);
        });
        (h, delta)
    }

    /// ΔW, with the dual system before its factor H; where a rank is asked for, the part that counts most behind it: M⁻¹ U Uᵀ M ΔW,
    /// where U has the largest eigenvectors of M ΔW (S + λI) ΔWᵀ M.
    fn low_rank(&self, level: Level, system: &System) -> LowRank {
        let out = system.right.rows();
        if self.rank == 0 || self.rank >= out {
            let mut u = Matrix::zeros(out, out);
            (0..out).for_each(|i| u.row_mut(i)[i] = 1.0);
            let v = system.cholesky.solve(level, &system.right);
            return LowRank { u, v };
        }
        let m = self.scale.map_or_else(|| vec![1.0; out], <[f64]>::to_vec);
        let mut square = system.square(level);
        for (row, m_row) in square.iter_rows_mut().zip(&m) {
            for (x, m) in row.iter_mut().zip(&m) {
                *x *= m_row * m;
            }
        }
        let vectors = largest(level, &square, self.rank);
        let scaled = |by: &dyn Fn(f64, f64) -> f64| {
            let mut scaled = vectors.clone();
            for row in scaled.iter_rows_mut() {
                row.iter_mut().zip(&m).for_each(|(x, m)| *x = by(*x, *m));
            }
            scaled
        };
        // Uᵀ M before all rows of ΔW are solved for: so many fewer are.
        let of_rank = matmul(level, &scaled(&|x, m| x * m), &system.right.transposed());
        LowRank {
            u: scaled(&|x, m| x / m).transposed(),
            v: system.cholesky.solve(level, &of_rank),
        }
    }
}

/// ΔW = B A⁻¹ with A = S + λI, or ΔW = B A⁻¹ H with A = H Hᵀ + λI: the dual system.
struct System {
    cholesky: Cholesky,
    /// B `[out, n]`.
    right: Matrix<f64>,
    /// λ, of the dual system.
    lambda: Option<f64>,
}

impl System {
    /// ΔW (S + λI) ΔWᵀ: B A⁻¹ Bᵀ, and with the dual system B (I − λ A⁻¹) Bᵀ.
    fn square(&self, level: Level) -> Matrix<f64> {
        let half = self.cholesky.half_solve(level, &self.right);
        let mut square = gram(level, &half);
        if let Some(lambda) = self.lambda {
            let whole = gram(level, &self.right);
            let pairs = square.as_mut_slice().iter_mut().zip(whole.as_slice());
            pairs.for_each(|(x, whole)| *x = whole - lambda * *x);
        }
        for i in 0..square.rows() {
            for j in i + 1..square.rows() {
                square.row_mut(i)[j] = square.row(j)[i];
            }
        }
        square
    }
}

/// ‖A‖²_F of a symmetric matrix, from its lower triangle.
fn square_norm(a: &Matrix<f64>) -> f64 {
    let row = |(i, row): (usize, &[f64])| {
        let below: f64 = row[..i].iter().map(|x| x * x).sum();
        2.0 * below + row[i] * row[i]
    };
    a.iter_rows().enumerate().map(row).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIDGE: Ridge<'_> = Ridge {
        still: None,
        lambda: 1e-3,
        rank: 0,
        scale: None,
    };

    fn numbers(rows: usize, cols: usize, seed: usize) -> Matrix<f64> {
        let number = |i: usize| ((i * i * 7 + 13 * i * seed + seed) % 101) as f64 / 50.0 - 1.0;
        Matrix::from_vec(cols, (0..rows * cols).map(number).collect())
    }

    fn rows(count: usize) -> Rows {
        Rows {
            h: numbers(count, 20, 3),
            delta: numbers(count, 6, 5),
            weights: (0..count).map(|i| 0.5 + i as f64 / 7.0).collect(),
        }
    }

    fn change(low_rank: &LowRank) -> Matrix<f64> {
        matmul(Level::best(), &low_rank.u, &low_rank.v.transposed())
    }

    /// ΔW (S + λI) = Σ ω δ hᵀ, by the sums as they are written.
    #[test]
    fn both_systems_solve_the_normal_equations() {
        for count in [8, 19, 33] {
            let found = change(&RIDGE.solve(Level::best(), rows(count)).unwrap());
            let rows = rows(count);
            let mut s = Matrix::<f64>::zeros(20, 20);
            let mut right = Matrix::<f64>::zeros(6, 20);
            for ((h, delta), w) in rows
                .h
                .iter_rows()
                .zip(rows.delta.iter_rows())
                .zip(&rows.weights)
            {
                for (j, h_j) in h.iter().enumerate() {
                    (0..20).for_each(|i| s.row_mut(i)[j] += w * h[i] * h_j);
                    (0..6).for_each(|i| right.row_mut(i)[j] += w * delta[i] * h_j);
                }
            }
            let trace: f64 = (0..20).map(|i| s.row(i)[i]).sum();
            let lambda = 1e-3 * s.as_slice().iter().map(|x| x * x).sum::<f64>() / trace;
            (0..20).for_each(|i| s.row_mut(i)[i] += lambda);
            let got = matmul(Level::best(), &found, &s);
            for (got, want) in got.as_slice().iter().zip(right.as_slice()) {
                assert!((got - want).abs() < 1e-9, "{count} rows: {got} {want}");
            }
        }
    }

    #[test]
    fn what_is_still_stays() {
        let still: Vec<f64> = (0..20).map(|i| 1.0 + f64::from(i)).collect();
        let ridge = Ridge {
            still: Some(&still),
            ..RIDGE
        };
        let found = change(&ridge.solve(Level::best(), rows(12)).unwrap());
        let largest = found
            .as_slice()
            .iter()
            .fold(0.0f64, |most, x| most.max(x.abs()));
        for row in found.iter_rows() {
            let moved: f64 = row.iter().zip(&still).map(|(w, q)| w * q).sum();
            assert!(moved.abs() < 1e-11 * largest * norm(&still), "{moved}");
        }
    }

    /// A rank takes as much as it can of what counts behind M, and all ranks take all.
    #[test]
    fn a_rank_leaves_out_what_counts_least() {
        let scale = [1.0, -2.0, 0.5, 3.0, 1.0, 0.1];
        let off = |count, rank| {
            let full = change(&RIDGE.solve(Level::best(), rows(count)).unwrap());
            let ridge = Ridge {
                rank,
                scale: Some(&scale),
                ..RIDGE
            };
            let found = ridge.solve(Level::best(), rows(count)).unwrap();
            assert_eq!(found.v.rows(), rank);
            let found = change(&found);
            let rows = rows(count);
            let mut left = 0.0;
            for (h, w) in rows.h.iter_rows().zip(&rows.weights) {
                for ((a, b), m) in found.iter_rows().zip(full.iter_rows()).zip(scale) {
                    let off: f64 = a.iter().zip(b).zip(h).map(|((a, b), h)| (a - b) * h).sum();
                    left += w * (m * off).powi(2);
                }
            }
            left
        };
        // Fewer rows than inputs, and more.
        for count in [12, 33] {
            let left: Vec<_> = (1..=6).map(|rank| off(count, rank)).collect();
            assert!(left.windows(2).all(|pair| pair[1] < pair[0]), "{left:?}");
            assert!(left[5] < 1e-20 * left[0], "{left:?}");
        }
    }

    #[test]
    fn numbers_that_are_none_are_refused() {
        for (quantity, spoil) in [
            (
                "(h)[3]",
                (|rows: &mut Rows| rows.h.as_mut_slice()[3] = f64::NAN) as fn(&mut Rows),
            ),
            ("(δ)[2]", |rows| {
                rows.delta.as_mut_slice()[2] = f64::INFINITY
            }),
            ("(ω)[1]", |rows| rows.weights[1] = f64::NAN),
            ("tr Σ ω h hᵀ", |rows| rows.h.as_mut_slice().fill(0.0)),
        ] {
            let mut rows = rows(9);
            spoil(&mut rows);
            let refused = RIDGE.solve(Level::best(), rows).unwrap_err();
            assert_eq!(refused.quantity, quantity);
        }
    }
}
