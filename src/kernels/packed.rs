//! The products of many tokens: both sides are copied in the order in which the tiles read them.
//!
//! A copy costs a read and a write for each number and is used by every tile of its rows or tokens. What it buys:
//! loads never straddle cache lines, wherever a file was mapped; rows whose distance is a power of two do not
//! fall into the same cache set; bf16 weights are widened once. The order of a sum is the same.

use super::lanes::{Ahead, Lanes};
use super::panel::{Panel, padded};
use crate::tensor::{Buffer, Element};

/// Bytes of each packed row of a tile that are worked on at once: 10 KB of four rows. Longer sums are taken up again where
/// they were left.
const STRETCH: usize = 2560;

/// Tiles of weights that each tile of activations is multiplied with while it is in the first cache, beside them.
const GROUPS: usize = 2;

/// The same where rows are so long that activations are read from the third cache: more of it for each reading, with
/// the tiles of weights in the second.
const MANY_GROUPS: usize = 16;

/// Bytes of activations that are gone through again and again: what a core's second cache holds.
const ACTIVATIONS: usize = 5 << 17;

/// Fewer tokens at once than this are not worth packing weights for.
const TOKENS: usize = 64;

/// Tokens at once where rows are so long: from where activations are read then, there is room for more.
const MANY_TOKENS: usize = 128;

/// Where the work is done.
struct Scratch<'a, P, S, const R: usize, const T: usize> {
    /// Tile after tile.
    x: &'a mut [P],
    /// A stretch of some tiles.
    w: &'a mut [P],
    /// What the stretches so far have come to, for each tile of `x` with each of `w`; empty where one is all.
    sums: Vec<[[S; T]; R]>,
}

/// All products of a panel, in tiles of `R` rows and `T` tokens.
#[inline(always)]
pub(super) fn panel<L, X, W, const B: usize, const R: usize, const T: usize>(
    lanes: L,
    panel: Panel<'_, '_, X, W>,
) where
    L: Lanes<X, W, B, Acc = X::Acc>
        + Lanes<X, X, B, Acc = X::Acc, Packed = <L as Lanes<X, W, B>>::Packed>,
    X: Element,
    W: Element,
{
    let Panel { x, w, cols, out } = panel;
    let blocks = cols.div_ceil(B);
    let tokens = out.len().next_multiple_of(T);
    let size = size_of::<<L as Lanes<X, W, B>>::Packed>();
    let (held, stretch) = (ACTIVATIONS / (blocks * size) / T * T, STRETCH / size);
    let (groups, most) = match held < TOKENS.min(tokens) {
        true => (MANY_GROUPS, MANY_TOKENS),
        false => (GROUPS, held.max(TOKENS)),
    };
    // Whole tiles, or tokens would be left out.
    let at_once = tokens.min(most.next_multiple_of(T));
    let zero = <L as Lanes<X, X, B>>::zero(lanes);
    let unfinished = if blocks > stretch {
        groups * at_once / T
    } else {
        0
    };
    // What no row is left for is stale, and the products with it are not looked at.
    let lengths = [at_once * blocks, groups * R * stretch];
    let [mut xs, mut ws] = lengths.map(Buffer::stale::<<L as Lanes<X, W, B>>::Packed>);
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
            some_rows::<L, X, W, B, R, T>(lanes, w, cols, &mut scratch, out, row);
        }
    }
}

/// As many tiles of rows of `w` as there is room for, of which the first is row `row`, times all tokens that are packed.
#[inline(always)]
fn some_rows<L, X, W, const B: usize, const R: usize, const T: usize>(
    lanes: L,
    w: &[W],
    cols: usize,
    scratch: &mut Scratch<'_, <L as Lanes<X, X, B>>::Packed, <L as Lanes<X, X, B>>::Sums, R, T>,
    out: &mut [&mut [X::Acc]],
    row: usize,
) where
    L: Lanes<X, W, B, Acc = X::Acc>
        + Lanes<X, X, B, Acc = X::Acc, Packed = <L as Lanes<X, W, B>>::Packed>,
    X: Element,
    W: Element,
{
    let most = STRETCH / size_of::<<L as Lanes<X, X, B>>::Packed>();
    let (blocks, groups) = (cols.div_ceil(B), scratch.w.len() / (R * most));
    let all = w.as_ptr();
    let w = &w[row * cols..];
    let w = &w[..w.len().min(groups * R * cols)];
    let multiplications = out.len().div_ceil(T) * w.len().div_ceil(R * cols);
    for first in (0..blocks).step_by(most) {
        let stretch = first..blocks.min(first + most);
        // While this stretch is multiplied the next one is asked for, or copying it would have to wait.
        let (next_row, next) = match stretch.end < blocks {
            true => (row, stretch.end),
            false => (row + groups * R, 0),
        };
        let runs = (multiplications / (groups * R)).max(1);
        let run = (size_of::<[W; B]>() * most.min(blocks)).div_ceil(runs);
        let ahead = Runs {
            first: all.wrapping_add(next_row * cols + next * B).cast(),
            row: size_of::<W>() * cols,
            runs,
            run,
            pace: run.div_ceil(<L as Lanes<X, X, B>>::PARTS * stretch.len()),
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
                let mut so_far = match first {
                    0 => [[<L as Lanes<X, X, B>>::zero(lanes); T]; R],
                    _ => scratch.sums[i * groups + g],
                };
                let packed = &packed[..R * stretch.len()];
                let ahead = ahead.after(i * groups + g);
                <L as Lanes<X, X, B>>::add(lanes, &mut so_far, packed, x, ahead);
                if stretch.end < blocks {
                    scratch.sums[i * groups + g] = so_far;
                    continue;
                }
                for (t, out) in out.iter_mut().enumerate() {
                    let out = &mut out[row + g * R..][..w.len() / cols];
                    let of_token: [_; R] = std::array::from_fn(|r| so_far[r][t]);
                    <L as Lanes<X, X, B>>::fold_rows(lanes, of_token, out);
                }
            }
        }
    }
}

/// What is asked for ahead: the beginnings of some rows in runs of bytes, one for each multiplication. Where there are fewer
/// multiplications than rows, the last rows are in none.
struct Runs {
    /// Where the first row begins.
    first: *const u8,
    /// Bytes from a row to the next.
    row: usize,
    /// Runs of a row.
    runs: usize,
    /// Bytes of a run.
    run: usize,
    /// Bytes of it for each step.
    pace: usize,
}

impl Runs {
    /// The one that comes after `n` others.
    #[inline(always)]
    fn after(&self, n: usize) -> Ahead {
        let (row, run) = (n / self.runs, n % self.runs);
        Ahead {
            at: self.first.wrapping_add(row * self.row + run * self.run),
            pace: self.pace,
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
