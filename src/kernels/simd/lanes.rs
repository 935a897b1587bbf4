//! What an instruction set must offer: sixteen partial sums ("lanes"), and one way to add to them.

use std::array::from_fn;
use std::ops::Range;

use half::bf16;

use crate::tensor::quantised::{ByteLanes, Quants};
use crate::tensor::{Element, Float};

/// What an instruction set offers independent of types.
pub(in crate::kernels) trait Instructions: Copy {
    /// Prefetches the cache line at an address, which may be any, for the first cache.
    #[inline(always)]
    fn prefetch<T>(self, _at: *const T) {}
    /// Prefetches a cache line for the second cache. The first one has few lines under way at once, and its own reads wait
    /// where those are taken.
    #[inline(always)]
    fn prefetch_far<T>(self, _at: *const T) {}
}

/// What to prefetch during a multiplication: one address at each step, because many prefetches at once would keep the
/// multiplication's own loads waiting.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Prefetch {
    /// The first address.
    pub(in crate::kernels) at: *const u8,
    /// Bytes from one step's address to the next; a step is a part of a block.
    pub(in crate::kernels) stride: usize,
}

/// Sixteen-lane multiply-add of activations `X` and weights `W`, in blocks of `B` elements.
///
/// Where a register holds fewer than sixteen lanes, a block and its sums come in parts: part *p* is the *p*th run of lanes
/// and the elements that belong to them. Parts are independent.
///
/// A value of an implementing type proves that the machine has the instructions. Do not call these methods in closures that the
/// compiler may keep as functions of their own: those would be compiled without the instructions.
pub(in crate::kernels) trait Lanes<X, W, const B: usize>: Instructions {
    /// One part of a block of activations or widened weights.
    type Operand: Copy;
    /// One part of sixteen partial sums.
    type Sum: Copy;
    /// All parts of sixteen partial sums.
    type Sums: Copy + AsRef<[Self::Sum]> + AsMut<[Self::Sum]>;
    /// A block that is packed to be read many times.
    type Packed: bytemuck::Pod;
    /// The type of the sums.
    type Acc: Float;
    /// The number of parts.
    const PARTS: usize;
    /// The largest tile whose sums fit into registers beside the operands.
    const TILE: Tile;
    /// From this many tokens on it pays to pack weights and activations. With the large tiles of whole blocks reading weights
    /// again from the cache is cheap.
    const PACK_FROM: usize = if Self::TILE.is(4, 4) && Self::PARTS == 1 {
        64
    } else {
        12
    };

    /// Whether the rows of one token's product are taken one after the other, as they lie: memory is read fastest so, if a row's sums
    /// are two at least, so that none waits long for itself. (Where they are one, it is taken in halves.)
    const ROW_AFTER_ROW: bool = Self::PARTS <= 2 && !Self::TILE.is(1, 1);

    /// Whether [`multiply_add_normal`](Self::multiply_add_normal) takes less time than [`multiply_add`](Self::multiply_add).
    const LOOKS_FOR_DENORMALS: bool = false;

    /// Sixteen times +0.
    fn zero(self) -> Self::Sums;
    /// Loads one part of partial sums, which memory has lane after lane.
    fn load_partial(self, sums: &[Self::Acc; 16], part: usize) -> Self::Sum;
    /// Stores one part of partial sums, lane after lane.
    fn store_partial(self, sum: Self::Sum, to: &mut [Self::Acc; 16], part: usize);
    /// Reads a part of a block of activations.
    fn load(self, x: &[X; B], part: usize) -> Self::Operand;
    /// Reads a part of a block of weights and widens it, exactly.
    fn widen(self, w: &[W; B], part: usize) -> Self::Operand;
    /// Stores a part for [`unpack`](Self::unpack).
    fn pack(self, operand: Self::Operand, to: &mut Self::Packed, part: usize);
    /// Reads a part that [`pack`](Self::pack) stored.
    fn unpack(self, block: &Self::Packed, part: usize) -> Self::Operand;
    /// `sum + w · x` in every lane, in the order that [`kernels`](super) documents.
    fn multiply_add(self, sum: Self::Sum, w: Self::Operand, x: Self::Operand) -> Self::Sum;
    /// The same where neither operands, products nor sums are denormal.
    #[inline(always)]
    fn multiply_add_normal(self, sum: Self::Sum, w: Self::Operand, x: Self::Operand) -> Self::Sum {
        self.multiply_add(sum, w, x)
    }
    /// `a + b` in every lane.
    fn add_sums(self, a: Self::Sum, b: Self::Sum) -> Self::Sum;
    /// Adds the products of a tile's rows and tokens, read where they lie, to its `sums`. All must have as many blocks, or this
    /// panics.
    fn add_rows<const R: usize, const T: usize>(
        self,
        sums: &mut [[Self::Sums; T]; R],
        w: [&[[W; B]]; R],
        x: [&[[X; B]]; T],
    );
    /// Adds the lanes in the documented tree.
    fn fold(self, sums: Self::Sums) -> Self::Acc;

