//! Which pairs of types have a kernel: the compute type with itself, and with bf16 weights.

use half::bf16;

use super::Level;
use super::lanes::{Simd, Task};
use super::panel::{self, Panel};
use super::weighted_sum::{self, WeightedSums};
use crate::tensor::Element;

/// The products a compute type takes part in. Implemented for f64, f32 and bf16 and for no other.
pub trait Products: Sized + bytemuck::Pod {
    /// Every product of the rows of `panel` with its activations, weights of this type.
    #[doc(hidden)]
    fn panel(level: Level, panel: Panel<'_, '_, Self, Self>)
    where
        Self: Element;

    /// The averages of values of this type.
    #[doc(hidden)]
    fn weighted_sums(level: Level, sums: WeightedSums<'_, Self>)
    where
        Self: Element;

    /// [`panel`](Self::panel) over bf16 weights, widened in registers.
    #[doc(hidden)]
    fn bf16_panel(level: Level, panel: Panel<'_, '_, Self, bf16>)
    where
        Self: Element;
}

macro_rules! task {
    ($x:ty, $w:ty, $b:literal) => {
        impl Task for Panel<'_, '_, $x, $w> {
            type Output = ();

            #[inline(always)]
            fn run<S: Simd>(self, simd: S) {
                panel::panel::<S, $x, $w, $b>(simd, self);
            }
        }
    };
}
task!(f64, f64, 16);
task!(f64, bf16, 16);
task!(f32, f32, 16);
task!(f32, bf16, 16);
task!(bf16, bf16, 32);

macro_rules! weighted_sums {
    ($($x:ty),*) => {$(
        impl Task for WeightedSums<'_, $x> {
            type Output = ();

            #[inline(always)]
            fn run<S: Simd>(self, simd: S) {
                weighted_sum::sums(simd, self);
            }
        }
    )*};
}
weighted_sums!(f64, f32, bf16);

macro_rules! products {
    ($($x:ty),*) => {$(
        impl Products for $x {
            fn panel(level: Level, panel: Panel<'_, '_, $x, $x>) {
                level.run(panel);
            }
            fn weighted_sums(level: Level, sums: WeightedSums<'_, $x>) {
                level.run(sums);
            }
            fn bf16_panel(level: Level, panel: Panel<'_, '_, $x, bf16>) {
                level.run(panel);
            }
        }
    )*};
}
products!(f64, f32, bf16);
