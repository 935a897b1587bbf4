//! Which pairs of types have a kernel: the compute type with itself, and with bf16 weights.

use std::marker::PhantomData;

use half::bf16;

use super::Level;
use super::lanes::{Simd, Task};
use super::panel::{self, Panel};
use super::weighted_sum::{self, WeightedSums};
use crate::tensor::{ByType, Element};

/// In each type, the level's version of a task.
macro_rules! run_each {
    () => {
        fn f64((level, task): Self::Input<f64>) {
            level.run(task);
        }
        fn f32((level, task): Self::Input<f32>) {
            level.run(task);
        }
        fn bf16((level, task): Self::Input<bf16>) {
            level.run(task);
        }
    };
}

/// All products of a panel whose weights are of the compute type.
pub(crate) fn multiply<E: Element>(level: Level, panel: Panel<'_, '_, E, E>) {
    E::by_type::<Products>((level, panel));
}

/// All products of a panel of bf16 weights, which are widened in registers.
pub(super) fn multiply_bf16<E: Element>(level: Level, panel: Panel<'_, '_, E, bf16>) {
    E::by_type::<Bf16Products>((level, panel));
}

/// Weighted sums of values of the compute type.
pub(super) fn weighted_sums<E: Element>(level: Level, sums: WeightedSums<'_, E>) {
    E::by_type::<Sums>((level, sums));
}

struct Products<'a, 'y>(PhantomData<(&'a (), &'y ())>);
struct Bf16Products<'a, 'y>(PhantomData<(&'a (), &'y ())>);
struct Sums<'a>(PhantomData<&'a ()>);

impl<'a, 'y: 'a> ByType for Products<'a, 'y> {
    type Input<E: Element> = (Level, Panel<'a, 'y, E, E>);
    run_each!();
}
impl<'a, 'y: 'a> ByType for Bf16Products<'a, 'y> {
    type Input<E: Element> = (Level, Panel<'a, 'y, E, bf16>);
    run_each!();
}
impl<'a> ByType for Sums<'a> {
    type Input<E: Element> = (Level, WeightedSums<'a, E>);
    run_each!();
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
