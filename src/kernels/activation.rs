//! The functions between the linear maps: GeLU in the tanh form, which is Gemma's, and others.
//!
//! **The tanh form.** x/2 · (1 + tanh u) with u = √(2/π) (x + 0.044715 x³) is x / (1 + e^(−2u)), which does not cancel for negative
//! x. f64 computes that with its own exponential; f32 computes it in f64, with the exponential of
//! [`exp`], and rounds once. No fused multiply-add.

use half::f16;

use super::normal::normal_below;
use super::simd::Level;
use super::tanh::tanh;
use super::{elementwise, exp};
use crate::tensor::{Dtype, Element, Float, round_to_bf16};

/// An elementwise activation function. The lemmas hold for any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GeLU in the tanh form.
    GeluTanh,
    /// The same, in bf16 with each of its operations rounded: `gelu_new` of Hugging Face.
    GeluNew,
    /// GeLU itself, x Φ(x), which is x/2 · (1 + erf(x/√2)): computed in f64, rounded once.
    Gelu,
    /// GeLU in the tanh form as ggml looks it up: x is rounded to f16, and so is the outcome.
    GeluByF16,
    /// SiLU, x / (1 + e^−x).
    Silu,
    /// ReLU.
    Relu,
}

impl Activation {
    /// The function of one number.
    pub fn apply<A: Float>(self, x: A) -> A {
        match self {
            Self::GeluTanh | Self::GeluNew => gelu_tanh_number(x),
            Self::Gelu => gelu_number(x),
            Self::GeluByF16 => A::from_f64(gelu_by_f16(x.to_f64(), 0.0)),
            Self::Silu => silu_number(x),
            Self::Relu => relu_number(x),
        }
    }

    /// The function of every number, rounded to the compute type, in its place.
    pub(crate) fn update<E: Element>(self, level: Level, x: &mut [E]) {
        match self {
            Self::GeluNew if E::DTYPE == Dtype::Bf16 => {
                elementwise::update_all(level, x, |x| E::from_f64(gelu_in_bf16(x.to_f64())));
            }
            // Each apart, so that it is compiled for the level without the other functions beside it.
            Self::GeluTanh | Self::GeluNew => gelu_tanh(level, x),
            Self::Gelu => elementwise::update_all(level, x, |x| E::round(gelu_number(x.acc()))),
            Self::GeluByF16 => {
                elementwise::update_all(level, x, |x| E::from_f64(gelu_by_f16(x.to_f64(), 0.0)));
            }
            Self::Silu => elementwise::update_all(level, x, |x| E::round(silu_number(x.acc()))),
            Self::Relu => elementwise::update_all(level, x, |x| E::round(relu_number(x.acc()))),
        }
    }
}

/// GeLU (tanh form) of every number, rounded to the compute type, in its place.
pub fn gelu_tanh<E: Element>(level: Level, x: &mut [E]) {
    elementwise::update_all(level, x, |x| E::round(gelu_tanh_number(x.acc())));
}

/// GeLU (tanh form) of one number of a type that sums are in.
#[inline(always)]
fn gelu_tanh_number<A: Float>(x: A) -> A {
    match A::DTYPE {
        Dtype::F64 => A::from_f64(gelu_tanh_f64(x.to_f64())),
        Dtype::F32 | Dtype::Bf16 => A::from_f32(gelu_tanh_f32(x.to_f64() as f32)),
    }
}

/// GeLU of one number of a type that sums are in.
#[inline(always)]
fn gelu_number<A: Float>(x: A) -> A {
    let x = x.to_f64();
    A::from_f64(x * normal_below(x))
}

/// SiLU of one number of a type that sums are in.
#[inline(always)]
fn silu_number<A: Float>(x: A) -> A {
    x / (A::ONE + exp::exp(-x))
}

/// ReLU of one number of a type that sums are in.
#[inline(always)]
fn relu_number<A: Float>(x: A) -> A {
    // A NaN stays one.
    if x < A::ZERO { A::ZERO } else { x }
}

/// GeLU (tanh form) as a table over all f16 gives it: x is rounded to f16, and so is GeLU(x) + `off`. From 10 up the result is
/// x, and from −10 down 0.
pub(crate) fn gelu_by_f16(x: f64, off: f64) -> f64 {
    if x.abs() < 10.0 {
        let x = f16::from_f64(x).to_f64();
        f16::from_f64(gelu_tanh_f64(x) + off).to_f64()
    } else if x < 0.0 {
        0.0
    } else {
        // A NaN stays one.
        x
    }
}

/// x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))) with each operation rounded to bf16.
#[inline(always)]
fn gelu_in_bf16(x: f64) -> f64 {
    let rounded = |x: f64| round_to_bf16(x).to_f64();
    let cube = rounded(rounded(x * x) * x);
    let sum = rounded(x + rounded(CUBIC * cube));
    let tanh = rounded(tanh(rounded(SQRT_8_OVER_PI / 2.0 * sum)));
    rounded(rounded(0.5 * x) * rounded(1.0 + tanh))
}

