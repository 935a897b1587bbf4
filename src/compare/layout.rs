//! Where in a stored tensor the number of each token and column lies.

use std::ops::Range;

use super::Point;
use crate::trace::Rows;

/// What a rule says of a tensor's layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    /// The axes are in the other order: `[width, tokens]`.
    pub(super) transposed: bool,
    /// Which of `[heads, tokens, head_dim]` and `[tokens, heads, head_dim]` it is.
    pub(super) heads: Option<Heads>,
    /// The columns of a wider tensor.
    pub(super) columns: Option<Range<usize>>,
    /// The two numbers of a RoPE pair lie side by side: 2j, 2j + 1 and not j, j + n / 2, of the n numbers of a head that turn.
    pub(super) interleaved: bool,
}

/// The length of a head, and how many of its numbers RoPE turns, the first ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeadShape {
    pub(super) dim: usize,
    pub(super) turned: usize,
}

/// The order of heads and tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heads {
    First,
    AfterTokens,
}

/// How a tensor is read as `[rows, cols]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Rows that lie at even distances, an image's or all.
    image: usize,
    image_stride: usize,
    row_stride: usize,
    /// Columns that lie at even distances, a head or all.
    group: usize,
    group_stride: usize,
    stride: usize,
    /// The first of their columns that is ours.
    first: usize,
    /// Heads whose pairs lie side by side.
    interleaved: Option<HeadShape>,
}

/// Why a tensor has no one layout.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// No reading of its shape fits; those that would.
    Shape(String),
    /// Two do.
    Ambiguous,
}

/// An axis: its length, and how far apart its elements lie.
type Axis = (usize, usize);

impl Layout {
    /// The layout of a tensor stored with `shape`, row-major, that is of `point`. `reversed`: its
    /// axes are meant in the other order.
    pub(super) fn new(
        shape: &[usize],
        reversed: bool,
        words: &Words,
        point: &Point,
        head: HeadShape,
    ) -> Result<Self, Misfit> {
        let mut fits: Vec<Self> = Vec::new();
        let mut axes = axes(shape);
        if reversed {
            axes.reverse();
        }
        let mut left = axes.as_slice();
        while !shape.contains(&0) && left.len() >= 2 {
            let mut axes = left.to_vec();
            if words.transposed {
                axes.reverse();
            }
            for fit in Self::readings(&axes, words, point, head) {
                if !fits.contains(&fit) {
                    fits.push(fit);
                }
            }
            // A batch of one.
            match left {
                [(1, _), rest @ ..] => left = rest,
                _ => break,
            }
        }
        match fits.len() {
            0 => Err(Misfit::Shape(expected(words, point, head.dim))),
            1 => Ok(fits.remove(0)),
            _ => Err(Misfit::Ambiguous),
        }
    }

