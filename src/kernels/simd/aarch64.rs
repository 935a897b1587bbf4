//! NEON: the dot kernels of 64-bit ARM.
//!
//! The sixteen lanes are 4 vectors of f32, or 8 of f64. BFDOT and BFMMLA, which some machines have, round and order
//! otherwise than `VDPBF16PS` does, so bf16 products are made of f32 multiply-adds, as on AVX2.
//!
//! There are 32 registers, so tiles are as large as with AVX-512, but of 4 lanes of f32 or 2 of f64 at a time.

use std::arch::aarch64::*;
use std::arch::asm;
use std::array::from_fn;

use half::bf16;

use super::instructions::{dequantise, instructions, lanes};
use super::lanes::Tile;
use super::scalar::flushing_fma;

instructions!(
    /// NEON.
    Neon, is_aarch64_feature_detected, ["neon"], "neon",
    // The intrinsic is not in stable Rust.
    prefetch: |at: *const u8| asm!(
        "prfm pldl1keep, [{at}]",
        at = in(reg) at,
        options(readonly, nostack, preserves_flags),
    ),
    prefetch_far: |at: *const u8| asm!(
        "prfm pldl2keep, [{at}]",
        at = in(reg) at,
        options(readonly, nostack, preserves_flags),
    ),
);

lanes!(
    Neon, f64, f64, 16, f64, float64x2_t, float64x2_t, 8, Tile::new(4, 4),
    zero: vdupq_n_f64(0.0),
    load: |x: *const f64| vld1q_f64(x),
    widen: |w: *const f64| vld1q_f64(w),
    multiply_add: |sum, w, x| vfmaq_f64(sum, w, x),
    add_sums: |a, b| vaddq_f64(a, b),
    fold: fold_sixteen_f64,
);
lanes!(
    Neon, f64, bf16, 16, f64, float64x2_t, float64x2_t, 8, Tile::new(4, 4),
    zero: vdupq_n_f64(0.0),
    load: |x: *const f64| vld1q_f64(x),
    widen: |w: *const bf16| {
        let two = [(*w).to_bits(), (*w.add(1)).to_bits()].map(|bits| u32::from(bits) << 16);
        vcvt_f64_f32(vreinterpret_f32_u32(vld1_u32(two.as_ptr())))
    },
    multiply_add: |sum, w, x| vfmaq_f64(sum, w, x),
    add_sums: |a, b| vaddq_f64(a, b),
    fold: fold_sixteen_f64,
);
lanes!(
    Neon, f32, f32, 16, f32, float32x4_t, float32x4_t, 4, Tile::new(4, 4),
    zero: vdupq_n_f32(0.0),
    load: |x: *const f32| vld1q_f32(x),
    widen: |w: *const f32| vld1q_f32(w),
    multiply_add: |sum, w, x| vfmaq_f32(sum, w, x),
    add_sums: |a, b| vaddq_f32(a, b),
    fold: fold_sixteen_f32,
);
lanes!(
    Neon, f32, bf16, 16, f32, float32x4_t, float32x4_t, 4, Tile::new(4, 4),
    zero: vdupq_n_f32(0.0),
    load: |x: *const f32| vld1q_f32(x),
    widen: |w: *const bf16| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(w.cast()))),
    multiply_add: |sum, w, x| vfmaq_f32(sum, w, x),
    add_sums: |a, b| vaddq_f32(a, b),
    fold: fold_sixteen_f32,
);
lanes!(
    Neon, bf16, bf16, 32, f32, uint32x4_t, float32x4_t, 4, Tile::new(4, 4),
    zero: vdupq_n_f32(0.0),
    load: load_pairs,
    widen: load_pairs,
    multiply_add: dot_pairs,
    multiply_add_normal: |sum, w, x| {
        let sum = vfmaq_f32(sum, odd(w), odd(x));
        vfmaq_f32(sum, even(w), even(x))
    },
    add_sums: |a, b| vaddq_f32(a, b),
    fold: fold_sixteen_f32,
);
// One rounding is as good as two here: the product is exact.
dequantise!(
    Neon, [uint8x16_t; 2],
    load: |bytes: *const u8| [vld1q_u8(bytes), vld1q_u8(bytes.add(16))],
    load_sixteen: |bytes: *const u8| vld1q_u8(bytes),
    halves: |first, second, shifts: [i32; 2]| {
        [vshlq_u8(first, vdupq_n_s8(-shifts[0] as i8)), vshlq_u8(second, vdupq_n_s8(-shifts[1] as i8))]
    },
    field: |bytes: [uint8x16_t; 2], shift: i32, mask: u8| {
        bytes.map(|bytes| vandq_u8(vshlq_u8(bytes, vdupq_n_s8(-shift as i8)), vdupq_n_u8(mask)))
    },
    joined: |low: [uint8x16_t; 2], high: [uint8x16_t; 2], shift: i32| {
        let high = high.map(|high| vshlq_u8(high, vdupq_n_s8(shift as i8)));
        [vorrq_u8(low[0], high[0]), vorrq_u8(low[1], high[1])]
    },
    less: |bytes: [uint8x16_t; 2], bias: i8| bytes.map(|bytes| vsubq_u8(bytes, vdupq_n_u8(bias as u8))),
    plus: |bytes: [uint8x16_t; 2], bits: u32, more: i8| {
        let [a, b, c, d] = bits.to_le_bytes();
        let bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
        let more = [[a, b], [c, d]].map(|[low, high]| {
            let set = vtstq_u8(vcombine_u8(vdup_n_u8(low), vdup_n_u8(high)), bit);
            vandq_u8(set, vdupq_n_u8(more as u8))
        });
        [vaddq_u8(bytes[0], more[0]), vaddq_u8(bytes[1], more[1])]
    },
    column: |bytes: [uint8x16_t; 2], bit: usize| {
        let weights = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
        let [first, second] = bytes.map(|bytes| {
            let weighed = vandq_u8(vtstq_u8(bytes, vdupq_n_u8(1 << bit)), weights);
            [vaddv_u8(vget_low_u8(weighed)), vaddv_u8(vget_high_u8(weighed))]
        });
        u32::from_le_bytes([first[0], first[1], second[0], second[1]])
    },
    look_up: |table, indices: [uint8x16_t; 2]| indices.map(|indices| vqtbl1q_u8(table, indices)),
    dequantise: |quants: [uint8x16_t; 2], half: usize, part, scale, offset| {
        let quants = vreinterpretq_s8_u8(quants[half]);
        let eight = if part < 2 { vget_low_s8(quants) } else { vget_high_s8(quants) };
        let eight = vmovl_s8(eight);
        let four = if part % 2 == 0 { vget_low_s16(eight) } else { vget_high_s16(eight) };
        vfmaq_f32(vdupq_n_f32(offset), vdupq_n_f32(scale), vcvtq_f32_s32(vmovl_s16(four)))
    },
);

