//! How far two tensors are apart.

use serde::Serialize;

use super::Precision;

/// A tensor held against the one it should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Distance {
    /// max |difference|.
    pub linf: f64,
    /// ‖difference‖ / ‖reference‖, of all rows together.
    pub relative: f64,
    /// 1 − cosine of the angle between the two, of all rows together; 0 where both are zero.
    pub one_minus_cosine: f64,
    /// max |difference| in units of the last place, in the compute type, of the largest number in its row.
    pub ulps: f64,
}

/// A distance that is taken row by row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measure {
    dtype: Precision,
    linf: f64,
    ulps: f64,
    difference: f64,
    got: f64,
    want: f64,
    dot: f64,
}

impl Measure {
    /// Of nothing yet.
    pub(super) fn new(dtype: Precision) -> Self {
        Self {
            dtype,
            linf: 0.0,
            ulps: 0.0,
            difference: 0.0,
            got: 0.0,
            want: 0.0,
            dot: 0.0,
        }
    }

    /// Takes in a row of finite numbers.
    pub(super) fn take(&mut self, got: &[f64], want: &[f64]) {
        let (mut linf, mut largest) = (0.0f64, 0.0f64);
        for (&got, &want) in got.iter().zip(want) {
            let difference = got - want;
            linf = linf.max(difference.abs());
            largest = largest.max(want.abs());
            self.difference += difference * difference;
            self.got += got * got;
            self.want += want * want;
            self.dot += got * want;
        }
        self.linf = self.linf.max(linf);
        if linf > 0.0 {
            self.ulps = self.ulps.max(linf / self.dtype.ulp(largest));
        }
    }

    /// The distance of all rows.
    pub(super) fn distance(&self) -> Distance {
        let relative = (self.difference / self.want).sqrt();
        let cosine = self.dot / (self.got * self.want).sqrt();
        let same = self.difference == 0.0;
        Distance {
            linf: self.linf,
            relative: if same { 0.0 } else { relative },
            one_minus_cosine: if same { 0.0 } else { 1.0 - cosine },
            ulps: self.ulps,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distance(got: &[f64], want: &[f64], dtype: Precision) -> Distance {
        let mut measure = Measure::new(dtype);
        measure.take(got, want);
        measure.distance()
    }

    #[test]
    fn distances() {
        let same = distance(&[3.0, 4.0], &[3.0, 4.0], Precision::F32);
        assert_eq!(
            (same.linf, same.relative, same.one_minus_cosine),
            (0.0, 0.0, 0.0)
        );
        let turned = distance(&[-4.0, 3.0], &[3.0, 4.0], Precision::Bf16);
        assert_eq!((turned.linf, turned.one_minus_cosine), (7.0, 1.0));
        // bf16 has steps of 2⁻⁵ from 4 on.
        assert_eq!(turned.ulps, 7.0 * 32.0);
        assert!((turned.relative - 2f64.sqrt()).abs() < 1e-15);
        assert_eq!(distance(&[0.0], &[0.0], Precision::F32).relative, 0.0);
        assert_eq!(
            distance(&[1.0], &[0.0], Precision::F32).relative,
            f64::INFINITY
        );
    }
}
