//! The products of quantised weights with a few tokens of f32: weights are widened in registers, two tokens and four rows at once.

use std::hint::black_box;
use std::ops::Range;

use super::held_factors::Held;
use crate::kernels::simd::{Lanes, Level, Simd, Task};
use crate::tensor::Storage;
use crate::tensor::quantised::{Block, by_block};

/// All products of a few tokens.
pub(super) struct FewTokens<'a, 'y> {
    /// The type of the weights, which has blocks.
    pub(super) storage: Storage,
    /// Whole rows of them.
    pub(super) bytes: &'a [u8],
    /// How many numbers a row has.
    pub(super) cols: usize,
    /// `[tokens][cols]`.
    pub(super) x: &'a [f32],
    /// `[tokens][rows]`.
    pub(super) out: &'a mut [&'y mut [f32]],
}

impl FewTokens<'_, '_> {
    /// Runs at a level. Of no type, so that it is compiled once, and not in every program that runs a model.
    pub(super) fn at(self, level: Level) {
        level.run(self);
    }
}

impl Task for FewTokens<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        by_block!(
            self.storage,
            few_tokens::<S>(simd, self),
            unreachable!("{} has no blocks", self.storage)
        );
    }
}

/// How far ahead weights are prefetched, or a tile ahead if that is farther.
const PREFETCH_BYTES: usize = 4096;

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// The products of each two tokens, and of one that is left.
#[inline(always)]
fn few_tokens<S: Simd, B: Block>(simd: S, task: FewTokens<'_, '_>) {
    let blocks: &[B] = bytemuck::cast_slice(task.bytes);
    let (x, _) = task.x.as_chunks::<16>();
    let (x, _) = x.as_chunks::<2>();
    let (length, x_length) = (task.cols / B::NUMBERS, task.cols / 32);
    let (pairs, single) = task.out.as_chunks_mut::<2>();
    let (x, last) = x.split_at(2 * x_length * pairs.len());
    for ([first, second], x) in pairs.iter_mut().zip(x.chunks_exact(2 * x_length)) {
        let (x, y) = x.split_at(x_length);
        rows_of_tiles::<S, B, 2>(simd, blocks, length, [x, y], [first, second]);
    }
    if let [out] = single {
        rows_of_tiles::<S, B, 1>(simd, blocks, length, [last], [out]);
    }
}

/// The products of all rows of `length` blocks with `T` tokens, four rows at a time.
#[inline(always)]
fn rows_of_tiles<S: Simd, B: Block, const T: usize>(
    simd: S,
    blocks: &[B],
    length: usize,
    x: [&[[[f32; 16]; 2]]; T],
    mut out: [&mut [f32]; T],
) {
    let rows = blocks.len() / length;
    let mut held = Held::new();
    let mut row = 0;
    while row + 4 <= rows {
        tile::<S, B, 4, T>(
            simd,
            &blocks[row * length..(row + 4) * length],
            x,
            &mut held,
            &mut out,
            row,
        );
        row += 4;
    }
    for row in row..rows {
        tile::<S, B, 1, T>(
            simd,
            &blocks[row * length..(row + 1) * length],
            x,
            &mut held,
            &mut out,
            row,
        );
    }
}

/// The products of `R` rows, which follow one another and of which the first is row `row`, with `T` tokens.
#[inline(always)]
fn tile<S: Simd, B: Block, const R: usize, const T: usize>(
    simd: S,
    blocks: &[B],
    x: [&[[[f32; 16]; 2]]; T],
    held: &mut Held,
    out: &mut [&mut [f32]; T],
    row: usize,
) {
    let length = blocks.len() / R;
    // Without closures, which would be compiled without the caller's instructions.
    let mut rows = [blocks; R];
    for r in 0..R {
        rows[r] = &blocks[r * length..(r + 1) * length];
    }
    let tile_bytes = size_of_val(blocks);
    let ahead = blocks.as_ptr().cast::<u8>();
    let mut tile = Tile {
        simd,
        sums: [[<S as Lanes<f32, f32, 16>>::zero(simd); R]; T],
        ahead: ahead.wrapping_byte_add(tile_bytes.max(PREFETCH_BYTES)),
        far: tile_bytes > 3 * PREFETCH_BYTES,
        held,
    };
    if const { B::NUMBERS == 32 } {
        let whole = length / 4 * 4;
        tile.add::<B, 4, 4>(rows, x, 0..whole);
        tile.add::<B, 1, 1>(rows, x, whole..length);
    } else {
        tile.add::<B, 1, 8>(rows, x, 0..length);
    }
    for (sums, out) in tile.sums.into_iter().zip(out) {
        <S as Lanes<f32, f32, 16>>::fold_rows(simd, sums, &mut out[row..]);
    }
}

