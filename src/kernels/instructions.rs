//! What the files of instruction sets share.
//!
//! Each instruction set is a type whose only constructor looks the instructions up, so a value of it
//! proves that they exist. Its methods are inlined into its `run`, which is compiled with the
//! instructions enabled.

/// One instruction set: `$detected` is the macro of `std::arch` that looks for a feature, and `prefetch` a
/// closure over an address.
macro_rules! instructions {
    ($(#[$doc:meta])* $name:ident, $detected:ident, [$($feature:tt),*], $enable:literal,
     prefetch: $prefetch:expr $(,)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) struct $name(());

        impl $name {
            /// The proof that this machine has the instructions, if it has.
            #[inline]
            pub(super) fn detect() -> Option<Self> {
                let found = $(std::arch::$detected!($feature))&&*;
                found.then_some(Self(()))
            }

            /// Runs `task` compiled with these instructions.
            pub(super) fn run<T: $crate::kernels::lanes::Task>(self, task: T) -> T::Output {
                #[target_feature(enable = $enable)]
                fn with_instructions<T: $crate::kernels::lanes::Task>(simd: $name, task: T) -> T::Output {
                    task.run(simd)
                }
                // SAFETY: `self` exists, so the machine has the instructions.
                unsafe { with_instructions(self, task) }
            }
        }

        impl $crate::kernels::lanes::Instructions for $name {
            #[inline(always)]
            fn prefetch<T>(self, at: *const T) {
                // SAFETY: the instruction reads nothing, and no address makes it fault.
                unsafe { $prefetch(at.cast()) };
            }
        }

        impl $crate::kernels::lanes::Simd for $name {}
    };
}

/// The lanes of one pair of types for one instruction set. `load`, `widen` and `multiply_add` are
/// closures over intrinsics.
macro_rules! lanes {
    ($name:ty, $x:ty, $w:ty, $b:literal, $acc:ty, $block:ty, $sum:ty, $tile:expr,
     zero: $zero:expr, load: $load:expr, widen: $widen:expr,
     multiply_add: $multiply_add:expr, fold: $fold:expr $(, fold_four: $fold_four:expr)? $(,)?) => {
        impl $crate::kernels::lanes::Lanes<$x, $w, $b> for $name {
            type Block = $block;
            type Sum = $sum;
            type Acc = $acc;
            const TILE: (usize, usize) = $tile;

            #[inline(always)]
            fn zero(self) -> Self::Sum {
                // SAFETY: `self` proves the instructions; memory is not touched.
                unsafe { $zero }
            }
            #[inline(always)]
            fn load(self, x: &[$x; $b]) -> Self::Block {
                // SAFETY: `self` proves the instructions; the loads are unaligned ones and stay
                // inside the array.
                unsafe { $load(x.as_ptr()) }
            }
            #[inline(always)]
            fn widen(self, w: &[$w; $b]) -> Self::Block {
                // SAFETY: as for `load`.
                unsafe { $widen(w.as_ptr()) }
            }
            #[inline(always)]
            fn store(self, block: Self::Block, to: &mut [$x; $b]) {
                const { assert!(size_of::<$block>() == size_of::<[$x; $b]>()) };
                // SAFETY: both are as many plain bits, as the line above checks.
                *to = unsafe { std::mem::transmute::<$block, [$x; $b]>(block) };
            }
            #[inline(always)]
            fn resume(self, sums: &[$acc; 16]) -> Self::Sum {
                // SAFETY: both are as many plain bits, as `suspend` checks.
                unsafe { std::mem::transmute::<[$acc; 16], $sum>(*sums) }
            }
            #[inline(always)]
            fn suspend(self, sums: Self::Sum) -> [$acc; 16] {
                const { assert!(size_of::<$sum>() == size_of::<[$acc; 16]>()) };
                // SAFETY: both are as many plain bits, as the line above checks.
                unsafe { std::mem::transmute::<$sum, [$acc; 16]>(sums) }
            }
            #[inline(always)]
            fn multiply_add(self, sum: Self::Sum, w: Self::Block, x: Self::Block) -> Self::Sum {
                // SAFETY: `self` proves the instructions; memory is not touched.
                unsafe { $multiply_add(sum, w, x) }
            }
            #[inline(always)]
            fn fold(self, sum: Self::Sum) -> $acc {
                // SAFETY: `self` proves the instructions; memory is not touched.
                unsafe { $fold(sum) }
            }
            $(
                #[inline(always)]
                fn fold_four(self, sums: [Self::Sum; 4]) -> [$acc; 4] {
                    // SAFETY: `self` proves the instructions; memory is not touched.
                    unsafe { $fold_four(sums) }
                }
            )?
        }
    };
}

pub(super) use {instructions, lanes};
