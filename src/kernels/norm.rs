//! RMSNorm: n(u) = u / √(mean(u²) + ε), scaled by 1 + w.
//!
//! Computed in the type of sums: Σu² as a dot product in the documented order, divided by the length,
//! plus ε, square root, one over it, times u, times (1 + w); every step rounded, and once more to bf16 at
//! the end where that is the compute type.

use super::{Level, dot};
use crate::tensor::{Element, Float};

/// n(u), not rounded to the compute type. `eps` is ε.
pub fn unscaled_rms_norm<E: Element>(level: Level, u: &[E], eps: f64) -> Vec<E::Acc> {
    let mut n: Vec<E::Acc> = u.iter().map(|&u| u.acc()).collect();
    let length = E::Acc::from_f64(n.len() as f64);
    let mean = dot(level, &n, &n) / length;
    let inverse = E::Acc::ONE / (mean + E::Acc::from_f64(eps)).sqrt();
    for u in &mut n {
        *u = *u * inverse;
    }
    n
}

/// n(u) ⊙ `scale` into `out`, where `scale` is 1 + w.
pub fn rms_norm<E: Element>(level: Level, u: &[E], scale: &[E::Acc], eps: f64, out: &mut [E]) {
    let n = unscaled_rms_norm(level, u, eps);
    for ((out, &n), &scale) in out.iter_mut().zip(&n).zip(scale) {
        *out = E::round(n * scale);
    }
}
