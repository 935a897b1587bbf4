//! What the machine can do at best: multiply-adds that touch no memory, and reading.

use std::hint::black_box;

use rayon::prelude::*;

/// A loop of multiply-adds in registers.
#[derive(Clone, Copy)]
pub struct Peak {
    /// Two for each multiply-add.
    pub flops: f64,
    run: fn(),
}

impl Peak {
    /// Every thread of the current pool runs the loop.
    pub fn run(self) {
        rayon::broadcast(|_| (self.run)());
    }
}

/// Long enough, about a millisecond, that threads start in a small part of it.
#[cfg(target_arch = "x86_64")]
const TURNS: usize = 200_000;

/// The peak of multiply-adds in f32, where it is known how to reach it.
pub fn f32_peak() -> Option<Peak> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return Some(x86_64::AVX512);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Some(x86_64::AVX2);
        }
    }
    None
}

/// The peak of `VDPBF16PS`, where the machine has it.
pub fn bf16_peak() -> Option<Peak> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
        return Some(x86_64::BF16);
    }
    None
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::{Peak, TURNS};

    /// A [`Peak`] of `$sums` independent sums, which is more than an instruction's latency times how many begin in a
    /// cycle, and leaves registers for the factors.
    macro_rules! peak {
        ($name:ident, $enable:literal, $sums:literal, $flops:literal, $set1:path,
         $x:ident: $factor:expr, |$sum:ident| $add:expr $(,)?) => {
            pub(super) const $name: Peak = {
                #[target_feature(enable = $enable)]
                fn multiply_add() {
                    // Unknown to the compiler, which would make one of equal sums.
                    let starts: [f32; $sums] = black_box(std::array::from_fn(|i| i as f32));
                    let mut sums = starts.map(|start| $set1(start));
                    let $x = $factor;
                    for _ in 0..TURNS {
                        for $sum in &mut sums {
                            *$sum = $add;
                        }
                    }
                    black_box(sums);
                }
                Peak {
                    flops: $flops as f64 * ($sums * TURNS) as f64,
                    // SAFETY: this is given out only where the machine was found to have the instructions.
                    run: || unsafe { multiply_add() },
                }
            };
        };
    }

    peak!(
        AVX2, "avx2,fma", 12, 16, _mm256_set1_ps,
        x: _mm256_set1_ps(black_box(0.5)),
        |sum| _mm256_fmadd_ps(x, x, *sum),
    );
    peak!(
        AVX512, "avx512f", 24, 32, _mm512_set1_ps,
        x: _mm512_set1_ps(black_box(0.5)),
        |sum| _mm512_fmadd_ps(x, x, *sum),
    );
    peak!(
        BF16, "avx512f,avx512bf16", 24, 64, _mm512_set1_ps,
        x: _mm512_cvtne2ps_pbh(_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(0.5)),
        |sum| _mm512_dpbf16_ps(*sum, x, x),
    );
}

/// Enough bytes that no cache holds a part of them worth mentioning.
pub fn beyond_caches() -> Vec<u8> {
    vec![1; 256 << 20]
}

/// Reads all of some bytes once, the threads of the current pool together.
pub fn read(bytes: &[u8]) {
    let sum = |piece: &[u8]| {
        let (_, words, _) = bytemuck::pod_align_to::<u8, u64>(piece);
        words.iter().fold(0u64, |sum, word| sum.wrapping_add(*word))
    };
    let share = (bytes.len() / 4 / rayon::current_num_threads()).clamp(1 << 12, 1 << 22);
    let pieces = bytes.par_chunks(share).map(sum);
    black_box(pieces.reduce(|| 0, u64::wrapping_add));
}
