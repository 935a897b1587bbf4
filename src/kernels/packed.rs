//! The products of many tokens: both sides are copied in the order in which the tiles read them.
//!
//! A copy costs a read and a write for each number and is used by every tile of its rows or tokens. What it buys:
//! loads never straddle cache lines, wherever a file was mapped; rows whose distance is a power of two do not
//! fall into the same cache set; bf16 weights are widened once. The order of a sum is the same.

use super::lanes::Lanes;
use super::panel::{Panel, padded};
use crate::tensor::Element;

/// Blocks of a tile that are worked on at once: 10 KB of each side in f32 and bf16, which the first cache
/// holds. Longer sums are taken up again where they were left.
const STRETCH: usize = 40;

/// A block on cache lines of its own.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Block<X, const B: usize>([X; B]);

/// Bytes of activations that are gone through again and again, which the second cache holds.
const ACTIVATIONS: usize = 1 << 22;

const GROUPS: usize = 2;

/// All products of a panel, in tiles of `R` rows and `T` tokens.
#[inline(always)]
pub(super) fn panel<L, X, W, const B: usize, const R: usize, const T: usize>(
    lanes: L,
    panel: Panel<'_, X, W>,
) where
    L: Lanes<X, W, B, Acc = X::Acc> + Lanes<X, X, B, Acc = X::Acc>,
    X: Element,
    W: Element,
{
    let Panel {
        x,
        w,
        cols,
        out,
        stride,
    } = panel;
    let blocks = cols.div_ceil(B);
    let at_once = ACTIVATIONS / (blocks * size_of::<Block<X, B>>()) / T * T;
    let at_once = at_once.clamp(4 * T, x.len() / cols + T);
    let mut packed_x = vec![Block([X::default(); B]); at_once * blocks];
    let mut packed_w = vec![Block([X::default(); B]); GROUPS * R * STRETCH];
    let mut sums = vec![[[[<L as Lanes<X, X, B>>::zero(lanes); T]; R]; GROUPS]; at_once / T];
    for (x, out) in x
        .chunks(at_once * cols)
        .zip(out.chunks_mut(at_once * stride))
    {
        for (x, packed) in x
            .chunks(T * cols)
            .zip(packed_x.chunks_exact_mut(T * blocks))
        {
            pack::<L, X, X, B, T>(lanes, x, cols, 0, packed);
        }
        for (group, w) in w.chunks(GROUPS * R * cols).enumerate() {
            for first in (0..blocks).step_by(STRETCH) {
                let stretch = STRETCH.min(blocks - first);
                for (w, packed) in w
                    .chunks(R * cols)
                    .zip(packed_w.chunks_exact_mut(R * STRETCH))
                {
                    pack::<L, X, W, B, R>(lanes, w, cols, first, &mut packed[..R * stretch]);
                }
                let tiles = packed_x.chunks_exact(T * blocks).zip(&mut sums);
                for ((x, sums), out) in tiles.zip(out.chunks_mut(T * stride)) {
                    let x = &x[T * first..T * (first + stretch)];
                    let rows = w.chunks(R * cols).zip(packed_w.chunks_exact(R * STRETCH));
                    for (g, (sums, (w, packed_w))) in sums.iter_mut().zip(rows).enumerate() {
                        let so_far = match first {
                            0 => [[<L as Lanes<X, X, B>>::zero(lanes); T]; R],
                            _ => *sums,
                        };
                        let packed_w = &packed_w[..R * stretch];
                        let so_far = add::<L, X, B, R, T>(lanes, so_far, packed_w, x);
                        if first + stretch < blocks {
                            *sums = so_far;
                            continue;
                        }
                        for (t, out) in out.chunks_mut(stride).enumerate() {
                            let out = &mut out[(group * GROUPS + g) * R..][..w.len() / cols];
                            let of_token: [_; R] = std::array::from_fn(|r| so_far[r][t]);
                            <L as Lanes<X, X, B>>::fold_rows(lanes, of_token, out);
                        }
                    }
                }
            }
        }
    }
}

/// Copies blocks `first`… of `N` rows (or as many as there are), widened: block after block, in each row after
/// row. A last incomplete block is filled with zeros; rows that are not there stay what they are.
#[inline(always)]
fn pack<L, X, W, const B: usize, const N: usize>(
    lanes: L,
    from: &[W],
    cols: usize,
    first: usize,
    to: &mut [Block<X, B>],
) where
    L: Lanes<X, W, B>,
    X: Element,
    W: Element,
{
    for (r, row) in from.chunks_exact(cols).enumerate() {
        let (blocks, rest) = row.as_chunks::<B>();
        let mut to = to.iter_mut().skip(r).step_by(N);
        let full = &blocks[first.min(blocks.len())..];
        for (from, to) in full.iter().zip(to.by_ref()) {
            lanes.store(lanes.widen(from), &mut to.0);
        }
        if let Some(to) = to.next() {
            lanes.store(lanes.widen(&padded(rest)), &mut to.0);
        }
    }
}

/// `sums` and the products of some blocks of a tile.
#[inline(always)]
fn add<L, X, const B: usize, const R: usize, const T: usize>(
    lanes: L,
    mut sums: [[L::Sum; T]; R],
    w: &[Block<X, B>],
    x: &[Block<X, B>],
) -> [[L::Sum; T]; R]
where
    L: Lanes<X, X, B>,
{
    let (w, _) = w.as_chunks::<R>();
    let (x, _) = x.as_chunks::<T>();
    for (w, x) in w.iter().zip(x) {
        let x: [_; T] = std::array::from_fn(|t| lanes.load(&x[t].0));
        for r in 0..R {
            let w = lanes.load(&w[r].0);
            for t in 0..T {
                sums[r][t] = lanes.multiply_add(sums[r][t], w, x[t]);
            }
        }
    }
    sums
}
