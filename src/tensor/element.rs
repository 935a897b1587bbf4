//! The number types a forward pass computes in, and the ones it accumulates in.

use std::fmt;
use std::ops::{Add, Div, Mul, Neg, Sub};

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// The type a forward pass computes in, chosen apart from the type the weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Everything in double precision: the ground truth.
    F64,
    /// Everything in single precision.
    F32,
    /// Single-precision sums, rounded to bf16 wherever Hugging Face's eager code rounds.
    Bf16,
}

impl Dtype {
    /// Half the distance from 1 to the next number: the relative error of one rounding.
    pub const fn unit_roundoff(self) -> f64 {
        match self {
            Self::F64 => f64::EPSILON / 2.0,
            Self::F32 => f32::EPSILON as f64 / 2.0,
            Self::Bf16 => 1.0 / 256.0,
        }
    }

    /// The distance from |x|, a finite number of this type, to the next larger one: a unit in the last place.
    pub fn ulp(self, x: f64) -> f64 {
        let (digits, lowest) = match self {
            Self::F64 => (52, -1022),
            Self::F32 => (23, -126),
            Self::Bf16 => (7, -126),
        };
        let exponent = libm::ilogb(x).max(lowest);
        libm::scalbn(1.0, exponent - digits)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl std::str::FromStr for Dtype {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "f64" | "float64" => Ok(Self::F64),
            "f32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            _ => Err(format!("'{s}' is not a compute type: use f64, f32 or bf16")),
        }
    }
}

/// A type sums are kept in: f64, or f32 (which also carries the sums of bf16).
pub trait Float:
    Element<Acc = Self>
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Negative infinity.
    const NEG_INFINITY: Self;

    /// `self · a + b` with one rounding.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// The correctly rounded square root.
    fn sqrt(self) -> Self;
}

/// A type activations are held in: f64, f32 or bf16.
pub trait Element: bytemuck::Pod + Default + PartialEq + fmt::Debug + Send + Sync {
    /// The type its sums are kept in.
    type Acc: Float;
    /// Its name at run time.
    const DTYPE: Dtype;

    /// The nearest number of this type, ties to even.
    fn from_f64(x: f64) -> Self;
    /// The nearest number of this type, ties to even.
    fn from_f32(x: f32) -> Self;
    /// The nearest number of this type, ties to even: a rounding point for bf16, else nothing.
    fn round(x: Self::Acc) -> Self;
    /// This number in the type of sums, exactly.
    fn acc(self) -> Self::Acc;
    /// This number in f64, exactly.
    fn to_f64(self) -> f64;
    /// Whether it is neither infinite nor NaN.
    fn is_finite(self) -> bool {
        self.to_f64().is_finite()
    }
    /// The function of `F` for this type.
    #[doc(hidden)]
    fn by_type<F: ByType>(input: F::Input<Self>);
}

/// A function that is written for each compute type by itself: because its body needs more than [`Element`] offers, or to be
/// compiled once, in this crate, and not in every program that uses it.
#[doc(hidden)]
pub trait ByType {
    /// What it is called with.
    type Input<E: Element>;

    /// The function for f64.
    fn f64(input: Self::Input<f64>);
    /// The function for f32.
    fn f32(input: Self::Input<f32>);
    /// The function for bf16.
    fn bf16(input: Self::Input<bf16>);
}

macro_rules! native_float {
    ($t:ident, $dtype:ident) => {
        impl Float for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;

            #[inline(always)]
            fn mul_add(self, a: Self, b: Self) -> Self {
                $t::mul_add(self, a, b)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
        }

        impl Element for $t {
            type Acc = $t;
            const DTYPE: Dtype = Dtype::$dtype;

            #[inline(always)]
            #[allow(clippy::cast_lossless, reason = "one body serves f32 and f64")]
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn from_f32(x: f32) -> Self {
                x.into()
            }
            #[inline(always)]
            fn round(x: $t) -> Self {
                x
            }
            #[inline(always)]
            fn acc(self) -> $t {
                self
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self.into()
            }
            fn by_type<F: ByType>(input: F::Input<Self>) {
                F::$t(input);
            }
        }
    };
}

native_float!(f64, F64);
native_float!(f32, F32);

impl Element for bf16 {
    type Acc = f32;
    const DTYPE: Dtype = Dtype::Bf16;

    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        round_to_bf16(x)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        Self::round(x)
    }
    /// What `bf16::from_f32` gives, without its branches, so that many are rounded at once.
    #[inline(always)]
    fn round(x: f32) -> Self {
        let bits = x.to_bits();
        // Half of what is cut off, or a hair less where the digit before it is even; it carries into the exponent as it should.
        let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        let quiet = bits | 0x0040_0000;
        let kept = if x.is_nan() { quiet } else { nearest };
        bf16::from_bits((kept >> 16) as u16)
    }
    /// What `bf16::to_f32` gives, but for the kind of a NaN, without its branch.
    #[inline(always)]
    fn acc(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self.acc().into()
    }
    fn by_type<F: ByType>(input: F::Input<Self>) {
        F::bf16(input);
    }
}

/// The bf16 nearest to `x`, ties to even, in one rounding.
///
/// `bf16::from_f64` cuts to f32 before it rounds, so a number just past a tie goes wrong. Rounding to
/// f32 *to odd* first keeps the information that something was cut off, and makes the second
/// rounding correct (f32 has more than two bits more than bf16).
#[inline(always)]
pub fn round_to_bf16(x: f64) -> bf16 {
    bf16::round(round_to_odd(x))
}

