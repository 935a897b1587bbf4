//! AVX2 with FMA, AVX-512, and AVX-512 with bf16: the dot kernels of x86-64.

mod bytes;
mod pairs;

use std::arch::x86_64::*;

use bytes::{
    field_of_bytes, four_widened, half_of_bytes, joined_bytes, numbers_of_codes, shifted_halves,
};
use half::bf16;
use pairs::{add_pairs, add_rows_of_pairs, dot_normal_pairs, dot_pairs, load_pairs};

use super::instructions::{add_rows, dequantise, instructions, lanes};
use super::lanes::{Lanes, Tile};

instructions!(
    /// AVX2 with FMA and F16C.
    Avx2, is_x86_feature_detected, ["avx2", "fma", "f16c"], "avx2,fma,f16c",
    prefetch: |at| _mm_prefetch::<_MM_HINT_T0>(at),
    prefetch_far: |at| _mm_prefetch::<_MM_HINT_T1>(at),
);
instructions!(
    /// AVX-512.
    Avx512, is_x86_feature_detected, ["avx512f", "avx512bw", "avx512dq", "avx512vl", "f16c"],
    "f16c,avx512f,avx512bw,avx512dq,avx512vl",
    prefetch: |at| _mm_prefetch::<_MM_HINT_T0>(at),
    prefetch_far: |at| _mm_prefetch::<_MM_HINT_T1>(at),
);
instructions!(
    /// AVX-512 with the bf16 dot product.
    Avx512Bf16, is_x86_feature_detected, ["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512bf16", "f16c"],
    "f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16",
    prefetch: |at| _mm_prefetch::<_MM_HINT_T0>(at),
    prefetch_far: |at| _mm_prefetch::<_MM_HINT_T1>(at),
);

lanes!(
    Avx2, f64, f64, 16, f64, __m256d, __m256d, 4, Tile::new(4, 3),
    zero: _mm256_setzero_pd(),
    load: |x: *const f64| _mm256_loadu_pd(x),
    widen: |w: *const f64| _mm256_loadu_pd(w),
    multiply_add: |sum, w, x| _mm256_fmadd_pd(w, x, sum),
    add_sums: |a, b| _mm256_add_pd(a, b),
    fold: fold_sixteen_f64_avx2,
);
lanes!(
    Avx2, f64, bf16, 16, f64, __m256d, __m256d, 4, Tile::new(4, 3),
    zero: _mm256_setzero_pd(),
    load: |x: *const f64| _mm256_loadu_pd(x),
    widen: |w: *const bf16| {
        let words = _mm_cvtepu16_epi32(_mm_loadl_epi64(w.cast()));
        _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32::<16>(words)))
    },
    multiply_add: |sum, w, x| _mm256_fmadd_pd(w, x, sum),
    add_sums: |a, b| _mm256_add_pd(a, b),
    fold: fold_sixteen_f64_avx2,
);
lanes!(
    Avx2, f32, f32, 16, f32, __m256, __m256, 2, Tile::new(4, 3),
    zero: _mm256_setzero_ps(),
    load: |x: *const f32| _mm256_loadu_ps(x),
    widen: |w: *const f32| _mm256_loadu_ps(w),
    multiply_add: |sum, w, x| _mm256_fmadd_ps(w, x, sum),
    add_sums: |a, b| _mm256_add_ps(a, b),
    fold: fold_sixteen_f32_avx2,
    fold_four: fold_four_sixteen_f32_avx2,
);
lanes!(
    Avx2, f32, bf16, 16, f32, __m256, __m256, 2, Tile::new(4, 3),
    zero: _mm256_setzero_ps(),
    load: |x: *const f32| _mm256_loadu_ps(x),
    widen: |w: *const bf16| {
        let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(w.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
    },
    multiply_add: |sum, w, x| _mm256_fmadd_ps(w, x, sum),
    add_sums: |a, b| _mm256_add_ps(a, b),
    fold: fold_sixteen_f32_avx2,
    fold_four: fold_four_sixteen_f32_avx2,
);

// One rounding is as good as two here: the product is exact.
dequantise!(
    Avx2, __m256i,
    widen_f16: |bytes| _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(u16::from_le_bytes(bytes).into()))),
    widen_four_f16: four_widened,
    load: |bytes: *const u8| _mm256_loadu_si256(bytes.cast()),
    load_sixteen: |bytes: *const u8| _mm_loadu_si128(bytes.cast()),
    halves: shifted_halves,
    field: field_of_bytes,
    joined: joined_bytes,
    less: |bytes, bias| _mm256_sub_epi8(bytes, _mm256_set1_epi8(bias)),
    plus: |bytes, bits: u32, more| {
        // Each byte of bits for eight bytes, of which each looks at one.
        let (first, second) = (0x0101_0101_0101_0101, 0x0303_0303_0303_0303);
        let eight = _mm256_setr_epi64x(0, first, 2 * first, second);
        let spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), eight);
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
        _mm256_add_epi8(bytes, _mm256_and_si256(set, _mm256_set1_epi8(more)))
    },
    column: |bytes, bit| {
        // The bit becomes its byte's highest.
        _mm256_movemask_epi8(_mm256_sll_epi16(bytes, _mm_cvtsi32_si128(7 - bit as i32))) as u32
    },
    look_up: |table, indices| _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), indices),
    dequantise: |quants, half, part, scale, offset| {
        let sixteen = half_of_bytes(quants, half);
        let eight = if part == 0 { sixteen } else { _mm_unpackhi_epi64(sixteen, sixteen) };
        let q = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight));
        _mm256_fmadd_ps(_mm256_set1_ps(scale), q, _mm256_set1_ps(offset))
    },
);

