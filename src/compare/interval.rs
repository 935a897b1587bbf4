//! A number and how far off a correct computation of it may be.

use super::precision::Precision;
use crate::tensor::Dtype;

/// What a number may come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Interval {
    pub(super) low: f64,
    /// What it comes to with nothing rounded but what the compute type asks for.
    pub(super) value: f64,
    pub(super) high: f64,
}

impl Interval {
    /// A number that is known.
    pub(super) fn exactly(value: f64) -> Self {
        Self {
            low: value,
            value,
            high: value,
        }
    }

    /// What an engine that computes in the type `compute` may have had where it recorded `x` in the type `stored`.
    pub(super) fn recorded(compute: Precision, stored: Precision, x: f64) -> Self {
        let [low, high] = compute.recorded(stored, x);
        Self {
            low,
            value: x,
            high,
        }
    }

    /// A number of which nothing is known.
    pub(super) fn anything() -> Self {
        Self {
            low: f64::NEG_INFINITY,
            value: f64::NAN,
            high: f64::INFINITY,
        }
    }

    /// A number that may be `off` too small or too large.
    pub(super) fn around(value: f64, off: f64) -> Self {
        Self::exactly(value).off(off)
    }

    /// The same, `off` more in both directions.
    pub(super) fn off(self, off: f64) -> Self {
        Self {
            low: self.low - off,
            high: self.high + off,
            ..self
        }
    }

    /// The larger of |low| and |high|.
    pub(super) fn size(self) -> f64 {
        self.low.abs().max(self.high.abs())
    }

    /// The smallest |x| in it.
    pub(super) fn least_size(self) -> f64 {
        if self.low <= 0.0 && 0.0 <= self.high {
            0.0
        } else {
            self.low.abs().min(self.high.abs())
        }
    }

    /// A function that does not fall.
    pub(super) fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self {
            low: f(self.low),
            value: f(self.value),
            high: f(self.high),
        }
    }

    pub(super) fn times(self, other: Self) -> Self {
        let corners = [
            self.low * other.low,
            self.low * other.high,
            self.high * other.low,
            self.high * other.high,
        ];
        Self {
            low: corners.into_iter().fold(f64::INFINITY, f64::min),
            value: self.value * other.value,
            high: corners.into_iter().fold(f64::NEG_INFINITY, f64::max),
        }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            low: self.low + other.low,
            value: self.value + other.value,
            high: self.high + other.high,
        }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Self {
            low: self.low - other.high,
            value: self.value - other.value,
            high: self.high - other.low,
        }
    }

    /// Half its length: how far off its middle a number in it may be.
    pub(super) fn half(self) -> f64 {
        (self.high - self.low) / 2.0
    }

    /// Whether the two have a number in common.
    pub(super) fn meets(self, other: Self) -> bool {
        self.low <= other.high && other.low <= self.high
    }
}

/// How a compute type rounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounding(pub(super) Precision);

impl Rounding {
    /// The relative error of one operation on sums. In f64 the replay is off as much as what it is held against.
    pub(super) fn unit(self) -> f64 {
        match self.0 {
            Precision::F64 => f64::EPSILON,
            Precision::F32 | Precision::F16 | Precision::Bf16 => Dtype::F32.unit_roundoff(),
        }
    }

    /// The relative error of a sum of `n` terms in whatever order: a random walk of n roundings.
    pub(super) fn walk(self, n: usize) -> f64 {
        (n as f64).sqrt() * self.unit()
    }

    /// The number of the compute type that is next to x.
    pub(super) fn nearest(self, x: f64) -> f64 {
        self.0.nearest(x)
    }

    /// A number of the model in the compute type, or in f16 either of that and of what f32 makes of it.
    pub(super) fn stored(self, x: f64) -> Interval {
        match self.0 {
            Precision::F16 => self.of(Interval::exactly(x)),
            _ => Interval::exactly(self.nearest(x)),
        }
    }

    /// A number after it is written down in the compute type. bf16 rounds wherever Hugging Face's eager code does; in
    /// the others a fused operation may leave a rounding out, and f16 may be f32 that was rounded for the recording alone.
    pub(super) fn of(self, x: Interval) -> Interval {
        let rounded = x.map(|x| self.nearest(x));
        match self.0 {
            Precision::Bf16 => rounded,
            Precision::F64 | Precision::F32 | Precision::F16 => Interval {
                low: rounded.low.min(x.low),
                value: rounded.value,
                high: rounded.high.max(x.high),
            },
        }
    }

    /// The outcome of one operation, which is rounded.
    pub(super) fn once(self, x: Interval) -> Interval {
        self.of(x.off(self.unit() * x.size()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_take_the_outermost_corners() {
        let a = Interval::around(1.0, 3.0);
        let b = Interval::around(-2.0, 1.0);
        let product = a.times(b);
        assert_eq!(
            (product.low, product.value, product.high),
            (-12.0, -2.0, 6.0)
        );
        let difference = a.minus(b);
        assert_eq!((difference.low, difference.high), (-1.0, 7.0));
    }

    #[test]
    fn bf16_leaves_one_number_unless_a_boundary_is_near() {
        let bf16 = Rounding(Precision::Bf16);
        let far = bf16.of(Interval::around(1.001, 1e-6));
        assert_eq!((far.low, far.high), (1.0, 1.0));
        // 1 + 2⁻⁸ lies between 1 and the next number, 1 + 2⁻⁷.
        let near = bf16.of(Interval::around(1.0 + 1.0 / 256.0, 1e-6));
        assert_eq!((near.low, near.high), (1.0, 1.0 + 1.0 / 128.0));
        assert!(!near.meets(Interval::exactly(1.0 - 1.0 / 256.0)));
    }
}
