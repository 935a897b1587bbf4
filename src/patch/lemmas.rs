//! The lemmas: how each part of a block is made to say something else.
//!
//! Lemmas 6 and 7 control what an inner function sees (Definition 3), Lemma 10 what an outer function
//! says (Definition 4).

use super::{LowRank, Precondition};
use crate::kernels::{Level, Rows, matmul};
use crate::tensor::Matrix;

/// Lemma 6 (and 7, with z behind the norm): ΔW = W δz zᵀ/‖z‖², so that (W + ΔW) z = W (z + δz).
///
/// `w` is `[out, in]`. The factors are u = W δz/‖z‖ and v = z/‖z‖.
///
/// # Errors
///
/// z = 0, or numbers so large or small that a factor is not finite.
pub fn lemma_6(
    level: Level,
    w: Rows<'_, f64>,
    z: &[f64],
    delta_z: &[f64],
) -> Result<LowRank, Precondition> {
    let norm = norm(z);
    if norm == 0.0 || !norm.is_finite() {
        return Err(Precondition {
            quantity: "‖z‖".into(),
            value: norm,
        });
    }
    let delta_z = Matrix::from_vec(delta_z.len(), delta_z.to_vec());
    let mut u = matmul(level, &delta_z, w).into_vec();
    for u in &mut u {
        *u /= norm;
    }
    check_finite("W δz/‖z‖", &u)?;
    let v = z.iter().map(|z| z / norm).collect();
    Ok(LowRank::rank_1(u, v))
}

/// Lemma 9: ΔW = δy hᵀ/‖h‖², so that (W + ΔW) h = W h + δy.
///
/// The factors are u = δy/‖h‖ and v = h/‖h‖.
///
/// # Errors
///
/// h = 0, or numbers so large or small that a factor is not finite.
pub fn lemma_9(h: &[f64], delta_y: &[f64]) -> Result<LowRank, Precondition> {
    let norm = norm(h);
    if norm == 0.0 || !norm.is_finite() {
        return Err(Precondition {
            quantity: "‖h‖".into(),
            value: norm,
        });
    }
    let u: Vec<_> = delta_y.iter().map(|delta_y| delta_y / norm).collect();
    check_finite("δy/‖h‖", &u)?;
    Ok(LowRank::rank_1(u, h.iter().map(|h| h / norm).collect()))
}

/// Lemma 10: Δm = δy ⊘ u, so that (m + Δm) ⊙ u = m ⊙ u + δy. Where δy is zero, so is Δm.
///
/// # Errors
///
/// A coordinate of u that is zero where δy is not, or so small that the quotient is not finite; a δy
/// that is not finite.
pub fn lemma_10(u: &[f64], delta_y: &[f64]) -> Result<Vec<f64>, Precondition> {
    let pairs = u.iter().zip(delta_y).enumerate();
    pairs
        .map(|(j, (&u, &delta_y))| {
            let delta_m = if delta_y == 0.0 { 0.0 } else { delta_y / u };
            if delta_m.is_finite() {
                return Ok(delta_m);
            }
            let (quantity, value) = match delta_y.is_finite() {
                true => (format!("n(d)[{j}]"), u),
                false => (format!("δy[{j}]"), delta_y),
            };
            Err(Precondition { quantity, value })
        })
        .collect()
}

/// ‖x‖, without overflow on the way.
pub(super) fn norm(x: &[f64]) -> f64 {
    let largest = x.iter().fold(0.0f64, |max, x| max.max(x.abs()));
    if largest == 0.0 || !largest.is_finite() || x.iter().any(|x| x.is_nan()) {
        return x.iter().map(|x| x.abs()).sum();
    }
    let squares = x.iter().map(|x| (x / largest) * (x / largest));
    largest * squares.sum::<f64>().sqrt()
}

/// The root mean square of x.
pub(super) fn rms(x: &[f64]) -> f64 {
    norm(x) / (x.len() as f64).sqrt()
}

/// Refuses infinities and NaN.
pub(super) fn check_finite(quantity: &str, values: &[f64]) -> Result<(), Precondition> {
    match values.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(j) => Err(Precondition {
            quantity: format!("({quantity})[{j}]"),
            value: values[j],
        }),
    }
}
