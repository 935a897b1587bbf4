//! e to the power of x, from our own arithmetic so that it is the same on every machine.

/// e^x in f64: the `libm` crate's, which is plain Rust and within 1 ulp.
#[inline]
pub fn exp_f64(x: f64) -> f64 {
    libm::exp(x)
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
    /// Adding it leaves the nearest integer in the low bits.
    const TO_INTEGER: f64 = 6_755_399_441_055_744.0;

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
    fn keeps_the_special_values() {
        assert!(exp_f32(f32::NAN).is_nan());
        assert_eq!(exp_f32(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_f32(-0.0), 1.0);
    }
}
