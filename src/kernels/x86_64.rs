//! AVX2 with FMA, AVX-512, and AVX-512 with bf16: the dot kernels of x86-64.

use std::arch::x86_64::*;
use std::array::from_fn;

use half::bf16;

use super::instructions::{instructions, lanes};
use super::scalar::flushing_fma;

instructions!(
    /// AVX2 with FMA.
    Avx2, is_x86_feature_detected, ["avx2", "fma"], "avx2,fma",
    prefetch: |at| _mm_prefetch::<_MM_HINT_T0>(at),
);
instructions!(
    /// AVX-512.
    Avx512, is_x86_feature_detected, ["avx512f", "avx512bw", "avx512dq", "avx512vl"],
    "avx512f,avx512bw,avx512dq,avx512vl",
    prefetch: |at| _mm_prefetch::<_MM_HINT_T0>(at),
);
instructions!(
    /// AVX-512 with the bf16 dot product.
    Avx512Bf16, is_x86_feature_detected, ["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512bf16"],
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16",
    prefetch: |at| _mm_prefetch::<_MM_HINT_T0>(at),
);

lanes!(
    Avx2, f64, f64, 16, f64, [__m256d; 4], [__m256d; 4], (1, 2),
    zero: [_mm256_setzero_pd(); 4],
    load: load_avx2_f64,
    widen: load_avx2_f64,
    multiply_add: |sum: [_; 4], w: [_; 4], x: [_; 4]| from_fn(|i| _mm256_fmadd_pd(w[i], x[i], sum[i])),
    fold: fold_sixteen_f64_avx2,
);
lanes!(
    Avx2, f64, bf16, 16, f64, [__m256d; 4], [__m256d; 4], (1, 2),
    zero: [_mm256_setzero_pd(); 4],
    load: load_avx2_f64,
    widen: |w: *const bf16| from_fn(|i| {
        let words = _mm_cvtepu16_epi32(_mm_loadl_epi64(w.add(4 * i).cast()));
        _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32::<16>(words)))
    }),
    multiply_add: |sum: [_; 4], w: [_; 4], x: [_; 4]| from_fn(|i| _mm256_fmadd_pd(w[i], x[i], sum[i])),
    fold: fold_sixteen_f64_avx2,
);
lanes!(
    Avx2, f32, f32, 16, f32, [__m256; 2], [__m256; 2], (2, 2),
    zero: [_mm256_setzero_ps(); 2],
    load: load_avx2_f32,
    widen: load_avx2_f32,
    multiply_add: |sum: [_; 2], w: [_; 2], x: [_; 2]| from_fn(|i| _mm256_fmadd_ps(w[i], x[i], sum[i])),
    fold: |sum: [__m256; 2]| fold_eight_f32(_mm256_add_ps(sum[0], sum[1])),
);
lanes!(
    Avx2, f32, bf16, 16, f32, [__m256; 2], [__m256; 2], (2, 2),
    zero: [_mm256_setzero_ps(); 2],
    load: load_avx2_f32,
    widen: |w: *const bf16| from_fn(|i| {
        let half = _mm_loadu_si128(w.add(8 * i).cast());
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
    }),
    multiply_add: |sum: [_; 2], w: [_; 2], x: [_; 2]| from_fn(|i| _mm256_fmadd_ps(w[i], x[i], sum[i])),
    fold: |sum: [__m256; 2]| fold_eight_f32(_mm256_add_ps(sum[0], sum[1])),
);

/// The AVX-512 pairs that do not depend on the bf16 instruction.
macro_rules! avx512_lanes {
    ($name:ty) => {
        lanes!(
            $name, f64, f64, 16, f64, [__m512d; 2], [__m512d; 2], (4, 2),
            zero: [_mm512_setzero_pd(); 2],
            load: load_avx512_f64,
            widen: load_avx512_f64,
            multiply_add: |sum: [_; 2], w: [_; 2], x: [_; 2]| from_fn(|i| _mm512_fmadd_pd(w[i], x[i], sum[i])),
            fold: fold_sixteen_f64,
        );
        lanes!(
            $name, f64, bf16, 16, f64, [__m512d; 2], [__m512d; 2], (4, 2),
            zero: [_mm512_setzero_pd(); 2],
            load: load_avx512_f64,
            widen: |w: *const bf16| from_fn(|i| {
                let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(w.add(8 * i).cast()));
                _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)))
            }),
            multiply_add: |sum: [_; 2], w: [_; 2], x: [_; 2]| from_fn(|i| _mm512_fmadd_pd(w[i], x[i], sum[i])),
            fold: fold_sixteen_f64,
        );
        lanes!(
            $name, f32, f32, 16, f32, __m512, __m512, (4, 4),
            zero: _mm512_setzero_ps(),
            load: |x: *const f32| _mm512_loadu_ps(x),
            widen: |w: *const f32| _mm512_loadu_ps(w),
            multiply_add: |sum, w, x| _mm512_fmadd_ps(w, x, sum),
            fold: fold_sixteen_f32,
            fold_four: fold_four_sixteen_f32,
        );
        lanes!(
            $name, f32, bf16, 16, f32, __m512, __m512, (4, 4),
            zero: _mm512_setzero_ps(),
            load: |x: *const f32| _mm512_loadu_ps(x),
            widen: |w: *const bf16| {
                let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(w.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
            },
            multiply_add: |sum, w, x| _mm512_fmadd_ps(w, x, sum),
            fold: fold_sixteen_f32,
            fold_four: fold_four_sixteen_f32,
        );
    };
}
avx512_lanes!(Avx512);
avx512_lanes!(Avx512Bf16);

