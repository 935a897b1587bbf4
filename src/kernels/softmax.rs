//! Softmax in two passes: the maximum, then the exponentials and their sum.

use super::lanes::fold;
use crate::tensor::Float;

/// Turns scores into probabilities in place.
///
/// e^(s − max) for each; their sum in 16 lanes (lane *l* adds elements *l*, *l* + 16, …) and the
/// documented tree, without fused multiply-add; then each divided by the sum.
pub fn softmax<A: Float>(scores: &mut [A]) {
    let max = scores
        .iter()
        .fold(A::NEG_INFINITY, |max, &s| if s > max { s } else { max });
    let mut lanes = [A::ZERO; 16];
    for block in scores.chunks_mut(16) {
        for (s, lane) in block.iter_mut().zip(&mut lanes) {
            *s = (*s - max).exp();
            *lane = *lane + *s;
        }
    }
    let sum = fold(lanes);
    for s in scores {
        *s = *s / sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_to_one_and_keeps_ratios() {
        let mut p: Vec<f64> = (0..37).map(|i| f64::from(i % 7) * 0.5).collect();
        softmax(&mut p);
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-15);
        assert!((p[6] / p[0] - 3f64.exp()).abs() < 1e-12);
    }

    #[test]
    fn does_not_overflow() {
        let mut p = [1e30f32, 1e30, -1e30];
        softmax(&mut p);
        assert_eq!(p, [0.5, 0.5, 0.0]);
    }
}
