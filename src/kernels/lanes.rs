//! What an instruction set must offer: sixteen partial sums, and one way to add to them.

use half::bf16;

use super::matmul::{self, Panel};
use super::{Level, dispatch::Task};
use crate::tensor::{Element, Float};

/// Sixteen-lane multiply-add of activations `X` and weights `W`, in blocks of `B` elements.
///
/// A value of an implementing type is the proof that the machine has the instructions.
pub(super) trait Lanes<X, W, const B: usize>: Copy {
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
    /// Reads a block of activations.
    fn load(self, x: &[X; B]) -> Self::Block;
    /// Reads a block of weights and widens it, exactly.
    fn widen(self, w: &[W; B]) -> Self::Block;
    /// `sum + w · x` in every lane, in the order that [`kernels`](super) documents.
    fn multiply_add(self, sum: Self::Sum, w: Self::Block, x: Self::Block) -> Self::Sum;
    /// The lanes added in the documented tree.
    fn fold(self, sum: Self::Sum) -> Self::Acc;
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

/// The products a compute type takes part in. Implemented for f64, f32 and bf16 and for no other.
pub trait Products: Sized + bytemuck::Pod {
    /// Every product of the rows of `panel` with its activations, weights of this type.
    #[doc(hidden)]
    fn panel(level: Level, panel: Panel<'_, Self, Self>)
    where
        Self: Element;

    /// The same over bf16 weights, widened in registers.
    #[doc(hidden)]
    fn bf16_panel(level: Level, panel: Panel<'_, Self, bf16>)
    where
        Self: Element;
}

macro_rules! task {
    ($x:ty, $w:ty, $b:literal) => {
        impl Task for Panel<'_, $x, $w> {
            type Output = ();

            #[inline(always)]
            fn run<S: Simd>(self, simd: S) {
                matmul::panel::<S, $x, $w, $b>(simd, self);
            }
        }
    };
}
task!(f64, f64, 16);
task!(f64, bf16, 16);
task!(f32, f32, 16);
task!(f32, bf16, 16);
task!(bf16, bf16, 32);

macro_rules! products {
    ($($x:ty),*) => {$(
        impl Products for $x {
            fn panel(level: Level, panel: Panel<'_, $x, $x>) {
                level.run(panel);
            }
            fn bf16_panel(level: Level, panel: Panel<'_, $x, bf16>) {
                level.run(panel);
            }
        }
    )*};
}
products!(f64, f32, bf16);
