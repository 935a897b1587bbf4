//! Blocks of 32 numbers, with one scale.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};

use super::{Block, Group, widened};

/// The numbers that the 4 bits of IQ4_NL and IQ4_XS stand for.
pub(super) const IQ4: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// (q − 8) d.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Q4_0 {
    d: [u8; 2],
    q: [u8; 16],
}

/// q d + m.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Q4_1 {
    d: [u8; 2],
    m: [u8; 2],
    q: [u8; 16],
}

/// (q − 16) d; `high` has the fifth bits.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Q5_0 {
    d: [u8; 2],
    high: [u8; 4],
    q: [u8; 16],
}

/// q d + m; `high` has the fifth bits.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Q5_1 {
    d: [u8; 2],
    m: [u8; 2],
    high: [u8; 4],
    q: [u8; 16],
}

/// q d.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Q8_0 {
    d: [u8; 2],
    q: [i8; 32],
}

/// d times what q stands for.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Iq4Nl {
    d: [u8; 2],
    q: [u8; 16],
}

impl Block<2> for Q4_0 {
    #[inline(always)]
    fn unpack(&self, groups: &mut [Group; 2]) {
        let q = nibbles(&self.q).map(|q| q as i8 - 8);
        *groups = Group::two(widened(self.d), -0.0, q);
    }
}

impl Block<2> for Q4_1 {
    #[inline(always)]
    fn unpack(&self, groups: &mut [Group; 2]) {
        let q = nibbles(&self.q).map(|q| q as i8);
        *groups = Group::two(widened(self.d), widened(self.m), q);
    }
}

impl Block<2> for Q5_0 {
    #[inline(always)]
    fn unpack(&self, groups: &mut [Group; 2]) {
        let q = five_bits(&self.q, self.high).map(|q| q as i8 - 16);
        *groups = Group::two(widened(self.d), -0.0, q);
    }
}

impl Block<2> for Q5_1 {
    #[inline(always)]
    fn unpack(&self, groups: &mut [Group; 2]) {
        let q = five_bits(&self.q, self.high).map(|q| q as i8);
        *groups = Group::two(widened(self.d), widened(self.m), q);
    }
}

impl Block<2> for Q8_0 {
    #[inline(always)]
    fn unpack(&self, groups: &mut [Group; 2]) {
        *groups = Group::two(widened(self.d), -0.0, self.q);
    }
}

impl Block<2> for Iq4Nl {
    #[inline(always)]
    fn unpack(&self, groups: &mut [Group; 2]) {
        let q = nibbles(&self.q).map(|q| IQ4[usize::from(q)]);
        *groups = Group::two(widened(self.d), -0.0, q);
    }
}

/// The low halves of 16 bytes, and then the high ones.
#[inline(always)]
pub(super) fn nibbles(bytes: &[u8; 16]) -> [u8; 32] {
    let mut q = [0; 32];
    let (low, high) = q.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
    q
}

/// [`nibbles`] with a fifth bit each.
#[inline(always)]
fn five_bits(bytes: &[u8; 16], high: [u8; 4]) -> [u8; 32] {
    let (low, high) = (nibbles(bytes), u32::from_le_bytes(high));
    from_fn(|i| low[i] | if high & 1 << i == 0 { 0 } else { 16 })
}
