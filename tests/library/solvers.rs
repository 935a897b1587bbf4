//! The solvers of one layer on random numbers, and where they must refuse.

use crate::solver::{Layer, Outcome, Span};
use context_patch::patch::{appendix_b, closed_form};

/// Numbers of many sizes; every 13th is a zero of either sign.
fn numbers(seed: u64, spread: i32) -> impl FnMut() -> f64 {
    let mut number = crate::common::numbers(seed, 10.0, spread);
    let mut count = seed;
    move || {
        count += 1;
        match count % 26 {
            0 => 0.0,
            13 => -0.0,
            _ => number(),
        }
    }
}

fn layer(seed: u64) -> Layer {
    let (hidden, length) = (1 + seed as usize % 23, 1 + seed as usize % 17);
    Layer::new(hidden, length, numbers(seed, (seed % 31) as i32))
}

/// How many of 3000 random problems are solved.
fn solved(check: impl Fn(u64) -> Outcome) -> usize {
    let outcomes = (0..3000).map(check);
    outcomes
        .filter(|outcome| *outcome == Outcome::Equal)
        .count()
}

#[test]
fn the_closed_form_says_t() {
    assert!(solved(|seed| layer(seed).closed_form()) > 2900);
}

#[test]
fn appendix_b_says_t() {
    // The others have scales so far apart that Δm would overflow, or n(d) underflow.
    assert!(solved(|seed| layer(seed).appendix_b()) > 2000);
}

#[test]
fn the_nearest_point_is_on_the_sphere() {
    assert_eq!(solved(|seed| layer(seed).sphere()), 3000);
}

#[test]
fn a_span_changes_what_it_should() {
    let span = |seed: u64, repeat| {
        let sizes = [seed as usize % 3, 1 + seed as usize % 5, 9, 4];
        Span::new(sizes, repeat, numbers(seed, (seed % 4) as i32)).check()
    };
    assert!(solved(|seed| span(seed, false)) > 2900);
    // Of a state that is there twice only a span of one token takes no notice.
    let single = (0..3000u64)
        .filter(|seed| seed % 3 + 1 + seed % 5 == 1)
        .count();
    assert!(solved(|seed| span(seed, true)) <= single);
}

/// What is not a number is refused, not said.
#[test]
fn no_number_is_refused() {
    for bad in [f64::NAN, f64::INFINITY] {
        let mut layer = layer(22);
        layer.t[0] = bad;
        let outcomes = [layer.closed_form(), layer.appendix_b()];
        assert_eq!(outcomes, [Outcome::Refused; 2]);
    }
}

/// The control of the checks: the same problem solved for another t is far off.
#[test]
fn another_t_is_not_said() {
    let layer = layer(22);
    let (d, m) = closed_form::down_and_scale(&layer.m, &layer.t, 1.0, 1e-6);
    let n: Vec<f64> = d.iter().map(|d| d / (1.0f64 + 1e-6).sqrt()).collect();
    let said: Vec<f64> = m.iter().zip(&n).map(|(m, n)| m * n).collect();
    let off = |t: &[f64]| {
        said.iter()
            .zip(t)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max)
    };
    let largest = layer.t.iter().fold(0.0f64, |max, t| max.max(t.abs()));
    assert!(off(&layer.t) <= 1e-14 * largest);
    let other: Vec<f64> = layer.t.iter().map(|t| 2.0 * t).collect();
    assert!(off(&other) >= 0.5 * largest);
}

#[test]
fn nothing_to_say_is_said_exactly() {
    let mut layer = layer(22);
    layer.t.fill(0.0);
    assert_eq!(layer.closed_form(), Outcome::Equal);
    let (d, m) = closed_form::down_and_scale(&layer.m, &layer.t, 1.0, 1e-6);
    assert!(d.iter().chain(&m).all(|x| *x == 0.0));
}

#[test]
fn a_coordinate_without_scale_is_served() {
    // m = 0 where t is not, in both cases of the trust-region problem.
    for t in [vec![0.1, 5.0, 0.2], vec![100.0, 5.0, 200.0]] {
        let m = [1.0, 0.0, -2.0];
        let solved = appendix_b::down(&m, &t, 1.0, 1e-6);
        assert!(solved.d[1] > 0.1, "{solved:?}");
        let layer = Layer {
            m: m.into(),
            t,
            d: vec![0.5, -0.5, 1.0],
            h: vec![1.0, 2.0],
            gain: 1.0,
        };
        assert_eq!(layer.appendix_b(), Outcome::Equal);
    }
}