/// What is kept while the products of a tile are summed.
struct Tile<'a, S: Simd, const R: usize, const T: usize> {
    simd: S,
    sums: [[<S as Lanes<f32, f32, 16>>::Sums; R]; T],
    /// What to prefetch next.
    ahead: *const u8,
    /// Whether a tile that lies ahead would fill too much of the first cache.
    far: bool,
    held: &'a mut Held,
}

impl<S: Simd, const R: usize, const T: usize> Tile<'_, S, R, T> {
    /// Adds the products of some blocks of each row, `N` at once, which have 32 numbers `U` times.
    #[inline(always)]
    fn add<B: Block, const N: usize, const U: usize>(
        &mut self,
        rows: [&[B]; R],
        x: [&[[[f32; 16]; 2]]; T],
        blocks: Range<usize>,
    ) {
        let mut stretches = [[].as_slice(); R];
        for r in 0..R {
            (stretches[r], _) = rows[r][blocks.clone()].as_chunks::<N>();
        }
        let in_block = B::NUMBERS / 32;
        let mut tokens = [[].as_slice(); T];
        for t in 0..T {
            let units = blocks.start * in_block..blocks.end * in_block;
            (tokens[t], _) = x[t][units].as_chunks::<U>();
        }
        for i in 0..blocks.len() / N {
            let mut rows = [&stretches[0][i]; R];
            for r in 1..R {
                rows[r] = &stretches[r][i];
            }
            let mut x = [&tokens[0][i]; T];
            for t in 1..T {
                x[t] = &tokens[t][i];
            }
            self.add_stretch(rows, x);
        }
    }

    /// Adds the products of `N` blocks of each row.
    #[inline(always)]
    fn add_stretch<B: Block, const N: usize, const U: usize>(
        &mut self,
        rows: [&[B; N]; R],
        x: [&[[[f32; 16]; 2]; U]; T],
    ) {
        let simd = self.simd;
        for b in 0..N {
            self.held.hold(simd, rows, b);
        }
        self.prefetch(R * size_of::<[B; N]>());
        // Factors come from memory, or the compiler would spread each in a register, which takes longer.
        black_box(&mut *self.held);
        // Two by two, since Q4_K and Q5_K have both in the same bytes.
        for unit in (0..U).step_by(2) {
            self.add_unit(rows, x, unit);
            if unit + 1 < U {
                self.add_unit(rows, x, unit + 1);
            }
        }
    }

    /// Prefetches the next bytes: memory is read fastest in order, and the rows lie one after the other.
    #[inline(always)]
    fn prefetch(&mut self, bytes: usize) {
        // Not known to the compiler, which would make two loops for it.
        let far = black_box(self.far);
        for line in (0..bytes).step_by(CACHE_LINE) {
            let line = self.ahead.wrapping_byte_add(line);
            if far {
                self.simd.prefetch_far(line);
            } else {
                self.simd.prefetch(line);
            }
        }
        self.ahead = self.ahead.wrapping_byte_add(bytes);
    }

    /// Adds the products of 32 numbers of each row.
    #[expect(
        clippy::needless_range_loop,
        reason = "with an iterator the compiler makes a slower loop"
    )]
    #[inline(always)]
    fn add_unit<B: Block, const N: usize, const U: usize>(
        &mut self,
        rows: [&[B; N]; R],
        x: [&[[[f32; 16]; 2]; U]; T],
        unit: usize,
    ) {
        let (simd, in_block) = (self.simd, B::NUMBERS / 32);
        let (b, i) = (unit / in_block, unit % in_block);
        for r in 0..R {
            for part in 0..<S as Lanes<f32, f32, 16>>::PARTS {
                let quants = rows[r][b].quants(simd, i);
                let factors = self.held.of::<S, B, R>(&quants, unit, r);
                let w = simd.weights(quants, part, &factors);
                for half in 0..2 {
                    for t in 0..T {
                        let x = <S as Lanes<f32, f32, 16>>::load(simd, &x[t][unit][half], part);
                        let sum = &mut self.sums[t][r].as_mut()[part];
                        *sum = <S as Lanes<f32, f32, 16>>::multiply_add(simd, *sum, w[half], x);
                    }
                }
            }
        }
    }
}
