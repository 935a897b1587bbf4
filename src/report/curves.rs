//! Charts of how good a compiled prompt is, from more and more queries or by higher and higher rank.

use super::axis::{Axis, Decades, Linear};
use super::chart::{Canvas, FAINT, Frame, GRID, Look, chart};
use crate::message::IoError;
use crate::patch::compile::{Point, Summary};

/// The pixels of a chart, of which there are two side by side.
const SIZE: (u32, u32) = (440, 270);
/// Pixels that the labels of the vertical axis take, with its name.
const LEFT: u32 = 62;
/// How near each other, in doublings, two labels of the horizontal axis may be.
const NEAR: f64 = 0.3;

/// What grows from one point to the next.
#[derive(Clone, Copy)]
pub(super) enum Over {
    Queries,
    Rank,
}

impl Over {
    /// How much of it a point has.
    pub(super) fn of(self, point: &Point) -> usize {
        match self {
            Self::Queries => point.queries,
            Self::Rank => point.rank,
        }
    }

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Queries => "queries compiled from",
            Self::Rank => "rank",
        }
    }

    fn place(self, point: &Point) -> f64 {
        libm::log2(self.of(point) as f64)
    }

    /// A doubling is as long everywhere.
    fn axis(self, points: &[Point]) -> Axis {
        let places = || points.iter().map(|point| self.place(point));
        let marks = points
            .iter()
            .map(|point| (self.place(point), self.of(point).to_string()));
        let mut marks: Vec<_> = marks.collect();
        marks.dedup_by(|next, before| next.0 - before.0 < NEAR);
        Axis::Linear(Linear {
            from: places().fold(f64::INFINITY, f64::min) - 0.5,
            to: places().fold(f64::NEG_INFINITY, f64::max) + 0.5,
            marks,
        })
    }
}

/// Two charts: KL of queries and of texts that must not change, and the share of answers that are the same.
pub(super) fn curves(bare: &Summary, points: &[Point], over: Over) -> Result<[String; 2], IoError> {
    Ok([divergence(bare, points, over)?, exact(bare, points, over)?])
}

fn divergence(bare: &Summary, points: &[Point], over: Over) -> Result<String, IoError> {
    let elsewhere = points
        .iter()
        .filter(|point| point.elsewhere.samples > 0)
        .map(|point| (over.place(point), point.elsewhere.kl));
    let served = points
        .iter()
        .map(|point| (over.place(point), point.patched.kl));
    let (served, elsewhere): (Vec<_>, Vec<_>) = (served.collect(), elsewhere.collect());
    let values = served.iter().chain(&elsewhere).map(|(_, kl)| *kl);
    let y = Decades::new(values.chain([bare.kl]));
    let frame = Frame {
        title: &format!("KL and {}", over.name()),
        description: &described(points, over, |point| format!("{:.1e}", point.patched.kl)),
        x: over.axis(points),
        x_name: over.name(),
        y: Axis::Decades(y),
        y_name: "KL (nats a token)",
        left: LEFT,
        size: SIZE,
    };
    let placed = |series: Vec<(f64, f64)>| series.into_iter().map(|(x, kl)| (x, y.place(kl)));
    chart(&frame, |canvas| {
        reference(canvas, &frame, y.place(bare.kl))?;
        series(canvas, placed(elsewhere).collect(), Look::ELSEWHERE)?;
        series(canvas, placed(served).collect(), Look::SERVED)
    })
}

fn exact(bare: &Summary, points: &[Point], over: Over) -> Result<String, IoError> {
    let quarters = [0.0, 0.25, 0.5, 0.75, 1.0];
    let frame = Frame {
        title: &format!("Same answers and {}", over.name()),
        description: &described(points, over, |point| {
            format!("{:.0} %", 100.0 * point.patched.exact)
        }),
        x: over.axis(points),
        x_name: over.name(),
        y: Axis::Linear(Linear {
            from: -0.06,
            to: 1.06,
            marks: quarters
                .map(|share| (share, format!("{:.0} %", 100.0 * share)))
                .into(),
        }),
        y_name: "same whole answers",
        left: LEFT,
        size: SIZE,
    };
    let served = points
        .iter()
        .map(|point| (over.place(point), point.patched.exact));
    chart(&frame, |canvas| {
        let (from, to) = frame.x.ends();
        for share in quarters {
            canvas.line(vec![(from, share), (to, share)], GRID, 1.0)?;
        }
        reference(canvas, &frame, bare.exact)?;
        series(canvas, served.collect(), Look::SERVED)
    })
}

/// What is to be seen, in words.
fn described(points: &[Point], over: Over, figure: impl Fn(&Point) -> String) -> String {
    let each = points
        .iter()
        .map(|point| format!("{} at {}", figure(point), over.of(point)));
    each.collect::<Vec<_>>().join(", ") + "."
}

/// The line of the model without prompt and patch.
fn reference(canvas: &mut Canvas<'_>, frame: &Frame<'_>, y: f64) -> Result<(), IoError> {
    let (from, to) = frame.x.ends();
    canvas.line(vec![(from, y), (to, y)], FAINT, 1.0)?;
    canvas.text("bare".into(), (to, y), FAINT)
}

fn series(canvas: &mut Canvas<'_>, points: Vec<(f64, f64)>, look: Look) -> Result<(), IoError> {
    canvas.line(points.clone(), look.colour, 1.5)?;
    points
        .into_iter()
        .try_for_each(|at| canvas.marker(at, look))
}
