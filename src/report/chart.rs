//! Charts as SVG, drawn by `plotters`.

use plotters::element::{Drawable, PointCollection};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::Axis;
use super::escaped::escaped;
use crate::message::IoError;
use crate::patch::{ApplyMode, Solver};

/// Units in a pixel: the backend only knows whole ones.
const SCALE: u32 = 4;
/// Of letters, in pixels.
const FONT: u32 = 13;
/// What the backend divides sizes of letters by.
const POINTS: f64 = 1.24;

/// What is neither data nor grid. The page gives these three another colour in the dark.
pub(super) const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
/// References beside the data.
pub(super) const FAINT: RGBColor = RGBColor(0x88, 0x88, 0x88);
pub(super) const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
/// A token that differs.
pub(super) const RED: RGBColor = RGBColor(0xd5, 0x00, 0x00);

/// How a series is drawn.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Look {
    /// Of Okabe and Ito's, which those who are colour-blind can tell apart.
    pub(super) colour: RGBColor,
    /// The corners of its marker, in pixels from the middle.
    corners: &'static [(f64, f64)],
    /// Whether the marker is filled, and not an outline through which others are seen.
    filled: bool,
}

const OCTAGON: &[(f64, f64)] = &[
    (-1.4, -3.4),
    (1.4, -3.4),
    (3.4, -1.4),
    (3.4, 1.4),
    (1.4, 3.4),
    (-1.4, 3.4),
    (-3.4, 1.4),
    (-3.4, -1.4),
];
const DIAMOND: &[(f64, f64)] = &[(0.0, -5.0), (5.0, 0.0), (0.0, 5.0), (-5.0, 0.0)];

impl Look {
    /// What a patch is for.
    pub(super) const SERVED: Self = Self {
        colour: RGBColor(0x00, 0x9e, 0x73),
        corners: OCTAGON,
        filled: true,
    };
    /// What it should leave as it is.
    pub(super) const ELSEWHERE: Self = Self {
        colour: RGBColor(0xcc, 0x79, 0xa7),
        corners: DIAMOND,
        filled: false,
    };

    /// A solver's; filled where patches are materialised.
    pub(super) fn of(solver: Solver, form: ApplyMode) -> Self {
        let (colour, corners): (_, &[_]) = match solver {
            Solver::Theorem1 => (
                RGBColor(0xe6, 0x9f, 0x00),
                &[(0.0, -4.4), (3.9, 2.6), (-3.9, 2.6)],
            ),
            Solver::AppendixB => (
                RGBColor(0x00, 0x72, 0xb2),
                &[(-2.5, -2.5), (2.5, -2.5), (2.5, 2.5), (-2.5, 2.5)],
            ),
            Solver::Theorem5 => (
                RGBColor(0x56, 0xb4, 0xe9),
                &[(0.0, 4.4), (3.9, -2.6), (-3.9, -2.6)],
            ),
            Solver::ClosedForm => (RGBColor(0x00, 0x9e, 0x73), OCTAGON),
            Solver::Span => (RGBColor(0xcc, 0x79, 0xa7), DIAMOND),
        };
        Self {
            colour,
            corners,
            filled: form == ApplyMode::Materialise,
        }
    }
}

/// What a chart is of.
pub(super) struct Frame<'a> {
    /// What it is called, for those who do not see it.
    pub(super) title: &'a str,
    /// What is to be seen.
    pub(super) description: &'a str,
    pub(super) x: Axis,
    /// What the horizontal axis is, with its unit.
    pub(super) x_name: &'a str,
    pub(super) y: Axis,
    pub(super) y_name: &'a str,
    /// Room for what is written at the vertical axis, in pixels.
    pub(super) left: u32,
    /// Width and height in pixels.
    pub(super) size: (u32, u32),
}

/// Where data are drawn, in the coordinates of the axes.
pub(super) struct Canvas<'a> {
    chart: ChartContext<'a, SVGBackend<'a>, Cartesian2d<Axis, Axis>>,
}

/// A chart whose data `draw` draws.
///
/// # Errors
///
/// [`IoError`] where a chart cannot be laid out.
pub(super) fn chart(
    frame: &Frame<'_>,
    draw: impl FnOnce(&mut Canvas<'_>) -> Result<(), IoError>,
) -> Result<String, IoError> {
    let size = (frame.size.0 * SCALE, frame.size.1 * SCALE);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let mut builder = ChartBuilder::on(&root);
        builder
            .margin(6 * SCALE)
            .margin_top(18 * SCALE)
            .margin_right(10 * SCALE)
            .x_label_area_size(38 * SCALE)
            .y_label_area_size(frame.left * SCALE);
        let chart = builder.build_cartesian_2d(frame.x.clone(), frame.y.clone());
        let mut canvas = Canvas {
            chart: chart.map_err(failed)?,
        };
        canvas.axes(frame)?;
        draw(&mut canvas)?;
        root.present().map_err(failed)?;
    }
    Ok(named(&svg, size, frame))
}

