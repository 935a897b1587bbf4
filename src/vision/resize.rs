//! Pillow's resize of 8-bit pictures, to the bit.
//!
//! A level of the result is a sum over those that the filter, as wide as a step of the result where that is coarser, covers. The weights
//! are computed in f64, normalised to 1 and rounded to 22 bits of fraction, and the sum of products is one of whole numbers, to which
//! a half is added before its fraction is cut off and the level brought between 0 and 255. A picture is resized in one direction,
//! which rounds once, and then in the other; a direction whose size stays is left as it is. The width comes first, but as of Pillow 13 the
//! height where more rows are lost than twice as many columns.

use std::f64::consts::PI;

use super::rgb::Rgb;
use crate::checkpoint::Resample;

/// Bits behind the point of a weight: 32, without those of a level and two for sums beyond it.
const PRECISION: u32 = 32 - 8 - 2;

/// The picture at another size.
pub(super) fn resize(picture: &Rgb, (height, width): (usize, usize), resample: Resample) -> Rgb {
    let Some(filter) = Filter::of(resample) else {
        return nearest(picture, (height, width));
    };
    let lost = |from: usize, to: usize| from as i64 - to as i64;
    let (lost_rows, lost_columns) = (lost(picture.height, height), lost(picture.width, width));
    if lost_rows > 0 && lost_rows > 2 * lost_columns {
        columns(&rows(picture, height, &filter), width, &filter)
    } else {
        rows(&columns(picture, width, &filter), height, &filter)
    }
}

/// The picture at another width.
fn columns(picture: &Rgb, width: usize, filter: &Filter) -> Rgb {
    if width == picture.width {
        return picture.clone();
    }
    let windows = windows(filter, picture.width, width);
    let mut bytes = Vec::with_capacity(3 * width * picture.height);
    for row in picture.bytes.chunks_exact(3 * picture.width) {
        for Window { start, weights } in &windows {
            let levels = &row[3 * start..][..3 * weights.len()];
            bytes.extend(
                [0, 1, 2].map(|channel| weighted(levels[channel..].iter().step_by(3), weights)),
            );
        }
    }
    let height = picture.height;
    Rgb {
        width,
        height,
        bytes,
    }
}

/// The picture at another height.
fn rows(picture: &Rgb, height: usize, filter: &Filter) -> Rgb {
    if height == picture.height {
        return picture.clone();
    }
    let (width, stride) = (picture.width, 3 * picture.width);
    let mut bytes = Vec::with_capacity(height * stride);
    for Window { start, weights } in windows(filter, picture.height, height) {
        let lines = &picture.bytes[start * stride..][..weights.len() * stride];
        bytes.extend((0..stride).map(|at| weighted(lines[at..].iter().step_by(stride), &weights)));
    }
    Rgb {
        width,
        height,
        bytes,
    }
}

/// One level of the result.
fn weighted<'a>(levels: impl Iterator<Item = &'a u8>, weights: &[i32]) -> u8 {
    let products = levels
        .zip(weights)
        .map(|(level, weight)| i32::from(*level) * weight);
    let sum: i32 = (1 << (PRECISION - 1)) + products.sum::<i32>();
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// What one place of the result is a sum of.
struct Window {
    start: usize,
    weights: Vec<i32>,
}

/// The windows of all places of a direction.
fn windows(filter: &Filter, from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = filter.support * stretch;
    let window = |place: usize| {
        let centre = (place as f64 + 0.5) * scale;
        // Towards zero, as C does it.
        let start = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let distance = |at: usize| (at as f64 - centre + 0.5) * (1.0 / stretch);
        let mut weights: Vec<f64> = (start..end)
            .map(|at| (filter.weight)(distance(at)))
            .collect();
        let sum = weights.iter().fold(0.0, |sum, weight| sum + weight);
        if sum != 0.0 {
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        let fixed = |weight: &f64| {
            let half = if *weight < 0.0 { -0.5 } else { 0.5 };
            (half + weight * f64::from(1 << PRECISION)) as i32
        };
        Window {
            start,
            weights: weights.iter().map(fixed).collect(),
        }
    };
    (0..to).map(window).collect()
}

/// The pixel at the centre of each place, which is found by adding up steps.
fn nearest(picture: &Rgb, (height, width): (usize, usize)) -> Rgb {
    let places = |from: usize, to: usize| -> Vec<usize> {
        let step = from as f64 / to as f64;
        let centres = std::iter::successors(Some(0.5 * step), |centre| Some(centre + step));
        centres
            .take(to)
            .map(|centre| (centre as usize).min(from - 1))
            .collect()
    };
    let (columns, rows) = (places(picture.width, width), places(picture.height, height));
    let pixels = rows
        .iter()
        .flat_map(|y| columns.iter().map(|x| picture.pixel(*x, *y)));
    Rgb {
        width,
        height,
        bytes: pixels.flatten().collect(),
    }
}

/// A filter.
struct Filter {
    /// How far from its centre it reaches.
    support: f64,
    weight: fn(f64) -> f64,
}

impl Filter {
    fn of(resample: Resample) -> Option<Self> {
        let (support, weight): (_, fn(f64) -> f64) = match resample {
            Resample::Nearest => return None,
            Resample::Box => (0.5, |x| if x > -0.5 && x <= 0.5 { 1.0 } else { 0.0 }),
            Resample::Bilinear => (1.0, |x| (1.0 - x.abs()).max(0.0)),
            Resample::Hamming => (1.0, hamming),
            Resample::Bicubic => (2.0, bicubic),
            Resample::Lanczos => (3.0, lanczos),
        };
        Some(Self { support, weight })
    }
}

fn hamming(x: f64) -> f64 {
    let x = x.abs();
    if x == 0.0 {
        return 1.0;
    }
    if x >= 1.0 {
        return 0.0;
    }
    let x = x * PI;
    libm::sin(x) / x * (0.54 + 0.46 * libm::cos(x))
}

/// Keys' with a = -1/2.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Of three lobes.
fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| match x {
        0.0 => 1.0,
        _ => libm::sin(x * PI) / (x * PI),
    };
    if (-3.0..3.0).contains(&x) {
        sinc(x) * sinc(x / 3.0)
    } else {
        0.0
    }
}
