//! Blocks of 256 numbers, whose groups have small integers as scales of their own, times a factor of the block.

use bytemuck::{Pod, Zeroable};

use super::legacy::{CODES, IQ4, IQ4_STEP, iq4_code, nearest_iq4, nibbles, nibbles_of};
use super::quantise::{Parts, Quantise};
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
    fn f16s(&self) -> [[u8; 2]; 2] {
        [self.d, self.dmin]
    }
    #[inline(always)]
    fn scales(&self, d: f32) -> [f32; 16] {
        let s = self.scales.map(|b| b & 15);
        times(d, s.map(|s| s as i8))
    }
    #[inline(always)]
    fn offsets(&self, dmin: f32) -> [f32; 16] {
        let m = self.scales.map(|b| b >> 4);
        times(-dmin, m.map(|m| m as i8))
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
    fn f16s(&self) -> [[u8; 2]; 2] {
        [self.d, [0; 2]]
    }
    #[inline(always)]
    fn scales(&self, d: f32) -> [f32; 16] {
        let [a, b, high] = words(&self.scales);
        // Four scales: their low bits, and the `i`th pair of bits of the last word's bytes above them.
        let four = |low: u32, i: u32| {
            let scales = low & 0x0f0f_0f0f | (high >> (2 * i) & 0x0303_0303) << 4;
            scales.to_le_bytes().map(|s| s as i8 - 32)
        };
        let s = bytemuck::cast([four(a, 0), four(b, 1), four(a >> 4, 2), four(b >> 4, 3)]);
        times(d, s)
    }
    #[inline(always)]
    fn offsets(&self, _: f32) -> [f32; 16] {
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
    fn f16s(&self) -> [[u8; 2]; 2] {
        [self.d, self.dmin]
    }
    #[inline(always)]
    fn scales(&self, d: f32) -> [f32; 8] {
        times(d, six_bits(&self.scales)[0])
    }
    #[inline(always)]
    fn offsets(&self, dmin: f32) -> [f32; 8] {
        times(-dmin, six_bits(&self.scales)[1])
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
    fn f16s(&self) -> [[u8; 2]; 2] {
        [self.d, self.dmin]
    }
    #[inline(always)]
    fn scales(&self, d: f32) -> [f32; 8] {
        times(d, six_bits(&self.scales)[0])
    }
    #[inline(always)]
    fn offsets(&self, dmin: f32) -> [f32; 8] {
        times(-dmin, six_bits(&self.scales)[1])
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
    fn f16s(&self) -> [[u8; 2]; 2] {
        [self.d, [0; 2]]
    }
    #[inline(always)]
    fn scales(&self, d: f32) -> [f32; 16] {
        times(d, self.scales)
    }
    #[inline(always)]
    fn offsets(&self, _: f32) -> [f32; 16] {
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
    fn f16s(&self) -> [[u8; 2]; 2] {
        [self.d, [0; 2]]
    }
    #[inline(always)]
    fn scales(&self, d: f32) -> [f32; 8] {
        let mut s = [0; 8];
        for (i, s) in s.iter_mut().enumerate() {
            let low = self.scales_low[i / 2] >> (4 * (i % 2)) & 15;
            let high = self.scales_high[i / 4] >> (2 * (i % 4)) & 3;
            *s = (low | high << 4) as i8 - 32;
        }
        times(d, s)
    }
    #[inline(always)]
    fn offsets(&self, _: f32) -> [f32; 8] {
        [-0.0; 8]
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, _: L, i: usize) -> Quants<'_, L> {
        let (bytes, _) = self.q.as_chunks();
        nibbles(IQ4, &bytes[i], None)
    }
}

impl Quantise for Q2K {
    const QUANTS: [i8; 2] = [0, 3];
    const SCALES: [i8; 2] = [0, 15];
    const MINS: [i8; 2] = [-15, 0];

    fn pack(parts: &Parts) -> Self {
        let codes = parts.codes(0);
        let both = |g: usize| parts.scales[g] as u8 | parts.mins[g].unsigned_abs() << 4;
        Self {
            scales: std::array::from_fn(both),
            q: bytemuck::cast([0, 4].map(|i| fields::<4>(&codes[i..], 1, 0))),
            d: parts.d(),
            dmin: parts.e(),
        }
    }
}

impl Quantise for Q3K {
    const QUANTS: [i8; 2] = [-4, 3];
    const SCALES: [i8; 2] = [-32, 31];

    fn pack(parts: &Parts) -> Self {
        let codes = parts.codes(4);
        let mut scales = [0; 12];
        for (g, s) in parts.scales.iter().enumerate() {
            let s = (s + 32) as u8;
            scales[g % 8] |= (s & 15) << (g / 8 * 4);
            scales[8 + g % 4] |= s >> 4 << (g / 4 * 2);
        }
        Self {
            high: fields::<8>(&codes, 1, 2),
            q: bytemuck::cast([0, 4].map(|i| fields::<4>(&codes[i..], 1, 0))),
            scales,
            d: parts.d(),
        }
    }
}

impl Quantise for Q4K {
    const QUANTS: [i8; 2] = [0, 15];
    const SCALES: [i8; 2] = [0, 63];
    const MINS: [i8; 2] = [-63, 0];

    fn pack(parts: &Parts) -> Self {
        let codes = parts.codes(0);
        Self {
            d: parts.d(),
            dmin: parts.e(),
            scales: in_six_bits(parts),
            q: bytemuck::cast([0, 2, 4, 6].map(|i| fields::<2>(&codes[i..], 1, 0))),
        }
    }
}

impl Quantise for Q5K {
    const QUANTS: [i8; 2] = [0, 31];
    const SCALES: [i8; 2] = [0, 63];
    const MINS: [i8; 2] = [-63, 0];

    fn pack(parts: &Parts) -> Self {
        let codes = parts.codes(0);
        Self {
            d: parts.d(),
            dmin: parts.e(),
            scales: in_six_bits(parts),
            high: fields::<8>(&codes, 1, 4),
            q: bytemuck::cast([0, 2, 4, 6].map(|i| fields::<2>(&codes[i..], 1, 0))),
        }
    }
}

impl Quantise for Q6K {
    const QUANTS: [i8; 2] = [-32, 31];
    const SCALES: [i8; 2] = [-128, 127];

    fn pack(parts: &Parts) -> Self {
        let codes = parts.codes(32);
        Self {
            q: bytemuck::cast([0, 1, 4, 5].map(|i| fields::<2>(&codes[i..], 2, 0))),
            high: bytemuck::cast([0, 4].map(|i| fields::<4>(&codes[i..], 1, 4))),
            scales: parts.scales,
            d: parts.d(),
        }
    }
}

impl Quantise for Iq4Xs {
    const QUANTS: [i8; 2] = [IQ4[0], IQ4[15]];
    const STEP: f64 = IQ4_STEP;
    const SCALES: [i8; 2] = [-32, 31];

    #[inline(always)]
    fn nearest(x: f64) -> i8 {
        nearest_iq4(x)
    }
    fn pack(parts: &Parts) -> Self {
        let (mut scales_high, mut scales_low) = ([0; 2], [0; 4]);
        for (i, s) in parts.scales[..8].iter().enumerate() {
            let s = (s + 32) as u8;
            scales_low[i / 2] |= (s & 15) << (4 * (i % 2));
            scales_high[i / 4] |= s >> 4 << (2 * (i % 4));
        }
        let q = parts.quants.map(|row| nibbles_of(row.map(iq4_code)));
        Self {
            d: parts.d(),
            scales_high,
            scales_low,
            q: bytemuck::cast(q),
        }
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

/// Bytes that `N` rows of codes share, every `step`th: each has its bits from bit `shift` on there, the first row the lowest.
fn fields<const N: usize>(codes: &[[u8; 32]], step: usize, shift: usize) -> [u8; 32] {
    let width = 8 / N;
    let mask = u8::MAX >> (8 - width);
    let mut bytes = [0; 32];
    for (i, row) in codes.iter().step_by(step).take(N).enumerate() {
        for (byte, code) in bytes.iter_mut().zip(row) {
            *byte |= (code >> shift & mask) << (width * i);
        }
    }
    bytes
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

/// s and m of Q4_K and Q5_K as [`six_bits`] reads them.
fn in_six_bits(parts: &Parts) -> [u8; 12] {
    let mut bytes = [0; 12];
    for (half, integers) in [parts.scales, parts.mins].iter().enumerate() {
        for i in 0..4 {
            let [first, second] = [integers[i], integers[i + 4]].map(i8::unsigned_abs);
            bytes[4 * half + i] = first | second >> 4 << 6;
            bytes[8 + i] |= (second & 15) << (4 * half);
        }
    }
    bytes
}
