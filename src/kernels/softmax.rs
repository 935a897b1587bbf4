//! Softmax in two passes: the maximum, then the exponentials and their sum.

use super::exp::exp;
use super::simd::{Level, Simd, Task, fold};
use crate::tensor::Float;

/// Turns scores into probabilities in place.
///
/// e^(s − max) for each; their sum in 16 lanes (lane *l* adds elements *l*, *l* + 16, …) and the
/// documented tree, without fused multiply-add; then each divided by the sum.
pub fn softmax<A: Float>(level: Level, scores: &mut [A]) {
    level.run(Softmax(scores));
}

struct Softmax<'a, A>(&'a mut [A]);

impl<A: Float> Task for Softmax<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let scores = self.0;
        let mut largest = [A::NEG_INFINITY; 16];
        let larger = |s: A, largest: A| if s > largest { s } else { largest };
        let (blocks, rest) = scores.as_chunks::<16>();
        for block in blocks {
            largest = std::array::from_fn(|l| larger(block[l], largest[l]));
        }
        for (largest, &s) in largest.iter_mut().zip(rest) {
            *largest = larger(s, *largest);
        }
        let [mut max, ..] = largest;
        for s in largest {
            max = larger(s, max);
        }
        let mut lanes = [A::ZERO; 16];
        let (blocks, rest) = scores.as_chunks_mut::<16>();
        for block in blocks {
            for (s, lane) in block.iter_mut().zip(&mut lanes) {
                *s = exp(*s - max);
                *lane = *lane + *s;
            }
        }
        for (s, lane) in rest.iter_mut().zip(&mut lanes) {
            *s = exp(*s - max);
            *lane = *lane + *s;
        }
        let sum = fold(lanes);
        for s in scores {
            *s = *s / sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_to_one_and_keeps_ratios() {
        let mut p: Vec<f64> = (0..37).map(|i| f64::from(i % 7) * 0.5).collect();
        softmax(Level::best(), &mut p);
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-15);
        assert!((p[6] / p[0] - 3f64.exp()).abs() < 1e-12);
    }

    #[test]
    fn every_level_follows_the_documented_order() {
        for length in [1, 7, 16, 100] {
            let scores = (0..length).map(|i| (libm::sin(1.3 * f64::from(i)) * 9.0) as f32);
            let scores: Vec<f32> = scores.collect();
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f32> = scores.iter().map(|s| exp(s - max)).collect();
            let mut lanes = [0.0f32; 16];
            for (i, power) in powers.iter().enumerate() {
                lanes[i % 16] += power;
            }
            for half in [8, 4, 2, 1] {
                for l in 0..half {
                    lanes[l] += lanes[l + half];
                }
            }
            let want: Vec<f32> = powers.iter().map(|power| power / lanes[0]).collect();
            for level in Level::available() {
                let mut got = scores.clone();
                softmax(level, &mut got);
                assert_eq!(got, want, "{level} {length}");
            }
        }
    }

    #[test]
    fn does_not_overflow() {
        let mut p = [1e30f32, 1e30, -1e30];
        softmax(Level::best(), &mut p);
        assert_eq!(p, [0.5, 0.5, 0.0]);
    }
}
