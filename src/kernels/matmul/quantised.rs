//! The products of quantised weights.
//!
//! For a few tokens of f32 they are read where they lie and widened in registers. For more tokens, and in the other types, some rows
//! at a time become numbers of the compute type in a cache, and those are multiplied. Either way the sums are those of widened weights.

use std::hint::black_box;
use std::marker::PhantomData;
use std::ops::Range;

use super::by_type::multiply;
use super::panel::Panel;
use crate::kernels::simd::{HeldFactors, Lanes, Level, Simd, Task, run_at_level};
use crate::tensor::quantised::{Block, ByteLanes, Quants, by_block, decode};
use crate::tensor::{ByType, Dtype, Element, Matrix, Storage, Tensor};

/// As many tokens of f32 are multiplied two by two with weights in registers, which takes less time than a copy of their numbers.
const WIDENED_FOR_TOKENS: usize = 4;

/// Rows that become numbers at once: enough that packing the activations for them counts little, few enough for the second cache.
const DECODED_ROWS: usize = 128;

/// The same for tokens that are not packed: few enough for the first cache.
const FEW_DECODED_ROWS: usize = 4;

/// From this many tokens on they may be packed.
const PACKED_TOKENS: usize = 12;

/// How far ahead weights are prefetched, or a tile ahead if that is farther.
const PREFETCH_BYTES: usize = 4096;

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// Some rows of W times all of `x`, into `out` `[tokens][rows]`.
pub(super) fn multiply_rows<E: Element>(
    level: Level,
    x: &[E],
    w: &Tensor,
    rows: Range<usize>,
    out: &mut [&mut [E::Acc]],
) {
    let storage = w.storage();
    let cols = w.cols();
    if E::DTYPE == Dtype::F32 && out.len() <= WIDENED_FOR_TOKENS {
        let bytes = w.rows_bytes(rows);
        let x = bytemuck::cast_slice(x);
        let out = out.iter_mut().map(|out| bytemuck::cast_slice_mut(out));
        let mut out: Vec<_> = out.collect();
        let few = FewTokens {
            storage,
            bytes,
            cols,
            x,
            out: &mut out,
        };
        return few.at(level);
    }
    let at_once = if out.len() < PACKED_TOKENS {
        FEW_DECODED_ROWS
    } else {
        DECODED_ROWS
    };
    let mut decoded = Matrix::<E>::recycled(at_once.min(rows.len()), cols);
    for first in rows.clone().step_by(at_once) {
        let now = first..rows.end.min(first + at_once);
        let part = now.start - rows.start..now.end - rows.start;
        let numbers = &mut decoded.as_mut_slice()[..now.len() * cols];
        let decode = Decode {
            storage,
            bytes: w.rows_bytes(now),
            numbers,
        };
        E::by_type::<AtLevel>((level, decode));
        let mut out: Vec<_> = out.iter_mut().map(|out| &mut out[part.clone()]).collect();
        multiply(level, Panel::new(x, numbers, cols, &mut out));
    }
}

/// Whole blocks as numbers.
struct Decode<'a, E> {
    storage: Storage,
    bytes: &'a [u8],
    numbers: &'a mut [E],
}

impl<E: Element> Task for Decode<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        decode(simd, self.storage, self.bytes, self.numbers);
    }
}

/// Runs [`Decode`] of each compute type.
struct AtLevel<'a>(PhantomData<&'a ()>);

impl<'a> ByType for AtLevel<'a> {
    type Input<E: Element> = (Level, Decode<'a, E>);
    run_at_level!();
}

/// All products of a few tokens.
struct FewTokens<'a, 'y> {
    storage: Storage,
    bytes: &'a [u8],
    cols: usize,
    x: &'a [f32],
    out: &'a mut [&'y mut [f32]],
}