    /// [`fold`](Self::fold) for four sums.
    #[inline(always)]
    fn fold_four(self, sums: [Self::Sums; 4]) -> [Self::Acc; 4] {
        let mut folded = [Self::Acc::ZERO; 4];
        for (folded, sum) in folded.iter_mut().zip(sums) {
            *folded = self.fold(sum);
        }
        folded
    }

    /// [`fold`](Self::fold) for four rows of four sums, in columns.
    #[inline(always)]
    fn fold_square(self, sums: [[Self::Sums; 4]; 4]) -> [[Self::Acc; 4]; 4] {
        let mut folded = [[Self::Acc::ZERO; 4]; 4];
        for (t, folded) in folded.iter_mut().enumerate() {
            *folded = self.fold_four(sums.map(|row| row[t]));
        }
        folded
    }

    /// [`fold`](Self::fold) for the sums of a tile, into some rows of the products of each token.
    #[inline(always)]
    fn fold_tile<const R: usize, const T: usize>(
        self,
        sums: &[[Self::Sums; T]; R],
        out: &mut [&mut [Self::Acc]],
        rows: Range<usize>,
    ) {
        if const { R == 4 && T == 4 } && rows.len() == 4 && out.len() == 4 {
            let square = from_fn(|r| from_fn(|t| sums[r][t]));
            for (out, folded) in out.iter_mut().zip(self.fold_square(square)) {
                out[rows.clone()].copy_from_slice(&folded);
            }
            return;
        }
        for (t, out) in out.iter_mut().enumerate() {
            let of_token: [_; R] = from_fn(|r| sums[r][t]);
            self.fold_rows(of_token, &mut out[rows.clone()]);
        }
    }

    /// [`fold`](Self::fold) for the sums of a tile's rows and one token, into the beginning of `out`.
    #[inline(always)]
    fn fold_rows<const R: usize>(self, sums: [Self::Sums; R], out: &mut [Self::Acc]) {
        if let (Ok(sums), Some(out)) = (<[_; 4]>::try_from(&sums[..]), out.first_chunk_mut()) {
            *out = self.fold_four(sums);
            return;
        }
        // Of many rows, which are all there.
        if const { R > 4 } {
            for (out, sums) in out.as_chunks_mut().0.iter_mut().zip(sums.as_chunks().0) {
                *out = self.fold_four(*sums);
            }
            return;
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = self.fold(sum);
        }
    }

    /// Adds the products of a tile's packed rows and tokens to its `sums`, and prefetches `ahead` meanwhile. `w` has block after
    /// block, in each of them row after row; `x` likewise token after token.
    #[inline(always)]
    fn add<const R: usize, const T: usize>(
        self,
        sums: &mut [[Self::Sums; T]; R],
        w: &[Self::Packed],
        x: &[Self::Packed],
        ahead: Prefetch,
    ) {
        add_parts(self, sums, w, x, ahead);
    }
}

/// [`Lanes::add`] for any size of a tile.
#[inline(always)]
pub(super) fn add_parts<L, X, W, const B: usize, const R: usize, const T: usize>(
    lanes: L,
    sums: &mut [[L::Sums; T]; R],
    w: &[L::Packed],
    x: &[L::Packed],
    mut ahead: Prefetch,
) where
    L: Lanes<X, W, B>,
{
    let (w, _) = w.as_chunks::<R>();
    let (x, _) = x.as_chunks::<T>();
    for part in 0..L::PARTS {
        let mut partial: [[L::Sum; T]; R] = from_fn(|r| from_fn(|t| sums[r][t].as_ref()[part]));
        for (w, x) in w.iter().zip(x) {
            lanes.prefetch(ahead.at);
            ahead.at = ahead.at.wrapping_add(ahead.stride);
            let x: [_; T] = from_fn(|t| lanes.unpack(&x[t], part));
            for r in 0..R {
                let w = lanes.unpack(&w[r], part);
                for t in 0..T {
                    partial[r][t] = lanes.multiply_add(partial[r][t], w, x[t]);
                }
            }
        }
        for (sums, partial) in sums
            .as_flattened_mut()
            .iter_mut()
            .zip(partial.as_flattened())
        {
            sums.as_mut()[part] = *partial;
        }
    }
}

