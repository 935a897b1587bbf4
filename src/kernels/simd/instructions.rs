//! What the instruction sets share: the macros that define them, and their loop over blocks.
//!
//! Each instruction set is a type whose only constructor looks the instructions up, so a value of it
//! proves that they exist. Its methods are inlined into its `run`, which is compiled with the instructions
//! enabled.

use std::array::{from_fn, from_mut};
use std::hint::black_box;

use super::lanes::Lanes;

/// How far ahead weights are prefetched where each is read once, or a tile ahead if that is farther: the hardware prefetcher
/// stops at the end of a page.
pub(super) const PREFETCH_BYTES: usize = 8192;

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// One instruction set: `$detected` is the macro of `std::arch` that looks for a feature, and `prefetch` a
/// closure over an address.
macro_rules! instructions {
    ($(#[$doc:meta])* $name:ident, $detected:ident, [$($feature:tt),*], $enable:literal,
     prefetch: $prefetch:expr, prefetch_far: $prefetch_far:expr $(,)?) => {
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
            pub(super) fn run<T: $crate::kernels::simd::lanes::Task>(self, task: T) -> T::Output {
                #[target_feature(enable = $enable)]
                fn with_instructions<T: $crate::kernels::simd::lanes::Task>(simd: $name, task: T) -> T::Output {
                    task.run(simd)
                }
                // SAFETY: `self` exists, so the machine has the instructions.
                unsafe { with_instructions(self, task) }
            }
        }

        impl $crate::kernels::simd::lanes::Instructions for $name {
            #[inline(always)]
            fn prefetch<T>(self, at: *const T) {
                // SAFETY: the instruction reads nothing, and no address makes it fault.
                unsafe { $prefetch(at.cast()) };
            }
            #[inline(always)]
            fn prefetch_far<T>(self, at: *const T) {
                // SAFETY: as for `prefetch`.
                unsafe { $prefetch_far(at.cast()) };
            }
        }

        impl $crate::kernels::simd::lanes::Simd for $name {}
    };
}

