//! Blocks of 32 numbers, with one scale.

use bytemuck::{Pod, Zeroable};

use super::{Block, ByteLanes, Factors};

/// The numbers that the 4 bits of IQ4_NL and IQ4_XS stand for.
const IQ4: [i8; 16] = [
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
    q: [[i8; 16]; 2],
}

/// d times what q stands for.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Iq4Nl {
    d: [u8; 2],
    q: [u8; 16],
}

impl Block for Q4_0 {
    const NUMBERS: usize = 32;
    type Factors = [Factors; 1];

    #[inline(always)]
    fn scales(&self, lanes: impl ByteLanes) -> [Factors; 1] {
        [[lanes.widen_f16(self.d); 2]]
    }
    #[inline(always)]
    fn offsets(&self, _: impl ByteLanes) -> [Factors; 1] {
        [[-0.0; 2]]
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, lanes: L, _: usize) -> [L::Bytes; 2] {
        less(lanes, nibbles(lanes, &self.q), 8)
    }
}

impl Block for Q4_1 {
    const NUMBERS: usize = 32;
    type Factors = [Factors; 1];

    #[inline(always)]
    fn scales(&self, lanes: impl ByteLanes) -> [Factors; 1] {
        [[lanes.widen_f16(self.d); 2]]
    }
    #[inline(always)]
    fn offsets(&self, lanes: impl ByteLanes) -> [Factors; 1] {
        [[lanes.widen_f16(self.m); 2]]
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, lanes: L, _: usize) -> [L::Bytes; 2] {
        nibbles(lanes, &self.q)
    }
}

impl Block for Q5_0 {
    const NUMBERS: usize = 32;
    type Factors = [Factors; 1];

    #[inline(always)]
    fn scales(&self, lanes: impl ByteLanes) -> [Factors; 1] {
        [[lanes.widen_f16(self.d); 2]]
    }
    #[inline(always)]
    fn offsets(&self, _: impl ByteLanes) -> [Factors; 1] {
        [[-0.0; 2]]
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, lanes: L, _: usize) -> [L::Bytes; 2] {
        less(lanes, five_bits(lanes, &self.q, self.high), 16)
    }
}

impl Block for Q5_1 {
    const NUMBERS: usize = 32;
    type Factors = [Factors; 1];

    #[inline(always)]
    fn scales(&self, lanes: impl ByteLanes) -> [Factors; 1] {
        [[lanes.widen_f16(self.d); 2]]
    }
    #[inline(always)]
    fn offsets(&self, lanes: impl ByteLanes) -> [Factors; 1] {
        [[lanes.widen_f16(self.m); 2]]
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, lanes: L, _: usize) -> [L::Bytes; 2] {
        five_bits(lanes, &self.q, self.high)
    }
}

impl Block for Q8_0 {
    const NUMBERS: usize = 32;
    type Factors = [Factors; 1];

    #[inline(always)]
    fn scales(&self, lanes: impl ByteLanes) -> [Factors; 1] {
        [[lanes.widen_f16(self.d); 2]]
    }
    #[inline(always)]
    fn offsets(&self, _: impl ByteLanes) -> [Factors; 1] {
        [[-0.0; 2]]
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, lanes: L, _: usize) -> [L::Bytes; 2] {
        [lanes.load_signed(&self.q[0]), lanes.load_signed(&self.q[1])]
    }
}

impl Block for Iq4Nl {
    const NUMBERS: usize = 32;
    type Factors = [Factors; 1];

    #[inline(always)]
    fn scales(&self, lanes: impl ByteLanes) -> [Factors; 1] {
        [[lanes.widen_f16(self.d); 2]]
    }
    #[inline(always)]
    fn offsets(&self, _: impl ByteLanes) -> [Factors; 1] {
        [[-0.0; 2]]
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, lanes: L, _: usize) -> [L::Bytes; 2] {
        steps(lanes, nibbles(lanes, &self.q))
    }
}

/// The low halves of 16 bytes, and then the high ones.
#[inline(always)]
pub(super) fn nibbles<L: ByteLanes>(lanes: L, bytes: &[u8; 16]) -> [L::Bytes; 2] {
    let bytes = lanes.load_bytes(bytes);
    [lanes.field(bytes, 0, 15), lanes.field(bytes, 4, 15)]
}

/// [`nibbles`] with a fifth bit each.
#[inline(always)]
fn five_bits<L: ByteLanes>(lanes: L, bytes: &[u8; 16], high: [u8; 4]) -> [L::Bytes; 2] {
    let [low, upper] = nibbles(lanes, bytes);
    let [a, b, c, d] = high;
    let (first, second) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    [
        lanes.joined(low, lanes.spread(first), 4),
        lanes.joined(upper, lanes.spread(second), 4),
    ]
}

/// Each number less `bias`.
#[inline(always)]
pub(super) fn less<L: ByteLanes>(lanes: L, q: [L::Bytes; 2], bias: i8) -> [L::Bytes; 2] {
    [lanes.less(q[0], bias), lanes.less(q[1], bias)]
}

/// What 4 bits stand for in IQ4_NL and IQ4_XS.
#[inline(always)]
pub(super) fn steps<L: ByteLanes>(lanes: L, q: [L::Bytes; 2]) -> [L::Bytes; 2] {
    [lanes.look_up(&IQ4, q[0]), lanes.look_up(&IQ4, q[1])]
}
