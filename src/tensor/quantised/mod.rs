//! What the numbers of ggml's quantised types are.
//!
//! A block of 32 or 256 numbers has small integers, and factors in f16. Whatever the type, 16 neighbours share a scale and an
//! offset, and a number is scale · q + offset: [`Block`] brings every type to this form.
//!
//! A scale has at most 18 bits, the product with q at most 23 (f16 has 11, q of Q8_0 and IQ4 7 more, and so on): scale · q is
//! exact in f32, whatever the order of the factors, and so the f32 number is the exact one rounded once, with or without
//! contraction. In f64 the sum is exact too: all terms are multiples of 2⁻²⁴ below 2²⁸.

mod byte_lanes;
mod legacy;
mod quantise;
mod superblocks;

pub(crate) use byte_lanes::{ByteLanes, Plain};
pub(crate) use legacy::{Iq4Nl, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
pub(crate) use quantise::quantise;
pub(crate) use superblocks::{Iq4Xs, Q2K, Q3K, Q4K, Q5K, Q6K};

use super::{Element, Storage};

/// A block as it is stored; its layout is ggml's. A number is scale · q + offset.
pub(crate) trait Block: bytemuck::Pod {
    /// How many numbers it has.
    const NUMBERS: usize;
    /// The scales, or the offsets, of all numbers: an array with one for each 32, or for each 16.
    type Factors: AsRef<[f32]> + Copy + Default;
    /// How many [`Factors`](Self::Factors) has for each 32 numbers.
    const FACTORS: usize;
    /// Whether the type has offsets.
    const OFFSETS: bool;

    /// The f16 that is a factor of all scales, and that of all offsets, 0 where the type has none.
    fn f16s(&self) -> [[u8; 2]; 2];
    /// The scales, whose factor is `d`.
    fn scales(&self, d: f32) -> Self::Factors;
    /// The offsets, whose factor is `m`: −0 where the type has none, which adds nothing, not even to a zero's sign.
    fn offsets(&self, m: f32) -> Self::Factors;
    /// The integers of the `i`th 32 numbers.
    fn quants<L: ByteLanes>(&self, lanes: L, i: usize) -> Quants<'_, L>;

    /// The scales and the offsets.
    #[inline(always)]
    fn factors(&self, lanes: impl ByteLanes) -> [Self::Factors; 2] {
        let [d, m] = self.f16s();
        [
            self.scales(lanes.widen_f16(d)),
            self.offsets(lanes.widen_f16(m)),
        ]
    }
}

/// The integers q of 32 numbers.
pub(crate) enum Quants<'a, L: ByteLanes> {
    /// As signed bytes.
    Bytes(L::Bytes),
    /// As codes, of which all 32 have the same scale and offset.
    Codes(Codes<'a>),
}

/// Integers that four bits stand for, or four bits and a fifth one.
pub(crate) struct Codes<'a> {
    /// What each four bits stand for.
    pub(crate) levels: [i8; 16],
    /// The bytes that have the four bits of each half.
    pub(crate) bytes: [&'a [u8; 16]; 2],
    /// The lowest of them.
    pub(crate) shifts: [usize; 2],
    /// Where the type has a fifth bit: the numbers that are 16 more.
    pub(crate) fifth: Option<u32>,
}

impl<L: ByteLanes> Quants<'_, L> {
    /// Whether they are codes, which have one scale and one offset.
    #[inline(always)]
    pub(crate) fn are_codes(&self) -> bool {
        matches!(self, Self::Codes(_))
    }

    /// Whether they are codes with a fifth bit.
    #[inline(always)]
    pub(crate) fn have_fifth(&self) -> bool {
        matches!(self, Self::Codes(Codes { fifth: Some(_), .. }))
    }

    /// As signed bytes.
    #[inline(always)]
    pub(crate) fn bytes(self, lanes: L) -> L::Bytes {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Codes(codes) => codes.bytes(lanes),
        }
    }
}

impl Codes<'_> {
    /// The integers.
    #[inline(always)]
    fn bytes<L: ByteLanes>(self, lanes: L) -> L::Bytes {
        let codes = lanes.field(lanes.load_halves(self.bytes, self.shifts), 0, 15);
        let quants = lanes.look_up(&self.levels, codes);
        match self.fifth {
            Some(fifth) => lanes.plus(quants, fifth, 16),
            None => quants,
        }
    }
}