/// The AVX-512 pairs that do not depend on the bf16 instruction.
macro_rules! avx512_lanes {
    ($name:ty) => {
        lanes!(
            $name, f64, f64, 16, f64, __m512d, __m512d, 2, Tile::new(4, 4),
            zero: _mm512_setzero_pd(),
            load: |x: *const f64| _mm512_loadu_pd(x),
            widen: |w: *const f64| _mm512_loadu_pd(w),
            multiply_add: |sum, w, x| _mm512_fmadd_pd(w, x, sum),
            add_sums: |a, b| _mm512_add_pd(a, b),
            fold: fold_sixteen_f64,
        );
        lanes!(
            $name, f64, bf16, 16, f64, __m512d, __m512d, 2, Tile::new(4, 4),
            zero: _mm512_setzero_pd(),
            load: |x: *const f64| _mm512_loadu_pd(x),
            widen: |w: *const bf16| {
                let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(w.cast()));
                _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)))
            },
            multiply_add: |sum, w, x| _mm512_fmadd_pd(w, x, sum),
            add_sums: |a, b| _mm512_add_pd(a, b),
            fold: fold_sixteen_f64,
        );
        lanes!(
            $name, f32, f32, 16, f32, __m512, __m512, 1, Tile::new(4, 4),
            zero: _mm512_setzero_ps(),
            load: |x: *const f32| _mm512_loadu_ps(x),
            widen: |w: *const f32| _mm512_loadu_ps(w),
            multiply_add: |sum, w, x| _mm512_fmadd_ps(w, x, sum),
            add_sums: |a, b| _mm512_add_ps(a, b),
            fold: fold_sixteen_f32,
            fold_four: fold_four_sixteen_f32,
            fold_square: fold_square_sixteen_f32,
            add_rows: add_rows_in_halves,
        );
        lanes!(
            $name, f32, bf16, 16, f32, __m512, __m512, 1, Tile::new(4, 4),
            zero: _mm512_setzero_ps(),
            load: |x: *const f32| _mm512_loadu_ps(x),
            widen: |w: *const bf16| {
                let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(w.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
            },
            multiply_add: |sum, w, x| _mm512_fmadd_ps(w, x, sum),
            add_sums: |a, b| _mm512_add_ps(a, b),
            fold: fold_sixteen_f32,
            fold_four: fold_four_sixteen_f32,
            fold_square: fold_square_sixteen_f32,
            add_rows: add_rows_in_halves,
        );
        dequantise!(
            $name, __m256i,
            widen_f16: |bytes| _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(u16::from_le_bytes(bytes).into()))),
            widen_four_f16: four_widened,
            load: |bytes: *const u8| _mm256_loadu_si256(bytes.cast()),
            load_sixteen: |bytes: *const u8| _mm_loadu_si128(bytes.cast()),
            halves: shifted_halves,
            field: field_of_bytes,
            joined: joined_bytes,
            less: |bytes, bias| _mm256_sub_epi8(bytes, _mm256_set1_epi8(bias)),
            plus: |bytes, bits: u32, more| _mm256_mask_add_epi8(bytes, bits, bytes, _mm256_set1_epi8(more)),
            column: |bytes, bit| _mm256_test_epi8_mask(bytes, _mm256_set1_epi8(1i8 << bit)),
            look_up: |table, indices| _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), indices),
            dequantise: |quants, half, _, scale, offset| {
                let q = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(half_of_bytes(quants, half)));
                _mm512_fmadd_ps(_mm512_set1_ps(scale), q, _mm512_set1_ps(offset))
            },
            from_table: numbers_of_codes,
        );
    };
}
avx512_lanes!(Avx512);
avx512_lanes!(Avx512Bf16);

