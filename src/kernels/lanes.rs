//! What an instruction set must offer: sixteen partial sums, and one way to add to them.

use half::bf16;

use crate::tensor::Float;

/// What an instruction set offers whatever the types.
pub(super) trait Instructions: Copy {
    /// Asks for the cache line of a number that is read soon, wherever it is.
    #[inline(always)]
    fn prefetch<T>(self, _at: *const T) {}
}

/// Sixteen-lane multiply-add of activations `X` and weights `W`, in blocks of `B` elements.
///
/// A value of an implementing type is the proof that the machine has the instructions.
pub(super) trait Lanes<X, W, const B: usize>: Instructions {
    /// One block of activations or widened weights.
    type Block: Copy;
    /// Sixteen partial sums.
    type Sum: Copy;
    /// The type the sums are in.
    type Acc: Float;
    /// Weight rows and tokens of a register tile: 4, 2 or 1 each.
    const TILE: (usize, usize);

    /// Sixteen times +0.
    fn zero(self) -> Self::Sum;
    /// Takes sums up again where they were left.
    fn resume(self, sums: &[Self::Acc; 16]) -> Self::Sum;
    /// The sums so far, lane after lane.
    fn suspend(self, sums: Self::Sum) -> [Self::Acc; 16];
    /// Reads a block of activations.
    fn load(self, x: &[X; B]) -> Self::Block;
    /// Reads a block of weights and widens it, exactly.
    fn widen(self, w: &[W; B]) -> Self::Block;
    /// Writes a block down as activations.
    fn store(self, block: Self::Block, to: &mut [X; B]);
    /// `sum + w · x` in every lane, in the order that [`kernels`](super) documents.
    fn multiply_add(self, sum: Self::Sum, w: Self::Block, x: Self::Block) -> Self::Sum;
    /// The lanes added in the documented tree.
    fn fold(self, sum: Self::Sum) -> Self::Acc;

    /// [`fold`](Self::fold) for four sums.
    #[inline(always)]
    fn fold_four(self, sums: [Self::Sum; 4]) -> [Self::Acc; 4] {
        let mut folded = [Self::Acc::ZERO; 4];
        for (folded, sum) in folded.iter_mut().zip(sums) {
            *folded = self.fold(sum);
        }
        folded
    }

    /// [`fold`](Self::fold) for the sums of a tile's rows and one token, into the beginning of `out`.
    #[inline(always)]
    fn fold_rows<const R: usize>(self, sums: [Self::Sum; R], out: &mut [Self::Acc]) {
        if let (Ok(sums), Some(out)) = (<[_; 4]>::try_from(&sums[..]), out.first_chunk_mut()) {
            *out = self.fold_four(sums);
            return;
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = self.fold(sum);
        }
    }
}

/// An instruction set: every pair of types that has a kernel of its own.
pub(super) trait Simd:
    Lanes<f64, f64, 16, Acc = f64>
    + Lanes<f64, bf16, 16, Acc = f64>
    + Lanes<f32, f32, 16, Acc = f32>
    + Lanes<f32, bf16, 16, Acc = f32>
    + Lanes<bf16, bf16, 32, Acc = f32>
{
}

/// The sixteen lanes added in the documented tree.
#[inline(always)]
pub(super) fn fold<A: Float>(mut lanes: [A; 16]) -> A {
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            lanes[l] = lanes[l] + lanes[l + half];
        }
    }
    lanes[0]
}

/// Work that is compiled once for every level.
pub(super) trait Task {
    /// What the work results in.
    type Output;

    /// The work. Must be `#[inline(always)]`, so that it is compiled with the caller's instructions.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}