    /// Every way in which axes fit a point.
    fn readings(axes: &[Axis], words: &Words, point: &Point, head: HeadShape) -> Vec<Self> {
        let wanted = words.columns.clone().unwrap_or(0..point.width);
        // Their columns must be ours, or hold those that a rule names.
        let enough = |columns: usize| match words.columns {
            Some(_) => wanted.end <= columns,
            None => wanted.end == columns,
        };
        if wanted.len() != point.width {
            return Vec::new();
        }
        let layout = |tokens: Axis, heads: Axis, within: Axis| Self {
            rows: tokens.0,
            cols: point.width,
            image: tokens.0,
            image_stride: 0,
            row_stride: if tokens.0 == 1 { 0 } else { tokens.1 },
            group: within.0,
            group_stride: if heads.0 == 1 { 0 } else { heads.1 },
            stride: within.1,
            first: wanted.start,
            interleaved: words.interleaved.then_some(head),
        };
        match *axes {
            [tokens, columns] if enough(columns.0) && words.heads.is_none() => {
                vec![layout(tokens, (1, 0), columns)]
            }
            [a, b, within] if point.heads.is_some() && within.0 == head.dim => {
                let orders = [(Heads::AfterTokens, a, b), (Heads::First, b, a)];
                let fitting = orders.into_iter().filter(|&(order, _, heads)| {
                    enough(heads.0 * head.dim) && words.heads.is_none_or(|wanted| wanted == order)
                });
                fitting
                    .map(|(_, tokens, heads)| layout(tokens, heads, within))
                    .collect()
            }
            _ if *words == Words::default() => {
                let of_images = Self::of_images(axes, point);
                of_images
                    .map(|(images, rows, columns)| layout(rows, (1, 0), columns).times(images))
                    .into_iter()
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    /// The axes of several images as modules have them: `[images, rows, columns]`, or a picture of its own for every column or
    /// every colour.
    fn of_images(axes: &[Axis], point: &Point) -> Option<(Axis, Axis, Axis)> {
        let Rows::EachImage(each) = point.rows else {
            return None;
        };
        let one = |outer: Axis, inner: Axis| {
            (outer.1 == inner.0 * inner.1).then_some((outer.0 * inner.0, inner.1))
        };
        let fits = |rows: Axis, columns: Axis| rows.0 == each && columns.0 == point.width;
        let (images, rows, columns) = match *axes {
            [images, rows, columns] => (images, rows, columns),
            [images, a, b, c] if one(b, c).is_some_and(|rows| fits(rows, a)) => {
                (images, one(b, c)?, a)
            }
            [images, a, b, c] => (images, one(a, b)?, c),
            _ => return None,
        };
        fits(rows, columns).then_some((images, rows, columns))
    }

    /// The layout of several images, each of which has this one.
    fn times(self, images: Axis) -> Self {
        match images {
            (1, _) => self,
            (images, stride) => Self {
                rows: images * self.rows,
                image_stride: stride,
                ..self
            },
        }
    }

    /// The index of the number of a row and a column.
    pub(super) fn at(&self, row: usize, col: usize) -> usize {
        let col = self.first + self.interleaved.map_or(col, |head| side_by_side(col, head));
        let (group, within) = (col / self.group, col % self.group);
        let (image, row) = (row / self.image, row % self.image);
        image * self.image_stride
            + row * self.row_stride
            + group * self.group_stride
            + within * self.stride
    }

    /// Whether the numbers lie row after row as they are read.
    pub(super) fn is_plain(&self) -> bool {
        let images = self.rows == self.image || self.image_stride == self.image * self.cols;
        let rows = images && (self.image == 1 || self.row_stride == self.cols);
        let columns = self.cols == self.group || self.group_stride == self.group;
        rows && columns && self.stride == 1 && self.first == 0 && self.interleaved.is_none()
    }
}

/// Where column `col` of ours, whose pairs are not side by side, lies where they are.
fn side_by_side(col: usize, head: HeadShape) -> usize {
    let (index, within) = (col / head.dim, col % head.dim);
    if within >= head.turned {
        return col;
    }
    let half = head.turned / 2;
    index * head.dim + within % half * 2 + within / half
}

/// The axes of a row-major tensor without an axis of length 0.
fn axes(shape: &[usize]) -> Vec<Axis> {
    let mut stride = 1_usize;
    let mut axes: Vec<_> = shape
        .iter()
        .rev()
        .map(|&length| {
            let axis = (length, stride);
            stride = stride.saturating_mul(length);
            axis
        })
        .collect();
    axes.reverse();
    axes
}

/// The shapes that fit, in words.
fn expected(words: &Words, point: &Point, head_dim: usize) -> String {
    let Point { width, heads, .. } = point;
    if let Some(columns) = &words.columns {
        let (length, end) = (columns.len(), columns.end);
        return if length == *width {
            format!("[tokens, {end} or more]")
        } else {
            format!("{width} columns, and the rule names {length}")
        };
    }
    if words.transposed {
        return format!("[{width}, tokens]");
    }
    match (point.rows, heads) {
        (Rows::EachImage(each), _) => {
            format!("[images · {each}, {width}] or [images, {each}, {width}]")
        }
        (Rows::AllImages(rows), _) => format!("[{rows}, {width}]"),
        (Rows::Tokens, None) => format!("[tokens, {width}]"),
        (Rows::Tokens, Some(heads)) => format!(
            "[tokens, {width}], [tokens, {heads}, {head_dim}] or [{heads}, tokens, {head_dim}]"
        ),
    }
}
