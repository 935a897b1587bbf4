//! The lemmas: how each part of a block is made to say something else.
//!
//! | lemma | of | patch |
//! |---|---|---|
//! | [6](lemma_6) | the first linear maps of an inner function | ΔW = W δz zᵀ/‖z‖² |
//! | 7 | the same behind a norm: Lemma 6 with z = N(v) | |
//! | [8](lemma_8) | an outer bias | Δb = δy |
//! | [9](lemma_9) | an outer weight | ΔW = δy hᵀ/‖h‖² |
//! | [10](lemma_10) | an outer element-wise scale of u | Δm = δy ⊘ u |
//! | [11](lemma_11) | the outer weights of experts with gates s_j | Lemma 9 with δy/S in each, S = Σ s_j |
//! | 12 | a parallel block, whose inner function sees x alone | nothing inside; outside A(C, x) − A(C∖Y, x) |
//!
//! 6 and 7 control what an inner function sees (Definition 3), 8 to 11 what an outer function says (Definition 4), and
//! [Theorem 5](super::theorem_5) puts one of each together. A weight stored transposed, `[in, out]`, takes
//! the [transposed](LowRank::transposed) patch.

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

/// Lemma 8: Δb = δy, so that W h + b + Δb = W h + b + δy. Nothing is divided by.
///
/// # Errors
///
/// A δy that is not finite.
pub fn lemma_8(delta_y: &[f64]) -> Result<Vec<f64>, Precondition> {
    check_finite("δy", delta_y)?;
    Ok(delta_y.to_vec())
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
            let (quantity, value) = if delta_y.is_finite() {
                (format!("n(d)[{j}]"), u)
            } else {
                (format!("δy[{j}]"), delta_y)
            };
            Err(Precondition { quantity, value })
        })
        .collect()
}

/// Lemma 11: ΔW_j = (δy/S) h_jᵀ/‖h_j‖² for every active expert, so that Σ s_j (W_j + ΔW_j) h_j is
/// Σ s_j W_j h_j + δy. `active` has s_j and h_j of each.
///
/// S is the sum of the gates *as they are*: rounded, they do not add up to 1. An expert whose h_j is zero can
/// say nothing; it gets no patch, and its gate is left out of S.
///
/// # Errors
///
/// No active expert with an h_j that is not zero; S = 0 or not finite; those of [`lemma_9`].
pub fn lemma_11(
    active: &[(f64, &[f64])],
    delta_y: &[f64],
) -> Result<Vec<Option<LowRank>>, Precondition> {
    let speaks = |h: &[f64]| norm(h) != 0.0;
    let speaking: Vec<_> = active.iter().filter(|(_, h)| speaks(h)).collect();
    if speaking.is_empty() {
        return Err(Precondition {
            quantity: "number of active experts with h ≠ 0".into(),
            value: 0.0,
        });
    }
    let s: f64 = speaking.iter().map(|(gate, _)| gate).sum();
    if s == 0.0 || !s.is_finite() {
        return Err(Precondition {
            quantity: "Σ s_j".into(),
            value: s,
        });
    }
    let share: Vec<_> = delta_y.iter().map(|delta_y| delta_y / s).collect();
    let patches = active
        .iter()
        .map(|(_, h)| speaks(h).then(|| lemma_9(h, &share)).transpose());
    patches.collect()
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

/// The median; of an even number the larger one in the middle, and of none 0.
pub(crate) fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.collect();
    let middle = numbers.len() / 2;
    match numbers.is_empty() {
        true => 0.0,
        false => *numbers.select_nth_unstable_by(middle, f64::total_cmp).1,
    }
}

/// Refuses values that are not finite; `quantity` names them all.
pub(crate) fn check_finite(quantity: &str, values: &[f64]) -> Result<(), Precondition> {
    match values.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(j) => Err(Precondition {
            quantity: format!("({quantity})[{j}]"),
            value: values[j],
        }),
    }
}
