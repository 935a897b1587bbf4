//! Numbers written as blocks, the opposite of [`decode`](super::decode), with the least squared error that a short search finds.
//!
//! Whatever the type, a number is d s q + e m: d and e are the block's, in f16, s and m its group's, integers as q is. A group is
//! those 16 or 32 numbers that share s and m. First each group has the line, scale · q + offset, that suits it best; then d and e are
//! what the scales, and the offsets, are most nearly multiples of. These choose s, m and q, and are fitted to them again, as long as
//! the error falls.
//!
//! All of it is plain f64 arithmetic in the order that is written here: the same bytes on every machine. d s q + e m is exact, as it
//! is when it is decoded, so that each number is the nearest that its group has.

use super::{Block, Plain, by_block, decode_blocks};
use crate::tensor::{Storage, round_to_f16};

/// Where the extreme numbers of a group are tried: so many [steps](Quantise::STEP) inside the range of q. Outside it they are cut off,
/// which the other numbers gain from.
const PLACES: [f64; 3] = [-0.75, 0.0, 0.75];

/// The least positive f16.
const LEAST: f64 = 1.0 / (1 << 24) as f64;

/// How a block is made. A range is the least and the greatest.
pub(crate) trait Quantise: Block {
    /// The range of q.
    const QUANTS: [i8; 2];
    /// About how far one q is from the next.
    const STEP: f64 = 1.0;
    /// The range of s.
    const SCALES: [i8; 2] = [1; 2];
    /// The range of m. Where it is negative, no offset is positive.
    const MINS: [i8; 2] = [0; 2];

    /// The q nearest to `x`.
    #[inline(always)]
    fn nearest(x: f64) -> i8 {
        let [least, greatest] = Self::QUANTS.map(i16::from);
        // The cast rounds down, and raises to 0 what is below.
        let above = (x - f64::from(least) + 0.5) as u8;
        (i16::from(above).min(greatest - least) + least) as i8
    }

    /// The block.
    fn pack(parts: &Parts) -> Self;
}

/// What a block is made of. It has the first of these groups and numbers, as many as its type says.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    /// d and e, as f16 has them.
    factors: [f64; 2],
    /// s of each group.
    pub(super) scales: [i8; 16],
    /// m of each group.
    pub(super) mins: [i8; 16],
    /// q of each number.
    pub(super) quants: [[i8; 32]; 8],
}

impl Parts {
    /// d as it is stored.
    pub(super) fn d(&self) -> [u8; 2] {
        round_to_f16(self.factors[0]).to_le_bytes()
    }

    /// e as it is stored.
    pub(super) fn e(&self) -> [u8; 2] {
        round_to_f16(self.factors[1]).to_le_bytes()
    }

    /// q + `bias`, none of which is negative.
    pub(super) fn codes(&self, bias: i8) -> [[u8; 32]; 8] {
        self.quants
            .map(|row| row.map(|q| q.wrapping_add(bias) as u8))
    }

    /// The parts with the least error for these factors, where the groups are nearly on `lines`.
    fn new<B: Quantise>(numbers: &[f64], lines: &Lines, factors: [f64; 2]) -> (Fit, Self) {
        let mut fit = Fit::default();
        let mut parts = Self {
            factors,
            scales: [0; 16],
            mins: [0; 16],
            quants: [[0; 32]; 8],
        };
        let size = 32 / B::FACTORS;
        let quants = parts.quants.as_flattened_mut().chunks_exact_mut(size);
        for (g, (x, quants)) in numbers.chunks_exact(size).zip(quants).enumerate() {
            let [scale, offset] = lines[g];
            let mut best = (f64::INFINITY, [0.0; 2]);
            for s in multiples(scale, factors[0], B::SCALES) {
                for m in multiples(offset, factors[1], B::MINS) {
                    let mut group = Fit::default();
                    group.choose::<B>(x, factors, [s, m], quants);
                    if group.error < best.0 {
                        best = (group.error, [s, m]);
                    }
                }
            }
            fit.choose::<B>(x, factors, best.1, quants);
            [parts.scales[g], parts.mins[g]] = best.1.map(|integer| integer as i8);
        }
        (fit, parts)
    }
}

/// The scale and the offset of each group.
type Lines = [[f64; 2]; 16];

/// Sums over numbers x that are to be a u + b v: what fits a and b to them, and the squared error of those that chose u and v.
#[derive(Clone, Copy, Default)]
struct Fit {
    error: f64,
    uu: f64,
    uv: f64,
    vv: f64,
    xu: f64,
    xv: f64,
}

