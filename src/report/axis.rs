//! Axes: logarithmic ones with a place for what has no logarithm, and plain ones.

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// How far the places of exact zeros and of what is not finite are from the rest, in lengths of the rest.
const GAP: f64 = 0.08;

/// An axis from one power of ten to another. Below it is a place for exact zeros and above it one for what is not finite,
/// where there are such values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decades {
    low: i32,
    high: i32,
    zero: bool,
    not_finite: bool,
}

impl Decades {
    /// Room for all values, none of which is negative.
    pub(super) fn new(values: impl Iterator<Item = f64>) -> Self {
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        let (mut zero, mut not_finite) = (false, false);
        for value in values {
            if value == 0.0 {
                zero = true;
            } else if !value.is_finite() {
                not_finite = true;
            } else {
                (least, most) = (least.min(value), most.max(value));
            }
        }
        let (low, high) = if least <= most {
            (
                libm::log10(least).floor() as i32,
                libm::log10(most).ceil() as i32,
            )
        } else {
            (-1, 0)
        };
        Self {
            low,
            high: high.max(low + 1),
            zero,
            not_finite,
        }
    }

    fn gap(self) -> f64 {
        GAP * f64::from(self.high - self.low)
    }

    /// Where a value is.
    pub(super) fn place(self, value: f64) -> f64 {
        if value == 0.0 {
            f64::from(self.low) - self.gap()
        } else if value.is_finite() {
            libm::log10(value)
        } else {
            f64::from(self.high) + self.gap()
        }
    }

    /// From where to where the axis is drawn.
    pub(super) fn ends(self) -> (f64, f64) {
        let beyond = |there: bool| if there { 2.0 * self.gap() } else { 0.0 };
        (
            f64::from(self.low) - beyond(self.zero),
            f64::from(self.high) + beyond(self.not_finite),
        )
    }

    /// The place of exact zeros, from where to where, if there are any.
    pub(super) fn zeros(self) -> Option<(f64, f64)> {
        let low = f64::from(self.low);
        self.zero
            .then_some((low - 2.0 * self.gap(), low - 0.4 * self.gap()))
    }

    /// Where marks are drawn: at most `most` and one powers of ten, and the two places.
    pub(super) fn marks(self, most: i32) -> Vec<f64> {
        let every = (self.high - self.low) / most + 1;
        let powers = (self.low..=self.high).filter(|power| power % every == 0);
        let powers = powers.map(f64::from);
        let zero = self.zero.then(|| self.place(0.0));
        let not_finite = self.not_finite.then(|| self.place(f64::NAN));
        zero.into_iter().chain(powers).chain(not_finite).collect()
    }

    /// What is written at a mark.
    pub(super) fn label(self, mark: f64) -> String {
        if mark < f64::from(self.low) {
            "0".into()
        } else if mark > f64::from(self.high) {
            "NaN, ∞".into()
        } else {
            format!("1e{mark:.0}")
        }
    }
}

/// An axis that is not logarithmic.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub(super) from: f64,
    pub(super) to: f64,
    /// Where something is written, and what.
    pub(super) marks: Vec<(f64, String)>,
}

/// An axis of either sort. The coordinates of a logarithmic one are [places](Decades::place).
#[derive(Clone, Debug)]
pub(super) enum Axis {
    Linear(Linear),
    Decades(Decades),
}

impl Axis {
    /// From where to where it is drawn.
    pub(super) fn ends(&self) -> (f64, f64) {
        match self {
            Self::Linear(axis) => (axis.from, axis.to),
            Self::Decades(axis) => axis.ends(),
        }
    }

    /// The place of exact zeros, if they have one.
    pub(super) fn zeros(&self) -> Option<(f64, f64)> {
        match self {
            Self::Linear(_) => None,
            Self::Decades(axis) => axis.zeros(),
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (low, high): (i32, i32)) -> i32 {
        let (from, to) = self.ends();
        let share = (value - from) / (to - from);
        low + (share * f64::from(high - low)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        match self {
            Self::Linear(axis) => axis.marks.iter().map(|(mark, _)| *mark).collect(),
            Self::Decades(axis) => axis.marks(10),
        }
    }

    fn range(&self) -> std::ops::Range<f64> {
        let (from, to) = self.ends();
        from..to
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, mark: &f64) -> String {
        match self {
            Self::Linear(axis) => {
                let mut marks = axis.marks.iter();
                let mark = marks.find(|(place, _)| place == mark);
                mark.map_or_else(String::new, |(_, label)| label.clone())
            }
            Self::Decades(axis) => axis.label(*mark),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_and_nan_have_places_of_their_own() {
        let axis = Decades::new([0.0, 3e-6, 20.0, f64::NAN].into_iter());
        let (from, to) = axis.ends();
        let places = [0.0, 3e-6, 20.0, f64::INFINITY].map(|value| axis.place(value));
        assert!(from < places[0] && places[3] < to, "{axis:?} {places:?}");
        assert!(places.is_sorted());
        let (_, zeros_end) = axis.zeros().unwrap();
        assert!(places[0] < zeros_end && zeros_end < axis.place(1e-6));
        let labels: Vec<_> = axis.marks(10).into_iter().map(|m| axis.label(m)).collect();
        let want = [
            "0", "1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "1e-1", "1e0", "1e1", "1e2", "NaN, ∞",
        ];
        assert_eq!(labels, want);
    }

    #[test]
    fn an_axis_without_zeros_has_no_place_for_them() {
        let axis = Decades::new([1e-3, 1.0].into_iter());
        assert_eq!(axis.ends(), (-3.0, 0.0));
        assert!(axis.zeros().is_none());
        assert!(Decades::new([0.0].into_iter()).zeros().is_some());
    }
}
