//! bf16 products where there is no instruction for them: pairs of numbers, of which the odd ones are multiplied and added first.

use std::arch::asm;
use std::arch::x86_64::*;
use std::array::from_fn;

use half::bf16;

use crate::kernels::simd::instructions::{PREFETCH_BYTES, add_rows};
use crate::kernels::simd::lanes::{Lanes, Prefetch, add_parts};
use crate::kernels::simd::scalar::flushing_fma;

/// The odd and the even ones of 16 numbers, widened.
///
/// # Safety
///
/// `x` must point to 16 readable numbers.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn load_pairs(x: *const bf16) -> [__m256; 2] {
    // SAFETY: the caller promises 16 numbers.
    let pairs = unsafe { _mm256_loadu_si256(x.cast()) };
    let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(0xFFFF_0000_u32 as i32));
    [odd, _mm256_slli_epi32::<16>(pairs)].map(|half| _mm256_castsi256_ps(half))
}

/// Eight lanes of the bf16 product: odd elements first, then even ones, denormals taken as zero.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn dot_pairs(sum: __m256, w: [__m256; 2], x: [__m256; 2]) -> __m256 {
    let sum = flushing_fma_avx2(w[0], x[0], sum);
    flushing_fma_avx2(w[1], x[1], sum)
}

/// [`dot_pairs`] where nothing is denormal.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn dot_normal_pairs(sum: __m256, w: [__m256; 2], x: [__m256; 2]) -> __m256 {
    let sum = _mm256_fmadd_ps(w[0], x[0], sum);
    _mm256_fmadd_ps(w[1], x[1], sum)
}

/// [`Lanes::add`] of such pairs. The processor can take denormals as zeros by itself, and decides which they are as
/// `VDPBF16PS` does. Code that a compiler may move must not be run like that, so this is assembly.
#[inline(always)]
pub(super) fn add_pairs<L, const R: usize, const T: usize>(
    lanes: L,
    sums: &mut [[[__m256; 2]; T]; R],
    w: &[[f32; 32]],
    x: &[[f32; 32]],
    ahead: Prefetch,
) where
    L: Lanes<bf16, bf16, 32, Sum = __m256, Sums = [__m256; 2], Packed = [f32; 32]>,
{
    let ((tiles_w, _), (tiles_x, _)) = (w.as_chunks::<4>(), x.as_chunks::<3>());
    match sums.as_flattened_mut().try_into() {
        Ok(sums) if (R, T) == (4, 3) => {
            assert_eq!(tiles_w.len(), tiles_x.len(), "as many blocks of both");
            // SAFETY: `lanes` proves the instructions.
            unsafe { add_pairs_4_3(sums, tiles_w, tiles_x, ahead) };
        }
        _ => add_parts(lanes, sums, w, x, ahead),
    }
}

/// The bits of MXCSR with which denormal results and operands are zeros.
const FLUSH: u32 = 1 << 15 | 1 << 6;

/// Adds the products of packed pairs of four rows and three tokens to the sums `[4][3]`, with denormals taken as zeros.
///
/// Twelve registers, ymm4 to ymm15, hold one part of the sums, three the activations and one a row of weights.
#[target_feature(enable = "avx2,fma")]
fn add_pairs_4_3(
    sums: &mut [[__m256; 2]; 12],
    w: &[[[f32; 32]; 4]],
    x: &[[[f32; 32]; 3]],
    ahead: Prefetch,
) {
    /// The sum of a row and a token, in its register.
    macro_rules! sum {
        (load $register:literal) => {
            concat!(
                "vmovups ymm",
                $register,
                ", [{sums} + 64 * (",
                $register,
                " - 4)]"
            )
        };
        (store $register:literal) => {
            concat!(
                "vmovups [{sums} + 64 * (",
                $register,
                " - 4)], ymm",
                $register
            )
        };
    }
    /// The activations of three tokens; `at` is 0 for the odd numbers and 32 for the even ones.
    macro_rules! tokens {
        ($at:literal) => {
            concat!(
                "vmovups ymm0, [{x} + ",
                $at,
                "]\n",
                "vmovups ymm1, [{x} + 128 + ",
                $at,
                "]\n",
                "vmovups ymm2, [{x} + 256 + ",
                $at,
                "]",
            )
        };
    }
    /// A row of weights times them.
    macro_rules! row {
        ($row:literal, $at:literal, $a:literal, $b:literal, $c:literal) => {
            concat!(
                "vmovups ymm3, [{w} + 128 * ",
                $row,
                " + ",
                $at,
                "]\n",
                "vfmadd231ps ymm",
                $a,
                ", ymm3, ymm0\n",
                "vfmadd231ps ymm",
                $b,
                ", ymm3, ymm1\n",
                "vfmadd231ps ymm",
                $c,
                ", ymm3, ymm2",
            )
        };
    }
    let blocks = w.len().min(x.len());
    if blocks == 0 {
        return;
    }
    let mut usual = 0u32;
    // SAFETY: it reads `blocks` blocks of `w` and `x` and writes the sums and `usual`, and leaves MXCSR as it was. What it
    // asks for ahead is not read, and no address makes that fault.
    unsafe {
        asm!("stmxcsr [{}]", in(reg) &mut usual, options(nostack, preserves_flags));
        let flushing = usual | FLUSH;
        asm!(
            "ldmxcsr [{flushing}]",
            // Once for each part.
            "2:",
            sum!(load 4), sum!(load 5), sum!(load 6), sum!(load 7), sum!(load 8), sum!(load 9),
            sum!(load 10), sum!(load 11), sum!(load 12), sum!(load 13), sum!(load 14), sum!(load 15),
            "mov {left}, {blocks}",
            "3:",
            "prefetcht0 [{ahead}]",
            "add {ahead}, {stride}",
            tokens!(0),
            row!(0, 0, 4, 5, 6), row!(1, 0, 7, 8, 9), row!(2, 0, 10, 11, 12), row!(3, 0, 13, 14, 15),
            tokens!(32),
            row!(0, 32, 4, 5, 6), row!(1, 32, 7, 8, 9), row!(2, 32, 10, 11, 12), row!(3, 32, 13, 14, 15),
            "add {w}, 512",
            "add {x}, 384",
            "dec {left}",
            "jnz 3b",
            sum!(store 4), sum!(store 5), sum!(store 6), sum!(store 7), sum!(store 8), sum!(store 9),
            sum!(store 10), sum!(store 11), sum!(store 12), sum!(store 13), sum!(store 14), sum!(store 15),
            // Back to the first block, in the other part.
            "mov {w}, {second_w}",
            "mov {x}, {second_x}",
            "add {sums}, 32",
            "dec {parts}",
            "jnz 2b",
            "ldmxcsr [{usual}]",
            flushing = in(reg) &flushing,
            usual = in(reg) &usual,
            sums = inout(reg) sums.as_mut_ptr() => _,
            w = inout(reg) w.as_ptr() => _,
            x = inout(reg) x.as_ptr() => _,
            second_w = in(reg) w.as_ptr().byte_add(64),
            second_x = in(reg) x.as_ptr().byte_add(64),
            ahead = inout(reg) ahead.at => _,
            stride = in(reg) ahead.stride,
            blocks = in(reg) blocks,
            left = out(reg) _,
            parts = inout(reg) 2usize => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack),
        );
    }
}