impl Fit {
    /// Chooses the q of numbers of a group, and takes both in.
    fn choose<B: Quantise>(
        &mut self,
        x: &[f64],
        [d, e]: [f64; 2],
        [s, m]: [f64; 2],
        quants: &mut [i8],
    ) {
        let (scale, offset) = (d * s, e * m);
        for (q, x) in quants.iter_mut().zip(x) {
            // Where all q come to the same, the one nearest to 0: no zero is negative.
            *q = B::nearest(if scale == 0.0 {
                0.0
            } else {
                (x - offset) / scale
            });
        }
        for (q, x) in quants.iter().zip(x) {
            let q = f64::from(*q);
            let (rest, u) = (x - (scale * q + offset), s * q);
            self.error += rest * rest;
            self.uu += u * u;
            self.uv += u * m;
            self.vv += m * m;
            self.xu += x * u;
            self.xv += x * m;
        }
    }

    /// The a and b with the least squared error; without b where it would be negative and may not be.
    fn solved(&self, signed: bool) -> Option<[f64; 2]> {
        let determinant = self.uu * self.vv - self.uv * self.uv;
        if determinant > 0.0 {
            let b = (self.uu * self.xv - self.uv * self.xu) / determinant;
            if signed || b >= 0.0 {
                let a = (self.vv * self.xu - self.uv * self.xv) / determinant;
                return Some([a, b]);
            }
        }
        (self.uu > 0.0).then(|| [self.xu / self.uu, 0.0])
    }
}

/// The blocks of a quantised type that hold `numbers`, or `None` where a number is not finite, or a factor too large for f16.
/// Of the blocks `before` one whose numbers these are stays as it is, and of the others the factors are tried too.
///
/// # Panics
///
/// Where `storage` is not quantised, or the blocks have not as many numbers.
pub(crate) fn quantise(
    storage: Storage,
    numbers: &[f64],
    before: Option<&[u8]>,
) -> Option<Vec<u8>> {
    by_block!(
        storage,
        quantise_blocks(numbers, before),
        unreachable!("{storage} has no blocks")
    )
}

/// [`quantise`] for one type of blocks.
fn quantise_blocks<B: Quantise>(numbers: &[f64], before: Option<&[u8]>) -> Option<Vec<u8>> {
    let before = before.map(bytemuck::cast_slice::<u8, B>);
    let blocks = numbers.chunks_exact(B::NUMBERS);
    assert!(
        blocks.remainder().is_empty() && before.is_none_or(|b| b.len() == blocks.len()),
        "as many numbers as the blocks have"
    );
    let mut bytes = Vec::with_capacity(blocks.len() * size_of::<B>());
    for (i, numbers) in blocks.enumerate() {
        let block: B = quantise_block(numbers, before.map(|blocks| &blocks[i]))?;
        bytes.extend_from_slice(bytemuck::bytes_of(&block));
    }
    Some(bytes)
}

/// [`quantise`] for one block.
fn quantise_block<B: Quantise>(numbers: &[f64], before: Option<&B>) -> Option<B> {
    if let Some(block) = before
        && numbers_of(block) == numbers
    {
        return Some(*block);
    }
    // The squares of these are finite. Those of them that are too large have no factors.
    if !numbers.iter().all(|x| x.abs() < 1e100) {
        return None;
    }
    let from_lines = |lines: Lines| {
        let d = factor(lines.map(|[scale, _]| scale), B::SCALES)?;
        let e = factor(lines.map(|[_, offset]| offset), B::MINS)?;
        refined::<B, _>([d, e], |[d, e]| {
            Some(Parts::new::<B>(numbers, &lines, [f16(d)?, f16(e)?]))
        })
    };
    let fitted = from_lines(best_lines::<B>(numbers))?;
    let before = before.and_then(|block| from_lines(lines_of(block)));
    // What was there before stays where nothing is nearer.
    let (_, parts) = before.map_or(fitted, |before| nearer(before, fitted));
    Some(B::pack(&parts))
}

/// The numbers that a block has.
fn numbers_of<B: Block>(block: &B) -> Vec<f64> {
    let mut numbers = vec![0.0; B::NUMBERS];
    decode_blocks::<f64, B>(Plain, bytemuck::bytes_of(block), &mut numbers);
    numbers
}

/// The lines that a block has.
fn lines_of<B: Block>(block: &B) -> Lines {
    let [scales, offsets] = block.factors(Plain);
    let factors = scales.as_ref().iter().zip(offsets.as_ref());
    let mut lines = [[0.0; 2]; 16];
    for (line, (scale, offset)) in lines.iter_mut().zip(factors) {
        *line = [f64::from(*scale), f64::from(*offset)];
    }
    lines
}

