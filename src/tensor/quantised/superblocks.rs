//! Blocks of 256 numbers, whose groups have small integers as scales of their own, times a factor of the block.

use bytemuck::{Pod, Zeroable};

use super::legacy::{CODES, IQ4, nibbles};
use super::{Block, ByteLanes, Codes, Quants};

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

impl Block for Q2K {
    const NUMBERS: usize = 256;
    type Factors = [f32; 16];
    const FACTORS: usize = 2;
    const OFFSETS: bool = true;

    #[inline(always)]
    fn scales(&self, lanes: impl ByteLanes) -> [f32; 16] {
        let s = self.scales.map(|b| b & 15);
        times(lanes.widen_f16(self.d), s.map(|s| s as i8))
    }
    #[inline(always)]
    fn offsets(&self, lanes: impl ByteLanes) -> [f32; 16] {
        let m = self.scales.map(|b| b >> 4);
        times(-lanes.widen_f16(self.dmin), m.map(|m| m as i8))
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, lanes: L, i: usize) -> Quants<'_, L> {
        Quants::Bytes(bits(lanes, thirty_two(&self.q, i / 4), 2 * (i % 4), 3))
    }
}

impl Block for Q3K {
    const NUMBERS: usize = 256;
    type Factors = [f32; 16];
    const FACTORS: usize = 2;
    const OFFSETS: bool = false;

    #[inline(always)]
    fn scales(&self, lanes: impl ByteLanes) -> [f32; 16] {
        let [a, b, high] = words(&self.scales);
        // Four scales: their low bits, and the `i`th pair of bits of the last word's bytes above them.
        let four = |low: u32, i: u32| {
            let scales = low & 0x0f0f_0f0f | (high >> (2 * i) & 0x0303_0303) << 4;
            scales.to_le_bytes().map(|s| s as i8 - 32)
        };
        let s = bytemuck::cast([four(a, 0), four(b, 1), four(a >> 4, 2), four(b >> 4, 3)]);
        times(lanes.widen_f16(self.d), s)
    }
    #[inline(always)]
    fn offsets(&self, _: impl ByteLanes) -> [f32; 16] {
        [-0.0; 16]
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, lanes: L, i: usize) -> Quants<'_, L> {
        let low = bits(lanes, thirty_two(&self.q, i / 4), 2 * (i % 4), 3);
        let q = lanes.joined(low, bits(lanes, &self.high, i, 1), 2);
        Quants::Bytes(lanes.less(q, 4))
    }
}

impl Block for Q4K {
    const NUMBERS: usize = 256;
    type Factors = [f32; 8];
    const FACTORS: usize = 1;
    const OFFSETS: bool = true;

    #[inline(always)]
    fn scales(&self, lanes: impl ByteLanes) -> [f32; 8] {
        times(lanes.widen_f16(self.d), six_bits(&self.scales)[0])
    }
    #[inline(always)]
    fn offsets(&self, lanes: impl ByteLanes) -> [f32; 8] {
        times(-lanes.widen_f16(self.dmin), six_bits(&self.scales)[1])
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, _: L, i: usize) -> Quants<'_, L> {
        codes(&self.q, i, None)
    }
}

impl Block for Q5K {
    const NUMBERS: usize = 256;
    type Factors = [f32; 8];
    const FACTORS: usize = 1;
    const OFFSETS: bool = true;

    #[inline(always)]
    fn scales(&self, lanes: impl ByteLanes) -> [f32; 8] {
        times(lanes.widen_f16(self.d), six_bits(&self.scales)[0])
    }
    #[inline(always)]
    fn offsets(&self, lanes: impl ByteLanes) -> [f32; 8] {
        times(-lanes.widen_f16(self.dmin), six_bits(&self.scales)[1])
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, lanes: L, i: usize) -> Quants<'_, L> {
        let fifth = lanes.column(lanes.load_bytes(&self.high), i);
        codes(&self.q, i, Some(fifth))
    }
}

impl Block for Q6K {
    const NUMBERS: usize = 256;
    type Factors = [f32; 16];
    const FACTORS: usize = 2;
    const OFFSETS: bool = false;

