//! How ggml rounds the activations of a product with a quantised weight to 8 bits.
//!
//! A block of numbers is divided by d = max|x| / 127, and the quotients are rounded to integers q. The kernels for single tokens and those
//! for several at once, on weights that were repacked, round alike. They differ in how they work out 1/d and in what they do with a
//! tie, so where a quotient is a tie to within f32's roundings, q may be either integer.

use std::fmt;

use serde::Serialize;

use super::Precision;
use crate::tensor::{Dtype, Storage};

/// What activations are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Activations {
    /// Blocks of 32, d in f16.
    #[serde(rename = "Q8_0")]
    Q8_0,
    /// The same; a weight's offsets are multiplied by d Σq, rounded to f16.
    #[serde(rename = "Q8_1")]
    Q8_1,
    /// Blocks of 256, d in f32.
    #[serde(rename = "Q8_K")]
    Q8K,
}

impl Activations {
    /// What ggml rounds to in a product with a weight of type `storage` on a CPU; `None` where that is not quantised.
    pub fn of(storage: Storage) -> Option<Self> {
        match storage {
            Storage::F64 | Storage::F32 | Storage::F16 | Storage::Bf16 => None,
            Storage::Q4_0 | Storage::Q5_0 | Storage::Q8_0 | Storage::Iq4Nl => Some(Self::Q8_0),
            Storage::Q4_1 | Storage::Q5_1 => Some(Self::Q8_1),
            Storage::Q2K
            | Storage::Q3K
            | Storage::Q4K
            | Storage::Q5K
            | Storage::Q6K
            | Storage::Iq4Xs => Some(Self::Q8K),
        }
    }

    /// The numbers of a block.
    pub(super) const fn block(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q8_1 => 32,
            Self::Q8K => 256,
        }
    }

    /// A row of whole blocks, rounded.
    pub(super) fn round(self, x: &[f64]) -> Rounded {
        let mut rounded = Rounded::default();
        for block in x.chunks(self.block()) {
            self.round_block(block, &mut rounded);
        }
        rounded
    }

    fn round_block(self, x: &[f64], rounded: &mut Rounded) {
        let largest = x.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
        let nearest = Precision::F32.nearest(largest / 127.0);
        let d = match self {
            Self::Q8_0 | Self::Q8_1 => Precision::F16.nearest(nearest),
            Self::Q8K => largest / 127.0,
        };
        let (mut sum, mut least, mut most) = (0.0, 0.0, 0.0);
        for x in x {
            let quotient = if largest == 0.0 {
                0.0
            } else {
                127.0 * x / largest
            };
            let q = quotient.round();
            // To 1/d and the product with it: three roundings in f32, and what is second order.
            let tie =
                0.5 - (quotient - q).abs() <= 4.0 * Dtype::F32.unit_roundoff() * quotient.abs();
            if tie {
                let step = if quotient > q { 1.0 } else { -1.0 };
                rounded.ties.push((rounded.x.len(), step * d));
                least += f64::min(step, 0.0);
                most += f64::max(step, 0.0);
            }
            sum += q;
            rounded.x.push(q * d);
        }
        if self == Self::Q8_1 {
            let off = |sum: f64| {
                let product = Precision::F32.nearest(nearest * sum);
                Precision::F16.nearest(product) - d * sum
            };
            let ties = (least as i32..=most as i32).map(|tie| off(sum + f64::from(tie)));
            let [low, high] = ties.fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], x| {
                [low.min(x), high.max(x)]
            });
            rounded.sums.push([low, off(sum), high]);
        }
    }
}

/// Activations in 8 bits.
#[derive(Debug, Default)]
pub(super) struct Rounded {
    /// q d.
    pub(super) x: Vec<f64>,
    /// The numbers whose q may be another, and what it is then more.
    pub(super) ties: Vec<(usize, f64)>,
    /// What d Σq of each block, as it is kept for offsets, is more than Σ q d: at least, with the q of `x`, and at most.
    /// Empty where it is not kept.
    pub(super) sums: Vec<[f64; 3]>,
}

impl fmt::Display for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Q8_0 => "Q8_0",
            Self::Q8_1 => "Q8_1",
            Self::Q8K => "Q8_K",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 127, then quotients as given, with d = 2: a power of two, which f16 has.
    fn block(activations: Activations, quotients: &[f64]) -> Rounded {
        let mut x = vec![0.0; activations.block()];
        x[0] = 254.0;
        for (x, quotient) in x[1..].iter_mut().zip(quotients) {
            *x = 2.0 * quotient;
        }
        activations.round(&x)
    }

    #[test]
    fn numbers_are_rounded_to_the_nearest_step() {
        for activations in [Activations::Q8_0, Activations::Q8_1, Activations::Q8K] {
            let rounded = block(activations, &[1.4, -1.6, 126.51, -0.49]);
            assert_eq!(rounded.x[..5], [254.0, 2.0, -4.0, 254.0, 0.0]);
            assert_eq!(rounded.ties, []);
            assert_eq!(activations.round(&[0.0; 256]).x, [0.0; 256]);
        }
    }

    #[test]
    fn ties_to_within_the_roundings_may_go_either_way() {
        let near = 100.5 * (1.0 + 2f64.powi(-23));
        let far = 100.5 * (1.0 + 2f64.powi(-21));
        let rounded = block(Activations::Q8_1, &[near, far, -100.5]);
        assert_eq!(rounded.x[..4], [254.0, 202.0, 202.0, -202.0]);
        assert_eq!(rounded.ties, [(1, -2.0), (3, 2.0)]);
        // Σq is 127 + 101 + 101 − 101 = 228, or one less or more: 456 and its neighbours are numbers of f16.
        assert_eq!(rounded.sums, [[0.0; 3]]);
    }

    #[test]
    fn the_scale_and_its_sum_are_rounded_to_f16() {
        let mut x: Vec<_> = (0..32).map(|i| f64::from(i + 1)).collect();
        // 16 / 32 would be a tie.
        x[15] = 16.25;
        let d = Precision::F16.nearest(Precision::F32.nearest(32.0 / 127.0));
        assert_ne!(d, 32.0 / 127.0);
        let rounded = Activations::Q8_1.round(&x);
        assert_eq!(rounded.x[31], 127.0 * d);
        let sum: f64 = rounded.x.iter().sum();
        let kept = Precision::F16.nearest(sum / d * Precision::F32.nearest(32.0 / 127.0));
        assert_eq!(rounded.sums, [[kept - sum; 3]]);
        assert!(kept != sum);
        assert!(Activations::Q8_0.round(&x).sums.is_empty());
        let mut long = x.clone();
        long.resize(256, 0.0);
        assert_eq!(Activations::Q8K.round(&long).x[31], 32.0);
    }
}
