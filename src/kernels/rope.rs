//! Rotary position embedding (RoPE) with split halves: element i is rotated with element i + d/2.
//!
//! Angles, cos and sin are computed in f64, where Hugging Face uses f32: an angle of 1500 is off by up
//! to 1e-4 there, which would be most of the error of a long prompt in f32.

use super::simd::{Level, Simd, Task};
use crate::tensor::Element;

/// The angles of one kind of layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// θ^(−2i/d) / factor, for i < d/2.
    inverse_frequencies: Vec<f64>,
    /// What cos and sin are multiplied by.
    scale: f64,
}

impl Rotation {
    /// Angles for heads of `head_dim` numbers, base `theta`, positions divided by `factor`.
    pub fn new(head_dim: usize, theta: f64, factor: f64) -> Self {
        let inverse_frequencies = (0..head_dim / 2)
            .map(|i| libm::pow(theta, -((2 * i) as f64) / head_dim as f64) / factor)
            .collect();
        Self::from_frequencies(inverse_frequencies, 1.0)
    }

    /// Pair i turns by `inverse_frequencies[i]` at each position; cos and sin are multiplied by `scale`.
    pub fn from_frequencies(inverse_frequencies: Vec<f64>, scale: f64) -> Self {
        Self {
            inverse_frequencies,
            scale,
        }
    }

    /// How many numbers of a head are rotated.
    #[cfg(feature = "cuda")]
    pub(crate) fn dims(&self) -> usize {
        2 * self.inverse_frequencies.len()
    }

    /// The angles at `position`, `[head_dim / 2]`.
    pub(crate) fn angles(&self, position: usize) -> impl Iterator<Item = f64> {
        let frequencies = self.inverse_frequencies.iter();
        frequencies.map(move |f| f * position as f64)
    }

    /// cos and sin at `position`.
    pub fn at(&self, position: usize) -> CosSin<f64> {
        let angles = self.angles(position);
        let turned = angles.map(|a| (libm::cos(a) * self.scale, libm::sin(a) * self.scale));
        turned.unzip()
    }
}

/// cos and sin at a position, `[head_dim / 2]` each: computed in f64, then rounded once to the compute type.
pub type CosSin<E> = (Vec<E>, Vec<E>);

/// Rotates heads of twice the length of cos, one after the other, in place: q · cos + rotate_half(q) · sin, each product and the
/// sum rounded.
pub fn rotate<E: Element>(level: Level, heads: &mut [E], (cos, sin): &CosSin<E>) {
    level.run(Rotate { heads, cos, sin });
}

struct Rotate<'a, E> {
    heads: &'a mut [E],
    cos: &'a [E],
    sin: &'a [E],
}

impl<E: Element> Task for Rotate<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let product = |a: E, b: E| E::round(a.acc() * b.acc()).acc();
        let half = self.cos.len();
        for head in self.heads.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            let pairs = self.cos.iter().zip(self.sin);
            for ((a, b), (&cos, &sin)) in first.iter_mut().zip(second).zip(pairs) {
                let (x, y) = (*a, *b);
                *a = E::round(product(x, cos) - product(y, sin));
                *b = E::round(product(y, cos) + product(x, sin));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_zero_changes_nothing_and_lengths_stay() {
        let rotation = Rotation::new(8, 10_000.0, 1.0);
        let head: Vec<f64> = (1..=8).map(f64::from).collect();
        let mut rotated = head.clone();
        rotate(Level::best(), &mut rotated, &rotation.at(0));
        assert_eq!(rotated, head);
        rotate(Level::best(), &mut rotated, &rotation.at(5));
        for i in 0..4 {
            let length = |v: &[f64]| v[i].hypot(v[i + 4]);
            assert!((length(&rotated) - length(&head)).abs() < 1e-14);
        }
        assert!((rotated[0] - (5f64.cos() - 5.0 * 5f64.sin())).abs() < 1e-13);
    }

    #[test]
    fn the_factor_divides_positions() {
        let scaled = Rotation::new(8, 1e6, 8.0).at(16);
        let plain = Rotation::new(8, 1e6, 1.0).at(2);
        assert_eq!(scaled, plain);
    }
}