/// The size of a tile: four rows and four tokens where there are 32 registers, four and three where there are 16, one and one where
/// the compiler vectorises as it can.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Tile {
    rows: usize,
    tokens: usize,
}

impl Tile {
    /// A tile of this many rows and tokens.
    pub(super) const fn new(rows: usize, tokens: usize) -> Self {
        Self { rows, tokens }
    }

    /// Whether it has this many rows and tokens.
    pub(in crate::kernels) const fn is(self, rows: usize, tokens: usize) -> bool {
        self.rows == rows && self.tokens == tokens
    }
}

/// An instruction set: lanes for every pair of types that has a kernel.
pub(in crate::kernels) trait Simd:
    Lanes<f64, f64, 16, Acc = f64>
    + Lanes<f64, bf16, 16, Acc = f64, Packed = <Self as Lanes<f64, f64, 16>>::Packed>
    + Lanes<f32, f32, 16, Acc = f32>
    + Lanes<f32, bf16, 16, Acc = f32, Packed = <Self as Lanes<f32, f32, 16>>::Packed>
    + Lanes<bf16, bf16, 32, Acc = f32>
    + Dequantise
{
}

/// Quantised weights as f32 operands.
pub(in crate::kernels) trait Dequantise:
    Lanes<f32, f32, 16> + ByteLanes
{
    /// scale · q + offset for a part of one half.
    fn dequantise(
        self,
        quants: Self::Bytes,
        half: usize,
        part: usize,
        scale: f32,
        offset: f32,
    ) -> Self::Operand;

    /// A part of each half of 32 numbers.
    #[inline(always)]
    fn weights(
        self,
        quants: Quants<'_, Self>,
        part: usize,
        factors: &HeldFactors,
    ) -> [Self::Operand; 2] {
        self.widened(quants, part, factors)
    }

    /// [`weights`](Self::weights), of which each is widened by itself.
    #[inline(always)]
    fn widened(
        self,
        quants: Quants<'_, Self>,
        part: usize,
        factors: &HeldFactors,
    ) -> [Self::Operand; 2] {
        let (quants, scales) = (quants.bytes(self), factors.scales);
        let offsets = factors.offsets.unwrap_or([-0.0; 2]);
        [
            self.dequantise(quants, 0, part, scales[0], offsets[0]),
            self.dequantise(quants, 1, part, scales[1], offsets[1]),
        ]
    }
}

/// The factors of 32 numbers, in memory: from there an instruction takes one for all lanes at once.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct HeldFactors {
    /// The scales of the halves.
    pub(in crate::kernels) scales: [f32; 2],
    /// Their offsets, if the type has some.
    pub(in crate::kernels) offsets: Option<[f32; 2]>,
    /// 16 times the scale of numbers with a fifth bit.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "only AVX-512 looks codes up in a table")
    )]
    pub(in crate::kernels) sixteen: [f32; 2],
}

/// The lanes of activations `X` and weights `W` together with those of `X` and itself, which multiply both once they are packed.
pub(in crate::kernels) trait PackedLanes<X: Element, W, const B: usize>:
    Lanes<X, W, B, Acc = X::Acc>
    + Lanes<X, X, B, Acc = X::Acc, Packed = <Self as Lanes<X, W, B>>::Packed>
{
}

impl<L, X: Element, W, const B: usize> PackedLanes<X, W, B> for L where
    L: Lanes<X, W, B, Acc = X::Acc>
        + Lanes<X, X, B, Acc = X::Acc, Packed = <L as Lanes<X, W, B>>::Packed>
{
}

/// The sixteen lanes added in the documented tree.
#[inline(always)]
pub(in crate::kernels) fn fold<A: Float>(mut lanes: [A; 16]) -> A {
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            lanes[l] = lanes[l] + lanes[l + half];
        }
    }
    lanes[0]
}

/// A kernel, which is compiled once for every level.
pub(in crate::kernels) trait Task {
    /// Its result.
    type Output;

    /// Computes it. Must be `#[inline(always)]`, so that it is compiled with the caller's instructions.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}