/// The lanes of one pair of types for one instruction set.
///
/// `zero` is one part of the sums; `load` and `widen` are closures from where a part of a block begins, `multiply_add` and `add_sums` some
/// over parts, `fold`, `fold_four` and `fold_square` over all parts of sums. `packed` is left out where blocks are packed as they are
/// loaded, `add` where [`Lanes::add`](super::lanes::Lanes::add) is as good, `add_rows` where [`add_rows`] is, `multiply_add_normal` where
/// `multiply_add` is.
macro_rules! lanes {
    ($name:ty, $x:ty, $w:ty, $b:literal, $acc:ty, $operand:ty, $sum:ty, $parts:literal, $tile:expr,
     zero: $zero:expr, load: $load:expr, widen: $widen:expr,
     multiply_add: $multiply_add:expr, $(multiply_add_normal: $normal:expr,)? add_sums: $add_sums:expr, fold: $fold:expr $(, fold_four: $fold_four:expr)?
     $(, fold_square: $fold_square:expr)? $(, add_rows: $add_rows:expr)?
     $(, pack_from: $pack_from:literal, packed: $packed:ty, add: $add:expr)? $(,)?) => {
        impl $crate::kernels::simd::lanes::Lanes<$x, $w, $b> for $name {
            type Operand = $operand;
            type Sum = $sum;
            type Sums = [$sum; $parts];
            type Packed = $crate::kernels::simd::instructions::either!($($packed)?, [$x; $b]);
            type Acc = $acc;
            const PARTS: usize = $parts;
            const TILE: $crate::kernels::simd::lanes::Tile = $tile;
            $(const PACK_FROM: usize = $pack_from;)?

            #[inline(always)]
            fn zero(self) -> Self::Sums {
                // SAFETY: `self` proves the instructions; memory is not touched.
                [unsafe { $zero }; $parts]
            }
            #[inline(always)]
            fn load_partial(self, sums: &[$acc; 16], part: usize) -> Self::Sum {
                const { assert!(size_of::<Self::Sums>() == size_of::<[$acc; 16]>()) };
                assert!(part < $parts);
                // SAFETY: both are as many plain bits, as the lines above check.
                unsafe { sums.as_ptr().cast::<$sum>().add(part).read_unaligned() }
            }
            #[inline(always)]
            fn store_partial(self, sum: Self::Sum, to: &mut [$acc; 16], part: usize) {
                const { assert!(size_of::<Self::Sums>() == size_of::<[$acc; 16]>()) };
                assert!(part < $parts);
                // SAFETY: both are as many plain bits, as the lines above check.
                unsafe { to.as_mut_ptr().cast::<$sum>().add(part).write_unaligned(sum) };
            }
            #[inline(always)]
            fn load(self, x: &[$x; $b], part: usize) -> Self::Operand {
                assert!(part < $parts);
                // SAFETY: `self` proves the instructions; the loads are unaligned ones and stay
                // inside the array.
                unsafe { $load(x.as_ptr().add(part * ($b / $parts))) }
            }
            #[inline(always)]
            fn widen(self, w: &[$w; $b], part: usize) -> Self::Operand {
                assert!(part < $parts);
                // SAFETY: as for `load`.
                unsafe { $widen(w.as_ptr().add(part * ($b / $parts))) }
            }
            #[inline(always)]
            fn pack(self, operand: Self::Operand, to: &mut Self::Packed, part: usize) {
                const { assert!(size_of::<$operand>() * $parts == size_of::<Self::Packed>()) };
                assert!(part < $parts);
                // SAFETY: both are as many plain bits, as the lines above check.
                unsafe { (&raw mut *to).cast::<$operand>().add(part).write_unaligned(operand) };
            }
            #[inline(always)]
            fn unpack(self, block: &Self::Packed, part: usize) -> Self::Operand {
                const { assert!(size_of::<$operand>() * $parts == size_of::<Self::Packed>()) };
                assert!(part < $parts);
                // SAFETY: both are as many plain bits, as the lines above check.
                unsafe { (&raw const *block).cast::<$operand>().add(part).read_unaligned() }
            }
            #[inline(always)]
            fn multiply_add(self, sum: Self::Sum, w: Self::Operand, x: Self::Operand) -> Self::Sum {
                // SAFETY: `self` proves the instructions; memory is not touched.
                unsafe { $multiply_add(sum, w, x) }
            }
            $(
                #[inline(always)]
                fn multiply_add_normal(self, sum: Self::Sum, w: Self::Operand, x: Self::Operand) -> Self::Sum {
                    // SAFETY: `self` proves the instructions; memory is not touched.
                    unsafe { $normal(sum, w, x) }
                }
                const LOOKS_FOR_DENORMALS: bool = true;
            )?
            #[inline(always)]
            fn add_sums(self, a: Self::Sum, b: Self::Sum) -> Self::Sum {
                // SAFETY: `self` proves the instructions; memory is not touched.
                unsafe { $add_sums(a, b) }
            }
            #[inline(always)]
            fn add_rows<const R: usize, const T: usize>(
                self,
                sums: &mut [[Self::Sums; T]; R],
                w: [&[[$w; $b]]; R],
                x: [&[[$x; $b]]; T],
            ) {
                $crate::kernels::simd::instructions::either!(
                    $($add_rows)?,
                    $crate::kernels::simd::instructions::add_rows::<Self, $x, $w, $b, R, T>
                )(self, sums, w, x);
            }
            #[inline(always)]
            fn fold(self, sums: Self::Sums) -> $acc {
                // SAFETY: `self` proves the instructions; memory is not touched.
                unsafe { $fold(sums) }
            }
            $(
                #[inline(always)]
                fn fold_four(self, sums: [Self::Sums; 4]) -> [$acc; 4] {
                    // SAFETY: `self` proves the instructions; memory is not touched.
                    unsafe { $fold_four(sums) }
                }
            )?
            $(
                #[inline(always)]
                fn fold_square(self, sums: [[Self::Sums; 4]; 4]) -> [[$acc; 4]; 4] {
                    // SAFETY: `self` proves the instructions; memory is not touched.
                    unsafe { $fold_square(sums) }
                }
            )?
            $(
                #[inline(always)]
                fn add<const R: usize, const T: usize>(
                    self,
                    sums: &mut [[Self::Sums; T]; R],
                    w: &[Self::Packed],
                    x: &[Self::Packed],
                    ahead: $crate::kernels::simd::lanes::Prefetch,
                ) {
                    $add(self, sums, w, x, ahead);
                }
            )?
        }
    };
}

