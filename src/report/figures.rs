//! The figures: which chart shows what.

use plotters::style::RGBColor;

use super::axis::{Axis, Decades, Linear};
use super::chart::{Canvas, FAINT, Frame, INK, RED, chart};
use super::data::{Histogram, Layer, Panel, Point, Series, Spread};
use crate::message::IoError;
use crate::patch::{ApplyMode, Solver};

/// The pixels of a chart over steps, of which there are two side by side, and over layers, three.
const STEPS: (u32, u32) = (440, 290);
const LAYERS: (u32, u32) = (370, 270);
/// Pixels that the labels of powers of ten take, with the axis's name.
const LEFT: u32 = 62;

/// Two charts over the steps: L∞ and TVD.
pub(super) fn per_step(panel: &Panel) -> Result<[String; 2], IoError> {
    Ok([
        steps(
            panel,
            "L∞",
            "L∞ of the logits (logits)",
            |point| point.linf,
            |point| point.no_patch_linf,
            |point| Some(point.bound),
        )?,
        steps(
            panel,
            "TVD",
            "TVD (probability)",
            |point| point.tvd,
            |point| point.no_patch_tvd,
            |_| None,
        )?,
    ])
}

fn steps(
    panel: &Panel,
    name: &str,
    y_name: &str,
    figure: fn(&Point) -> f64,
    no_patch: fn(&Point) -> Option<f64>,
    bound: fn(&Point) -> Option<f64>,
) -> Result<String, IoError> {
    let points = || panel.series.iter().flat_map(|series| &series.points);
    let axis = Decades::new(points().flat_map(|point| {
        let references = [no_patch(point), bound(point)];
        references.into_iter().flatten().chain([figure(point)])
    }));
    let last = points().map(|point| point.at).max().unwrap_or(0);
    let worst = points().map(figure).fold(0.0, crate::verify::worse);
    let differing = points().filter(|point| !point.same_top).count();
    let frame = Frame {
        title: &format!("{name} per step, {} {}", panel.platform, panel.dtype),
        description: &format!(
            "{} steps of {} kinds; the largest {name} is {worst:.1e}; {differing} tokens differ.",
            points().count(),
            panel.series.len(),
        ),
        x: Axis::Linear(Linear {
            from: -1.0,
            to: last as f64 + 1.0,
            marks: thinned(panel.prompts.iter().enumerate())
                .map(|(prompt, at)| (*at as f64, (prompt + 1).to_string()))
                .collect(),
        }),
        x_name: "token; a number is where that prompt begins",
        y: Axis::Decades(axis),
        y_name,
        left: LEFT,
        size: STEPS,
    };
    let line = |series: &Series, reference: fn(&Point) -> Option<f64>| {
        let points = series.points.iter();
        let points = points.filter_map(|p| Some((p.at as f64, axis.place(reference(p)?))));
        points.collect::<Vec<_>>()
    };
    chart(&frame, |canvas| {
        for (reference, name, colour) in [(no_patch, "no patch", FAINT), (bound, "bound", INK)] {
            let lines: Vec<_> = panel
                .series
                .iter()
                .map(|series| (series.solver, line(series, reference)))
                .collect();
            references(canvas, axis, name, colour, &lines)?;
        }
        for series in &panel.series {
            for point in &series.points {
                let at = (point.at as f64, axis.place(figure(point)));
                canvas.marker(at, series.look())?;
            }
        }
        for point in points().filter(|point| !point.same_top) {
            canvas.cross((point.at as f64, axis.place(figure(point))))?;
        }
        Ok(())
    })
}

