//! The products of many tokens: both sides are first copied in the order in which the tiles read them.
//!
//! A copy costs a read and a write for each number and serves every tile of its rows or tokens. What it buys: loads never
//! straddle cache lines, wherever a file was mapped; rows whose distance is a power of two do not fall into one
//! cache set; bf16 weights are widened once. The order of a sum stays the documented one.
//!
//! ```text
//! for as many tokens as the second cache holds:           all_products
//!     pack them
//!     for some tiles of weight rows:                      rows_of_tiles
//!         for each stretch of their columns:
//!             pack the stretch
//!             for each tile of tokens and of rows:        Lanes::add
//!                 add the stretch's products to the tile's sums
//! ```

use super::panel::{Panel, padded};
use crate::kernels::simd::{Lanes, PackedLanes, Prefetch};
use crate::tensor::{Buffer, Element};

/// Bytes of each packed weight row that are worked on at once: 10 KB of four rows. Sums over longer rows are put aside
/// between stretches.
const STRETCH_BYTES: usize = 2560;

/// Tiles of weights that each tile of activations is multiplied with while it is in the first cache, beside them.
const TILES_IN_L1: usize = 2;

/// As [`TILES_IN_L1`], where rows are so long that activations are read from the third cache: more multiplications for each
/// read, with the tiles of weights in the second cache.
const TILES_IN_L2: usize = 16;

/// Bytes of packed activations that are read again and again: what a core's second cache holds.
const ACTIVATION_BYTES: usize = 5 << 17;

/// Fewer tokens at once than this are not worth packing weights for.
const MIN_TOKENS: usize = 64;

/// Tokens at once where activations are read from the third cache, which has room for more.
const TOKENS_IN_L3: usize = 128;

/// The memory that operands are packed into.
struct Scratch<'a, P, S, const R: usize, const T: usize> {
    /// All tiles of the tokens.
    x: &'a mut [P],
    /// A stretch of some tiles of weights.
    w: &'a mut [P],
    /// The sums over the stretches so far, for each tile of `x` with each of `w`; empty where one stretch is all.
    sums: Vec<[[S; T]; R]>,
}

/// All products of a panel, in tiles of `R` rows and `T` tokens.
#[inline(always)]
pub(super) fn all_products<L, X, W, const B: usize, const R: usize, const T: usize>(
    lanes: L,
    panel: Panel<'_, '_, X, W>,
) where
    L: PackedLanes<X, W, B>,
    X: Element,
    W: Element,
{
    let Panel { x, w, cols, out } = panel;
    let blocks = cols.div_ceil(B);
    let tokens = out.len().next_multiple_of(T);
    let size = size_of::<<L as Lanes<X, W, B>>::Packed>();
    let fit = ACTIVATION_BYTES / (blocks * size) / T * T;
    let stretch = STRETCH_BYTES / size;
    let (groups, most) = if fit < MIN_TOKENS.min(tokens) {
        (TILES_IN_L2, TOKENS_IN_L3)
    } else {
        (TILES_IN_L1, fit.max(MIN_TOKENS))
    };
    // Whole tiles, or tokens would be left out.
    let at_once = tokens.min(most.next_multiple_of(T));
    let zero = <L as Lanes<X, X, B>>::zero(lanes);
    let unfinished = if blocks > stretch {
        groups * at_once / T
    } else {
        0
    };
    // Where the last tile has rows or tokens too many, old numbers stay and their products are not looked at.
    let lengths = [at_once * blocks, groups * R * stretch];
    let [mut xs, mut ws] = lengths.map(Buffer::recycled::<<L as Lanes<X, W, B>>::Packed>);
    let mut scratch = Scratch {
        x: xs.numbers_mut(lengths[0]),
        w: ws.numbers_mut(lengths[1]),
        sums: vec![[[zero; T]; R]; unfinished],
    };
    for (x, out) in x.chunks(at_once * cols).zip(out.chunks_mut(at_once)) {
        let tiles = scratch.x.chunks_exact_mut(T * blocks);
        for (x, packed) in x.chunks(T * cols).zip(tiles) {
            pack::<L, X, X, B, T>(lanes, x, cols, 0, packed);
        }
        for row in (0..w.len() / cols).step_by(groups * R) {
            rows_of_tiles::<L, X, W, B, R, T>(lanes, w, cols, &mut scratch, out, row);
        }
    }
}