/// [`Lanes::add_rows`] for every instruction set.
#[inline(always)]
pub(super) fn add_rows<L, X, W, const B: usize, const R: usize, const T: usize>(
    lanes: L,
    sums: &mut [[L::Sums; T]; R],
    w: [&[[W; B]]; R],
    x: [&[[X; B]]; T],
) where
    L: Lanes<X, W, B>,
{
    let blocks = w[0].len();
    let fits = w.iter().all(|w| w.len() == blocks) && x.iter().all(|x| x.len() == blocks);
    assert!(fits, "as many blocks of each row and token");
    if const { T == 1 && L::ROW_AFTER_ROW && L::PARTS == 2 } {
        for (sums, w) in sums.iter_mut().zip(w) {
            // SAFETY: the assertion above: all of `w` and `x` have as many blocks.
            unsafe { add_rows_of_parts::<L, X, W, B, 1, T, 2>(lanes, from_mut(sums), [w], x, 0) };
        }
    } else if const { T == 1 && L::PARTS > 1 } {
        // One token's sums leave registers for two parts.
        for part in (0..L::PARTS).step_by(2) {
            // SAFETY: as above.
            unsafe { add_rows_of_parts::<L, X, W, B, R, T, 2>(lanes, sums, w, x, part) };
        }
    } else {
        for part in 0..L::PARTS {
            // SAFETY: as above.
            unsafe { add_rows_of_parts::<L, X, W, B, R, T, 1>(lanes, sums, w, x, part) };
            if const { L::PARTS > 1 } {
                // Without this the compiler keeps this part in registers that the next one needs.
                black_box(&mut *sums);
            }
        }
    }
}

/// [`add_rows`] for `P` parts from `first` on.
///
/// # Safety
///
/// All of `w` and `x` must have as many blocks.
#[inline(always)]
unsafe fn add_rows_of_parts<
    L,
    X,
    W,
    const B: usize,
    const R: usize,
    const T: usize,
    const P: usize,
>(
    lanes: L,
    sums: &mut [[L::Sums; T]; R],
    w: [&[[W; B]]; R],
    x: [&[[X; B]]; T],
    first: usize,
) where
    L: Lanes<X, W, B>,
{
    let mut partial: [[[L::Sum; P]; T]; R] =
        from_fn(|r| from_fn(|t| from_fn(|p| sums[r][t].as_ref()[first + p])));
    let tile_bytes = R * size_of_val(w[0]);
    let mut ahead = w[0]
        .as_ptr()
        .wrapping_byte_add(tile_bytes.max(PREFETCH_BYTES));
    for block in 0..w[0].len() {
        // A tile's rows lie one after the other, and memory is read fastest in order.
        if first == 0 {
            for line in (0..R * size_of::<[W; B]>()).step_by(CACHE_LINE) {
                lanes.prefetch_far(ahead.wrapping_byte_add(line));
            }
            ahead = ahead.wrapping_add(R);
        }
        for part in first..first + P {
            // Without closures, which would be compiled without the caller's instructions.
            // SAFETY: the caller promises that each has as many blocks as the first row. (Checked access
            // would stay in the loop.)
            let mut wide = [lanes.widen(unsafe { w[0].get_unchecked(block) }, part); R];
            for r in 1..R {
                // SAFETY: as above.
                wide[r] = lanes.widen(unsafe { w[r].get_unchecked(block) }, part);
            }
            for t in 0..T {
                // SAFETY: as above.
                let x = lanes.load(unsafe { x[t].get_unchecked(block) }, part);
                for r in 0..R {
                    let sum = &mut partial[r][t][part - first];
                    *sum = lanes.multiply_add(*sum, wide[r], x);
                }
            }
        }
    }
    for (sums, partial) in sums
        .as_flattened_mut()
        .iter_mut()
        .zip(partial.as_flattened())
    {
        sums.as_mut()[first..first + P].copy_from_slice(partial);
    }
}