/// The lines of a reference, each once, named at the right end: with their solvers where these have lines far apart.
fn references(
    canvas: &mut Canvas<'_>,
    axis: Decades,
    name: &str,
    colour: RGBColor,
    lines: &[(Solver, Vec<(f64, f64)>)],
) -> Result<(), IoError> {
    let (from, to) = axis.ends();
    let near = 0.05 * (to - from);
    let mut drawn: Vec<&Vec<(f64, f64)>> = Vec::new();
    let mut names: Vec<(f64, f64, Vec<String>)> = Vec::new();
    for (solver, line) in lines {
        let Some(&(x, _)) = line.last() else { continue };
        if !drawn.contains(&line) {
            canvas.line(line.clone(), colour, 1.0)?;
            drawn.push(line);
        }
        // Above the part that the name is over.
        let over = line.iter().filter(|(other, _)| *other > 0.75 * x);
        let y = over.map(|(_, y)| *y).fold(from, f64::max);
        let solver = solver.to_string();
        match names
            .iter_mut()
            .find(|(_, other, _)| (y - other).abs() < near)
        {
            Some((_, other, solvers)) => {
                *other = other.max(y);
                if !solvers.contains(&solver) {
                    solvers.push(solver);
                }
            }
            None => names.push((x, y, vec![solver])),
        }
    }
    let several = names.len() > 1;
    for (x, y, solvers) in names {
        let name = if several {
            format!("{name}: {}", solvers.join(", "))
        } else {
            name.into()
        };
        canvas.text(name, (x, y), colour)?;
    }
    Ok(())
}

/// Of more than ten every n-th.
fn thinned<T>(items: impl ExactSizeIterator<Item = T>) -> impl Iterator<Item = T> {
    let every = items.len().div_ceil(10).max(1);
    items.step_by(every)
}

/// How L∞ is distributed in the kinds of a platform: a row each.
pub(super) fn distribution(platform: &str, panels: &[&Panel]) -> Result<String, IoError> {
    let rows: Vec<_> = panels
        .iter()
        .flat_map(|panel| panel.series.iter().map(|series| (*panel, series)))
        .collect();
    let points = rows.iter().flat_map(|(_, series)| &series.points);
    let values = points.flat_map(|point| [Some(point.linf), point.no_patch_linf]);
    let axis = Decades::new(values.flatten());
    let base = |row: usize| (rows.len() - 1 - row) as f64;
    let forms = |form: ApplyMode| rows.iter().any(|(_, series)| series.form == form);
    let several_forms = forms(ApplyMode::Overlay) && forms(ApplyMode::Materialise);
    let name = |panel: &Panel, series: &Series| {
        if several_forms {
            format!("{} {} {}", series.solver, panel.dtype, series.form)
        } else {
            format!("{} {}", series.solver, panel.dtype)
        }
    };
    let names = rows.iter().enumerate();
    let names = names.map(|(row, (panel, series))| (base(row) + 0.4, name(panel, series)));
    let (from, to) = axis.ends();
    // Room for the share at the right.
    let to = to + 0.22 * (to - from);
    let marks = axis.marks(5).into_iter();
    let frame = Frame {
        title: &format!("Distribution of L∞, {platform}"),
        description: &format!(
            "A row for each of {} kinds: how its tokens are distributed over L∞, and how many have the same likeliest token.",
            rows.len()
        ),
        x: Axis::Linear(Linear {
            from,
            to,
            marks: marks.map(|mark| (mark, axis.label(mark))).collect(),
        }),
        x_name: "L∞ of the logits (logits)",
        y: Axis::Linear(Linear {
            from: -0.1,
            to: rows.len() as f64,
            marks: names.collect(),
        }),
        y_name: "",
        left: if several_forms { 190 } else { 112 },
        size: (440, 68 + 32 * rows.len() as u32),
    };
    chart(&frame, |canvas| {
        if let Some((from, to)) = axis.zeros() {
            canvas.bar((from, -0.1), (to, rows.len() as f64), FAINT, 0.15)?;
        }
        for (row, (_, series)) in rows.iter().enumerate() {
            let base = base(row);
            canvas.line(vec![(from, base), (to, base)], FAINT, 0.5)?;
            bars(canvas, axis, &series.no_patch, base, FAINT)?;
            bars(canvas, axis, &series.patched, base, series.look().colour)?;
            let share = format!("{}/{}", series.matching, series.tokens);
            let colour = if series.matching == series.tokens {
                INK
            } else {
                RED
            };
            canvas.text(share, (to, base + 0.2), colour)?;
        }
        Ok(())
    })
}

