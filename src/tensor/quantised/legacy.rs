//! Blocks of 32 numbers, with one scale.

use bytemuck::{Pod, Zeroable};

use super::quantise::{Parts, Quantise};
use super::{Block, ByteLanes, Codes, Plain, Quants};

/// Four bits that stand for themselves.
pub(super) const CODES: [i8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

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

impl Block for Q4_0 {
    const NUMBERS: usize = 32;
    type Factors = [f32; 1];
    const FACTORS: usize = 1;
    const OFFSETS: bool = false;

    #[inline(always)]
    fn f16s(&self) -> [[u8; 2]; 2] {
        [self.d, [0; 2]]
    }
    #[inline(always)]
    fn scales(&self, d: f32) -> [f32; 1] {
        [d]
    }
    #[inline(always)]
    fn offsets(&self, _: f32) -> [f32; 1] {
        [-0.0]
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, _: L, _: usize) -> Quants<'_, L> {
        nibbles(less(8), &self.q, None)
    }
}

impl Block for Q4_1 {
    const NUMBERS: usize = 32;
    type Factors = [f32; 1];
    const FACTORS: usize = 1;
    const OFFSETS: bool = true;

    #[inline(always)]
    fn f16s(&self) -> [[u8; 2]; 2] {
        [self.d, self.m]
    }
    #[inline(always)]
    fn scales(&self, d: f32) -> [f32; 1] {
        [d]
    }
    #[inline(always)]
    fn offsets(&self, m: f32) -> [f32; 1] {
        [m]
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, _: L, _: usize) -> Quants<'_, L> {
        nibbles(CODES, &self.q, None)
    }
}

impl Block for Q5_0 {
    const NUMBERS: usize = 32;
    type Factors = [f32; 1];
    const FACTORS: usize = 1;
    const OFFSETS: bool = false;

    #[inline(always)]
    fn f16s(&self) -> [[u8; 2]; 2] {
        [self.d, [0; 2]]
    }
    #[inline(always)]
    fn scales(&self, d: f32) -> [f32; 1] {
        [d]
    }
    #[inline(always)]
    fn offsets(&self, _: f32) -> [f32; 1] {
        [-0.0]
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, _: L, _: usize) -> Quants<'_, L> {
        nibbles(less(16), &self.q, Some(self.high))
    }
}

impl Block for Q5_1 {
    const NUMBERS: usize = 32;
    type Factors = [f32; 1];
    const FACTORS: usize = 1;
    const OFFSETS: bool = true;

    #[inline(always)]
    fn f16s(&self) -> [[u8; 2]; 2] {
        [self.d, self.m]
    }
    #[inline(always)]
    fn scales(&self, d: f32) -> [f32; 1] {
        [d]
    }
    #[inline(always)]
    fn offsets(&self, m: f32) -> [f32; 1] {
        [m]
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, _: L, _: usize) -> Quants<'_, L> {
        nibbles(CODES, &self.q, Some(self.high))
    }
}

impl Block for Q8_0 {
    const NUMBERS: usize = 32;
    type Factors = [f32; 1];
    const FACTORS: usize = 1;
    const OFFSETS: bool = false;

    #[inline(always)]
    fn f16s(&self) -> [[u8; 2]; 2] {
        [self.d, [0; 2]]
    }
    #[inline(always)]
    fn scales(&self, d: f32) -> [f32; 1] {
        [d]
    }
    #[inline(always)]
    fn offsets(&self, _: f32) -> [f32; 1] {
        [-0.0]
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, lanes: L, _: usize) -> Quants<'_, L> {
        Quants::Bytes(lanes.load_signed(&self.q))
    }
}

impl Block for Iq4Nl {
    const NUMBERS: usize = 32;
    type Factors = [f32; 1];
    const FACTORS: usize = 1;
    const OFFSETS: bool = false;

