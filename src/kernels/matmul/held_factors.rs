//! The factors of quantised weights that a tile multiplies next, in memory, from where instructions take them.

use crate::kernels::simd::{HeldFactors, Simd};
use crate::tensor::quantised::{Block, ByteLanes, Quants};

/// The factors of a stretch of a tile's rows.
pub(super) struct Held {
    scales: [f32; 64],
    offsets: [f32; 64],
    /// 16 times the scale of numbers with a fifth bit.
    sixteen: [f32; 64],
}

impl Held {
    /// None yet.
    pub(super) fn new() -> Self {
        let [scales, offsets, sixteen] = [[0.0; 64]; 3];
        Self {
            scales,
            offsets,
            sixteen,
        }
    }

    /// Where the factors of a half of 32 numbers are: side by side those that are computed at once.
    #[inline(always)]
    const fn place<B: Block, const R: usize>(unit: usize, r: usize, half: usize) -> usize {
        match B::NUMBERS {
            32 => (2 * unit + half) * R + r,
            _ => (B::NUMBERS / 32 * r + unit) * B::FACTORS + half * (B::FACTORS - 1),
        }
    }

    /// Holds those of each row's block `b`.
    #[inline(always)]
    pub(super) fn hold<S: Simd, B: Block, const R: usize, const N: usize>(
        &mut self,
        simd: S,
        rows: [&[B; N]; R],
        b: usize,
    ) {
        let [mut d, mut m] = [[[0; 2]; R]; 2];
        for r in 0..R {
            [d[r], m[r]] = rows[r][b].f16s();
        }
        let (d, m) = (widened(simd, d), widened(simd, m));
        let [mut scales, mut offsets] = [[B::Factors::default(); R]; 2];
        for r in 0..R {
            scales[r] = rows[r][b].scales(d[r]);
            offsets[r] = rows[r][b].offsets(m[r]);
        }
        let in_block = B::NUMBERS / 32;
        for half in 0..2 {
            for i in 0..in_block {
                for r in 0..R {
                    let quants = rows[r][b].quants(simd, i);
                    let factor = (2 * i + half) * B::FACTORS / 2;
                    let (scale, offset) = (scales[r].as_ref()[factor], offsets[r].as_ref()[factor]);
                    let place = Self::place::<B, R>(b * in_block + i, r, half);
                    // Both halves of codes take the first one's.
                    if half == 0 || !quants.are_codes() {
                        self.scales[place] = scale;
                        if B::OFFSETS {
                            self.offsets[place] = offset;
                        }
                    }
                    if quants.have_fifth() {
                        self.sixteen[place] = 16.0 * scale;
                    }
                }
            }
        }
    }

    /// Those of 32 numbers of a row.
    #[inline(always)]
    pub(super) fn of<L: ByteLanes, B: Block, const R: usize>(
        &self,
        quants: &Quants<'_, L>,
        unit: usize,
        r: usize,
    ) -> HeldFactors {
        let halves = [0, 1].map(|half| Self::place::<B, R>(unit, r, half));
        let places = if quants.are_codes() {
            [halves[0]; 2]
        } else {
            halves
        };
        HeldFactors {
            scales: places.map(|place| self.scales[place]),
            offsets: B::OFFSETS.then_some(places.map(|place| self.offsets[place])),
            sixteen: halves.map(|place| self.sixteen[place]),
        }
    }
}

/// f16 as f32, four at once.
#[inline(always)]
fn widened<L: ByteLanes, const R: usize>(lanes: L, f16s: [[u8; 2]; R]) -> [f32; R] {
    let mut wide = [0.0; R];
    let (fours, singles) = f16s.as_chunks::<4>();
    let (wide_fours, wide_singles) = wide.as_chunks_mut::<4>();
    for (wide, four) in wide_fours.iter_mut().zip(fours) {
        *wide = lanes.widen_four_f16(*four);
    }
    for (wide, single) in wide_singles.iter_mut().zip(singles) {
        *wide = lanes.widen_f16(*single);
    }
    wide
}