/// The f16 nearest to `x`, ties to even, in one rounding, for the reason that [`round_to_bf16`] gives.
pub fn round_to_f16(x: f64) -> f16 {
    f16::from_f32(round_to_odd(x))
}

/// `x` cut to f32, with the last bit set where something was cut off. Without branches, so that many are rounded at once.
#[inline(always)]
fn round_to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    let back = f64::from(nearest);
    let away_from_zero = back.abs() > x.abs();
    let inexact = back != x;
    let toward_zero = nearest.to_bits() - u32::from(away_from_zero);
    f32::from_bits(toward_zero | u32::from(inexact))
}

/// Pairs of numbers, each with its lane of 16, so that compilers can look at several at once.
pub(crate) fn in_lanes<T: Copy>(a: &[T], b: &[T], mut pair: impl FnMut(usize, T, T)) {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for l in 0..16 {
            pair(l, a[l], b[l]);
        }
    }
    for (l, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        pair(l, a, b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_once() {
        // Halfway between 1 and 1 + 2⁻⁷, and a hair to either side of it.
        let tie = 1.0 + 1.0 / 256.0;
        let hair = 2f64.powi(-50);
        assert_eq!(round_to_bf16(tie).to_f64(), 1.0);
        assert_eq!(round_to_bf16(tie - hair).to_f64(), 1.0);
        assert_eq!(round_to_bf16(tie + hair).to_f64(), 1.0 + 1.0 / 128.0);
        // The control: through f32 the hair is lost.
        assert_eq!(bf16::from_f32((tie + hair) as f32).to_f64(), 1.0);
    }

    #[test]
    fn bf16_rounds_f32_as_half_does() {
        // Every upper half, with lower halves on both sides of the tie, and far from it.
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(upper) << 16 | lower);
                let (got, want) = (bf16::round(x), bf16::from_f32(x));
                assert_eq!(got.to_bits(), want.to_bits(), "{:08x}", x.to_bits());
            }
        }
    }

    #[test]
    fn bf16_rounds_to_the_nearest_of_its_neighbours() {
        let mut state = 1u64;
        for _ in 0..100_000 {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let exponent = 1023 - 140 + (state >> 20) % 268;
            let x = f64::from_bits((state << 63) | exponent << 52 | (state >> 12));
            let got = round_to_bf16(x);
            let error = (got.to_f64() - x).abs();
            for step in [-1i16, 1] {
                let other = bf16::from_bits(got.to_bits().wrapping_add_signed(step));
                if other.is_finite() && got.is_finite() {
                    assert!(error <= (other.to_f64() - x).abs(), "{x:e} gave {got:e}");
                }
            }
        }
    }

    #[test]
    fn f16_rounds_once() {
        let hair = 2f64.powi(-50);
        // Halfway between neighbours: at 1, at the largest number, and among the subnormal ones.
        for (tie, below, above) in [
            (1.0 + 2f64.powi(-11), 1.0, 1.0 + 2f64.powi(-10)),
            (65520.0, 65504.0, f64::INFINITY),
            (2f64.powi(-25), 0.0, 2f64.powi(-24)),
            (3.0 * 2f64.powi(-25), 2f64.powi(-24), 2f64.powi(-23)),
        ] {
            for sign in [1.0, -1.0] {
                let rounded = |x: f64| round_to_f16(sign * x).to_f64();
                assert_eq!(rounded(tie * (1.0 - hair)), sign * below, "{tie:e}");
                assert_eq!(rounded(tie * (1.0 + hair)), sign * above, "{tie:e}");
                let even = f16::from_f64(tie);
                assert_eq!(even.to_bits() & 1, 0);
                assert_eq!(rounded(tie), sign * even.to_f64(), "{tie:e}");
            }
        }
        // The control: through f32 the hair is lost.
        let past = (1.0 + 2f64.powi(-11)) * (1.0 + hair);
        assert_eq!(f16::from_f32(past as f32).to_f64(), 1.0);
        assert!(round_to_f16(f64::NAN).is_nan());
        assert_eq!(round_to_f16(-0.0).to_bits(), 0x8000);
    }

    #[test]
    fn units_in_the_last_place() {
        for x in [1.0f32, 1.5, 0.1, 3e38, 1e-37, 1e-40, 0.0] {
            let next = f64::from(x.next_up()) - f64::from(x);
            assert_eq!(Dtype::F32.ulp(x.into()), next, "{x}");
            let next = f64::from(x).next_up() - f64::from(x);
            assert_eq!(Dtype::F64.ulp(x.into()), next, "{x}");
        }
        assert_eq!(Dtype::Bf16.ulp(-17.0), 0.125);
        assert_eq!(Dtype::Bf16.ulp(0.0), 2f64.powi(-133));
    }

    #[test]
    fn bf16_keeps_the_special_values() {
        assert_eq!(round_to_bf16(-0.0).to_bits(), 0x8000);
        assert_eq!(round_to_bf16(f64::INFINITY), bf16::INFINITY);
        assert_eq!(round_to_bf16(1e300), bf16::INFINITY);
        assert_eq!(round_to_bf16(-1e-300).to_bits(), 0x8000);
        assert!(round_to_bf16(f64::NAN).is_nan());
    }
}
