//! The products of few tokens: operands are read where they lie, in tiles whose sums stay in registers.

use std::array::from_fn;
use std::slice::from_ref;

use super::panel::{Panel, padded};
use crate::kernels::simd::Lanes;
use crate::tensor::Element;

/// All products of a panel, in tiles of `R` rows, and of one where fewer are left, and at most `MOST` tokens.
#[inline(always)]
pub(super) fn all_products<L, X, W, const B: usize, const R: usize, const MOST: usize>(
    lanes: L,
    panel: Panel<'_, '_, X, W>,
) where
    L: Lanes<X, W, B, Acc = X::Acc>,
    X: Element,
    W: Element,
{
    let Panel { x, w, cols, out } = panel;
    let rows = w.len() / cols;
    let mut row = 0;
    while row + R <= rows {
        let w: [&[W]; R] = from_fn(|r| &w[(row + r) * cols..(row + r + 1) * cols]);
        row_of_tiles::<L, X, W, B, R, MOST>(lanes, w, x, out, row);
        row += R;
    }
    for row in row..rows {
        let w = [&w[row * cols..(row + 1) * cols]];
        row_of_tiles::<L, X, W, B, 1, MOST>(lanes, w, x, out, row);
    }
}

/// `R` rows of W, of which the first is row `row`, times all of `x`.
#[inline(always)]
fn row_of_tiles<L, X, W, const B: usize, const R: usize, const MOST: usize>(
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
        // Every tile reads the weights again: so as few tiles as can be, of about one size.
        let together = left.div_ceil(left.div_ceil(MOST));
        t += if const { MOST >= 5 } && together == 5 {
            tile::<L, X, W, B, R, 5>(lanes, w, x, out, row)
        } else if const { MOST >= 4 } && together == 4 {
            tile::<L, X, W, B, R, 4>(lanes, w, x, out, row)
        } else if const { MOST >= 3 } && together == 3 {
            tile::<L, X, W, B, R, 3>(lanes, w, x, out, row)
        } else if const { MOST >= 2 } && together == 2 {
            tile::<L, X, W, B, R, 2>(lanes, w, x, out, row)
        } else {
            tile::<L, X, W, B, R, 1>(lanes, w, x, out, row)
        };
    }
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
    let x: [_; T] = from_fn(|t| x[t * cols..(t + 1) * cols].as_chunks::<B>());
    let mut sums = [[lanes.zero(); T]; R];
    lanes.add_rows(&mut sums, w.map(|(full, _)| full), x.map(|(full, _)| full));
    if !cols.is_multiple_of(B) {
        let (w, x) = (
            w.map(|(_, rest)| padded(rest)),
            x.map(|(_, rest)| padded(rest)),
        );
        lanes.add_rows(
            &mut sums,
            w.each_ref().map(from_ref),
            x.each_ref().map(from_ref),
        );
    }
    lanes.fold_tile(&sums, &mut out[..T], row..row + R);
    T
}
