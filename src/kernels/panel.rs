//! All products of some rows of weights with some activations, in tiles whose sums stay in registers.

use super::lanes::Lanes;
use super::packed;
use crate::tensor::Element;

/// From this many tokens on it pays to copy weights and activations in the order they are used.
const PACK_FROM: usize = 12;

/// How many bytes ahead weights are asked for where each is used once: the hardware does not look beyond a page.
const AHEAD: usize = 8192;

/// Activations `x` `[tokens, cols]`, weights `w` `[rows, cols]`, and for each token where its products with the rows
/// go: `[tokens][rows]`.
#[doc(hidden)]
pub struct Panel<'a, 'y, X: Element, W> {
    pub(super) x: &'a [X],
    pub(super) w: &'a [W],
    pub(super) cols: usize,
    pub(super) out: &'a mut [&'y mut [X::Acc]],
}

impl<'a, 'y, X: Element, W> Panel<'a, 'y, X, W> {
    /// A panel of rows of `cols` numbers.
    pub(crate) fn new(
        x: &'a [X],
        w: &'a [W],
        cols: usize,
        out: &'a mut [&'y mut [X::Acc]],
    ) -> Self {
        let rows = w.len() / cols;
        let fits = x.len() == out.len() * cols && out.iter().all(|out| out.len() == rows);
        assert!(fits, "panel sizes");
        Self { x, w, cols, out }
    }
}

/// All products of a panel.
#[inline(always)]
pub(super) fn panel<L, X, W, const B: usize>(lanes: L, panel: Panel<'_, '_, X, W>)
where
    L: Lanes<X, W, B, Acc = X::Acc> + Lanes<X, X, B, Acc = X::Acc>,
    X: Element,
    W: Element,
{
    let many = panel.x.len() / panel.cols >= PACK_FROM;
    match <L as Lanes<X, X, B>>::TILE {
        (4, 4) if many => packed::panel::<L, X, W, B, 4, 4>(lanes, panel),
        (4, 2) if many => packed::panel::<L, X, W, B, 4, 2>(lanes, panel),
        (2, 2) if many => packed::panel::<L, X, W, B, 2, 2>(lanes, panel),
        (4, _) => rows_of_tiles::<L, X, W, B, 4>(lanes, panel),
        (2, _) => rows_of_tiles::<L, X, W, B, 2>(lanes, panel),
        _ => rows_of_tiles::<L, X, W, B, 1>(lanes, panel),
    }
}

/// Tiles of `R` rows, and of one where fewer are left.
#[inline(always)]
fn rows_of_tiles<L, X, W, const B: usize, const R: usize>(lanes: L, panel: Panel<'_, '_, X, W>)
where
    L: Lanes<X, W, B, Acc = X::Acc>,
    X: Element,
    W: Element,
{
    let Panel { x, w, cols, out } = panel;
    let rows = w.len() / cols;
    let mut row = 0;
    while row + R <= rows {
        let w: [&[W]; R] = std::array::from_fn(|r| &w[(row + r) * cols..(row + r + 1) * cols]);
        row_of_tiles(lanes, w, x, out, row);
        row += R;
    }
    for row in row..rows {
        let w = [&w[row * cols..(row + 1) * cols]];
        row_of_tiles(lanes, w, x, out, row);
    }
}

/// `R` rows of W, of which the first is row `row`, times all of `x`.
#[inline(always)]
fn row_of_tiles<L, X, W, const B: usize, const R: usize>(
    lanes: L,
    w: [&[W]; R],
    x: &[X],
    out: &mut [&mut [X::Acc]],
    row: usize,
) where
    L: Lanes<X, W, B, Acc = X::Acc>,
    X: Element,
    W: Element,
{
    let cols = w[0].len();
    let tokens = x.len() / cols;
    let mut t = 0;
    while t < tokens {
        let (left, x, out) = (tokens - t, &x[t * cols..], &mut out[t..]);
        t += match tokens_of_tile(L::TILE.1, left) {
            5 => tile::<L, X, W, B, R, 5>(lanes, w, x, out, row),
            4 => tile::<L, X, W, B, R, 4>(lanes, w, x, out, row),
            3 => tile::<L, X, W, B, R, 3>(lanes, w, x, out, row),
            2 => tile::<L, X, W, B, R, 2>(lanes, w, x, out, row),
            _ => tile::<L, X, W, B, R, 1>(lanes, w, x, out, row),
        };
    }
}

/// How many of the tokens that are `left` go into the next tile, where tiles of `most` are meant for many tokens.
///
/// Registers that hold four tokens' sums beside packed operands hold those of five, and every tile reads the weights
/// again: so as few tiles as can be, of about one size.
#[inline(always)]
fn tokens_of_tile(most: usize, left: usize) -> usize {
    let most = if most == 4 { 5 } else { most };
    left.div_ceil(left.div_ceil(most))
}

/// `R` rows of W times the first `T` rows of `x`: all sums stay in registers. Returns `T`.
#[inline(always)]
fn tile<L, X, W, const B: usize, const R: usize, const T: usize>(
    lanes: L,
    w: [&[W]; R],
    x: &[X],
    out: &mut [&mut [X::Acc]],
    row: usize,
) -> usize
where
    L: Lanes<X, W, B, Acc = X::Acc>,
    X: Element,
    W: Element,
{
    let cols = w[0].len();
    let w = w.map(|row| row[..cols].as_chunks::<B>());
    let x: [_; T] = std::array::from_fn(|t| x[t * cols..(t + 1) * cols].as_chunks::<B>());
    let mut sums = [[lanes.zero(); T]; R];
    for block in 0..cols / B {
        let xs: [_; T] = std::array::from_fn(|t| lanes.load(&x[t].0[block]));
        for r in 0..R {
            if T <= 5 {
                lanes.prefetch(w[r].0[block].as_ptr().wrapping_byte_add(AHEAD));
            }
            let wide = lanes.widen(&w[r].0[block]);
            for t in 0..T {
                sums[r][t] = lanes.multiply_add(sums[r][t], wide, xs[t]);
            }
        }
    }
    if !cols.is_multiple_of(B) {
        let xs: [_; T] = std::array::from_fn(|t| lanes.load(&padded(x[t].1)));
        for r in 0..R {
            let wide = lanes.widen(&padded(w[r].1));
            for t in 0..T {
                sums[r][t] = lanes.multiply_add(sums[r][t], wide, xs[t]);
            }
        }
    }
    for (t, out) in out[..T].iter_mut().enumerate() {
        let of_token: [_; R] = std::array::from_fn(|r| sums[r][t]);
        lanes.fold_rows(of_token, &mut out[row..]);
    }
    T
}

/// An incomplete block, filled with zeros.
#[inline(always)]
pub(super) fn padded<T: Element, const B: usize>(rest: &[T]) -> [T; B] {
    std::array::from_fn(|i| rest.get(i).copied().unwrap_or_default())
}