/// A histogram over `base`: a bar as high as a row is all tokens.
fn bars(
    canvas: &mut Canvas<'_>,
    axis: Decades,
    histogram: &Histogram,
    base: f64,
    colour: RGBColor,
) -> Result<(), IoError> {
    let quarters = histogram.quarters.iter();
    let quarters = quarters.map(|&(quarter, tokens)| (f64::from(quarter) / 4.0, tokens));
    let odd = [
        (axis.place(0.0) - 0.125, histogram.zero),
        (axis.place(f64::NAN) - 0.125, histogram.not_finite),
    ];
    let bars: Vec<_> = quarters.chain(odd).collect();
    let all: usize = bars.iter().map(|(_, tokens)| tokens).sum();
    for (from, tokens) in bars.into_iter().filter(|(_, tokens)| *tokens > 0) {
        let share = tokens as f64 / all as f64;
        canvas.bar(
            (from, base),
            (from + 0.25, base + 0.95 * share),
            colour,
            1.0,
        )?;
    }
    Ok(())
}

/// A figure of a layer, by its short and its long name.
pub(super) struct Quantity {
    pub(super) name: &'static str,
    axis: &'static str,
    of: fn(&Layer) -> Spread,
}

/// What is shown of layers.
pub(super) const QUANTITIES: [Quantity; 5] = [
    Quantity {
        name: "hidden-state error",
        axis: "error (share of the largest number)",
        of: |layer| layer.hidden_error,
    },
    Quantity {
        name: "ΔW_gate",
        axis: "‖ΔW_gate‖ / ‖W_gate‖",
        of: |layer| layer.delta_gate,
    },
    Quantity {
        name: "ΔW_up",
        axis: "‖ΔW_up‖ / ‖W_up‖",
        of: |layer| layer.delta_up,
    },
    Quantity {
        name: "ΔW_down",
        axis: "‖ΔW_down‖ / ‖W_down‖",
        of: |layer| layer.delta_down,
    },
    Quantity {
        name: "Δm",
        axis: "max |Δm| (units of the scale 1 + w)",
        of: |layer| layer.largest_delta_m,
    },
];

/// A chart over the layers with those series that change something; none if none does.
pub(super) fn per_layer(panel: &Panel, quantity: &Quantity) -> Result<Option<String>, IoError> {
    let spreads = |series: &Series| series.layers.iter().map(quantity.of).collect::<Vec<_>>();
    let series: Vec<_> = panel.series.iter().map(|s| (s, spreads(s))).collect();
    let changed = |spreads: &[Spread]| spreads.iter().any(|spread| spread.worst != 0.0);
    let series = series.into_iter().filter(|(_, spreads)| changed(spreads));
    let series: Vec<_> = series.collect();
    let all = || series.iter().flat_map(|(_, spreads)| spreads);
    let layers = series.iter().map(|(_, spreads)| spreads.len()).max();
    let Some(layers) = layers else {
        return Ok(None);
    };
    let axis = Decades::new(all().flat_map(|spread| [spread.median, spread.worst]));
    let worst = all()
        .map(|spread| spread.worst)
        .fold(0.0, crate::verify::worse);
    let frame = Frame {
        title: &format!(
            "{} by layer, {} {}",
            quantity.name, panel.platform, panel.dtype
        ),
        description: &format!("{layers} layers; the largest is {worst:.1e}."),
        x: Axis::Linear(Linear {
            from: -0.5,
            to: layers as f64 - 0.5,
            marks: thinned(0..layers)
                .map(|layer| (layer as f64, layer.to_string()))
                .collect(),
        }),
        x_name: "layer",
        y: Axis::Decades(axis),
        y_name: quantity.axis,
        left: LEFT,
        size: LAYERS,
    };
    let svg = chart(&frame, |canvas| {
        for (series, spreads) in &series {
            let points = |figure: fn(&Spread) -> f64| {
                let places = spreads.iter().map(|spread| axis.place(figure(spread)));
                let points = places.enumerate().map(|(layer, y)| (layer as f64, y));
                points.collect::<Vec<_>>()
            };
            let look = series.look();
            canvas.line(points(|spread| spread.worst), look.colour, 0.5)?;
            canvas.line(points(|spread| spread.median), look.colour, 1.5)?;
            for at in points(|spread| spread.median) {
                canvas.marker(at, look)?;
            }
        }
        Ok(())
    })?;
    Ok(Some(svg))
}