impl<'a> Canvas<'a> {
    fn axes(&mut self, frame: &Frame<'_>) -> Result<(), IoError> {
        self.zeros(frame)?;
        let mut mesh = self.chart.configure_mesh();
        mesh.bold_line_style(GRID.stroke_width(SCALE))
            .light_line_style(TRANSPARENT)
            .axis_style(INK.stroke_width(SCALE))
            .label_style(letters())
            .axis_desc_style(letters())
            .x_desc(frame.x_name)
            .y_desc(frame.y_name)
            .set_all_tick_mark_size(4 * SCALE);
        if let Axis::Linear(_) = frame.y {
            mesh.disable_y_mesh();
        }
        mesh.draw().map_err(failed)
    }

    /// The place of exact zeros, in grey.
    fn zeros(&mut self, frame: &Frame<'_>) -> Result<(), IoError> {
        let (x, y) = (frame.x.ends(), frame.y.ends());
        if let Some((from, to)) = frame.y.zeros() {
            self.bar((x.0, from), (x.1, to), GRID, 0.5)?;
        }
        if let Some((from, to)) = frame.x.zeros() {
            self.bar((from, y.0), (to, y.1), GRID, 0.5)?;
        }
        Ok(())
    }

    /// A line of so many pixels' width through the points.
    pub(super) fn line(
        &mut self,
        points: Vec<(f64, f64)>,
        colour: RGBColor,
        width: f64,
    ) -> Result<(), IoError> {
        let width = (width * f64::from(SCALE)) as u32;
        self.draw(PathElement::new(points, colour.stroke_width(width)))
    }

    /// A marker of a series.
    pub(super) fn marker(&mut self, at: (f64, f64), look: Look) -> Result<(), IoError> {
        let corners = look.corners.iter().map(|&(x, y)| pixels(x, y));
        let mut corners: Vec<_> = corners.collect();
        if look.filled {
            return self.draw(EmptyElement::at(at) + Polygon::new(corners, look.colour.filled()));
        }
        corners.extend_from_within(..1);
        let outline = PathElement::new(corners, look.colour.stroke_width(5));
        self.draw(EmptyElement::at(at) + outline)
    }

    /// The red cross of a token that differs.
    pub(super) fn cross(&mut self, at: (f64, f64)) -> Result<(), IoError> {
        let arm = |x: f64, y: f64| {
            let ends = [pixels(-x, -y), pixels(x, y)];
            PathElement::new(ends, RED.stroke_width(2 * SCALE))
        };
        self.draw(EmptyElement::at(at) + arm(6.0, 6.0) + arm(6.0, -6.0))
    }

    /// A filled rectangle.
    pub(super) fn bar(
        &mut self,
        from: (f64, f64),
        to: (f64, f64),
        colour: RGBColor,
        opacity: f64,
    ) -> Result<(), IoError> {
        self.draw(Rectangle::new([from, to], colour.mix(opacity).filled()))
    }

    /// Text that ends at a point.
    pub(super) fn text(
        &mut self,
        text: String,
        at: (f64, f64),
        colour: RGBColor,
    ) -> Result<(), IoError> {
        let style = letters().color(&colour);
        let style = style.pos(Pos::new(HPos::Right, VPos::Bottom));
        self.draw(Text::new(text, at, style))
    }

    fn draw<E>(&mut self, element: E) -> Result<(), IoError>
    where
        for<'e> &'e E: PointCollection<'e, (f64, f64)>,
        E: Drawable<SVGBackend<'a>>,
    {
        let drawn = self.chart.draw_series([element]);
        drawn.map(drop).map_err(failed)
    }
}

/// A series' marker by itself, for a legend.
pub(super) fn swatch(look: Look) -> String {
    let points: Vec<_> = look
        .corners
        .iter()
        .map(|(x, y)| format!("{x},{y}"))
        .collect();
    let RGBColor(r, g, b) = look.colour;
    let colour = format!("#{r:02X}{g:02X}{b:02X}");
    let fill = if look.filled { &colour } else { "none" };
    format!(
        "<svg class=\"swatch\" viewBox=\"-7 -7 14 14\" aria-hidden=\"true\"><polygon points=\"{}\" fill=\"{fill}\" \
         stroke=\"{colour}\" stroke-width=\"1.25\"/></svg>",
        points.join(" "),
    )
}

fn letters() -> TextStyle<'static> {
    let size = f64::from(FONT * SCALE) * POINTS;
    TextStyle::from(("sans-serif", size)).color(&INK)
}

fn pixels(x: f64, y: f64) -> (i32, i32) {
    let scale = |x: f64| (x * f64::from(SCALE)).round() as i32;
    (scale(x), scale(y))
}

/// The drawing with a name, and as wide as there is room.
fn named(svg: &str, (width, height): (u32, u32), frame: &Frame<'_>) -> String {
    let drawing = svg.split_once('\n').map_or("", |(_, drawing)| drawing);
    format!(
        "<svg class=\"chart\" role=\"img\" viewBox=\"0 0 {width} {height}\" xmlns=\"http://www.w3.org/2000/svg\">\n\
         <title>{}</title>\n<desc>{}</desc>\n{}",
        escaped(frame.title),
        escaped(frame.description),
        // What is so anyway.
        drawing.replace(" opacity=\"1\"", ""),
    )
}

/// A chart that cannot be drawn.
fn failed(error: impl std::error::Error) -> IoError {
    IoError::at("draw", super::PAGE)(std::io::Error::other(error.to_string()))
}
