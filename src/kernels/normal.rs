//! The normal distribution, from our own arithmetic so that it is the same on every machine and on a GPU.

use super::exp::exp_f64;

/// P, the highest power first: the polynomial of degree 21 that agrees with e^(x²/2) Φ(−x) / t at 22 Chebyshev nodes of q between
/// −7/9, which is x = 40, and 1, which is 0.
const P: [f64; 22] = [
    -4.412372171591377e-10,
    1.5147404913905206e-09,
    2.1247874879865943e-09,
    -1.3308014802505023e-08,
    -8.770472158384658e-09,
    8.686248600209437e-08,
    6.752637591289214e-08,
    -5.540529789371985e-07,
    -7.962549846283206e-07,
    3.3363388893381767e-06,
    9.952577736059616e-06,
    -1.1875173560424339e-05,
    -0.00010897981415466318,
    -0.00015957387478938276,
    0.0005986753540318707,
    0.0041590133594833194,
    0.013823727741280873,
    0.03300407323410223,
    0.06270663133425991,
    0.09906112319399478,
    0.13307650057801135,
    0.15383860995001258,
];

/// Φ(x), the probability that a number of the standard normal distribution is below x; ½ (1 + erf(x/√2)). Below 0 its error
/// is within (7 + x²) u of it, and else within 4 u of 1.
///
/// Order of operations, without fused multiply-add: t = 5 / (5 + |x|), q = 2t − 1, P(q) by Horner's rule, which begins with 0,
/// Φ(−|x|) = e^(−½ · x²) · (t · P(q)), and above 0 the difference of that from 1.
#[inline(always)]
pub(crate) fn normal_below(x: f64) -> f64 {
    let t = 5.0 / (5.0 + x.abs());
    let q = 2.0 * t - 1.0;
    let mut p = 0.0;
    for c in P {
        p = p * q + c;
    }
    let beyond = exp_f64(-0.5 * (x * x)) * (t * p);
    if x < 0.0 { beyond } else { 1.0 - beyond }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_within_its_bound_of_the_libm_crate() {
        let u = f64::EPSILON / 2.0;
        for i in 0..=372_000 {
            let x = f64::from(i) / 10_000.0;
            let beyond = 0.5 * libm::erfc(x * std::f64::consts::FRAC_1_SQRT_2);
            // The oracle's own error: 2 u of x/√2, which count x² + 1 times, and 2 u of erfc.
            let oracle = (2.0 * (x * x + 1.0) + 2.0) * u * beyond;
            let allowed = (7.0 + x * x) * u * beyond + oracle;
            assert!((normal_below(-x) - beyond).abs() <= allowed, "Φ(−{x})");
            let off = (normal_below(x) - (1.0 - beyond)).abs();
            assert!(off <= 4.0 * u + oracle + u, "Φ({x})");
        }
    }

    #[test]
    fn has_the_digits_of_another_computation() {
        // mpmath, 50 digits.
        for (x, want, bound) in [
            (0.0, 0.5, 7.0),
            (-1.0, 0.158_655_253_931_457_05, 8.0),
            (-5.0, 2.866_515_718_791_939e-7, 32.0),
            (-20.0, 2.753_624_118_606_233_7e-89, 407.0),
        ] {
            let off = (normal_below(x) - want).abs() / want;
            assert!(
                off <= bound * f64::EPSILON / 2.0,
                "Φ({x}) is off by {off:e}"
            );
        }
    }

    #[test]
    fn keeps_its_limits() {
        assert_eq!(normal_below(f64::INFINITY), 1.0);
        assert_eq!(normal_below(f64::NEG_INFINITY), 0.0);
        assert_eq!([normal_below(-40.0), normal_below(9.0)], [0.0, 1.0]);
        assert!(normal_below(f64::NAN).is_nan());
    }
}
