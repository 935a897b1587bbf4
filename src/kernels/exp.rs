//! e to the power of x, from our own arithmetic so that it is the same on every machine.

use crate::tensor::{Dtype, Float};

/// e^x, by [`exp_f64`] or [`exp_f32`].
#[inline(always)]
pub fn exp<A: Float>(x: A) -> A {
    match A::DTYPE {
        Dtype::F64 => A::from_f64(exp_f64(x.to_f64())),
        Dtype::F32 | Dtype::Bf16 => A::from_f32(exp_f32(x.to_f64() as f32)),
    }
}

/// e^x in f64, within 1 ulp: bit for bit what the `libm` crate's `exp` gives, in a form without branches, so that
/// compilers can do several at once.
///
/// The method and the constants are those of Sun's fdlibm. Order of operations, without fused multiply-add: k is 0
/// up to |x| = ½ ln 2 and ±1 up to 1.5 ln 2, and beyond that x · log₂e ± ½ without its fraction; hi = x − k · ln 2ʰ,
/// lo = k · ln 2ˡ, r = hi − lo, c = r − r² · P(r²), y = 1 + ((r · c / (2 − c) − lo) + hi), and the result is
/// y · 2ᵏ, rounded once. Up to |x| = 2⁻²⁸ it is 1 + x.
#[inline(always)]
pub fn exp_f64(x: f64) -> f64 {
    /// ln 2 in two parts, of which the first has so few bits that k times it is exact.
    const LN_2: [f64; 2] = [
        f64::from_bits(0x3fe6_2e42_fee0_0000),
        f64::from_bits(0x3dea_39ef_3579_3c76),
    ];
    /// P, the highest power first.
    const P: [f64; 5] = [
        f64::from_bits(0x3e66_3769_72be_a4d0),
        f64::from_bits(0xbebb_bd41_c5d2_6bf1),
        f64::from_bits(0x3f11_566a_af25_de2c),
        f64::from_bits(0xbf66_c16c_16be_bd93),
        f64::from_bits(0x3fc5_5555_5555_553e),
    ];

    // Beyond these it is 0 and infinity.
    let cut = x.clamp(-746.0, 710.0);
    let sign = 1f64.copysign(cut);
    // fdlibm compares the upper halves of the bits only.
    let size = cut.abs().to_bits() >> 32;
    let far = without_fraction(cut * std::f64::consts::LOG2_E + 0.5 * sign);
    let near = if size > 0x3fd6_2e42 { sign } else { 0.0 };
    let k = if size >= 0x3ff0_a2b2 { far } else { near };
    let (hi, lo) = (cut - k * LN_2[0], k * LN_2[1]);
    let r = hi - lo;
    let rr = r * r;
    let mut p = P[0];
    for coefficient in &P[1..] {
        p = coefficient + rr * p;
    }
    let c = r - rr * p;
    let y = 1.0 + (r * c / (2.0 - c) - lo + hi);
    // In two steps, as 2ᵏ need not be a number; the first is exact.
    let half = 0.5 * k + TO_INTEGER - TO_INTEGER;
    let two_to = |k: f64| f64::from_bits(((k + TO_INTEGER).to_bits() + 1023) << 52);
    let scaled = y * two_to(half) * two_to(k - half);
    let close = if size > 0x3e30_0000 {
        scaled
    } else {
        1.0 + cut
    };
    if x.is_nan() { x } else { close }
}

/// Adding it to a small number leaves the nearest integer in the low bits.
const TO_INTEGER: f64 = 6_755_399_441_055_744.0;

/// The integer part of a number well below 2⁵².
#[inline(always)]
fn without_fraction(x: f64) -> f64 {
    let size = x.abs();
    let nearest = size + TO_INTEGER - TO_INTEGER;
    let below = if nearest > size {
        nearest - 1.0
    } else {
        nearest
    };
    below.copysign(x)
}