/// Four pairs of numbers, the even one in the low half.
///
/// # Safety
///
/// `x` must point to 8 readable numbers.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load_pairs(x: *const bf16) -> uint32x4_t {
    // SAFETY: the caller promises 8 numbers.
    vreinterpretq_u32_u16(unsafe { vld1q_u16(x.cast()) })
}

/// The odd numbers of four pairs.
#[inline]
#[target_feature(enable = "neon")]
fn odd(pairs: uint32x4_t) -> float32x4_t {
    vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xFFFF_0000)))
}

/// The even numbers of four pairs.
#[inline]
#[target_feature(enable = "neon")]
fn even(pairs: uint32x4_t) -> float32x4_t {
    vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs))
}

/// Four lanes of the bf16 product: odd elements first, then even ones, denormals taken as zero.
#[inline]
#[target_feature(enable = "neon")]
fn dot_pairs(sum: float32x4_t, w: uint32x4_t, x: uint32x4_t) -> float32x4_t {
    let sum = flushing_fma_neon(odd(w), odd(x), sum);
    flushing_fma_neon(even(w), even(x), sum)
}

/// Four times [`flushing_fma`].
#[inline]
#[target_feature(enable = "neon")]
fn flushing_fma_neon(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
    let (a, b, c) = (flush(a), flush(b), flush(c));
    let sum = vfmaq_f32(c, a, b);
    let edge = vceqq_f32(vabsq_f32(sum), vdupq_n_f32(f32::MIN_POSITIVE));
    if vmaxvq_u32(edge) == 0 {
        return flush(sum);
    }
    // Too rare to be worth vectors.
    let [a, b, c] = [a, b, c].map(|v| to_array(v));
    let exact = |x: f32| bf16::from_bits((x.to_bits() >> 16) as u16);
    let sum: [f32; 4] = from_fn(|l| flushing_fma(exact(a[l]), exact(b[l]), c[l]));
    // SAFETY: the array has 4 numbers.
    unsafe { vld1q_f32(sum.as_ptr()) }
}

/// Denormals become zeros of their sign.
#[inline]
#[target_feature(enable = "neon")]
fn flush(x: float32x4_t) -> float32x4_t {
    let tiny = vcaltq_f32(x, vdupq_n_f32(f32::MIN_POSITIVE));
    // All bits but the sign.
    let gone = vshrq_n_u32::<1>(tiny);
    vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), gone))
}

#[inline]
#[target_feature(enable = "neon")]
fn to_array(x: float32x4_t) -> [f32; 4] {
    let mut out = [0.0; 4];
    // SAFETY: the array has 4 numbers.
    unsafe { vst1q_f32(out.as_mut_ptr(), x) };
    out
}

#[inline]
#[target_feature(enable = "neon")]
fn fold_sixteen_f32(sum: [float32x4_t; 4]) -> f32 {
    let eight = [vaddq_f32(sum[0], sum[2]), vaddq_f32(sum[1], sum[3])];
    let four = vaddq_f32(eight[0], eight[1]);
    vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
}

#[inline]
#[target_feature(enable = "neon")]
fn fold_sixteen_f64(sum: [float64x2_t; 8]) -> f64 {
    let eight: [_; 4] = from_fn(|i| vaddq_f64(sum[i], sum[i + 4]));
    let four = [vaddq_f64(eight[0], eight[2]), vaddq_f64(eight[1], eight[3])];
    vpaddd_f64(vaddq_f64(four[0], four[1]))
}
