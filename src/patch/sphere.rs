//! The trust-region problem of the outer norm: what can be said best with a vector of fixed length.
//!
//! The norm lets the branch say m ⊙ y for any y with a given Σ y². The y that comes closest to t in
//! the sense of ‖m ⊙ y − t‖² is y_j = t_j m_j / (m_j² − μ) with the one μ < min m² that gives it the
//! right length. There need not be one: where every numerator at the smallest m² is zero, y stays too
//! short all the way up to μ = min m² (the *hard case*); then μ is that, the other coordinates keep the
//! formula, and the missing length goes to the coordinates of the smallest m².

use super::Case;

/// The y with Σ y² = `square` (at least 0) that minimises ‖m ⊙ y − t‖², and which case it was. Numbers that are
/// not finite have no such y: then it is NaN.
pub fn nearest(m: &[f64], t: &[f64], square: f64) -> (Vec<f64>, Case) {
    if m.iter().chain(t).any(|x| !x.is_finite()) {
        return (vec![f64::NAN; m.len()], Case::Regular);
    }
    let lowest = m.iter().fold(f64::INFINITY, |min, m| min.min(m.abs()));
    // y_j = numerator_j / (gap_j + δ) with δ = min m² − μ > 0, free of cancellation.
    let terms: Vec<Term> = m
        .iter()
        .zip(t)
        .map(|(&m, &t)| Term {
            numerator: t * m,
            gap: (m.abs() - lowest) * (m.abs() + lowest),
        })
        .collect();
    let regular = terms.iter().filter(|term| term.gap > 0.0);
    let longest: f64 = regular.map(|term| term.y(0.0).powi(2)).sum();
    let at_lowest = terms.iter().filter(|term| term.gap == 0.0);
    let pull: f64 = at_lowest.map(|term| term.numerator.powi(2)).sum();
    if pull == 0.0 && longest <= square {
        return (hard(&terms, t, square - longest), Case::Hard);
    }
    let delta = root(&terms, square, pull);
    let mut y: Vec<f64> = terms.iter().map(|term| term.y(delta)).collect();
    let found: f64 = y.iter().map(|y| y * y).sum();
    let exact = (square / found).sqrt();
    if exact.is_finite() {
        y.iter_mut().for_each(|y| *y *= exact);
    }
    (y, Case::Regular)
}

struct Term {
    numerator: f64,
    gap: f64,
}

impl Term {
    fn y(&self, delta: f64) -> f64 {
        if self.numerator == 0.0 {
            0.0
        } else {
            self.numerator / (self.gap + delta)
        }
    }
}

/// The regular coordinates by the formula at μ = min m²; the missing square in equal parts to the
/// coordinates of the smallest m², each on the side of its t.
fn hard(terms: &[Term], t: &[f64], missing: f64) -> Vec<f64> {
    let lowest = terms.iter().filter(|term| term.gap == 0.0).count();
    let share = (missing / lowest as f64).sqrt();
    let coordinates = terms.iter().zip(t);
    coordinates
        .map(|(term, t)| {
            if term.gap > 0.0 {
                term.y(0.0)
            } else {
                share.copysign(*t)
            }
        })
        .collect()
}

/// The δ > 0 with Σ y(δ)² = `square`; `pull` is Σ numerator² over the terms without a gap.
///
/// Newton's method on 1/‖y(δ)‖, which is nearly a straight line, inside a bracket that never stops shrinking.
fn root(terms: &[Term], square: f64, pull: f64) -> f64 {
    let sum = |f: &dyn Fn(&Term) -> f64| terms.iter().map(f).sum::<f64>();
    let mut high = (sum(&|term| term.numerator.powi(2)) / square).sqrt();
    let mut low = (pull / square).sqrt().max(f64::MIN_POSITIVE);
    let mut delta = between(low, high);
    for _ in 0..200 {
        let squares = sum(&|term| term.y(delta).powi(2));
        if squares > square {
            low = delta;
        } else {
            high = delta;
        }
        if high <= low * (1.0 + f64::EPSILON) || squares == square {
            break;
        }
        // d/dδ Σ y² = −2 Σ y²/(gap + δ)
        let slope = sum(&|term| term.y(delta).powi(2) / (term.gap + delta));
        let newton = delta + squares / slope * ((squares / square).sqrt() - 1.0);
        delta = if newton > low && newton < high {
            newton
        } else {
            between(low, high)
        };
    }
    delta
}

/// The geometric mean of the ends of a bracket; its lower end where that is no number.
fn between(low: f64, high: f64) -> f64 {
    (low.sqrt() * high.sqrt()).min(high).max(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objective(m: &[f64], t: &[f64], y: &[f64]) -> f64 {
        (0..m.len()).map(|j| (m[j] * y[j] - t[j]).powi(2)).sum()
    }

    fn square(y: &[f64]) -> f64 {
        y.iter().map(|y| y * y).sum()
    }

    /// Nothing on the sphere is nearer: not after a turn by a small or a large angle in any two coordinates.
    fn is_nearest(m: &[f64], t: &[f64], y: &[f64]) {
        let best = objective(m, t, y);
        let slack = 1e-12 * (best + objective(m, t, &vec![0.0; y.len()]));
        for i in 0..y.len() {
            for j in 0..i {
                for angle in [1e-4f64, 0.1, 1.0, 3.0, -1e-4, -0.1, -1.0] {
                    let mut other = y.to_vec();
                    other[i] = angle.cos() * y[i] - angle.sin() * y[j];
                    other[j] = angle.sin() * y[i] + angle.cos() * y[j];
                    assert!(objective(m, t, &other) >= best - slack, "{m:?} {t:?} {y:?}");
                }
            }
        }
    }

    #[test]
    fn the_regular_case() {
        let (m, t) = ([1.0, -2.0, 0.5, 3.0], [0.3, 1.0, -2.0, 0.1]);
        for length in [1e-6, 0.1, 1.0, 4.0, 1e6] {
            let (y, case) = nearest(&m, &t, length);
            assert_eq!(case, Case::Regular);
            assert!((square(&y) / length - 1.0).abs() < 1e-14);
            is_nearest(&m, &t, &y);
        }
    }

    #[test]
    fn the_hard_case() {
        // The smallest m has nothing to pull it: t is zero there, or m is.
        for (m, t) in [
            ([1.0, -2.0, 0.5, 3.0], [0.3, 1.0, 0.0, 0.1]),
            ([1.0, -2.0, 0.0, 3.0], [0.3, 1.0, -5.0, 0.1]),
        ] {
            let (y, case) = nearest(&m, &t, 4.0);
            assert_eq!(case, Case::Hard);
            assert!((square(&y) - 4.0).abs() < 1e-14);
            is_nearest(&m, &t, &y);
            // The same numbers and less length: the root exists.
            let (y, case) = nearest(&m, &t, 0.01);
            assert_eq!(case, Case::Regular);
            is_nearest(&m, &t, &y);
        }
    }

    #[test]
    fn nearly_hard() {
        let (m, t) = ([1.0, -2.0, 0.5, 3.0], [0.3, 1.0, 1e-140, 0.1]);
        let (y, case) = nearest(&m, &t, 4.0);
        assert_eq!(case, Case::Regular);
        assert!((square(&y) - 4.0).abs() < 1e-13, "{y:?}");
        is_nearest(&m, &t, &y);
    }

    #[test]
    fn nothing_to_say() {
        let (y, case) = nearest(&[2.0, 1.0, 1.0], &[0.0; 3], 8.0);
        assert_eq!((y, case), (vec![0.0, 2.0, 2.0], Case::Hard));
    }
}