    #[inline(always)]
    fn scales(&self, lanes: impl ByteLanes) -> [f32; 16] {
        times(lanes.widen_f16(self.d), self.scales)
    }
    #[inline(always)]
    fn offsets(&self, _: impl ByteLanes) -> [f32; 16] {
        [-0.0; 16]
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, lanes: L, i: usize) -> Quants<'_, L> {
        // Of each half 64 bytes: the low nibbles of 32 and of 32 more, then the high ones.
        let low = bits(
            lanes,
            thirty_two(&self.q, i / 4 * 2 + i % 2),
            i % 4 / 2 * 4,
            15,
        );
        let high = bits(lanes, thirty_two(&self.high, i / 4), 2 * (i % 4), 3);
        Quants::Bytes(lanes.less(lanes.joined(low, high, 4), 32))
    }
}

impl Block for Iq4Xs {
    const NUMBERS: usize = 256;
    type Factors = [f32; 8];
    const FACTORS: usize = 1;
    const OFFSETS: bool = false;

    #[inline(always)]
    fn scales(&self, lanes: impl ByteLanes) -> [f32; 8] {
        let mut s = [0; 8];
        for (i, s) in s.iter_mut().enumerate() {
            let low = self.scales_low[i / 2] >> (4 * (i % 2)) & 15;
            let high = self.scales_high[i / 4] >> (2 * (i % 4)) & 3;
            *s = (low | high << 4) as i8 - 32;
        }
        times(lanes.widen_f16(self.d), s)
    }
    #[inline(always)]
    fn offsets(&self, _: impl ByteLanes) -> [f32; 8] {
        [-0.0; 8]
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, _: L, i: usize) -> Quants<'_, L> {
        let (bytes, _) = self.q.as_chunks();
        nibbles(IQ4, &bytes[i], None)
    }
}

/// The `i`th 32 bytes.
#[inline(always)]
fn thirty_two<const N: usize>(bytes: &[u8; N], i: usize) -> &[u8; 32] {
    &bytes.as_chunks().0[i]
}

/// Of each byte the bits of `mask` from bit `shift` on.
#[inline(always)]
fn bits<L: ByteLanes>(lanes: L, bytes: &[u8; 32], shift: usize, mask: u8) -> L::Bytes {
    lanes.field(lanes.load_bytes(bytes), shift, mask)
}

/// The four bits of Q4_K and Q5_K: of 64 numbers the first 32 are low halves of bytes. `fifth` has their fifth bits.
#[inline(always)]
fn codes<L: ByteLanes>(bytes: &[u8; 128], i: usize, fifth: Option<u32>) -> Quants<'_, L> {
    let (halves, _) = thirty_two(bytes, i / 2).as_chunks();
    Quants::Codes(Codes {
        levels: CODES,
        bytes: [&halves[0], &halves[1]],
        shifts: [4 * (i % 2); 2],
        fifth,
    })
}

/// Bytes in fours, the lowest first.
#[inline(always)]
fn words(bytes: &[u8; 12]) -> [u32; 3] {
    bytemuck::cast::<_, [[u8; 4]; 3]>(*bytes).map(u32::from_le_bytes)
}

/// A factor times integers.
#[inline(always)]
fn times<const N: usize>(d: f32, integers: [i8; N]) -> [f32; N] {
    integers.map(|s| d * f32::from(s))
}

/// s and m of Q4_K and Q5_K. Of the bytes, four have s and four m of the first half in their 6 low bits and, above them, two bits of
/// the second half, whose four low bits are in the last four.
#[inline(always)]
fn six_bits(bytes: &[u8; 12]) -> [[i8; 8]; 2] {
    let [s, m, low] = words(bytes);
    let upper = |word: u32| (word >> 2) & 0x3030_3030;
    let halves = |first: u32, second: u32| {
        let both = u64::from(first & 0x3f3f_3f3f) | u64::from(second) << 32;
        both.to_le_bytes().map(|b| b as i8)
    };
    [
        halves(s, low & 0x0f0f_0f0f | upper(s)),
        halves(m, low >> 4 & 0x0f0f_0f0f | upper(m)),
    ]
}
