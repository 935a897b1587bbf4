//! H⁺ for a tall H: the linear algebra of a span.
//!
//! By `nalgebra`, whose loops are plain Rust: libraries that choose their kernels by the processor are
//! faster here, and give other bits on another machine.

use nalgebra::DMatrix;

use crate::patch::Precondition;
use crate::patch::lemmas::norm;
use crate::tensor::{Dtype, Matrix};

/// The quantity of a precondition that fails because H has not full column rank.
pub(super) const CONDITION: &str = "the condition of H";

/// H⁺ of the H whose columns are the rows of `h`, `[columns, in]`, as far as it is found here.
#[derive(Clone, Debug)]
pub(super) struct Pseudoinverse {
    /// ‖h_i‖ for each column.
    pub(super) norms: Vec<f64>,
    /// The pseudoinverse of the columns divided by their norms, `[columns, in]`.
    pub(super) rows: Matrix<f64>,
    /// The condition of H: its largest singular value over its smallest.
    pub(super) condition: f64,
}

impl Pseudoinverse {
    /// By QR: H = Q R, H⁺ = R⁻¹ Qᵀ. `dtype` is the type of sums that the patch will run in.
    ///
    /// # Errors
    ///
    /// More columns than rows, a column that is zero or not finite, columns so nearly dependent that
    /// rounding in `dtype` alone makes them so.
    pub(super) fn new(h: &Matrix<f64>, dtype: Dtype) -> Result<Self, Precondition> {
        let fail = |quantity: String, value| Precondition { quantity, value };
        let (columns, length) = (h.rows(), h.cols());
        if columns > length {
            let quantity =
                format!("the span has more tokens than H has rows, {length}: its length");
            return Err(fail(quantity, columns as f64));
        }
        let norms: Vec<f64> = h.iter_rows().map(norm).collect();
        if let Some(i) = norms.iter().position(|n| *n == 0.0 || !n.is_finite()) {
            return Err(fail(format!("‖h‖ of token {i}"), norms[i]));
        }
        let unit = DMatrix::from_fn(length, columns, |row, column| {
            h.row(column)[row] / norms[column]
        });
        let qr = unit.qr();
        let r = qr.r();
        let condition = condition(&r);
        if condition.is_nan() || condition * dtype.unit_roundoff() >= 0.1 {
            return Err(fail(CONDITION.into(), condition));
        }
        let mut rows = qr.q().transpose();
        if !r.solve_upper_triangular_mut(&mut rows) {
            return Err(fail(CONDITION.into(), f64::INFINITY));
        }
        let scaled = r * DMatrix::from_diagonal(&norms.clone().into());
        Ok(Self {
            norms,
            // Its columns one after the other are H⁺'s rows, transposed.
            rows: Matrix::from_vec(length, rows.transpose().as_slice().to_vec()),
            condition: self::condition(&scaled),
        })
    }
}

/// X with X aᵢ = bᵢ for each row aᵢ of the square `a` and bᵢ of `b`, `[b's columns, a's rows]`. Each pair of rows is
/// divided by the diagonal entry of `a`, which is not far from diagonal here.
///
/// # Errors
///
/// `a` is singular.
pub(super) fn solve(a: &Matrix<f64>, b: &Matrix<f64>) -> Result<Matrix<f64>, Precondition> {
    let rows = a.rows();
    let scaled = |x: &Matrix<f64>| {
        DMatrix::from_fn(rows, x.cols(), |row, column| {
            x.row(row)[column] / a.row(row)[row]
        })
    };
    let solution = scaled(a).lu().solve(&scaled(b));
    let x = solution.ok_or_else(|| Precondition {
        quantity: "V H is singular: its pivot".into(),
        value: 0.0,
    })?;
    // Its columns one after the other are X's rows.
    Ok(Matrix::from_vec(rows, x.as_slice().to_vec()))
}

fn condition(r: &DMatrix<f64>) -> f64 {
    let values = r.singular_values();
    let (least, most) = values
        .iter()
        .fold((f64::INFINITY, 0.0f64), |(least, most), &value| {
            (least.min(value), most.max(value))
        });
    most / least
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h() -> Matrix<f64> {
        let number = |i: usize| ((i * i * 7 + 3 * i) % 23) as f64 - 11.0;
        Matrix::from_vec(9, (0..4 * 9).map(number).collect())
    }

    #[test]
    fn it_inverts() {
        let h = h();
        let inverse = Pseudoinverse::new(&h, Dtype::F64).unwrap();
        for i in 0..4 {
            for j in 0..4 {
                let product = inverse.rows.row(i).iter().zip(h.row(j));
                let product: f64 = product.map(|(a, b)| a * b).sum();
                let want = if i == j { inverse.norms[i] } else { 0.0 };
                assert!((product - want).abs() < 1e-12, "{i} {j}: {product}");
            }
        }
        assert!(inverse.condition > 1.0 && inverse.condition < 100.0);
    }

    #[test]
    fn one_column_is_lemma_9() {
        let h = h().slice_rows(0..1);
        let inverse = Pseudoinverse::new(&h, Dtype::F64).unwrap();
        let v = crate::patch::lemmas::lemma_9(h.row(0), &[1.0]).unwrap().v;
        for (a, b) in inverse.rows.as_slice().iter().zip(v.as_slice()) {
            assert!((a - b).abs() < 1e-15);
        }
        assert_eq!(inverse.condition, 1.0);
    }

    #[test]
    fn what_cannot_be_inverted_is_refused() {
        let h = h();
        let refused = |h: &Matrix<f64>, dtype| Pseudoinverse::new(h, dtype).unwrap_err().quantity;
        let mut twice = h.clone();
        let first = h.row(0).to_vec();
        twice.row_mut(2).copy_from_slice(&first);
        assert!(refused(&twice, Dtype::F64).contains(CONDITION));
        // A hair off is enough in f64 and nothing in f32.
        twice.row_mut(2)[0] += 1e-6;
        assert!(Pseudoinverse::new(&twice, Dtype::F64).is_ok());
        assert!(refused(&twice, Dtype::F32).contains(CONDITION));
        let mut zero = h.clone();
        zero.row_mut(1).fill(0.0);
        assert_eq!(refused(&zero, Dtype::F64), "‖h‖ of token 1");
        let wide = Matrix::from_vec(3, h.as_slice().to_vec());
        assert!(refused(&wide, Dtype::F64).contains("more tokens"));
    }
}