/// bf16 products where there is no instruction for them.
macro_rules! emulated_bf16_lanes {
    ($name:ty) => {
        lanes!(
            $name, bf16, bf16, 32, f32, [__m256i; 2], [__m256; 2], (2, 2),
            zero: [_mm256_setzero_ps(); 2],
            load: load_avx2_bf16,
            widen: load_avx2_bf16,
            multiply_add: |sum: [_; 2], w: [_; 2], x: [_; 2]| from_fn(|i| dot_pairs_avx2(sum[i], w[i], x[i])),
            fold: |sum: [__m256; 2]| fold_eight_f32(_mm256_add_ps(sum[0], sum[1])),
        );
    };
}
emulated_bf16_lanes!(Avx2);
emulated_bf16_lanes!(Avx512);

lanes!(
    Avx512Bf16, bf16, bf16, 32, f32, __m512bh, __m512, (4, 4),
    zero: _mm512_setzero_ps(),
    load: load_avx512_bf16,
    widen: load_avx512_bf16,
    multiply_add: |sum, w, x| _mm512_dpbf16_ps(sum, w, x),
    fold: fold_sixteen_f32,
    fold_four: fold_four_sixteen_f32,
);

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load_avx2_f64(x: *const f64) -> [__m256d; 4] {
    // SAFETY: the caller lends 16 numbers.
    from_fn(|i| unsafe { _mm256_loadu_pd(x.add(4 * i)) })
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load_avx2_f32(x: *const f32) -> [__m256; 2] {
    // SAFETY: the caller lends 16 numbers.
    from_fn(|i| unsafe { _mm256_loadu_ps(x.add(8 * i)) })
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load_avx2_bf16(x: *const bf16) -> [__m256i; 2] {
    // SAFETY: the caller lends 32 numbers.
    from_fn(|i| unsafe { _mm256_loadu_si256(x.add(16 * i).cast()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_avx512_f64(x: *const f64) -> [__m512d; 2] {
    // SAFETY: the caller lends 16 numbers.
    from_fn(|i| unsafe { _mm512_loadu_pd(x.add(8 * i)) })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn load_avx512_bf16(x: *const bf16) -> __m512bh {
    // SAFETY: the caller lends 32 numbers; both types are 512 plain bits.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(x.cast())) }
}

/// Eight lanes of the bf16 product: odd elements first, then even ones, denormals taken as zero.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn dot_pairs_avx2(sum: __m256, w: __m256i, x: __m256i) -> __m256 {
    let odd = |v| {
        _mm256_castsi256_ps(_mm256_and_si256(
            v,
            _mm256_set1_epi32(0xFFFF_0000_u32 as i32),
        ))
    };
    let even = |v| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v));
    let sum = flushing_fma_avx2(odd(w), odd(x), sum);
    flushing_fma_avx2(even(w), even(x), sum)
}

/// Eight times [`flushing_fma`].
#[inline]
#[target_feature(enable = "avx2,fma")]
fn flushing_fma_avx2(a: __m256, b: __m256, c: __m256) -> __m256 {
    let (a, b, c) = (flush_avx2(a), flush_avx2(b), flush_avx2(c));
    let sum = _mm256_fmadd_ps(a, b, c);
    let smallest = _mm256_set1_ps(f32::MIN_POSITIVE);
    let edge = _mm256_cmp_ps::<_CMP_EQ_OQ>(magnitude_avx2(sum), smallest);
    if _mm256_movemask_ps(edge) == 0 {
        return flush_avx2(sum);
    }
    // Too rare to be worth vectors.
    let [a, b, c] = [a, b, c].map(|v| to_array(v));
    let exact = |x: f32| bf16::from_bits((x.to_bits() >> 16) as u16);
    let sum: [f32; 8] = from_fn(|l| flushing_fma(exact(a[l]), exact(b[l]), c[l]));
    // SAFETY: the array has 8 numbers.
    unsafe { _mm256_loadu_ps(sum.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn magnitude_avx2(x: __m256) -> __m256 {
    _mm256_andnot_ps(_mm256_set1_ps(-0.0), x)
}

/// Denormals become zeros of their sign.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn flush_avx2(x: __m256) -> __m256 {
    let smallest = _mm256_set1_ps(f32::MIN_POSITIVE);
    let tiny = _mm256_cmp_ps::<_CMP_LT_OQ>(magnitude_avx2(x), smallest);
    _mm256_blendv_ps(x, _mm256_and_ps(x, _mm256_set1_ps(-0.0)), tiny)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn to_array(x: __m256) -> [f32; 8] {
    let mut out = [0.0; 8];
    // SAFETY: the array has 8 numbers.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x) };
    out
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn fold_sixteen_f32(sum: __m512) -> f32 {
    let (low, high) = (
        _mm512_castps512_ps256(sum),
        _mm512_extractf32x8_ps::<1>(sum),
    );
    fold_eight_f32(_mm256_add_ps(low, high))
}

/// Four times [`fold_sixteen_f32`], in the same tree: after two steps each sum has a quarter of one vector.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn fold_four_sixteen_f32([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
    let ab = _mm512_add_ps(
        _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
        _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
    );
    let cd = _mm512_add_ps(
        _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d),
        _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d),
    );
    let four = _mm512_add_ps(
        _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd),
        _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd),
    );
    let two = _mm512_add_ps(four, _mm512_shuffle_ps::<0b11_10_11_10>(four, four));
    let one = _mm512_add_ps(two, _mm512_movehdup_ps(two));
    let firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    let sums = _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, one));
    // SAFETY: both are 128 plain bits.
    unsafe { std::mem::transmute::<__m128, [f32; 4]>(sums) }
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