/// As many tiles of rows of `w` as there is room for, of which the first is row `row`, times all packed tokens.
#[inline(always)]
fn rows_of_tiles<L, X, W, const B: usize, const R: usize, const T: usize>(
    lanes: L,
    w: &[W],
    cols: usize,
    scratch: &mut Scratch<'_, <L as Lanes<X, X, B>>::Packed, <L as Lanes<X, X, B>>::Sums, R, T>,
    out: &mut [&mut [X::Acc]],
    row: usize,
) where
    L: PackedLanes<X, W, B>,
    X: Element,
    W: Element,
{
    let most = STRETCH_BYTES / size_of::<<L as Lanes<X, X, B>>::Packed>();
    let (blocks, groups) = (cols.div_ceil(B), scratch.w.len() / (R * most));
    let all = w.as_ptr();
    let w = &w[row * cols..];
    let w = &w[..w.len().min(groups * R * cols)];
    let multiplications = out.len().div_ceil(T) * w.len().div_ceil(R * cols);
    for first in (0..blocks).step_by(most) {
        let stretch = first..blocks.min(first + most);
        // While this stretch is multiplied the next one is asked for, or packing it would have to wait.
        let (next_row, next) = if stretch.end < blocks {
            (row, stretch.end)
        } else {
            (row + groups * R, 0)
        };
        let runs = (multiplications / (groups * R)).max(1);
        let run = (size_of::<[W; B]>() * most.min(blocks)).div_ceil(runs);
        let plan = PrefetchPlan {
            first: all.wrapping_add(next_row * cols + next * B).cast(),
            row: size_of::<W>() * cols,
            runs,
            run,
            stride: run.div_ceil(<L as Lanes<X, X, B>>::PARTS * stretch.len()),
        };
        let packed = scratch.w.chunks_exact_mut(R * most);
        for (w, packed) in w.chunks(R * cols).zip(packed) {
            let packed = &mut packed[..R * stretch.len()];
            pack::<L, X, W, B, R>(lanes, w, cols, first, packed);
        }
        let tiles = scratch.x.chunks_exact(T * blocks);
        for (i, (x, out)) in tiles.zip(out.chunks_mut(T)).enumerate() {
            let x = &x[T * stretch.start..T * stretch.end];
            let rows = w.chunks(R * cols).zip(scratch.w.chunks_exact(R * most));
            for (g, (w, packed)) in rows.enumerate() {
                let mut sums = match first {
                    0 => [[<L as Lanes<X, X, B>>::zero(lanes); T]; R],
                    _ => scratch.sums[i * groups + g],
                };
                let packed = &packed[..R * stretch.len()];
                let ahead = plan.after(i * groups + g);
                <L as Lanes<X, X, B>>::add(lanes, &mut sums, packed, x, ahead);
                if stretch.end < blocks {
                    scratch.sums[i * groups + g] = sums;
                    continue;
                }
                let first = row + g * R;
                let rows = first..first + w.len() / cols;
                <L as Lanes<X, X, B>>::fold_tile(lanes, &sums, out, rows);
            }
        }
    }
}

/// The weights that are asked for while others are multiplied: the next stretch of some rows, divided into runs of bytes, one for
/// each multiplication of tiles. Where there are fewer multiplications than rows, the last rows are in none.
struct PrefetchPlan {
    /// Where the stretch of the first row begins.
    first: *const u8,
    /// Bytes from a row to the next.
    row: usize,
    /// Runs of a row.
    runs: usize,
    /// Bytes of a run.
    run: usize,
    /// Bytes of a run for each step of a multiplication.
    stride: usize,
}

impl PrefetchPlan {
    /// The run that comes after `n` others.
    #[inline(always)]
    fn after(&self, n: usize) -> Prefetch {
        let (row, run) = (n / self.runs, n % self.runs);
        Prefetch {
            at: self.first.wrapping_add(row * self.row + run * self.run),
            stride: self.stride,
        }
    }
}

/// Copies blocks `first`… of `N` rows (or as many as there are), widened: block after block, in each row after
/// row. A last incomplete block is filled with zeros; the places of missing rows stay as they are.
#[inline(always)]
fn pack<L, X, W, const B: usize, const N: usize>(
    lanes: L,
    from: &[W],
    cols: usize,
    first: usize,
    to: &mut [L::Packed],
) where
    L: Lanes<X, W, B>,
    X: Element,
    W: Element,
{
    let copy = |from: &[W; B], to: &mut L::Packed| {
        for part in 0..L::PARTS {
            lanes.pack(lanes.widen(from, part), to, part);
        }
    };
    for (r, row) in from.chunks_exact(cols).enumerate() {
        let (blocks, rest) = row.as_chunks::<B>();
        let mut to = to.iter_mut().skip(r).step_by(N);
        let full = &blocks[first.min(blocks.len())..];
        for (from, to) in full.iter().zip(to.by_ref()) {
            copy(from, to);
        }
        if let Some(to) = to.next() {
            copy(&padded(rest), to);
        }
    }
}