    #[inline(always)]
    fn f16s(&self) -> [[u8; 2]; 2] {
        [self.d, [0; 2]]
    }
    #[inline(always)]
    fn scales(&self, d: f32) -> [f32; 1] {
        [d]
    }
    #[inline(always)]
    fn offsets(&self, _: f32) -> [f32; 1] {
        [-0.0]
    }
    #[inline(always)]
    fn quants<L: ByteLanes>(&self, _: L, _: usize) -> Quants<'_, L> {
        nibbles(IQ4, &self.q, None)
    }
}

impl Quantise for Q4_0 {
    const QUANTS: [i8; 2] = [-8, 7];

    fn pack(parts: &Parts) -> Self {
        Self {
            d: parts.d(),
            q: nibbles_of(parts.codes(8)[0]),
        }
    }
}

impl Quantise for Q4_1 {
    const QUANTS: [i8; 2] = [0, 15];
    const MINS: [i8; 2] = [1; 2];

    fn pack(parts: &Parts) -> Self {
        Self {
            d: parts.d(),
            m: parts.e(),
            q: nibbles_of(parts.codes(0)[0]),
        }
    }
}

impl Quantise for Q5_0 {
    const QUANTS: [i8; 2] = [-16, 15];

    fn pack(parts: &Parts) -> Self {
        let codes = parts.codes(16)[0];
        Self {
            d: parts.d(),
            high: Plain.column(codes, 4).to_le_bytes(),
            q: nibbles_of(codes),
        }
    }
}

impl Quantise for Q5_1 {
    const QUANTS: [i8; 2] = [0, 31];
    const MINS: [i8; 2] = [1; 2];

    fn pack(parts: &Parts) -> Self {
        let codes = parts.codes(0)[0];
        Self {
            d: parts.d(),
            m: parts.e(),
            high: Plain.column(codes, 4).to_le_bytes(),
            q: nibbles_of(codes),
        }
    }
}

impl Quantise for Q8_0 {
    const QUANTS: [i8; 2] = [-128, 127];

    fn pack(parts: &Parts) -> Self {
        Self {
            d: parts.d(),
            q: parts.quants[0],
        }
    }
}

impl Quantise for Iq4Nl {
    const QUANTS: [i8; 2] = [IQ4[0], IQ4[15]];
    const STEP: f64 = IQ4_STEP;

    #[inline(always)]
    fn nearest(x: f64) -> i8 {
        nearest_iq4(x)
    }
    fn pack(parts: &Parts) -> Self {
        Self {
            d: parts.d(),
            q: nibbles_of(parts.quants[0].map(iq4_code)),
        }
    }
}

/// About how far one of [`IQ4`] is from the next.
pub(super) const IQ4_STEP: f64 = 16.0;

/// The number of [`IQ4`] that is nearest to `x`.
#[inline(always)]
pub(super) fn nearest_iq4(x: f64) -> i8 {
    let passed = |pair: &&[i8]| 2.0 * x > f64::from(pair[0]) + f64::from(pair[1]);
    IQ4[IQ4.windows(2).filter(passed).count()]
}

/// The 4 bits that stand for `q`, one of [`IQ4`].
pub(super) fn iq4_code(q: i8) -> u8 {
    IQ4.partition_point(|level| *level < q) as u8
}

/// The low 4 bits of 32 codes, those of the second half above those of the first: what [`nibbles`] reads.
pub(super) fn nibbles_of(codes: [u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| codes[i] & 15 | codes[i + 16] << 4)
}

/// Four bits less `bias`.
const fn less(bias: i8) -> [i8; 16] {
    let mut levels = CODES;
    let mut i = 0;
    while i < 16 {
        levels[i] -= bias;
        i += 1;
    }
    levels
}

/// What the low halves of 16 bytes stand for, and then the high ones, each with its bit of `high`.
#[inline(always)]
pub(super) fn nibbles<L: ByteLanes>(
    levels: [i8; 16],
    bytes: &[u8; 16],
    high: Option<[u8; 4]>,
) -> Quants<'_, L> {
    Quants::Codes(Codes {
        levels,
        bytes: [bytes; 2],
        shifts: [0, 4],
        fifth: high.map(u32::from_le_bytes),
    })
}
