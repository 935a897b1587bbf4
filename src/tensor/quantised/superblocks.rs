//! Blocks of 256 numbers, whose groups have small integers as scales of their own, times a factor of the block.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};

use super::legacy::{IQ4, nibbles};
use super::{Block, Group, widened};

/// 2 bits: d s q − dmin m; a byte of `scales` has s and above it m, of 16 numbers.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Q2K {
    scales: [u8; 16],
    q: [u8; 64],
    d: [u8; 2],
    dmin: [u8; 2],
}

/// 3 bits: d (s − 32) (q − 4); `high` has the third bits, and `scales` a scale for each 16 numbers, whose 4 low bits come first.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Q3K {
    high: [u8; 32],
    q: [u8; 64],
    scales: [u8; 12],
    d: [u8; 2],
}

/// 4 bits: d s q − dmin m; `scales` has 6 bits of s and of m for each 32 numbers.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Q4K {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    q: [u8; 128],
}

/// As [`Q4K`] with a fifth bit in `high`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Q5K {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    high: [u8; 32],
    q: [u8; 128],
}

/// 6 bits: d s (q − 32); `high` has the upper two, `scales` a scale for each 16 numbers.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Q6K {
    q: [u8; 128],
    high: [u8; 64],
    scales: [i8; 16],
    d: [u8; 2],
}

/// d (s − 32) times what 4 bits stand for; s has 6 bits for each 32 numbers, of which `scales_high` has the upper two.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Iq4Xs {
    d: [u8; 2],
    scales_high: [u8; 2],
    scales_low: [u8; 4],
    q: [u8; 128],
}

impl Block<16> for Q2K {
    #[inline(always)]
    fn unpack(&self, groups: &mut [Group; 16]) {
        let (d, dmin) = (widened(self.d), widened(self.dmin));
        let (scales, _) = self.scales.as_chunks::<2>();
        let (pairs, _) = groups.as_chunks_mut::<2>();
        for (i, (pair, scales)) in pairs.iter_mut().zip(scales).enumerate() {
            let bytes = half(&self.q, i / 4);
            let q = from_fn(|n| (bytes[n] >> (2 * (i % 4)) & 3) as i8);
            let [s, m] = [scales.map(|b| b & 15), scales.map(|b| b >> 4)];
            *pair = Group::pair(
                s.map(|s| d * f32::from(s)),
                m.map(|m| -(dmin * f32::from(m))),
                q,
            );
        }
    }
}

impl Block<16> for Q3K {
    #[inline(always)]
    fn unpack(&self, groups: &mut [Group; 16]) {
        let d = widened(self.d);
        let (low, high) = self.scales.split_at(8);
        let scales: [f32; 16] = from_fn(|i| {
            let low = low[i % 8] >> (4 * (i / 8)) & 15;
            let high = high[i % 4] >> (2 * (i / 4)) & 3;
            d * f32::from((low | high << 4) as i8 - 32)
        });
        let (scales, _) = scales.as_chunks::<2>();
        let (pairs, _) = groups.as_chunks_mut::<2>();
        for (i, (pair, scales)) in pairs.iter_mut().zip(scales).enumerate() {
            let bytes = half(&self.q, i / 4);
            let q = from_fn(|n| {
                let (low, high) = (bytes[n] >> (2 * (i % 4)) & 3, self.high[n] >> i & 1);
                (low | high << 2) as i8 - 4
            });
            *pair = Group::pair(*scales, [-0.0; 2], q);
        }
    }
}

impl Block<16> for Q4K {
    #[inline(always)]
    fn unpack(&self, groups: &mut [Group; 16]) {
        let (scales, offsets) = scales_and_offsets(self.d, self.dmin, &self.scales);
        let (pairs, _) = groups.as_chunks_mut::<2>();
        for (i, pair) in pairs.iter_mut().enumerate() {
            let bytes = half(&self.q, i / 2);
            let q = from_fn(|n| (bytes[n] >> (4 * (i % 2)) & 15) as i8);
            *pair = Group::two(scales[i], offsets[i], q);
        }
    }
}

impl Block<16> for Q5K {
    #[inline(always)]
    fn unpack(&self, groups: &mut [Group; 16]) {
        let (scales, offsets) = scales_and_offsets(self.d, self.dmin, &self.scales);
        let (pairs, _) = groups.as_chunks_mut::<2>();
        for (i, pair) in pairs.iter_mut().enumerate() {
            let bytes = half(&self.q, i / 2);
            let q = from_fn(|n| {
                let (low, high) = (bytes[n] >> (4 * (i % 2)) & 15, self.high[n] >> i & 1);
                (low | high << 4) as i8
            });
            *pair = Group::two(scales[i], offsets[i], q);
        }
    }
}

impl Block<16> for Q6K {
    #[inline(always)]
    fn unpack(&self, groups: &mut [Group; 16]) {
        let d = widened(self.d);
        let scales = self.scales.map(|s| d * f32::from(s));
        let (scales, _) = scales.as_chunks::<2>();
        let (pairs, _) = groups.as_chunks_mut::<2>();
        for (i, (pair, scales)) in pairs.iter_mut().zip(scales).enumerate() {
            // Of each half 64 bytes: the low nibbles of 32 and of 32 more, then the high ones.
            let (low, high) = (half(&self.q, i / 4 * 2 + i % 2), half(&self.high, i / 4));
            let q = from_fn(|n| {
                let low = low[n] >> (i % 4 / 2 * 4) & 15;
                let high = high[n] >> (2 * (i % 4)) & 3;
                (low | high << 4) as i8 - 32
            });
            *pair = Group::pair(*scales, [-0.0; 2], q);
        }
    }
}

impl Block<16> for Iq4Xs {
    #[inline(always)]
    fn unpack(&self, groups: &mut [Group; 16]) {
        let d = widened(self.d);
        let (bytes, _) = self.q.as_chunks::<16>();
        let (pairs, _) = groups.as_chunks_mut::<2>();
        for (i, (pair, bytes)) in pairs.iter_mut().zip(bytes).enumerate() {
            let low = self.scales_low[i / 2] >> (4 * (i % 2)) & 15;
            let high = self.scales_high[i / 4] >> (2 * (i % 4)) & 3;
            let scale = d * f32::from((low | high << 4) as i8 - 32);
            *pair = Group::two(scale, -0.0, nibbles(bytes).map(|q| IQ4[usize::from(q)]));
        }
    }
}

/// The `i`th 32 bytes.
#[inline(always)]
fn half<const N: usize>(bytes: &[u8; N], i: usize) -> &[u8; 32] {
    &bytes.as_chunks().0[i]
}

/// d s and −(dmin m) of each 32 numbers. Of the bytes, four have s and four m of the first half in their 6 low bits and, above
/// them, two bits of the second half, whose four low bits are in the last four.
#[inline(always)]
fn scales_and_offsets(d: [u8; 2], dmin: [u8; 2], bytes: &[u8; 12]) -> ([f32; 8], [f32; 8]) {
    let (d, dmin) = (widened(d), widened(dmin));
    let integer = |first: usize, shift: usize, i: usize| match i {
        0..4 => bytes[first + i] & 63,
        _ => bytes[4 + i] >> shift & 15 | bytes[first + i - 4] >> 6 << 4,
    };
    (
        from_fn(|i| d * f32::from(integer(0, 0, i))),
        from_fn(|i| -(dmin * f32::from(integer(4, 4, i)))),
    )
}