/// e^x in f32, within 0.501 ulp: computed in f64 and rounded once.
///
/// Order of operations, all in f64 and without fused multiply-add: x is cut to ±200 (which already gives
/// 0 and infinity), n = round(x · log₂e) by adding and subtracting 1.5 · 2⁵², r = x − n · ln 2,
/// p = Σ rᵏ/k! for k = 0..9 by Horner's rule, then n is added to the exponent of p.
#[inline(always)]
pub fn exp_f32(x: f32) -> f32 {
    if x.is_nan() {
        x
    } else {
        exp_wide(f64::from(x)) as f32
    }
}

/// e^x to about 10⁻¹¹, for x that is not NaN; see [`exp_f32`].
#[inline(always)]
pub(super) fn exp_wide(x: f64) -> f64 {
    /// 1/9!, 1/8!, … 1/0!.
    const INVERSE_FACTORIALS: [f64; 10] = [
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let x = x.clamp(-200.0, 200.0);
    let shifted = x * std::f64::consts::LOG2_E + TO_INTEGER;
    let n = shifted - TO_INTEGER;
    let r = x - n * std::f64::consts::LN_2;
    let mut p = INVERSE_FACTORIALS[0];
    for c in &INVERSE_FACTORIALS[1..] {
        p = p * r + c;
    }
    f64::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 52))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_within_half_an_ulp_and_a_bit() {
        // Every 97th f32: about 44 million over both signs.
        let mut worst = 0.0f64;
        for bits in (0..=u32::MAX).step_by(97) {
            let x = f32::from_bits(bits);
            if x.is_nan() {
                continue;
            }
            let exact = libm::exp(f64::from(x));
            let got = exp_f32(x);
            if got.is_infinite() || got == 0.0 {
                assert_eq!(got, exact as f32, "exp({x:e})");
                continue;
            }
            // One ulp of the result, that of the smallest normal number for denormals.
            let exponent = (got.to_bits() >> 23).max(1) as i32 - 127 - 23;
            worst = worst.max((f64::from(got) - exact).abs() / 2f64.powi(exponent));
        }
        assert!(worst < 0.501, "{worst} ulp");
    }

    #[test]
    fn f64_is_the_libm_crate() {
        let same = |x: f64| {
            let (got, want) = (exp_f64(x), libm::exp(x));
            assert_eq!(
                got.to_bits(),
                want.to_bits(),
                "exp({x:e}): {got:e}, {want:e}"
            );
        };
        // Every upper half of the bits that is not NaN, in steps, with lower halves of all kinds.
        for upper in (0..=u32::MAX).step_by(1009) {
            let x = f64::from_bits(
                u64::from(upper) << 32 | u64::from(upper.wrapping_mul(2_654_435_761)),
            );
            if !x.is_nan() {
                same(x);
            }
        }
        // Where results are neither 0 nor infinite, more closely.
        let mut x = -750.0;
        while x < 715.0 {
            same(x);
            x += 0.000_731;
        }
        let ln_2 = std::f64::consts::LN_2;
        let edges = [
            0.5 * ln_2,
            1.5 * ln_2,
            2f64.powi(-28),
            709.782712893384,
            708.396418532264,
            745.133219101941,
        ];
        for edge in edges
            .into_iter()
            .chain((1..2048).map(|k| (f64::from(k) - 0.5) * ln_2))
        {
            for step in -300..300 {
                let x = f64::from_bits((edge.to_bits() as i64 + step) as u64);
                same(x);
                same(-x);
            }
        }
        for x in [0.0, f64::INFINITY, f64::MAX, f64::MIN_POSITIVE, 5e-324] {
            same(x);
            same(-x);
        }
        assert!(exp_f64(f64::NAN).is_nan());
    }

    #[test]
    fn keeps_the_special_values() {
        assert!(exp_f32(f32::NAN).is_nan());
        assert_eq!(exp_f32(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_f32(-0.0), 1.0);
    }
}
