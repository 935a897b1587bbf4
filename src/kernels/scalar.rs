//! The plain level: what the others must agree with, bit for bit.

use half::bf16;

use super::lanes::{Instructions, Lanes, Simd, fold};
use crate::tensor::{Element, Float};

/// Plain Rust: arrays of sixteen.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

impl Instructions for Scalar {}
impl Simd for Scalar {}

macro_rules! plain {
    ($x:ty, $w:ty, $acc:ty) => {
        impl Lanes<$x, $w, 16> for Scalar {
            type Block = [$acc; 16];
            type Sum = [$acc; 16];
            type Acc = $acc;
            const TILE: (usize, usize) = (1, 1);

            #[inline(always)]
            fn zero(self) -> Self::Sum {
                [0.0; 16]
            }
            #[inline(always)]
            fn resume(self, sums: &[$acc; 16]) -> Self::Sum {
                *sums
            }
            #[inline(always)]
            fn suspend(self, sums: Self::Sum) -> [$acc; 16] {
                sums
            }
            #[inline(always)]
            fn load(self, x: &[$x; 16]) -> Self::Block {
                *x
            }
            #[inline(always)]
            fn widen(self, w: &[$w; 16]) -> Self::Block {
                w.map(|w| w.acc().into())
            }
            #[inline(always)]
            fn store(self, block: Self::Block, to: &mut [$x; 16]) {
                *to = block;
            }
            #[inline(always)]
            fn multiply_add(self, sum: Self::Sum, w: Self::Block, x: Self::Block) -> Self::Sum {
                std::array::from_fn(|l| Float::mul_add(w[l], x[l], sum[l]))
            }
            #[inline(always)]
            fn fold(self, sum: Self::Sum) -> $acc {
                fold(sum)
            }
        }
    };
}
plain!(f64, f64, f64);
plain!(f64, bf16, f64);
plain!(f32, f32, f32);
plain!(f32, bf16, f32);

impl Lanes<bf16, bf16, 32> for Scalar {
    type Block = [bf16; 32];
    type Sum = [f32; 16];
    type Acc = f32;
    const TILE: (usize, usize) = (1, 1);

    #[inline(always)]
    fn zero(self) -> Self::Sum {
        [0.0; 16]
    }
    #[inline(always)]
    fn resume(self, sums: &[f32; 16]) -> Self::Sum {
        *sums
    }
    #[inline(always)]
    fn suspend(self, sums: Self::Sum) -> [f32; 16] {
        sums
    }
    #[inline(always)]
    fn load(self, x: &[bf16; 32]) -> Self::Block {
        *x
    }
    #[inline(always)]
    fn widen(self, w: &[bf16; 32]) -> Self::Block {
        *w
    }
    #[inline(always)]
    fn store(self, block: Self::Block, to: &mut [bf16; 32]) {
        *to = block;
    }
    #[inline(always)]
    fn multiply_add(self, sum: Self::Sum, w: Self::Block, x: Self::Block) -> Self::Sum {
        std::array::from_fn(|l| {
            let odd = flushing_fma(w[2 * l + 1], x[2 * l + 1], sum[l]);
            flushing_fma(w[2 * l], x[2 * l], odd)
        })
    }
    #[inline(always)]
    fn fold(self, sum: Self::Sum) -> f32 {
        fold(sum)
    }
}

/// `a · b + c` in f32 with one rounding, denormal inputs and results taken as zeros of their sign.
///
/// Whether a result is denormal is decided as the hardware does, after rounding to 24 bits with an
/// unbounded exponent: 2⁻¹²⁶ itself can be the denormal rounding of something smaller, so that one is
/// looked at again, scaled up.
#[inline]
pub(super) fn flushing_fma(a: bf16, b: bf16, c: f32) -> f32 {
    let (a, b, c) = (flush(a.to_f32()), flush(b.to_f32()), flush(c));
    let sum = a.mul_add(b, c);
    if sum.abs() == f32::MIN_POSITIVE {
        const UP: f64 = (1u64 << 60) as f64;
        // Exact up to the one rounding: the product has 16 bits, and the sum was tiny.
        let wide = (f64::from(a) * UP) as f32;
        let scaled = wide.mul_add(b, (f64::from(c) * UP) as f32);
        if f64::from(scaled.abs()) < f64::from(f32::MIN_POSITIVE) * UP {
            return 0f32.copysign(sum);
        }
    }
    flush(sum)
}

#[inline(always)]
fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE {
        0f32.copysign(x)
    } else {
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denormal_rounded_up_to_normal_is_flushed() {
        let smallest = bf16::from_f32(f32::MIN_POSITIVE);
        // 2⁻¹²⁶ − 0.75 · 2⁻¹⁵⁰ is below 2⁻¹²⁶ at 24 bits, though the denormal grid rounds it up to it.
        let a = bf16::from_f32(-0.75 * 2f32.powi(-75));
        let b = bf16::from_f32(2f32.powi(-75));
        assert_eq!(
            a.to_f32().mul_add(b.to_f32(), smallest.to_f32()),
            f32::MIN_POSITIVE
        );
        assert_eq!(flushing_fma(a, b, f32::MIN_POSITIVE).to_bits(), 0);
        // Half as far away it rounds up to it at 24 bits too.
        let a = bf16::from_f32(-0.375 * 2f32.powi(-75));
        assert_eq!(flushing_fma(a, b, f32::MIN_POSITIVE), f32::MIN_POSITIVE);
    }
}