/// [`Lanes::add_rows`] of such pairs, of one token by assembly as [`add_pairs`] is.
#[inline(always)]
pub(super) fn add_rows_of_pairs<L, const R: usize, const T: usize>(
    lanes: L,
    sums: &mut [[[__m256; 2]; T]; R],
    w: [&[[bf16; 32]]; R],
    x: [&[[bf16; 32]]; T],
) where
    L: Lanes<bf16, bf16, 32, Sums = [__m256; 2]>,
{
    if T == 1 {
        // SAFETY: `lanes` proves the instructions.
        unsafe { add_rows_of_pairs_to_one(sums.as_flattened_mut(), w, x[0]) };
    } else {
        add_rows(lanes, sums, w, x);
    }
}

/// Adds the products of rows of pairs and those of one token to their sums, one row after the other, with denormals taken as
/// zeros.
#[target_feature(enable = "avx2,fma")]
fn add_rows_of_pairs_to_one<const R: usize>(
    sums: &mut [[__m256; 2]],
    w: [&[[bf16; 32]]; R],
    x: &[[bf16; 32]],
) {
    /// A part of a block, which begins at byte `at` of it: the odd numbers and then the even ones.
    macro_rules! part {
        ($at:literal, $sum:literal) => {
            concat!(
                "vmovdqu ymm2, [{x} + {at} + ",
                $at,
                "]\n",
                "vmovdqu ymm3, [{w} + {at} + ",
                $at,
                "]\n",
                "vpand ymm4, ymm2, ymm6\n",
                "vpand ymm5, ymm3, ymm6\n",
                "vpslld ymm2, ymm2, 16\n",
                "vpslld ymm3, ymm3, 16\n",
                "vfmadd231ps ymm",
                $sum,
                ", ymm5, ymm4\n",
                "vfmadd231ps ymm",
                $sum,
                ", ymm3, ymm2",
            )
        };
    }
    let blocks = x.len();
    let fits = sums.len() == R && w.iter().all(|w| w.len() == blocks);
    assert!(fits, "as many blocks of each row");
    if blocks == 0 || R == 0 {
        return;
    }
    let rows = w.map(<[_]>::as_ptr);
    let mut usual = 0u32;
    // SAFETY: it reads `blocks` blocks of `x` and of each of the `R` rows and writes their sums and `usual`, and leaves MXCSR as
    // it was. What it asks for ahead is not read, and no address makes that fault.
    unsafe {
        asm!("stmxcsr [{}]", in(reg) &mut usual, options(nostack, preserves_flags));
        let flushing = usual | FLUSH;
        asm!(
            "ldmxcsr [{flushing}]",
            "vpcmpeqd ymm6, ymm6, ymm6",
            "vpslld ymm6, ymm6, 16",
            // Once for each row.
            "2:",
            "mov {w}, [{rows}]",
            "vmovups ymm0, [{sums}]",
            "vmovups ymm1, [{sums} + 32]",
            "xor {at:e}, {at:e}",
            "3:",
            "prefetcht1 [{w} + {at} + {ahead}]",
            part!(0, 0),
            part!(32, 1),
            "add {at}, 64",
            "cmp {at}, {end}",
            "jne 3b",
            "vmovups [{sums}], ymm0",
            "vmovups [{sums} + 32], ymm1",
            "add {sums}, 64",
            "add {rows}, 8",
            "dec {left}",
            "jnz 2b",
            "ldmxcsr [{usual}]",
            flushing = in(reg) &flushing,
            usual = in(reg) &usual,
            sums = inout(reg) sums.as_mut_ptr() => _,
            rows = inout(reg) rows.as_ptr() => _,
            left = inout(reg) R => _,
            w = out(reg) _,
            x = in(reg) x.as_ptr(),
            at = out(reg) _,
            end = in(reg) size_of_val(x),
            ahead = const PREFETCH_BYTES,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            out("ymm4") _, out("ymm5") _, out("ymm6") _,
            options(nostack),
        );
    }
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
