//! How far two logit vectors are apart.

use rayon::prelude::*;
use serde::Serialize;

use crate::kernels::{Level, softmax};
use crate::model::generate::greedy;
use crate::tensor::{Element, Matrix};

/// Logits held against the ones they should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// max |difference|; NaN where a logit is.
    pub linf: f64,
    /// Total variation distance of the two distributions, ½ Σ |p − q|.
    pub tvd: f64,
    /// Whether both have the same likeliest token.
    pub same_top: bool,
}

impl Comparison {
    /// `got` against `want`, `[vocab]` each.
    pub fn new<E: Element>(got: &[E], want: &[E]) -> Self {
        Self::with_distribution(got, want, &distribution(want))
    }

    /// Every row of `got`, `[rows, vocab]`, against `want`, `[vocab]`.
    pub fn each<E: Element>(got: &Matrix<E>, want: &[E]) -> Vec<Self> {
        let q = distribution(want);
        let rows = got.as_slice().par_chunks_exact(got.cols());
        rows.map(|row| Self::with_distribution(row, want, &q))
            .collect()
    }

    fn with_distribution<E: Element>(got: &[E], want: &[E], q: &[f64]) -> Self {
        let pairs = got.iter().zip(want);
        let linf = pairs.fold(0.0f64, |max, (got, want)| {
            let difference = (got.to_f64() - want.to_f64()).abs();
            if difference > max || difference.is_nan() {
                difference
            } else {
                max
            }
        });
        let p = distribution(got);
        Self {
            linf,
            tvd: p.iter().zip(q).map(|(p, q)| (p - q).abs()).sum::<f64>() / 2.0,
            same_top: greedy(got) == greedy(want),
        }
    }
}

/// The probabilities that logits stand for, in f64.
pub fn distribution<E: Element>(logits: &[E]) -> Vec<f64> {
    let mut p: Vec<f64> = logits.iter().map(|x| x.to_f64()).collect();
    softmax(Level::best(), &mut p);
    p
}

/// How much the largest logit exceeds the second.
pub(super) fn margin<E: Element>(logits: &[E]) -> f64 {
    let (mut first, mut second) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
    for logit in logits.iter().map(|x| x.to_f64()) {
        if logit > first {
            (first, second) = (logit, first);
        } else if logit > second {
            second = logit;
        }
    }
    first - second
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        let want = [1.0, 2.0, 3.0];
        let same = Comparison::new(&want, &want);
        assert_eq!((same.linf, same.tvd, same.same_top), (0.0, 0.0, true));
        let other = Comparison::new(&[1.0, 4.0, 3.0], &want);
        assert_eq!((other.linf, other.same_top), (2.0, false));
        assert!(other.tvd > 0.4 && other.tvd < 0.6);
        assert!(Comparison::new(&[f64::NAN, 2.0, 3.0], &want).linf.is_nan());
        // All mass on different tokens.
        let apart = Comparison::new(&[900.0, 0.0], &[0.0, 900.0]);
        assert!((apart.tvd - 1.0).abs() < 1e-12);
        assert_eq!(margin(&[5.0, 1.0, 4.5]), 0.5);
    }
}