const SQRT_8_OVER_PI: f64 = 1.595_769_121_605_730_7;
const CUBIC: f64 = 0.044_715;

/// GeLU (tanh form) of an f64.
#[inline(always)]
pub fn gelu_tanh_f64(x: f64) -> f64 {
    x / (1.0 + exp::exp_f64(-twice_u(x)))
}

/// GeLU (tanh form) of an f32, within 0.501 ulp where the result is normal.
#[inline(always)]
pub fn gelu_tanh_f32(x: f32) -> f32 {
    let x = f64::from(x);
    if x.is_nan() {
        return x as f32;
    }
    (x / (1.0 + exp::exp_wide(-twice_u(x)))) as f32
}

#[inline(always)]
fn twice_u(x: f64) -> f64 {
    SQRT_8_OVER_PI * (x + CUBIC * (x * x * x))
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn of_all<E: Element, const N: usize>(function: Activation, mut x: [E; N]) -> [E; N] {
        function.update(Level::best(), &mut x);
        x
    }

    fn tanh_form(x: f64) -> f64 {
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + CUBIC * x.powi(3));
        0.5 * x * (1.0 + libm::tanh(u))
    }

    #[test]
    fn is_the_tanh_form() {
        for i in -4000..=4000 {
            let x = i as f32 / 400.0;
            let want = tanh_form(x.into());
            // The oracle cancels for negative x: it is good to an ulp of x, not of the result.
            let oracle = 4e-16 * f64::from(x.abs());
            assert!((gelu_tanh_f64(x.into()) - want).abs() <= oracle, "{x}");
            let half_an_ulp = 0.501 * f64::from(f32::EPSILON) * want.abs();
            assert!(
                (f64::from(gelu_tanh_f32(x)) - want).abs() <= half_an_ulp + oracle,
                "{x}"
            );
        }
    }

    #[test]
    fn gelu_is_that_of_erf() {
        for i in -4000..=4000 {
            let x = f64::from(i) / 300.0;
            let want = 0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
            // Φ(x) within (7 + x²) u of it, and as much of the oracle, which rounds x/√2.
            let allowed = (7.0 + x * x) * f64::EPSILON * want.abs();
            assert!((Activation::Gelu.apply(x) - want).abs() <= allowed, "{x}");
        }
        for i in -4000..=4000 {
            let x = i as f32 / 300.0;
            let wide = Activation::Gelu.apply(f64::from(x));
            // One rounding, to the least number where it is so small.
            let allowed = Dtype::F32.unit_roundoff() * wide.abs() + 2f64.powi(-150);
            let off = f64::from(Activation::Gelu.apply(x)) - wide;
            assert!(off.abs() <= allowed, "{x}");
        }
        assert!(Activation::Gelu.apply(f64::NAN).is_nan());
        assert_eq!(Activation::Gelu.apply(f32::INFINITY), f32::INFINITY);
    }

    #[test]
    fn by_f16_is_off_by_the_roundings_of_f16() {
        for i in -4000..=4000 {
            let x = f64::from(i) / 300.0;
            // Of x and of the outcome, whose slope is below 1.13; f16's least number is 2⁻²⁴.
            let allowed = 2.2 * x.abs() / 2048.0 + 2f64.powi(-25);
            assert!((gelu_by_f16(x, 0.0) - tanh_form(x)).abs() <= allowed, "{x}");
        }
        assert_eq!(gelu_by_f16(1.0, 0.0), 0.841_308_593_75);
        assert_eq!(
            [gelu_by_f16(-10.0, 0.0), gelu_by_f16(10.1, 0.0)],
            [0.0, 10.1]
        );
        assert!(gelu_by_f16(f64::NAN, 0.0).is_nan());
    }

    #[test]
    fn gelu_new_rounds_each_operation_in_bf16() {
        let x = [-3.0, -0.3, 0.0, 0.7, 2.25, 40.0].map(bf16::from_f64);
        // As NewGELUActivation of transformers has them.
        let want = [-0.005859375, -0.115234375, 0.0, 0.53125, 2.21875, 40.0];
        let got = of_all(Activation::GeluNew, x);
        assert_eq!(got, want.map(bf16::from_f64));
        assert_ne!(got, of_all(Activation::GeluTanh, x));
        let wide = x.map(bf16::to_f32);
        let both = [Activation::GeluNew, Activation::GeluTanh].map(|f| of_all(f, wide));
        assert_eq!(both[0], both[1]);
    }

    #[test]
    fn keeps_its_limits() {
        assert_eq!(gelu_tanh_f32(100.0), 100.0);
        assert_eq!(gelu_tanh_f32(-100.0), -0.0);
        assert_eq!(gelu_tanh_f32(0.0), 0.0);
        assert!(gelu_tanh_f32(f32::NAN).is_nan());
        assert_eq!(gelu_tanh_f32(f32::INFINITY), f32::INFINITY);
        assert_eq!(gelu_tanh_f64(-50.0), -0.0);
    }
}
