//! RMSNorm, n(u) = u / √(mean(u²) + ε) scaled by m, and LayerNorm.
//!
//! Computed in the type of sums: Σu² as a dot product in the documented order, divided by the length,
//! plus ε, square root, one over it, times u, times m; every step rounded, and once more to bf16 at
//! the end where that is the compute type. LayerNorm takes the mean off first, which is a dot product with ones divided by
//! the length, and adds the bias last.

use super::matmul::dot;
use super::simd::{Level, Simd, Task};
use crate::tensor::{Element, Float};

/// n(u), not rounded to the compute type. `eps` is ε.
pub fn unscaled_rms_norm<E: Element>(level: Level, u: &[E], eps: f64) -> Vec<E::Acc> {
    let wide: Vec<E::Acc> = u.iter().map(|&u| u.acc()).collect();
    let inverse = inverse_rms(level, &wide, eps);
    wide.into_iter().map(|u| u * inverse).collect()
}

/// n(u − mean(u)) ⊙ `scale` + `bias` into `out` for each stretch of `u` that is as long as `scale`; `bias` may be empty.
pub fn layer_norm<E: Element>(
    level: Level,
    u: &[E],
    (scale, bias): (&[E::Acc], &[E::Acc]),
    eps: f64,
    out: &mut [E],
) {
    assert_eq!(u.len(), out.len(), "a place for each number");
    let ones = vec![E::Acc::ONE; scale.len()];
    let mut wide = vec![E::Acc::ZERO; scale.len()];
    let stretches = u.chunks_exact(scale.len());
    for (u, out) in stretches.zip(out.chunks_exact_mut(scale.len())) {
        for (wide, u) in wide.iter_mut().zip(u) {
            *wide = u.acc();
        }
        let mean = dot(level, &wide, &ones) / E::Acc::from_f64(scale.len() as f64);
        for wide in &mut wide {
            *wide = *wide - mean;
        }
        let inverse = inverse_rms(level, &wide, eps);
        let scaled = wide.iter().zip(scale).map(|(&u, &m)| u * inverse * m);
        if bias.is_empty() {
            for (out, y) in out.iter_mut().zip(scaled) {
                *out = E::round(y);
            }
        } else {
            for ((out, y), &b) in out.iter_mut().zip(scaled).zip(bias) {
                *out = E::round(y + b);
            }
        }
    }
}

/// n(u) ⊙ `scale` into `out` for each stretch of `u` that is as long as `scale`, which is m.
pub fn rms_norm<E: Element>(level: Level, u: &[E], scale: &[E::Acc], eps: f64, out: &mut [E]) {
    assert_eq!(u.len(), out.len(), "a place for each number");
    let mut wide = vec![E::Acc::ZERO; scale.len()];
    let stretches = u.chunks_exact(scale.len());
    for (u, out) in stretches.zip(out.chunks_exact_mut(scale.len())) {
        for (wide, u) in wide.iter_mut().zip(u) {
            *wide = u.acc();
        }
        let inverse = inverse_rms(level, &wide, eps);
        level.run(Scaled {
            u: &wide,
            inverse,
            scale,
            out,
        });
    }
}

/// 1 / √(mean(u²) + ε).
fn inverse_rms<A: Float>(level: Level, u: &[A], eps: f64) -> A {
    let mean = dot(level, u, u) / A::from_f64(u.len() as f64);
    A::ONE / (mean + A::from_f64(eps)).sqrt()
}

struct Scaled<'a, E: Element> {
    u: &'a [E::Acc],
    inverse: E::Acc,
    scale: &'a [E::Acc],
    out: &'a mut [E],
}

impl<E: Element> Task for Scaled<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let scaled = self.out.iter_mut().zip(self.u).zip(self.scale);
        for ((out, &u), &scale) in scaled {
            *out = E::round(u * self.inverse * scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    /// The order of operations in the words of this module, for one vector.
    fn naive<E: Element>(u: &[E], scale: &[E::Acc], eps: f64) -> Vec<E> {
        let wide: Vec<E::Acc> = u.iter().map(|u| u.acc()).collect();
        let mut lanes = [E::Acc::ZERO; 16];
        for (i, &u) in wide.iter().enumerate() {
            lanes[i % 16] = u.mul_add(u, lanes[i % 16]);
        }
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                lanes[l] = lanes[l] + lanes[l + half];
            }
        }
        let mean = lanes[0] / E::Acc::from_f64(u.len() as f64);
        let inverse = E::Acc::ONE / (mean + E::Acc::from_f64(eps)).sqrt();
        let scaled = wide.iter().zip(scale);
        scaled.map(|(&u, &m)| E::round(u * inverse * m)).collect()
    }

    fn every_level_is_naive<E: Element>() {
        for length in [1, 15, 16, 50] {
            let number = |i: usize| 5.0 * libm::sin(1.3 * i as f64);
            let u: Vec<E> = (0..3 * length).map(|i| E::from_f64(number(i))).collect();
            let scale: Vec<_> = (0..length)
                .map(|i| E::Acc::from_f64(number(i + 9)))
                .collect();
            let want: Vec<_> = u
                .chunks(length)
                .flat_map(|u| naive(u, &scale, 1e-6))
                .collect();
            for level in Level::available() {
                let mut got = vec![E::default(); u.len()];
                rms_norm(level, &u, &scale, 1e-6, &mut got);
                assert!(got == want, "{level} {} {length}", E::DTYPE);
            }
        }
    }

    #[test]
    fn every_level_follows_the_documented_order() {
        every_level_is_naive::<f64>();
        every_level_is_naive::<f32>();
        every_level_is_naive::<bf16>();
    }
}
