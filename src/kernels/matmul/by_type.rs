//! From any compute type to the kernel of its pair of types: the compute type with itself, and with bf16 weights.

use std::marker::PhantomData;

use half::bf16;

use super::panel::Panel;
use super::{packed, tiles};
use crate::kernels::simd::{Lanes, Level, PackedLanes, Simd, Task, run_at_level};
use crate::tensor::{ByType, Element};

/// All products of a panel whose weights are of the compute type.
pub(crate) fn multiply<E: Element>(level: Level, panel: Panel<'_, '_, E, E>) {
    E::by_type::<Products>((level, panel));
}

/// All products of a panel of bf16 weights, which are widened in registers.
pub(super) fn multiply_bf16<E: Element>(level: Level, panel: Panel<'_, '_, E, bf16>) {
    E::by_type::<Bf16Products>((level, panel));
}

/// Runs a [`Panel`] of each compute type.
struct Products<'a, 'y>(PhantomData<(&'a (), &'y ())>);
/// Runs a [`Panel`] of each compute type and bf16 weights.
struct Bf16Products<'a, 'y>(PhantomData<(&'a (), &'y ())>);

impl<'a, 'y: 'a> ByType for Products<'a, 'y> {
    type Input<E: Element> = (Level, Panel<'a, 'y, E, E>);
    run_at_level!();
}
impl<'a, 'y: 'a> ByType for Bf16Products<'a, 'y> {
    type Input<E: Element> = (Level, Panel<'a, 'y, E, bf16>);
    run_at_level!();
}

/// The task of a pair of types, whose blocks have `$b` elements.
macro_rules! task {
    ($x:ty, $w:ty, $b:literal) => {
        impl Task for Panel<'_, '_, $x, $w> {
            type Output = ();

            #[inline(always)]
            fn run<S: Simd>(self, simd: S) {
                all_products::<S, $x, $w, $b>(simd, self);
            }
        }
    };
}
task!(f64, f64, 16);
task!(f64, bf16, 16);
task!(f32, f32, 16);
task!(f32, bf16, 16);
task!(bf16, bf16, 32);

/// All products of a panel: of many tokens by packing both sides, of few by reading them where they lie.
#[inline(always)]
fn all_products<L, X, W, const B: usize>(lanes: L, panel: Panel<'_, '_, X, W>)
where
    L: PackedLanes<X, W, B>,
    X: Element,
    W: Element,
{
    let many = panel.out.len() >= <L as Lanes<X, X, B>>::PACK_FROM;
    if const { <L as Lanes<X, X, B>>::ROW_AFTER_ROW } && panel.out.len() == 1 {
        return tiles::all_products::<L, X, W, B, 16, 1>(lanes, panel);
    }
    // In constants of their own, so that nothing is compiled for tiles that an instruction set does not have.
    if const { <L as Lanes<X, X, B>>::TILE.is(4, 4) } {
        if many {
            packed::all_products::<L, X, W, B, 4, 4>(lanes, panel);
        } else {
            // Registers that hold four tokens' sums beside packed operands hold those of five.
            tiles::all_products::<L, X, W, B, 4, 5>(lanes, panel);
        }
    } else if const { <L as Lanes<X, X, B>>::TILE.is(4, 3) } {
        match panel.out.len() {
            _ if many => packed::all_products::<L, X, W, B, 4, 3>(lanes, panel),
            ..=2 => tiles::all_products::<L, X, W, B, 4, 2>(lanes, panel),
            // Widening a row costs as much as a token does.
            _ => tiles::all_products::<L, X, W, B, 2, 5>(lanes, panel),
        }
    } else {
        tiles::all_products::<L, X, W, B, 1, 1>(lanes, panel);
    }
}
