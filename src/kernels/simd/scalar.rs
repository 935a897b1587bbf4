//! The plain level: what the others must agree with, bit for bit.

use half::bf16;

use super::lanes::{Dequantise, Instructions, Lanes, Simd, Tile, fold};
use crate::tensor::quantised::{ByteLanes, Plain};
use crate::tensor::{Element, Float};

/// Plain Rust: arrays of sixteen.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

impl Instructions for Scalar {}
impl Simd for Scalar {}

/// The lanes of one pair of types, all in one part.
macro_rules! plain {
    ($x:ty, $w:ty, $b:literal, $acc:ty, $operand:ty, widen: $widen:expr, multiply_add: $multiply_add:expr $(,)?) => {
        impl Lanes<$x, $w, $b> for Scalar {
            type Operand = [$operand; $b];
            type Sum = [$acc; 16];
            type Sums = [[$acc; 16]; 1];
            type Packed = [$operand; $b];
            type Acc = $acc;
            const PARTS: usize = 1;
            const TILE: Tile = Tile::new(1, 1);

            #[inline(always)]
            fn zero(self) -> Self::Sums {
                [[0.0; 16]]
            }
            #[inline(always)]
            fn load_partial(self, sums: &[$acc; 16], _part: usize) -> Self::Sum {
                *sums
            }
            #[inline(always)]
            fn store_partial(self, sum: Self::Sum, to: &mut [$acc; 16], _part: usize) {
                *to = sum;
            }
            #[inline(always)]
            fn load(self, x: &[$x; $b], _part: usize) -> Self::Operand {
                *x
            }
            #[inline(always)]
            fn widen(self, w: &[$w; $b], _part: usize) -> Self::Operand {
                w.map($widen)
            }
            #[inline(always)]
            fn pack(self, operand: Self::Operand, to: &mut Self::Packed, _part: usize) {
                *to = operand;
            }
            #[inline(always)]
            fn unpack(self, block: &Self::Packed, _part: usize) -> Self::Operand {
                *block
            }
            #[inline(always)]
            fn multiply_add(self, sum: Self::Sum, w: Self::Operand, x: Self::Operand) -> Self::Sum {
                std::array::from_fn(|l| $multiply_add(l, sum[l], &w, &x))
            }
            #[inline(always)]
            fn add_sums(self, a: Self::Sum, b: Self::Sum) -> Self::Sum {
                std::array::from_fn(|l| a[l] + b[l])
            }
            #[inline(always)]
            fn add_rows<const R: usize, const T: usize>(
                self,
                sums: &mut [[Self::Sums; T]; R],
                w: [&[[$w; $b]]; R],
                x: [&[[$x; $b]]; T],
            ) {
                for (sums, w) in sums.iter_mut().zip(w) {
                    for ([sum], x) in sums.iter_mut().zip(x) {
                        for (w, x) in w.iter().zip(x) {
                            let w = Lanes::<$x, $w, $b>::widen(self, w, 0);
                            *sum = Lanes::<$x, $w, $b>::multiply_add(self, *sum, w, *x);
                        }
                    }
                }
            }
            #[inline(always)]
            fn fold(self, [sum]: Self::Sums) -> $acc {
                fold(sum)
            }
        }
    };
}

/// The pairs whose products are single multiply-adds.
macro_rules! fused {
    ($x:ty, $w:ty) => {
        plain!(
            $x, $w, 16, $x, $x,
            widen: |w| w.acc().into(),
            multiply_add: |l, sum, w: &[$x; 16], x: &[$x; 16]| Float::mul_add(w[l], x[l], sum),
        );
    };
}
fused!(f64, f64);
fused!(f64, bf16);
fused!(f32, f32);
fused!(f32, bf16);

plain!(
    bf16, bf16, 32, f32, bf16,
    widen: |w| w,
    multiply_add: |l, sum, w: &[bf16; 32], x: &[bf16; 32]| {
        let odd = flushing_fma(w[2 * l + 1], x[2 * l + 1], sum);
        flushing_fma(w[2 * l], x[2 * l], odd)
    },
);

impl ByteLanes for Scalar {
    type Bytes = [u8; 32];

    #[inline(always)]
    fn load_bytes(self, bytes: &[u8; 32]) -> [u8; 32] {
        Plain.load_bytes(bytes)
    }
    #[inline(always)]
    fn load_signed(self, bytes: &[i8; 32]) -> [u8; 32] {
        Plain.load_signed(bytes)
    }
    #[inline(always)]
    fn load_halves(self, halves: [&[u8; 16]; 2], shifts: [usize; 2]) -> [u8; 32] {
        Plain.load_halves(halves, shifts)
    }
    #[inline(always)]
    fn store_signed(self, bytes: [u8; 32]) -> [i8; 32] {
        Plain.store_signed(bytes)
    }
    #[inline(always)]
    fn field(self, bytes: [u8; 32], shift: usize, mask: u8) -> [u8; 32] {
        Plain.field(bytes, shift, mask)
    }
    #[inline(always)]
    fn joined(self, low: [u8; 32], high: [u8; 32], shift: usize) -> [u8; 32] {
        Plain.joined(low, high, shift)
    }
    #[inline(always)]
    fn less(self, bytes: [u8; 32], bias: i8) -> [u8; 32] {
        Plain.less(bytes, bias)
    }
    #[inline(always)]
    fn plus(self, bytes: [u8; 32], bits: u32, more: i8) -> [u8; 32] {
        Plain.plus(bytes, bits, more)
    }
    #[inline(always)]
    fn column(self, bytes: [u8; 32], bit: usize) -> u32 {
        Plain.column(bytes, bit)
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], indices: [u8; 32]) -> [u8; 32] {
        Plain.look_up(table, indices)
    }
}

impl Dequantise for Scalar {
    #[inline(always)]
    fn dequantise(
        self,
        quants: [u8; 32],
        half: usize,
        _part: usize,
        scale: f32,
        offset: f32,
    ) -> [f32; 16] {
        std::array::from_fn(|i| scale * f32::from(quants[16 * half + i] as i8) + offset)
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
