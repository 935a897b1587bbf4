//! Bytes of quantised blocks taken apart.

use std::arch::x86_64::*;

use crate::kernels::simd::HeldFactors;
use crate::tensor::quantised::Codes;

/// Four f16 as f32. They become one integer first, in registers that have nothing else to do.
#[inline]
#[target_feature(enable = "f16c")]
pub(super) fn four_widened(four: [[u8; 2]; 4]) -> [f32; 4] {
    let [a, b, c, d] = four.map(|bytes| u64::from(u16::from_le_bytes(bytes)));
    let four = _mm_cvtph_ps(_mm_cvtsi64_si128((a | b << 16 | c << 32 | d << 48) as i64));
    // SAFETY: both are 128 plain bits.
    unsafe { std::mem::transmute::<__m128, [f32; 4]>(four) }
}

/// Two halves, whose bytes' bits from their shift on come to the lowest four.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn shifted_halves(first: __m128i, second: __m128i, shifts: [i32; 2]) -> __m256i {
    let [low, high] = shifts.map(|shift| _mm_cvtsi32_si128(shift));
    _mm256_set_m128i(_mm_srl_epi16(second, high), _mm_srl_epi16(first, low))
}

/// One half of 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn half_of_bytes(bytes: __m256i, half: usize) -> __m128i {
    if half == 0 {
        _mm256_castsi256_si128(bytes)
    } else {
        _mm256_extracti128_si256::<1>(bytes)
    }
}

/// Of each byte the bits of `mask` from bit `shift` on.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn field_of_bytes(bytes: __m256i, shift: i32, mask: u8) -> __m256i {
    // What comes from the byte above is not in the mask.
    let shifted = _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(shift));
    _mm256_and_si256(shifted, _mm256_set1_epi8(mask as i8))
}

/// `low` with the bits of `high` above its `shift` bits.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn joined_bytes(low: __m256i, high: __m256i, shift: i32) -> __m256i {
    _mm256_or_si256(low, _mm256_sll_epi16(high, _mm_cvtsi32_si128(shift)))
}

/// Two times sixteen numbers, each looked up where its code says: sums for all codes take less time than sums for all numbers.
///
/// With a fifth bit scale · q is exact both without and with the 16 scales more, so that the offset alone rounds. A zero may
/// have the other sign then, which is not seen in sums that begin with +0.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn numbers_of_codes(codes: Codes<'_>, factors: &HeldFactors) -> [__m512; 2] {
    let levels = codes.levels.map(f32::from);
    // SAFETY: the load is an unaligned one and stays inside the array.
    let levels = unsafe { _mm512_loadu_ps(levels.as_ptr()) };
    let bytes = codes.bytes.map(|bytes| {
        // SAFETY: as above.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    });
    let scale = _mm512_set1_ps(factors.scales[0]);
    let offset = factors.offsets.map(|offsets| _mm512_set1_ps(offsets[0]));
    let wide = bytes.map(|bytes| _mm512_cvtepu8_epi32(bytes));
    let shifts = codes.shifts.map(|shift| _mm_cvtsi32_si128(shift as i32));
    // The bits above the lowest four are not looked at.
    let indices = [
        _mm512_srl_epi32(wide[0], shifts[0]),
        _mm512_srl_epi32(wide[1], shifts[1]),
    ];
    let Some(fifth) = codes.fifth else {
        let table = match offset {
            Some(offset) => _mm512_fmadd_ps(levels, scale, offset),
            None => _mm512_mul_ps(levels, scale),
        };
        return indices.map(|indices| _mm512_permutexvar_ps(indices, table));
    };
    let table = _mm512_mul_ps(levels, scale);
    let sixteen = factors.sixteen.map(|sixteen| _mm512_set1_ps(sixteen));
    let fifth = [fifth as u16, (fifth >> 16) as u16];
    let numbers = indices.map(|indices| _mm512_permutexvar_ps(indices, table));
    let numbers = [
        _mm512_mask_add_ps(numbers[0], fifth[0], numbers[0], sixteen[0]),
        _mm512_mask_add_ps(numbers[1], fifth[1], numbers[1], sixteen[1]),
    ];
    match offset {
        Some(offset) => numbers.map(|numbers| _mm512_add_ps(numbers, offset)),
        None => numbers,
    }
}
