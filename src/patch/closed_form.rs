//! The closed form: one rank-1 matrix and one scale a layer, without a root and without dividing by an
//! activation.
//!
//! With t = T(C, x) − v, which is what the branch must say, the floored scale
//! m̃_j = sign(m_j)·max(|m_j|, τ), any R > 0 and k = R²/(R² + ε):
//!
//! ```text
//! s  = √(mean((t ⊘ m̃)²)/k)
//! m' = s · m̃
//! d' = (t ⊘ m') √(R² + ε)
//! ΔW_down by Lemma 9 with δy = d' − W_down h
//! ```
//!
//! mean((t ⊘ m')²) = k, so mean(d'²) = R², n(d') = t ⊘ m', and m' ⊙ n(d') = t. R is free because n
//! ignores length; a d' that is longer than W_down h lets little of its rounding through. Once ΔW_down is
//! rounded and n(d') is what it really is, m' is fitted to it.

use super::lemmas::median;

/// d' and m' for the scale m, what the branch must say t, and R = `rms`, above zero. Both are zero where
/// t is, and NaN where a number is not finite.
pub fn down_and_scale(m: &[f64], t: &[f64], rms: f64, eps: f64) -> (Vec<f64>, Vec<f64>) {
    if m.iter().chain(t).any(|x| !x.is_finite()) {
        return (vec![f64::NAN; m.len()], vec![f64::NAN; m.len()]);
    }
    let floored = floored(m);
    let y: Vec<f64> = t.iter().zip(&floored).map(|(t, m)| t / m).collect();
    let mean = y.iter().map(|y| y * y).sum::<f64>() / y.len() as f64;
    if mean == 0.0 {
        return (vec![0.0; m.len()], vec![0.0; m.len()]);
    }
    let k = rms * rms / (rms * rms + eps);
    let s = (mean / k).sqrt();
    let length = (rms * rms + eps).sqrt();
    (
        y.iter().map(|y| y / s * length).collect(),
        floored.iter().map(|m| s * m).collect(),
    )
}

/// m', fitted to the n(d') that there really is: t ⊘ n(d') wherever that is within a factor of two of the
/// m' that was solved for. Elsewhere n(d') is mostly rounding, and dividing by it would make it count; how
/// many these are is the second result.
pub fn refit(m: &[f64], n: &[f64], t: &[f64]) -> (Vec<f64>, usize) {
    let mut left = 0;
    let fitted = m.iter().zip(n).zip(t).map(|((&m, &n), &t)| {
        let ratio = t / n / m;
        if t == 0.0 {
            0.0
        } else if (0.5..=2.0).contains(&ratio) {
            t / n
        } else {
            left += 1;
            m
        }
    });
    (fitted.collect(), left)
}

/// m̃: no entry below a tenth of the median |m| (or of the largest, where the median is zero).
fn floored(m: &[f64]) -> Vec<f64> {
    let sizes = || m.iter().map(|m| m.abs());
    let largest = sizes().fold(0.0, f64::max);
    let typical = [median(sizes()), largest, 1.0]
        .into_iter()
        .find(|x| *x > 0.0);
    let floor = 0.1 * typical.unwrap_or(1.0);
    m.iter().map(|m| m.abs().max(floor).copysign(*m)).collect()
}
