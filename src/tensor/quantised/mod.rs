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
mod superblocks;

pub(crate) use byte_lanes::{ByteLanes, Plain};
pub(crate) use legacy::{Iq4Nl, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
pub(crate) use superblocks::{Iq4Xs, Q2K, Q3K, Q4K, Q5K, Q6K};

use super::{Element, Storage};

/// The scales, or the offsets, of 32 numbers: of the first 16 and of the others.
pub(crate) type Factors = [f32; 2];

/// A block as it is stored; its layout is ggml's. A number is scale · q + offset.
pub(crate) trait Block: bytemuck::Pod {
    /// How many numbers it has.
    const NUMBERS: usize;
    /// [`Factors`] for each 32 numbers, as an array.
    type Factors: AsRef<[Factors]> + Copy + Default;

    /// The scales.
    fn scales(&self, lanes: impl ByteLanes) -> Self::Factors;
    /// The offsets, −0 where the type has none: what adds nothing, not even to a zero's sign.
    fn offsets(&self, lanes: impl ByteLanes) -> Self::Factors;
    /// The integers of the `i`th 32 numbers, signed bytes.
    fn quants<L: ByteLanes>(&self, lanes: L, i: usize) -> [L::Bytes; 2];
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
        let (scales, offsets) = (block.scales(lanes), block.offsets(lanes));
        let factors = scales.as_ref().iter().zip(offsets.as_ref());
        for (i, ((scales, offsets), out)) in factors.zip(out).enumerate() {
            let quants = block.quants(lanes, i);
            let (groups, _) = out.as_chunks_mut::<16>();
            for (g, out) in groups.iter_mut().enumerate() {
                let [scale, offset] = [scales[g], offsets[g]].map(E::Acc::from_f32);
                for (out, q) in out.iter_mut().zip(lanes.store_signed(quants[g])) {
                    *out = E::round(scale * E::Acc::from_f32(q.into()) + offset);
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
