//! The stable update of the paper's Appendix B: what the norm can say goes into W_down, the rest into m.
//!
//! With t = T(C, x) − v, which is what the branch must say, and k = R²/(R² + ε) for R = rms(d_C):
//!
//! ```text
//! y    minimises ‖m ⊙ y − t‖² with mean(y²) = k
//! d'   = y √(R² + ε), so that n(d') = y
//! ΔW_down by Lemma 9 with δy = d' − W_down h
//! Δm   = (t − m ⊙ n(d')) ⊘ n(d')
//! ```
//!
//! The gate and up patches are Theorem 1's. A coordinate whose m is zero gives y nothing to go by; if y is
//! zero there and t is not, no Δm could serve it, so it is given a share of the length.

use super::Case;
use super::sphere::nearest;

/// What d is to become.
#[derive(Clone, Debug, PartialEq)]
pub struct Down {
    /// d', `[hidden]`.
    pub d: Vec<f64>,
    /// Which case of the trust-region problem it was.
    pub case: Case,
    /// Coordinates that got a share of the length because y was zero there and t was not.
    pub zeros: usize,
}

/// d' for the scale m, what the branch must say t, and R = `rms`, above zero.
pub fn down(m: &[f64], t: &[f64], rms: f64, eps: f64) -> Down {
    let k = rms * rms / (rms * rms + eps);
    let square = k * m.len() as f64;
    let (mut y, case) = nearest(m, t, square);
    let is_bare: Vec<bool> = y
        .iter()
        .zip(t)
        .map(|(y, t)| *y == 0.0 && *t != 0.0)
        .collect();
    let zeros = is_bare.iter().filter(|bare| **bare).count();
    if zeros > 0 {
        // Each of them as long as a coordinate is on average; the others fill the rest.
        let served = |x: &[f64]| -> Vec<f64> {
            let pairs = x.iter().zip(&is_bare).filter(|(_, bare)| !**bare);
            pairs.map(|(x, _)| *x).collect()
        };
        let (others, _) = nearest(&served(m), &served(t), square - zeros as f64 * k);
        let mut others = others.into_iter();
        for ((y, t), bare) in y.iter_mut().zip(t).zip(&is_bare) {
            *y = if *bare {
                k.sqrt().copysign(*t)
            } else {
                others.next().unwrap_or(0.0)
            };
        }
    }
    let length = (rms * rms + eps).sqrt();
    Down {
        d: y.iter().map(|y| y * length).collect(),
        case,
        zeros,
    }
}

/// Δm = (t − m ⊙ n) ⊘ n wherever n is not zero, and how many coordinates it cannot serve.
pub fn scale(m: &[f64], n: &[f64], t: &[f64]) -> (Vec<f64>, usize) {
    let mut unserved = 0;
    let delta_m = m.iter().zip(n).zip(t).map(|((&m, &n), &t)| {
        let delta_m = (t - m * n) / n;
        if t == m * n {
            return 0.0;
        }
        if delta_m.is_finite() {
            return delta_m;
        }
        unserved += 1;
        0.0
    });
    (delta_m.collect(), unserved)
}