/// [`Dequantise`](super::lanes::Dequantise) for one instruction set. `load` and `load_sixteen` are closures from
/// where bytes begin, `halves` is one over two times sixteen of them and their shifts; the others are closures over 32 bytes.
macro_rules! dequantise {
    ($name:ty, $bytes:ty, $(widen_f16: $widen_f16:expr, widen_four_f16: $widen_four_f16:expr,)? load: $load:expr, load_sixteen: $load_sixteen:expr, halves: $halves:expr,
     field: $field:expr, joined: $joined:expr, less: $less:expr, plus: $plus:expr, column: $column:expr, look_up: $look_up:expr,
     dequantise: $dequantise:expr $(, from_table: $from_table:expr)? $(,)?) => {
        impl $crate::tensor::quantised::ByteLanes for $name {
            type Bytes = $bytes;

            $(
                #[inline(always)]
                fn widen_f16(self, bytes: [u8; 2]) -> f32 {
                    // SAFETY: as for `field`.
                    unsafe { $widen_f16(bytes) }
                }
                #[inline(always)]
                fn widen_four_f16(self, four: [[u8; 2]; 4]) -> [f32; 4] {
                    // SAFETY: as for `field`.
                    unsafe { $widen_four_f16(four) }
                }
            )?
            #[inline(always)]
            fn load_bytes(self, bytes: &[u8; 32]) -> $bytes {
                // SAFETY: `self` proves the instructions; the load is an unaligned one and stays inside the array.
                unsafe { $load(bytes.as_ptr()) }
            }
            #[inline(always)]
            fn load_signed(self, bytes: &[i8; 32]) -> $bytes {
                // SAFETY: as for `load_bytes`.
                unsafe { $load(bytes.as_ptr().cast()) }
            }
            #[inline(always)]
            fn load_halves(self, halves: [&[u8; 16]; 2], shifts: [usize; 2]) -> $bytes {
                let [first, second] = halves;
                // SAFETY: as for `load_bytes`.
                unsafe { $halves($load_sixteen(first.as_ptr()), $load_sixteen(second.as_ptr()), shifts.map(|shift| shift as i32)) }
            }
            #[inline(always)]
            fn store_signed(self, bytes: $bytes) -> [i8; 32] {
                // SAFETY: both are 256 plain bits.
                unsafe { std::mem::transmute::<$bytes, [i8; 32]>(bytes) }
            }
            #[inline(always)]
            fn field(self, bytes: $bytes, shift: usize, mask: u8) -> $bytes {
                // SAFETY: `self` proves the instructions; memory is not touched.
                unsafe { $field(bytes, shift as i32, mask) }
            }
            #[inline(always)]
            fn joined(self, low: $bytes, high: $bytes, shift: usize) -> $bytes {
                // SAFETY: as for `field`.
                unsafe { $joined(low, high, shift as i32) }
            }
            #[inline(always)]
            fn less(self, bytes: $bytes, bias: i8) -> $bytes {
                // SAFETY: as for `field`.
                unsafe { $less(bytes, bias) }
            }
            #[inline(always)]
            fn plus(self, bytes: $bytes, bits: u32, more: i8) -> $bytes {
                // SAFETY: as for `field`.
                unsafe { $plus(bytes, bits, more) }
            }
            #[inline(always)]
            fn column(self, bytes: $bytes, bit: usize) -> u32 {
                // SAFETY: as for `field`.
                unsafe { $column(bytes, bit) }
            }
            #[inline(always)]
            fn look_up(self, table: &[i8; 16], indices: $bytes) -> $bytes {
                // SAFETY: as for `load_bytes`.
                unsafe { $look_up($load_sixteen(table.as_ptr().cast()), indices) }
            }
        }

        impl $crate::kernels::simd::lanes::Dequantise for $name {
            #[inline(always)]
            fn dequantise(
                self,
                quants: $bytes,
                half: usize,
                part: usize,
                scale: f32,
                offset: f32,
            ) -> <Self as $crate::kernels::simd::lanes::Lanes<f32, f32, 16>>::Operand {
                // SAFETY: as for `field`.
                unsafe { $dequantise(quants, half, part, scale, offset) }
            }
            $(
                #[inline(always)]
                fn weights(
                    self,
                    quants: $crate::tensor::quantised::Quants<'_, Self>,
                    part: usize,
                    factors: &$crate::kernels::simd::lanes::HeldFactors,
                ) -> [<Self as $crate::kernels::simd::lanes::Lanes<f32, f32, 16>>::Operand; 2] {
                    match quants {
                        // SAFETY: as for `load_bytes`.
                        $crate::tensor::quantised::Quants::Codes(codes) => unsafe { $from_table(codes, factors) },
                        quants => self.widened(quants, part, factors),
                    }
                }
            )?
        }
    };
}

/// The first type, or the second one where there is no first.
macro_rules! either {
    (, $($default:tt)+) => {
        $($default)+
    };
    ($given:tt, $($default:tt)+) => {
        $given
    };
}

pub(super) use {dequantise, either, instructions, lanes};