/// Calls `$function::<$type, the type of a block>`, or has `$plain` for a type that is not quantised.
macro_rules! by_block {
    ($storage:expr, $function:ident $(::<$type:ty>)? ($($argument:expr),*), $plain:expr) => {
        match $storage {
            $crate::tensor::Storage::F64
            | $crate::tensor::Storage::F32
            | $crate::tensor::Storage::F16
            | $crate::tensor::Storage::Bf16 => $plain,
            $crate::tensor::Storage::Q4_0 => $function::<$($type,)? $crate::tensor::quantised::Q4_0>($($argument),*),
            $crate::tensor::Storage::Q4_1 => $function::<$($type,)? $crate::tensor::quantised::Q4_1>($($argument),*),
            $crate::tensor::Storage::Q5_0 => $function::<$($type,)? $crate::tensor::quantised::Q5_0>($($argument),*),
            $crate::tensor::Storage::Q5_1 => $function::<$($type,)? $crate::tensor::quantised::Q5_1>($($argument),*),
            $crate::tensor::Storage::Q8_0 => $function::<$($type,)? $crate::tensor::quantised::Q8_0>($($argument),*),
            $crate::tensor::Storage::Q2K => $function::<$($type,)? $crate::tensor::quantised::Q2K>($($argument),*),
            $crate::tensor::Storage::Q3K => $function::<$($type,)? $crate::tensor::quantised::Q3K>($($argument),*),
            $crate::tensor::Storage::Q4K => $function::<$($type,)? $crate::tensor::quantised::Q4K>($($argument),*),
            $crate::tensor::Storage::Q5K => $function::<$($type,)? $crate::tensor::quantised::Q5K>($($argument),*),
            $crate::tensor::Storage::Q6K => $function::<$($type,)? $crate::tensor::quantised::Q6K>($($argument),*),
            $crate::tensor::Storage::Iq4Nl => $function::<$($type,)? $crate::tensor::quantised::Iq4Nl>($($argument),*),
            $crate::tensor::Storage::Iq4Xs => $function::<$($type,)? $crate::tensor::quantised::Iq4Xs>($($argument),*),
        }
    };
}
pub(crate) use by_block;

/// Converts whole blocks of a quantised type into `out`: exactly in f64, rounded once to f32, and that to bf16.
///
/// # Panics
///
/// Where `storage` is not quantised, or `out` is not as long as the blocks.
#[inline(always)]
pub(crate) fn decode<E: Element>(
    lanes: impl ByteLanes,
    storage: Storage,
    bytes: &[u8],
    out: &mut [E],
) {
    by_block!(
        storage,
        decode_blocks::<E>(lanes, bytes, out),
        unreachable!("{storage} has no blocks")
    );
}

/// [`decode`] for one type of blocks.
#[inline(always)]
fn decode_blocks<E: Element, B: Block>(lanes: impl ByteLanes, bytes: &[u8], out: &mut [E]) {
    let blocks: &[B] = bytemuck::cast_slice(bytes);
    let (out, rest) = out.as_chunks_mut::<32>();
    let per_block = B::NUMBERS / 32;
    assert!(
        out.len() == blocks.len() * per_block && rest.is_empty(),
        "as many numbers as the blocks have"
    );
    for (block, out) in blocks.iter().zip(out.chunks_exact_mut(per_block)) {
        let [scales, offsets] = block.factors(lanes);
        for (i, out) in out.iter_mut().enumerate() {
            let quants = lanes.store_signed(block.quants(lanes, i).bytes(lanes));
            let (groups, _) = out.as_chunks_mut::<16>();
            for (g, out) in groups.iter_mut().enumerate() {
                let factor = (2 * i + g) * B::FACTORS / 2;
                let factors = [scales.as_ref()[factor], offsets.as_ref()[factor]];
                let [scale, offset] = factors.map(E::Acc::from_f32);
                for (out, q) in out.iter_mut().zip(&quants[16 * g..][..16]) {
                    *out = E::round(scale * E::Acc::from_f32((*q).into()) + offset);
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
