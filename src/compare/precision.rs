//! How finely an engine computes, and how finely it records.

use std::fmt;
use std::str::FromStr;

use crate::tensor::{Dtype, Storage, round_to_bf16, round_to_f16};

/// A number type that engines compute and record in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision. As a compute type also f32 that was rounded to f16 for the recording: its numbers do not tell.
    F16,
    /// The upper half of single precision.
    Bf16,
}

/// The smallest number that f16 rounds to infinity: its largest is 65504.
const F16_OVERFLOW: f64 = 65520.0;

impl Precision {
    /// Binary digits after the first, and the exponent of the smallest normal number.
    const fn format(self) -> (i32, i32) {
        match self {
            Self::F64 => (52, -1022),
            Self::F32 => (23, -126),
            Self::F16 => (10, -14),
            Self::Bf16 => (7, -126),
        }
    }

    /// The compute type of our own passes that is held against it.
    pub(super) fn pass(self) -> Dtype {
        match self {
            Self::F64 => Dtype::F64,
            Self::F32 | Self::F16 => Dtype::F32,
            Self::Bf16 => Dtype::Bf16,
        }
    }

    /// The number of this type that is next to `x`.
    pub(super) fn nearest(self, x: f64) -> f64 {
        match self {
            Self::F64 => x,
            Self::F32 => f64::from(x as f32),
            Self::F16 => round_to_f16(x).to_f64(),
            Self::Bf16 => round_to_bf16(x).to_f64(),
        }
    }

    /// The distance from |x|, a finite number of this type, to the next larger one.
    pub(super) fn ulp(self, x: f64) -> f64 {
        let (digits, lowest) = self.format();
        libm::scalbn(1.0, libm::ilogb(x).max(lowest) - digits)
    }

    /// Whether every number of this type is one that `stored` has too, if it is about as large as `x`.
    fn fits(self, stored: Self, x: f64) -> bool {
        let ((digits, lowest), (stored_digits, stored_lowest)) = (self.format(), stored.format());
        let small = lowest < stored_lowest && libm::ilogb(x) < stored_lowest;
        digits <= stored_digits && !small
    }

    /// Whether numbers of this type lose something where they are recorded in the type `stored`.
    pub(super) fn coarsened_by(self, stored: Self) -> bool {
        self == Self::F16 || !self.fits(stored, 1.0)
    }

    /// The least and the largest number that an engine which computes in this type may have had where it recorded `x` in the
    /// type `stored`: `x` alone, or all that round to it.
    pub(super) fn recorded(self, stored: Self, x: f64) -> [f64; 2] {
        // It may have been widened again on its way into the file.
        let stored = if self == Self::F16 { self } else { stored };
        if x == f64::INFINITY {
            [F16_OVERFLOW, x]
        } else if x == f64::NEG_INFINITY {
            [x, -F16_OVERFLOW]
        } else if self != Self::F16 && self.fits(stored, x) {
            [x, x]
        } else {
            let half = stored.ulp(x) / 2.0;
            [x - half, x + half]
        }
    }
}

impl From<Dtype> for Precision {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F64 => Self::F64,
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

impl From<Storage> for Precision {
    /// The type itself, or f32, which quantised numbers are rounded to.
    fn from(storage: Storage) -> Self {
        match storage {
            Storage::F64 => Self::F64,
            Storage::F16 => Self::F16,
            Storage::Bf16 => Self::Bf16,
            _ => Self::F32,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// As NumPy and torch write them too: `float16`, `torch.float16`.
impl FromStr for Precision {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.strip_prefix("torch.").unwrap_or(s) {
            "f64" | "float64" | "double" => Ok(Self::F64),
            "f32" | "float32" | "float" => Ok(Self::F32),
            "f16" | "float16" | "half" => Ok(Self::F16),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            _ => Err(format!(
                "'{s}' is not a type that engines compute in: use f64, f32, f16 or bf16"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(compute: Precision, stored: Precision, x: f64) -> (f64, f64) {
        compute.recorded(stored, x).into()
    }

    /// Everything inside rounds to the number, and nothing outside does.
    #[test]
    fn a_stored_number_stands_for_all_that_round_to_it() {
        use Precision::{Bf16, F16, F32, F64};
        for (compute, stored) in [
            (F32, F16),
            (F32, Bf16),
            (F64, F32),
            (F64, F16),
            (F16, F16),
            (F16, F32),
        ] {
            let narrow = if compute == F16 { F16 } else { stored };
            for x in [1.5, -0.3, 1e-6, 3e-8, 0.0, 64992.0, -7.0] {
                let x = narrow.nearest(x);
                let (low, high) = ends(compute, stored, x);
                for inside in [0.999 * low + 0.001 * high, 0.001 * low + 0.999 * high] {
                    assert_eq!(narrow.nearest(inside), x, "{compute} {stored} {x}");
                }
                for outside in [low - (high - low) / 99.0, high + (high - low) / 99.0] {
                    assert_ne!(narrow.nearest(outside), x, "{compute} {stored} {x}");
                }
            }
        }
    }

    #[test]
    fn a_type_that_has_all_numbers_changes_none() {
        use Precision::{Bf16, F16, F32, F64};
        for (compute, stored) in [
            (F32, F32),
            (F32, F64),
            (Bf16, Bf16),
            (Bf16, F32),
            (F64, F64),
        ] {
            for x in [0.0, 1.5, -1e-30, 1e30] {
                assert_eq!(ends(compute, stored, x), (x, x), "{compute} {stored} {x}");
            }
        }
        // bf16 in f16: exact where f16 is normal, and rounded below that.
        assert_eq!(ends(Bf16, F16, 1.5), (1.5, 1.5));
        let step = 2f64.powi(-25);
        assert_eq!(ends(Bf16, F16, 0.0), (-step, step));
        assert_eq!(ends(Bf16, F16, 4.0 * step), (3.0 * step, 5.0 * step));
    }

    #[test]
    fn f16_says_infinity_for_what_is_too_large() {
        let inf = f64::INFINITY;
        for compute in [Precision::F32, Precision::Bf16, Precision::F16] {
            assert_eq!(ends(compute, Precision::F16, inf), (65520.0, inf));
            assert_eq!(ends(compute, Precision::F16, -inf), (-inf, -65520.0));
        }
        let largest = ends(Precision::F32, Precision::F16, 65504.0);
        assert_eq!(largest, (65488.0, 65520.0));
        assert_eq!(Precision::F16.nearest(65520.0), inf);
        assert_eq!(Precision::F16.nearest(65519.99), 65504.0);
    }

    #[test]
    fn types_are_called_as_torch_and_numpy_call_them() {
        for (name, precision) in [
            ("torch.float16", Precision::F16),
            ("float16", Precision::F16),
            ("bfloat16", Precision::Bf16),
            ("f64", Precision::F64),
        ] {
            assert_eq!(name.parse(), Ok(precision));
        }
        assert!("f8".parse::<Precision>().unwrap_err().contains("f16"));
    }
}
