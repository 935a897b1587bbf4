//! What rounding leaves of a change that is added to W_down: no correction of δd can go below it, for each rounds all of
//! W + ΔW anew.

use crate::kernels::Backend;
use crate::model::{Active, Hidden, LayerOverlay, Linear, TensorOverlay};
use crate::patch::branch::Branch;
use crate::patch::{LayerPatch, LowRank, TensorChange};
use crate::tensor::{Dtype, Element, Matrix};

/// The length of what rounding may leave in the branch of each row, in units of the roundoff u of `E`; zero where no map is
/// replaced.
///
/// Of entry w' = w + Δw and its product with h there are: the rounding of w', u|w'|; those of the sum of products that it is
/// part of, [`roundings`](crate::kernels::Backend::roundings) of the type of sums; and those of the N + 1 terms in f64 that Δw
/// is summed from, each at most as large as the whole of them, √Σ_j (u_j v_j)². They are independent of each other, so that
/// their squares add up:
///
/// ```text
/// Σ_c h_c² Σ_r ((1 + k) w'_rc² + (N + 1) Σ_j u_rj² v_jc²)
/// ```
pub(super) fn replaced<E: Element>(
    branch: &Branch<'_, E>,
    change: &LayerOverlay<E>,
    patch: &LayerPatch,
    rows: usize,
    backend: Backend,
) -> Vec<f64> {
    let maps = branch.block.outer.down();
    let parts: Vec<(&Linear, &Matrix<E>, Option<&Active>)> = match &branch.h {
        Hidden::Dense(h) => vec![(&maps[0], h, None)],
        Hidden::Experts { active, .. } => {
            let each = active.iter();
            each.map(|(active, h)| (&maps[active.expert], h, Some(active)))
                .collect()
        }
    };
    let mut squares = vec![0.0; rows];
    for (map, h, active) in parts {
        let name = format!("{}.weight", map.name());
        let (Some(TensorOverlay::Replaced(w)), Some(TensorChange::LowRank(delta))) =
            (change.get(&name), patch.get(&name))
        else {
            continue;
        };
        let columns = columns(w, delta, backend.roundings(w.cols()));
        for (i, h) in h.iter_rows().enumerate() {
            let (row, gate) = active.map_or((i, 1.0), |active| (active.rows[i], active.gates[i]));
            let pairs = h.iter().zip(&columns);
            let square: f64 = pairs.map(|(h, column)| h.to_f64().powi(2) * column).sum();
            squares[row] += gate * gate * square;
        }
    }
    squares.into_iter().map(f64::sqrt).collect()
}

/// What each column of W + ΔW has to do with it, in units of u².
fn columns<E: Element>(w: &Matrix<E>, delta: &LowRank, roundings: f64) -> Vec<f64> {
    let u = E::DTYPE.unit_roundoff();
    let share = |dtype: Dtype| (dtype.unit_roundoff() / u).powi(2);
    let entry = 1.0 + roundings * share(E::Acc::DTYPE);
    let mut columns = vec![0.0; w.cols()];
    for row in w.iter_rows() {
        for (column, w) in columns.iter_mut().zip(row) {
            *column += entry * w.to_f64().powi(2);
        }
    }
    let terms = (delta.v.rows() + 1) as f64 * share(Dtype::F64);
    for (j, v) in delta.v.iter_rows().enumerate() {
        let length: f64 = delta.u.iter_rows().map(|u| u[j].powi(2)).sum();
        for (column, v) in columns.iter_mut().zip(v) {
            *column += terms * length * v.powi(2);
        }
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Level, matmul};

    /// What rounding really leaves is below that, and not far below.
    #[test]
    fn it_is_what_rounding_leaves() {
        let (out, inputs, rank) = (64, 400, 12);
        let number = |i: usize| f64::from((i * i % 1009) as u32) / 504.5 - 1.0;
        let numbers = |from: usize, n: usize| (from..from + n).map(number).collect();
        let delta = LowRank {
            u: Matrix::from_vec(rank, numbers(3, out * rank)),
            v: Matrix::from_vec(inputs, numbers(5, rank * inputs)),
        };
        let h =
            Matrix::<f32>::from_vec(inputs, (7..7 + inputs).map(|i| number(i) as f32).collect());
        let exact = |row: usize, column: usize| -> f64 {
            let pairs = delta.u.row(row).iter().zip(delta.v.iter_rows());
            pairs.map(|(u, v)| u * v[column]).sum()
        };
        let w: Vec<f32> = (0..out * inputs)
            .map(|i| exact(i / inputs, i % inputs) as f32)
            .collect();
        let w = Matrix::from_vec(inputs, w);
        let got = matmul(Level::best(), &h, &w);
        let mut left = 0.0;
        for (row, got) in got.row(0).iter().enumerate() {
            let pairs = h.row(0).iter().enumerate();
            let want: f64 = pairs.map(|(c, h)| exact(row, c) * f64::from(*h)).sum();
            left += (f64::from(*got) - want).powi(2);
        }
        let roundings = Backend::Native.roundings(inputs);
        let columns = columns(&w, &delta, roundings);
        let pairs = h.row(0).iter().zip(&columns);
        let square: f64 = pairs
            .map(|(h, column)| f64::from(*h).powi(2) * column)
            .sum();
        let share = left.sqrt() / (square.sqrt() * Dtype::F32.unit_roundoff());
        assert!((0.05..=1.0).contains(&share), "{share}");
        // In f64 the terms of ΔW are rounded as its entries are, and there are more of them.
        let wide = self::columns(&w.map(f64::from), &delta, roundings);
        assert!(
            wide.iter()
                .zip(&columns)
                .all(|(wide, column)| wide > column)
        );
    }
}
