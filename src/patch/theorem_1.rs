//! Theorem 1: one Gemma block, patched so that it gives without the context what it gives with it.
//!
//! ```text
//! ΔW_gate = W_gate (z_C − z) zᵀ/‖z‖²
//! ΔW_up   = W_up   (z_C − z) zᵀ/‖z‖²
//! Δm      = (v_C − v) ⊘ n(d_C)
//! ```
//!
//! The two halves are separate, because a layer's outer function runs after its inner one: the inner
//! half is Lemma 7 for both maps, as in every family, the outer half Lemma 10.

use super::Precondition;
use super::lemmas::lemma_10;

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