/// bf16 products where there is no instruction for them: of each eight pairs the odd numbers and then the even ones, in f32.
macro_rules! emulated_bf16_lanes {
    ($name:ty) => {
        lanes!(
            $name, bf16, bf16, 32, f32, [__m256; 2], __m256, 2, Tile::new(4, 3),
            zero: _mm256_setzero_ps(),
            load: load_pairs,
            widen: load_pairs,
            multiply_add: dot_pairs,
            multiply_add_normal: dot_normal_pairs,
            add_sums: |a, b| _mm256_add_ps(a, b),
            fold: fold_sixteen_f32_avx2,
            fold_four: fold_four_sixteen_f32_avx2,
            add_rows: add_rows_of_pairs,
            pack_from: 2,
            packed: [f32; 32],
            add: add_pairs,
        );
    };
}
emulated_bf16_lanes!(Avx2);
emulated_bf16_lanes!(Avx512);

lanes!(
    Avx512Bf16, bf16, bf16, 32, f32, __m512bh, __m512, 1, Tile::new(4, 4),
    zero: _mm512_setzero_ps(),
    load: load_avx512_bf16,
    widen: load_avx512_bf16,
    multiply_add: |sum, w, x| _mm512_dpbf16_ps(sum, w, x),
    add_sums: |a, b| _mm512_add_ps(a, b),
    fold: fold_sixteen_f32,
    fold_four: fold_four_sixteen_f32,
    fold_square: fold_square_sixteen_f32,
    add_rows: add_rows_in_halves,
);

/// [`Lanes::add_rows`], of one token in halves of a register: weights that come from memory come up to a seventh faster so on
/// Zen 4.
#[inline(always)]
fn add_rows_in_halves<L, X, W, const B: usize, const R: usize, const T: usize>(
    lanes: L,
    sums: &mut [[[__m512; 1]; T]; R],
    w: [&[[W; B]]; R],
    x: [&[[X; B]]; T],
) where
    L: Lanes<X, W, B, Sums = [__m512; 1]>,
    Avx2: Lanes<X, W, B, Sums = [__m256; 2]>,
{
    if T != 1 {
        return add_rows(lanes, sums, w, x);
    }
    // SAFETY: both are sixteen numbers for each row and token, the halves are less aligned, and nobody else has them.
    let halves: &mut [[[__m256; 2]; T]; R] = unsafe { &mut *(&raw mut *sums).cast() };
    // `lanes` proves AVX-512, which has AVX2 and FMA.
    Avx2(()).add_rows(halves, w, x);
}

/// Sixteen pairs of numbers.
///
/// # Safety
///
/// `x` must point to 32 readable numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn load_avx512_bf16(x: *const bf16) -> __m512bh {
    // SAFETY: the caller promises 32 numbers; both types are 512 plain bits.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(x.cast())) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn fold_sixteen_f32([sum]: [__m512; 1]) -> f32 {
    let (low, high) = (
        _mm512_castps512_ps256(sum),
        _mm512_extractf32x8_ps::<1>(sum),
    );
    fold_eight_f32(_mm256_add_ps(low, high))
}

/// The first two steps of [`fold_sixteen_f32`] for four sums: what is left of each is a quarter of one vector.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn quarters([[a], [b], [c], [d]]: [[__m512; 1]; 4]) -> __m512 {
    let ab = _mm512_add_ps(
        _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
        _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
    );
    let cd = _mm512_add_ps(
        _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d),
        _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d),
    );
    _mm512_add_ps(
        _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd),
        _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd),
    )
}

