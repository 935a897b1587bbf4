//! The change of a linear map by weighted least squares, held small: ΔW = (Σ ω δ hᵀ)(Σ ω h hᵀ + λI)⁻¹.

use super::cholesky::Cholesky;
use super::eigen::largest;
use crate::kernels::{Level, matmul};
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
        let (h, delta) = self.weighted(rows);
        let (h_t, delta_t) = (h.transposed(), delta.transposed());
        // S or H Hᵀ, whichever is smaller; both have the same trace and norm.
        let dual = h.rows() < h.cols();
        let mut gram = gram(level, if dual { &h } else { &h_t });
        let trace: f64 = (0..gram.rows()).map(|i| gram.row(i)[i]).sum();
        let lambda = self.lambda * square_norm(&gram) / trace;
        let fail = || Precondition {
            quantity: "tr Σ ω h hᵀ".into(),
            value: trace,
        };
        if !lambda.is_finite() || trace <= 0.0 {
            return Err(fail());
        }
        (0..gram.rows()).for_each(|i| gram.row_mut(i)[i] += lambda);
        let cholesky = Cholesky::new(level, gram).ok_or_else(fail)?;
        // ΔW = A B, where B is H with the dual system and 1 without; and ΔW (S + λI) ΔWᵀ.
        let (a, b, square) = if dual {
            let a = cholesky.solve(level, &delta_t);
            // δᵀ H Hᵀ a = δᵀ (δ − λ a)
            let mut left = delta_t.clone();
            for (left, a) in left.as_mut_slice().iter_mut().zip(a.as_slice()) {
                *left -= lambda * a;
            }
            let square = matmul(level, &delta_t, &left);
            (a, Some(h_t), square)
        } else {
            let right = matmul(level, &delta_t, &h_t);
            let change = cholesky.solve(level, &right);
            let square = matmul(level, &change, &right);
            (change, None, square)
        };
        check_finite("ΔW", a.as_slice())?;
        let mut change = self.low_rank(level, a, square);
        if let Some(h_t) = b {
            change.v = matmul(level, &change.v, &h_t);
        }
        Ok(change)
    }

    /// √ω h without what is along `still`, and √ω δ.
    fn weighted(&self, rows: Rows) -> (Matrix<f64>, Matrix<f64>) {
        let Rows {
            mut h,
            mut delta,
            weights,
        } = rows;
        let still = self
            .still
            .map(|still| (still, norm(still)))
            .filter(|(_, norm)| *norm > 0.0);
        for (h, w) in h.iter_rows_mut().zip(&weights) {
            let root = w.sqrt();
            let along = still.map_or(0.0, |(still, norm)| {
                h.iter().zip(still).map(|(h, q)| h * q).sum::<f64>() / norm / norm
            });
            if let Some((still, _)) = still {
                h.iter_mut().zip(still).for_each(|(h, q)| *h -= along * q);
            }
            h.iter_mut().for_each(|h| *h *= root);
        }
        for (delta, w) in delta.iter_rows_mut().zip(&weights) {
            let root = w.sqrt();
            delta.iter_mut().for_each(|delta| *delta *= root);
        }
        (h, delta)
    }

    /// The part of a change that counts most behind it: M⁻¹ U Uᵀ M A, where U has the largest eigenvectors of
    /// M ΔW (S + λI) ΔWᵀ M; `square` is ΔW (S + λI) ΔWᵀ.
    fn low_rank(&self, level: Level, change: Matrix<f64>, mut square: Matrix<f64>) -> LowRank {
        let out = change.rows();
        let rank = if self.rank == 0 {
            out
        } else {
            self.rank.min(out)
        };
        if rank == out {
            let mut u = Matrix::zeros(out, out);
            (0..out).for_each(|i| u.row_mut(i)[i] = 1.0);
            return LowRank { u, v: change };
        }
        let m = self.scale.map_or_else(|| vec![1.0; out], <[f64]>::to_vec);
        for (row, m_row) in square.iter_rows_mut().zip(&m) {
            for (x, m) in row.iter_mut().zip(&m) {
                *x *= m_row * m;
            }
        }
        let vectors = largest(level, &square, rank);
        let mut scaled = change;
        for (row, m) in scaled.iter_rows_mut().zip(&m) {
            row.iter_mut().for_each(|x| *x *= m);
        }
        let v = matmul(level, &vectors, &scaled.transposed());
        let mut u = vectors.transposed();
        for (row, m) in u.iter_rows_mut().zip(&m) {
            row.iter_mut().for_each(|x| *x /= m);
        }
        LowRank { u, v }
    }
}

/// A Aᵀ, of which the lower triangle and the blocks on the diagonal are computed; what is above them is zero.
fn gram(level: Level, a: &Matrix<f64>) -> Matrix<f64> {
    const BLOCK: usize = 256;
    let n = a.rows();
    let mut gram = Matrix::zeros(n, n);
    for start in (0..n).step_by(BLOCK) {
        let end = n.min(start + BLOCK);
        let products = matmul(level, &a.slice_rows(start..end), &a.slice_rows(0..end));
        for (row, products) in (start..end).zip(products.iter_rows()) {
            gram.row_mut(row)[..end].copy_from_slice(products);
        }
    }
    gram
}

/// ‖A‖²_F of a symmetric matrix, from its lower triangle.
fn square_norm(a: &Matrix<f64>) -> f64 {
    let row = |(i, row): (usize, &[f64])| {
        let below: f64 = row[..i].iter().map(|x| x * x).sum();
        2.0 * below + row[i] * row[i]
    };
    a.iter_rows().enumerate().map(row).sum()
}
