//! tanh, from our own arithmetic so that it is the same on every machine and on a GPU.

use super::exp::exp_f64;

/// tanh x within 2.5 u.
///
/// Order of operations, with a = |x| and s = a², without fused multiply-add: below 0.6 Lambert's continued fraction
/// a / (1 + s / (3 + s / (5 + …))) to its eighth part, which is a − a · (s · N(s) / D(s)) with whole coefficients; from there on
/// 1 − 2 / (e^(2a) + 1). Then the sign of x.
#[inline(always)]
pub(crate) fn tanh(x: f64) -> f64 {
    let a = x.abs();
    let s = a * a;
    let n = ((s + 594.0) * s + 45_045.0) * s + 675_675.0;
    let d = (((s + 630.0) * s + 51_975.0) * s + 945_945.0) * s + 2_027_025.0;
    let near = a - a * (s * n / d);
    let far = 1.0 - 2.0 / (exp_f64(2.0 * a) + 1.0);
    let size = if a < 0.6 { near } else { far };
    size.copysign(x)
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::tensor::round_to_bf16;

    #[test]
    fn is_within_its_bound_of_the_libm_crate() {
        let mut x = 1e-310;
        while x < 25.0 {
            for x in [x, -x] {
                let want = libm::tanh(x);
                // libm's own error is within 2 u.
                let allowed = 4.5 * f64::EPSILON / 2.0 * want.abs() + f64::from_bits(1);
                assert!((tanh(x) - want).abs() <= allowed, "tanh({x:e})");
            }
            x *= if x < 1e-3 { 1.7 } else { 1.000_037 };
        }
    }

    #[test]
    fn rounded_to_bf16_it_is_the_libm_crate() {
        // All there are: so `gelu_new` and soft-caps, which round before and after, have these bits in bf16.
        for bits in 0..=u16::MAX {
            let x = bf16::from_bits(bits).to_f64();
            if !x.is_nan() {
                let [got, want] = [tanh(x), libm::tanh(x)].map(round_to_bf16);
                assert_eq!(got.to_bits(), want.to_bits(), "tanh({x:e})");
            }
        }
    }

    #[test]
    fn keeps_the_special_values() {
        for x in [0.0, 5e-324, f64::INFINITY] {
            for x in [x, -x] {
                assert_eq!(tanh(x).to_bits(), libm::tanh(x).to_bits(), "tanh({x:e})");
            }
        }
        assert!(tanh(f64::NAN).is_nan());
    }
}