/// Four times [`fold_sixteen_f32`], in the same tree.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn fold_four_sixteen_f32(sums: [[__m512; 1]; 4]) -> [f32; 4] {
    let four = quarters(sums);
    let two = _mm512_add_ps(four, _mm512_shuffle_ps::<0b11_10_11_10>(four, four));
    let one = _mm512_add_ps(two, _mm512_movehdup_ps(two));
    let firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    let sums = _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, one));
    // SAFETY: both are 128 plain bits.
    unsafe { std::mem::transmute::<__m128, [f32; 4]>(sums) }
}

/// Sixteen times [`fold_sixteen_f32`], in the same tree: four rows of four sums, in columns.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn fold_square_sixteen_f32([a, b, c, d]: [[[__m512; 1]; 4]; 4]) -> [[f32; 4]; 4] {
    let [p, q, r, s] = [
        quarters([a[0], b[0], c[0], d[0]]),
        quarters([a[1], b[1], c[1], d[1]]),
        quarters([a[2], b[2], c[2], d[2]]),
        quarters([a[3], b[3], c[3], d[3]]),
    ];
    let pq = _mm512_add_ps(
        _mm512_shuffle_ps::<0b01_00_01_00>(p, q),
        _mm512_shuffle_ps::<0b11_10_11_10>(p, q),
    );
    let rs = _mm512_add_ps(
        _mm512_shuffle_ps::<0b01_00_01_00>(r, s),
        _mm512_shuffle_ps::<0b11_10_11_10>(r, s),
    );
    let rows = _mm512_add_ps(
        _mm512_shuffle_ps::<0b10_00_10_00>(pq, rs),
        _mm512_shuffle_ps::<0b11_01_11_01>(pq, rs),
    );
    let in_columns = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let columns = _mm512_permutexvar_ps(in_columns, rows);
    // SAFETY: both are 512 plain bits.
    unsafe { std::mem::transmute::<__m512, [[f32; 4]; 4]>(columns) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn fold_sixteen_f64(sum: [__m512d; 2]) -> f64 {
    let eight = _mm512_add_pd(sum[0], sum[1]);
    let (low, high) = (
        _mm512_castpd512_pd256(eight),
        _mm512_extractf64x4_pd::<1>(eight),
    );
    fold_four_f64(_mm256_add_pd(low, high))
}

#[inline]
#[target_feature(enable = "avx")]
fn fold_sixteen_f64_avx2(sum: [__m256d; 4]) -> f64 {
    let (low, high) = (_mm256_add_pd(sum[0], sum[2]), _mm256_add_pd(sum[1], sum[3]));
    fold_four_f64(_mm256_add_pd(low, high))
}

#[inline]
#[target_feature(enable = "avx")]
fn fold_sixteen_f32_avx2(sums: [__m256; 2]) -> f32 {
    fold_eight_f32(_mm256_add_ps(sums[0], sums[1]))
}

/// Four times [`fold_sixteen_f32_avx2`], in the same tree: after two steps each sum has half of a vector.
#[inline]
#[target_feature(enable = "avx2")]
fn fold_four_sixteen_f32_avx2(sums: [[__m256; 2]; 4]) -> [f32; 4] {
    let [a, b, c, d] = sums.map(|[low, high]| _mm256_add_ps(low, high));
    let halves_added = |a, b| {
        _mm256_add_ps(
            _mm256_permute2f128_ps::<0x20>(a, b),
            _mm256_permute2f128_ps::<0x31>(a, b),
        )
    };
    let (ab, cd) = (halves_added(a, b), halves_added(c, d));
    let two = _mm256_add_ps(
        _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd),
        _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd),
    );
    // a, c, b and d are now where every second number is.
    let one = _mm256_add_ps(two, _mm256_movehdup_ps(two));
    let in_order = _mm256_setr_epi32(0, 4, 2, 6, 0, 0, 0, 0);
    let sums = _mm256_castps256_ps128(_mm256_permutevar8x32_ps(one, in_order));
    // SAFETY: both are 128 plain bits.
    unsafe { std::mem::transmute::<__m128, [f32; 4]>(sums) }
}

#[inline]
#[target_feature(enable = "avx")]
fn fold_eight_f32(sum: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

#[inline]
#[target_feature(enable = "avx")]
fn fold_four_f64(sum: __m256d) -> f64 {
    let two = _mm_add_pd(_mm256_castpd256_pd128(sum), _mm256_extractf128_pd::<1>(sum));
    _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
}
