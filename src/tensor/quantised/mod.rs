//! What the numbers of ggml's quantised types are.
//!
//! A block of 32 or 256 numbers has small integers, and factors in f16. Whatever the type, 16 neighbours share a scale and an
//! offset, and a number is scale · q + offset: see [`Group`]. [`Block::unpack`] brings every type to this form.
//!
//! A scale has at most 18 bits, the product with q at most 23 (f16 has 11, q of Q8_0 and IQ4 7 more, and so on): scale · q is
//! exact in f32, whatever the order of the factors, and so the f32 number is the exact one rounded once, with or without
//! contraction. In f64 the sum is exact too: all terms are multiples of 2⁻²⁴ below 2²⁸.

mod legacy;
mod superblocks;

use legacy::{Iq4Nl, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use superblocks::{Iq4Xs, Q2K, Q3K, Q4K, Q5K, Q6K};

use super::{Element, Storage};

/// Sixteen numbers: scale · q + offset for each q.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Group {
    pub(crate) scale: f32,
    /// −0 where the type has none: what adds nothing, not even to a zero's sign.
    pub(crate) offset: f32,
    pub(crate) quants: [i8; Self::NUMBERS],
}

impl Group {
    /// How many numbers it has.
    pub(crate) const NUMBERS: usize = 16;

    /// Two groups of one scale and offset.
    #[inline(always)]
    fn two(scale: f32, offset: f32, quants: [i8; 32]) -> [Self; 2] {
        Self::pair([scale; 2], [offset; 2], quants)
    }

    /// Two groups of a scale and an offset each.
    #[inline(always)]
    fn pair(scales: [f32; 2], offsets: [f32; 2], quants: [i8; 32]) -> [Self; 2] {
        let [mut first, mut second] = [Self::default(), Self::default()];
        (first.scale, second.scale) = (scales[0], scales[1]);
        (first.offset, second.offset) = (offsets[0], offsets[1]);
        first.quants.copy_from_slice(&quants[..Self::NUMBERS]);
        second.quants.copy_from_slice(&quants[Self::NUMBERS..]);
        [first, second]
    }

    /// The numbers in a compute type: exactly in f64, rounded once to f32, and that to bf16.
    #[inline(always)]
    pub(crate) fn numbers<E: Element>(&self, out: &mut [E; Self::NUMBERS]) {
        let [scale, offset] = [self.scale, self.offset].map(E::Acc::from_f32);
        for (out, &q) in out.iter_mut().zip(&self.quants) {
            *out = E::round(scale * E::Acc::from_f32(q.into()) + offset);
        }
    }
}

/// A block as it is stored, of `GROUPS` times 16 numbers. Its layout is ggml's.
pub(crate) trait Block<const GROUPS: usize>: bytemuck::Pod {
    /// Its numbers, in order.
    fn unpack(&self, groups: &mut [Group; GROUPS]);
}

/// Calls `$function::<the type of a block, its groups>`, or has `$plain` for a type that is not quantised.
macro_rules! by_block {
    ($storage:expr, $function:ident($($argument:expr),*), $plain:expr) => {
        match $storage {
            Storage::F64 | Storage::F32 | Storage::F16 | Storage::Bf16 => $plain,
            Storage::Q4_0 => $function::<Q4_0, 2>($($argument),*),
            Storage::Q4_1 => $function::<Q4_1, 2>($($argument),*),
            Storage::Q5_0 => $function::<Q5_0, 2>($($argument),*),
            Storage::Q5_1 => $function::<Q5_1, 2>($($argument),*),
            Storage::Q8_0 => $function::<Q8_0, 2>($($argument),*),
            Storage::Iq4Nl => $function::<Iq4Nl, 2>($($argument),*),
            Storage::Q2K => $function::<Q2K, 16>($($argument),*),
            Storage::Q3K => $function::<Q3K, 16>($($argument),*),
            Storage::Q4K => $function::<Q4K, 16>($($argument),*),
            Storage::Q5K => $function::<Q5K, 16>($($argument),*),
            Storage::Q6K => $function::<Q6K, 16>($($argument),*),
            Storage::Iq4Xs => $function::<Iq4Xs, 16>($($argument),*),
        }
    };
}

/// Converts whole blocks of a quantised type into `out`, as [`Group::numbers`] does.
///
/// # Panics
///
/// Where `storage` is not quantised, or `out` is not as long as the blocks.
#[inline(always)]
pub(crate) fn decode<E: Element>(storage: Storage, bytes: &[u8], out: &mut [E]) {
    by_block!(
        storage,
        decode_blocks(bytes, out),
        unreachable!("{storage} has no blocks")
    );
}

#[inline(always)]
fn decode_blocks<B: Block<GROUPS>, const GROUPS: usize>(bytes: &[u8], out: &mut [impl Element]) {
    let blocks: &[B] = bytemuck::cast_slice(bytes);
    let (out, _) = out.as_chunks_mut::<{ Group::NUMBERS }>();
    let (out, rest) = out.as_chunks_mut::<GROUPS>();
    assert!(
        out.len() == blocks.len() && rest.is_empty(),
        "as many numbers as the blocks have"
    );
    let mut groups = [Group::default(); GROUPS];
    for (block, out) in blocks.iter().zip(out) {
        block.unpack(&mut groups);
        for (group, out) in groups.iter().zip(out) {
            group.numbers(out);
        }
    }
}

/// An f16 widened: what `f16::to_f32` gives, but without asking what the processor has, so that it is inlined.
#[inline(always)]
fn widened(bytes: [u8; 2]) -> f32 {
    let bits = u32::from(u16::from_le_bytes(bytes));
    let magnitude = (bits & 0x7fff) << 13;
    // The exponents' biases differ by 112; multiplication normalises what is denormal.
    let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    let not_finite = magnitude | 0x7f80_0000;
    let magnitude = if magnitude < 0x7c00 << 13 {
        finite
    } else {
        not_finite
    };
    f32::from_bits(magnitude | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests;
