//! What an instruction set must offer: sixteen partial sums, and one way to add to them.

use std::array::from_fn;

use half::bf16;

use crate::tensor::{Element, Float};

/// What an instruction set offers whatever the types.
pub(in crate::kernels) trait Instructions: Copy {
    /// Asks for the cache line of a number that is read soon, wherever it is.
    #[inline(always)]
    fn prefetch<T>(self, _at: *const T) {}
}

/// Bytes that are asked for while something else is multiplied. A few at each step, because many at once keep what is
/// multiplied waiting.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Prefetch {
    /// The first of them.
    pub(in crate::kernels) at: *const u8,
    /// Bytes from one step to the next: a step is a part of a block.
    pub(in crate::kernels) stride: usize,
}

/// Sixteen-lane multiply-add of activations `X` and weights `W`, in blocks of `B` elements.
///
/// Where a register holds fewer than sixteen lanes, a block and its sums are in parts: part *p* is the *p*th stretch of the
/// lanes, and of the elements that belong to them. What happens in one part has no bearing on the others.
///
/// A value of an implementing type is the proof that the machine has the instructions. Callers must not call this from
/// closures that may stay functions of their own, because those would be compiled without them.
pub(in crate::kernels) trait Lanes<X, W, const B: usize>: Instructions {
    /// One part of a block of activations or widened weights.
    type Operand: Copy;
    /// One part of sixteen partial sums.
    type Sum: Copy;
    /// All parts of them.
    type Sums: Copy + AsRef<[Self::Sum]> + AsMut<[Self::Sum]>;
    /// A block that is copied to be read again and again.
    type Packed: bytemuck::Pod;
    /// The type the sums are in.
    type Acc: Float;
    /// The number of parts.
    const PARTS: usize;
    /// Weight rows and tokens of a tile, the sums of which stay in registers beside what is multiplied.
    const TILE: Tile;
    /// From this many tokens on it pays to copy weights and activations in the order they are used.
    const PACK_FROM: usize = 12;

    /// Sixteen times +0.
    fn zero(self) -> Self::Sums;
    /// Takes sums up again where they were left.
    fn load_partial(self, sums: &[Self::Acc; 16], part: usize) -> Self::Sum;
    /// Leaves the sums so far, lane after lane.
    fn store_partial(self, sum: Self::Sum, to: &mut [Self::Acc; 16], part: usize);
    /// Reads a part of a block of activations.
    fn load(self, x: &[X; B], part: usize) -> Self::Operand;
    /// Reads a part of a block of weights and widens it, exactly.
    fn widen(self, w: &[W; B], part: usize) -> Self::Operand;
    /// Writes a part down for [`unpack`](Self::unpack).
    fn pack(self, operand: Self::Operand, to: &mut Self::Packed, part: usize);
    /// Reads a part that was packed.
    fn unpack(self, block: &Self::Packed, part: usize) -> Self::Operand;
    /// `sum + w · x` in every lane, in the order that [`kernels`](super) documents.
    fn multiply_add(self, sum: Self::Sum, w: Self::Operand, x: Self::Operand) -> Self::Sum;
    /// Adds the products of a tile's blocks, those of each row and of each token where they lie, to its `sums`. There must be
    /// as many of each.
    fn add_rows<const R: usize, const T: usize>(
        self,
        sums: &mut [[Self::Sums; T]; R],
        w: [&[[W; B]]; R],
        x: [&[[X; B]]; T],
    );
    /// The lanes added in the documented tree.
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

    /// [`fold`](Self::fold) for the sums of a tile's rows and one token, into the beginning of `out`.
    #[inline(always)]
    fn fold_rows<const R: usize>(self, sums: [Self::Sums; R], out: &mut [Self::Acc]) {
        if let (Ok(sums), Some(out)) = (<[_; 4]>::try_from(&sums[..]), out.first_chunk_mut()) {
            *out = self.fold_four(sums);
            return;
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = self.fold(sum);
        }
    }

    /// Adds the products of a tile's packed blocks to its `sums`: of `w` block after block, in each row after row, of `x` in
    /// each token after token. Meanwhile it asks for what is needed `ahead`.
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
        let mut of_part: [[L::Sum; T]; R] = from_fn(|r| from_fn(|t| sums[r][t].as_ref()[part]));
        for (w, x) in w.iter().zip(x) {
            lanes.prefetch(ahead.at);
            ahead.at = ahead.at.wrapping_add(ahead.stride);
            let x: [_; T] = from_fn(|t| lanes.unpack(&x[t], part));
            for r in 0..R {
                let w = lanes.unpack(&w[r], part);
                for t in 0..T {
                    of_part[r][t] = lanes.multiply_add(of_part[r][t], w, x[t]);
                }
            }
        }
        for (sums, of_part) in sums
            .as_flattened_mut()
            .iter_mut()
            .zip(of_part.as_flattened())
        {
            sums.as_mut()[part] = *of_part;
        }
    }
}

/// The size of the tiles that the registers of an instruction set have room for: four rows and four tokens where there are
/// 32, four and three where there are 16, one and one where a compiler makes vectors if it can.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Tile {
    rows: usize,
    tokens: usize,
}

impl Tile {
    /// Tiles of so many rows and tokens.
    pub(super) const fn of(rows: usize, tokens: usize) -> Self {
        Self { rows, tokens }
    }

    /// Whether it has so many rows and tokens.
    pub(in crate::kernels) const fn is(self, rows: usize, tokens: usize) -> bool {
        self.rows == rows && self.tokens == tokens
    }
}

/// An instruction set: every pair of types that has a kernel of its own.
pub(in crate::kernels) trait Simd:
    Lanes<f64, f64, 16, Acc = f64>
    + Lanes<f64, bf16, 16, Acc = f64, Packed = <Self as Lanes<f64, f64, 16>>::Packed>
    + Lanes<f32, f32, 16, Acc = f32>
    + Lanes<f32, bf16, 16, Acc = f32, Packed = <Self as Lanes<f32, f32, 16>>::Packed>
    + Lanes<bf16, bf16, 32, Acc = f32>
{
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

/// Work that is compiled once for every level.
pub(in crate::kernels) trait Task {
    /// What the work results in.
    type Output;

    /// The work. Must be `#[inline(always)]`, so that it is compiled with the caller's instructions.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}