impl FewTokens<'_, '_> {
    /// Runs at a level. Of no type, so that it is compiled once, and not in every program that runs a model.
    fn at(self, level: Level) {
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

/// The factors of a stretch of a tile's rows.
struct Held {
    scales: [f32; 64],
    offsets: [f32; 64],
    /// 16 times the scale of numbers with a fifth bit.
    sixteen: [f32; 64],
}

impl Held {
    fn new() -> Self {
        let [scales, offsets, sixteen] = [[0.0; 64]; 3];
        Self {
            scales,
            offsets,
            sixteen,
        }
    }

    /// Where the factors of a half of 32 numbers are: side by side those that are computed at once.
    #[inline(always)]
    const fn place<B: Block, const R: usize>(unit: usize, r: usize, half: usize) -> usize {
        match B::NUMBERS {
            32 => (2 * unit + half) * R + r,
            _ => (B::NUMBERS / 32 * r + unit) * B::FACTORS + half * (B::FACTORS - 1),
        }
    }

    /// Holds those of each row's block `b`.
    #[inline(always)]
    fn hold<S: Simd, B: Block, const R: usize, const N: usize>(
        &mut self,
        simd: S,
        rows: [&[B; N]; R],
        b: usize,
    ) {
        let [mut scales, mut offsets] = [[B::Factors::default(); R]; 2];
        for r in 0..R {
            scales[r] = rows[r][b].scales(simd);
            offsets[r] = rows[r][b].offsets(simd);
        }
        let in_block = B::NUMBERS / 32;
        for half in 0..2 {
            for i in 0..in_block {
                for r in 0..R {
                    let quants = rows[r][b].quants(simd, i);
                    let factor = (2 * i + half) * B::FACTORS / 2;
                    let (scale, offset) = (scales[r].as_ref()[factor], offsets[r].as_ref()[factor]);
                    let place = Self::place::<B, R>(b * in_block + i, r, half);
                    // Both halves of codes take the first one's.
                    if half == 0 || !quants.are_codes() {
                        self.scales[place] = scale;
                        if B::OFFSETS {
                            self.offsets[place] = offset;
                        }
                    }
                    if quants.have_fifth() {
                        self.sixteen[place] = 16.0 * scale;
                    }
                }
            }
        }
    }

    /// Those of 32 numbers of a row.
    #[inline(always)]
    fn of<L: ByteLanes, B: Block, const R: usize>(
        &self,
        quants: &Quants<'_, L>,
        unit: usize,
        r: usize,
    ) -> HeldFactors {
        let halves = [0, 1].map(|half| Self::place::<B, R>(unit, r, half));
        let places = if quants.are_codes() {
            [halves[0]; 2]
        } else {
            halves
        };
        HeldFactors {
            scales: places.map(|place| self.scales[place]),
            offsets: B::OFFSETS.then_some(places.map(|place| self.offsets[place])),
            sixteen: halves.map(|place| self.sixteen[place]),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use half::bf16;

    use crate::kernels::matmul::matmul;
    use crate::kernels::simd::Level;
    use crate::tensor::quantised::tests::blocks;
    use crate::tensor::{Element, Matrix, Storage, Tensor};

    /// A tensor of random blocks, the first of them at an odd address.
    fn tensor(storage: Storage, rows: usize, cols: usize) -> Tensor {
        let data = blocks(storage, rows * cols / storage.block().numbers);
        let odd = Bytes::from([&[0], &data[..]].concat()).slice(1..);
        Tensor::new(storage, vec![rows, cols], odd).unwrap()
    }

    /// Numbers of many sizes, some of them so small that products with them underflow.
    fn activations<E: Element>(tokens: usize, cols: usize) -> Matrix<E> {
        let mut state = 7u64;
        let number = |i: usize| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let size = if i.is_multiple_of(5) {
                -140
            } else {
                (state >> 60) as i32 - 8
            };
            E::from_f64(((state >> 20) as i32 as f64) * 2f64.powi(size - 31))
        };
        Matrix::from_vec(cols, (0..tokens * cols).map(number).collect())
    }

    fn bits<A: Element>(m: &Matrix<A>) -> Vec<u64> {
        m.as_slice().iter().map(|x| x.to_f64().to_bits()).collect()
    }

    fn is_the_product_of_the_widened<E: Element>() {
        for storage in Storage::QUANTISED {
            let block = storage.block().numbers;
            for (cols, sizes) in [
                (block, [(1, 1), (5, 2), (4, 13)].as_slice()),
                (3 * block, &[(9, 1), (7, 3), (131, 1), (130, 12)]),
                // More than a stretch of packed weights, and more rows than are decoded at once.
                (6144, &[(6, 1), (3, 5), (2, 17)]),
            ] {
                for &(rows, tokens) in sizes {
                    let (w, x) = (tensor(storage, rows, cols), activations::<E>(tokens, cols));
                    let widened = Matrix::from_vec(cols, w.to_vec::<E>());
                    let want = bits(&matmul(Level::Scalar, &x, &widened));
                    for level in Level::available() {
                        let got = bits(&matmul(level, &x, &w));
                        let name = format!("{storage} {level} {rows}x{cols}, {tokens} tokens");
                        assert!(got == want, "{name}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_level_gives_the_bits_of_widened_weights_f64() {
        is_the_product_of_the_widened::<f64>();
    }

    #[test]
    fn every_level_gives_the_bits_of_widened_weights_f32() {
        is_the_product_of_the_widened::<f32>();
    }

    #[test]
    fn every_level_gives_the_bits_of_widened_weights_bf16() {
        is_the_product_of_the_widened::<bf16>();
    }

    #[test]
    fn every_number_counts() {
        // A quantum more of any one number changes the product of its row, and of no other.
        for level in Level::available() {
            let (rows, cols) = (5, 64);
            let w = tensor(Storage::Q8_0, rows, cols);
            let x = Matrix::from_vec(cols, vec![1.0f32; cols]);
            let before = matmul(level, &x, &w);
            for i in 0..rows * cols {
                let mut data = w.bytes().to_vec();
                let q = &mut data[i / 32 * 34 + 2 + i % 32];
                *q = q.wrapping_add(1);
                let changed = Tensor::new(Storage::Q8_0, vec![rows, cols], data.into()).unwrap();
                let after = matmul(level, &x, &changed);
                let differ = |row: &usize| after.row(0)[*row] != before.row(0)[*row];
                // The first blocks' factors are too small to be seen beside the last ones'.
                let seen: Vec<_> = (0..rows).filter(differ).collect();
                assert!(
                    seen == [i / cols] || (i % cols < 32 && seen.is_empty()),
                    "{level} {i}"
                );
            }
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        for storage in [Storage::Q4K, Storage::Q8_0] {
            let (w, x) = (tensor(storage, 701, 512), activations::<f32>(1, 512));
            let with = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                let pool = pool.build().unwrap();
                pool.install(|| bits(&matmul(Level::best(), &x, &w)))
            };
            assert_eq!(with(1), with(2), "{storage}");
            assert_eq!(with(1), with(7), "{storage}");
        }
    }
}
