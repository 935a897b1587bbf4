//! How far two logit vectors are apart.

use serde::Serialize;

use crate::kernels::softmax;
use crate::model::generate::greedy;
use crate::tensor::Element;

/// Logits held against the ones they should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// max |difference|; NaN where a logit is.
    pub linf: f64,
    /// Total variation distance of the two distributions.
    pub tvd: f64,
    /// Whether both have the same likeliest token.
    pub same_top: bool,
}

impl Comparison {
    /// `got` against `want`, `[vocab]` each.
    pub fn new<E: Element>(got: &[E], want: &[E]) -> Self {
        let pairs = got.iter().zip(want);
        let linf = pairs.fold(0.0f64, |max, (got, want)| {
            let difference = (got.to_f64() - want.to_f64()).abs();
            if difference > max || difference.is_nan() { difference } else { max }
        });
        Self {
            linf,
            tvd: total_variation(got, want),
            same_top: greedy(got) == greedy(want),
        }
    }
}

/// ½ Σ |p − q| of the distributions two logit vectors stand for, in f64.
pub fn total_variation<E: Element>(a: &[E], b: &[E]) -> f64 {
    let distribution = |logits: &[E]| {
        let mut p: Vec<f64> = logits.iter().map(|x| x.to_f64()).collect();
        softmax(&mut p);
        p
    };
    let (p, q) = (distribution(a), distribution(b));
    p.iter().zip(&q).map(|(p, q)| (p - q).abs()).sum::<f64>() / 2.0
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
        assert!((total_variation(&[900.0, 0.0], &[0.0, 900.0]) - 1.0).abs() < 1e-12);
        assert_eq!(margin(&[5.0, 1.0, 4.5]), 0.5);
    }
}
