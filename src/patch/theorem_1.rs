//! Theorem 1: one Gemma block, patched so that it gives without the context what it gives with it.
//!
//! ```text
//! ΔW_gate = W_gate (z_C − z) zᵀ/‖z‖²
//! ΔW_up   = W_up   (z_C − z) zᵀ/‖z‖²
//! Δm      = (v_C − v) ⊘ n(d_C)
//! ```
//!
//! The two halves are separate, because a layer's outer function runs after its inner one: the inner
//! half is Lemma 7 for both maps, the outer half Lemma 10.

use super::lemmas::{lemma_6, lemma_10};
use super::{LowRank, Precondition};
use crate::kernels::{Level, Rows};

/// The inner half: (ΔW_gate, ΔW_up), from z of the reduced and z_C of the contextual pass.
///
/// # Errors
///
/// ‖z‖ is zero or not finite, or a factor is not finite.
pub fn inner(
    level: Level,
    w_gate: Rows<'_, f64>,
    w_up: Rows<'_, f64>,
    z: &[f64],
    z_ctx: &[f64],
) -> Result<(LowRank, LowRank), Precondition> {
    let delta_z: Vec<_> = z_ctx.iter().zip(z).map(|(z_ctx, z)| z_ctx - z).collect();
    Ok((
        lemma_6(level, w_gate, z, &delta_z)?,
        lemma_6(level, w_up, z, &delta_z)?,
    ))
}

/// The outer half: Δm, from what the branch must say, t = T(C, x) − v, beyond m ⊙ n(d).
///
/// In exact arithmetic that is v_C − v and n(d) is n(d_C). Here v is the reduced pass's, and `n` the unscaled
/// norm of the d that the patched inner function *really* gave.
///
/// # Errors
///
/// A coordinate of `n` is zero where the branch must change.
pub fn outer(m: &[f64], n: &[f64], t: &[f64]) -> Result<Vec<f64>, Precondition> {
    let delta_y: Vec<_> = (0..n.len()).map(|j| t[j] - m[j] * n[j]).collect();
    lemma_10(n, &delta_y)
}