/// The lines on which groups of numbers most nearly are.
fn best_lines<B: Quantise>(numbers: &[f64]) -> Lines {
    // What multiplies the offset, of which this much is known.
    let m = f64::from(B::MINS[0].signum());
    let mut lines = [[0.0; 2]; 16];
    for (line, x) in lines.iter_mut().zip(numbers.chunks_exact(32 / B::FACTORS)) {
        // No f16 is nearer to these than 0.
        if x.iter().all(|x| x.abs() <= LEAST / 2.0) {
            continue;
        }
        let attempt = |factors| {
            let mut fit = Fit::default();
            fit.choose::<B>(x, factors, [1.0, m], &mut [0; 32][..x.len()]);
            Some((fit, factors))
        };
        let starts = starts::<B>(x, m).into_iter();
        let tried = starts.filter_map(|start| refined::<B, _>(start, attempt));
        if let Some((_, [scale, min])) = tried.reduce(nearer) {
            *line = [scale, min * m];
        }
    }
    lines
}

/// Scales and offsets, these as multiples of `m`, with the extreme ones of a group's numbers at the [`PLACES`].
fn starts<B: Quantise>(x: &[f64], m: f64) -> Vec<[f64; 2]> {
    let [least, greatest] = B::QUANTS.map(f64::from);
    let places = PLACES.map(|place| place * B::STEP);
    if m == 0.0 {
        // q has both signs, and the scale whichever gives the extreme number an extreme q.
        let extreme = extreme(x);
        let ends = places.iter().flat_map(|a| [least + a, greatest - a]);
        return ends.map(|q| [extreme / q, 0.0]).collect();
    }
    let lowest = if m < 0.0 { 0.0 } else { f64::INFINITY };
    let low = x.iter().copied().fold(lowest, f64::min);
    let high = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let pairs = places.iter().flat_map(|a| places.map(|b| (a, b)));
    pairs
        .map(|(a, b)| {
            let scale = (high - low) / (greatest - least - a - b);
            let min = (low - scale * (least + a)) * m;
            [scale, if m < 0.0 { min.max(0.0) } else { min }]
        })
        .collect()
}

/// Tries factors, and others fitted to what these choose, as long as the error falls. `attempt` says what factors choose.
fn refined<B: Quantise, T>(
    start: [f64; 2],
    attempt: impl Fn([f64; 2]) -> Option<(Fit, T)>,
) -> Option<(Fit, T)> {
    let mut best = attempt(start)?;
    while let Some(next) = best.0.solved(B::MINS[0] > 0).and_then(&attempt)
        && next.0.error < best.0.error
    {
        best = next;
    }
    Some(best)
}

/// The one with the lesser error, or the first.
fn nearer<T>(a: (Fit, T), b: (Fit, T)) -> (Fit, T) {
    if b.0.error < a.0.error { b } else { a }
}

/// The f16 of which all `values` are most nearly multiples, by integers in a range; `None` where it would be infinite.
fn factor(values: [f64; 16], range: [i8; 2]) -> Option<f64> {
    let extreme = extreme(&values);
    if extreme == 0.0 {
        return Some(0.0);
    }
    let [least, greatest] = range.map(i32::from);
    // The smallest integers first: of factors that leave no error, the largest.
    let integers = (1..=128).flat_map(|k| [k, -k]);
    let integers = integers.filter(|k| (least..=greatest).contains(k));
    let error = |d| {
        let rests = values.map(|value| value - d * multiple(value, d, range));
        rests.iter().fold(0.0, |sum, rest| sum + rest * rest)
    };
    let factors = integers.filter_map(|k| f16(extreme / f64::from(k)));
    let tried = factors.map(|d| (error(d), d));
    let (_, d) = tried.min_by(|a, b| a.0.total_cmp(&b.0))?;
    Some(d)
}

/// How many times d `x` is, to the nearest integer of a range.
fn multiple(x: f64, d: f64, [least, greatest]: [i8; 2]) -> f64 {
    let ratio = if d == 0.0 { 0.0 } else { x / d };
    (ratio + 0.5).floor().clamp(least.into(), greatest.into())
}

/// [`multiple`], and the integers beside it.
fn multiples(x: f64, d: f64, range: [i8; 2]) -> impl Iterator<Item = f64> {
    let nearest = multiple(x, d, range);
    let [least, greatest] = range.map(f64::from);
    let three = [nearest, nearest - 1.0, nearest + 1.0].into_iter();
    three.filter(move |k| (least..=greatest).contains(k))
}

/// The nearest f16, but not 0 for another number, or `None` where it would be infinite.
fn f16(x: f64) -> Option<f64> {
    let nearest = round_to_f16(x).to_f64();
    let nearest = if nearest == 0.0 && x != 0.0 {
        LEAST.copysign(x)
    } else {
        nearest
    };
    nearest.is_finite().then_some(nearest)
}

/// The number that is farthest from 0, the first of such.
fn extreme(numbers: &[f64]) -> f64 {
    let farther = |a: f64, b: &f64| if b.abs() > a.abs() { *b } else { a };
    numbers.iter().fold(0.0, farther)
}

#[cfg(test)]
mod tests;
