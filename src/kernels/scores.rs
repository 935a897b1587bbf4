//! The attention's scores of many queries: q kᵀ for keys that are packed.
//!
//! Each is the documented dot product. Where heads are narrow, adding the lanes of each score in its tree takes as long as the
//! multiply-adds. So a vector has a number of each of sixteen keys here: one key a lane of the machine, and the sixteen lanes of a
//! sum one after the other, whose additions then serve sixteen scores.

use std::array::from_fn;
use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use super::matmul::padded;
use super::simd::{Lanes, Level, Simd, Task, run_at_level};
use crate::tensor::{ByType, Dtype, Element, Matrix};

/// Vectors of keys side by side.
const VECTORS: usize = 2;

/// The keys of a panel.
const KEYS: usize = 16 * VECTORS;

/// The lanes of a sum in the order in which its tree needs them, depth first.
const LANES: [usize; 16] = [0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15];

/// The steps of a dot product that are added to a lane.
fn of_lane(lane: usize, steps: usize) -> impl ExactSizeIterator<Item = usize> {
    (lane..steps.max(lane)).step_by(16)
}

/// The keys of a head, in panels of [`KEYS`](PackedKeys::KEYS): of each panel one number of all its keys after the other, in bf16
/// pairs of numbers, in the order in which a tree of sixteen lanes needs them.
pub struct PackedKeys<E: Element> {
    /// A panel a row.
    panels: Matrix<E>,
    head_dim: usize,
    /// Whether [`products_are_normal`] of all keys.
    products_are_normal: bool,
}

impl<E: Element> PackedKeys<E> {
    /// The keys of a panel. The last panel may have fewer; there zeros stand for the others.
    pub const KEYS: usize = KEYS;

    /// Packs `keys` `[keys, head_dim]`.
    pub fn new(keys: &[E], head_dim: usize) -> Self {
        let together = together::<E>();
        let steps = head_dim.div_ceil(together);
        let panels = keys.len().div_ceil(KEYS * head_dim);
        let mut panels = Matrix::recycled(panels, steps * KEYS * together);
        for (panel, keys) in panels.iter_rows_mut().zip(keys.chunks(KEYS * head_dim)) {
            if keys.len() < KEYS * head_dim || !head_dim.is_multiple_of(together) {
                panel.fill(E::default());
            }
            let packed = panel.chunks_exact_mut(KEYS * together);
            for (step, packed) in LANES
                .into_iter()
                .flat_map(|lane| of_lane(lane, steps))
                .zip(packed)
            {
                let of_step = step * together..head_dim.min((step + 1) * together);
                let packed = packed.chunks_exact_mut(together);
                for (packed, key) in packed.zip(keys.chunks_exact(head_dim)) {
                    packed[..of_step.len()].copy_from_slice(&key[of_step.clone()]);
                }
            }
        }
        Self {
            panels,
            head_dim,
            products_are_normal: products_are_normal(keys),
        }
    }
}

/// Elements of a dot product that are added to a lane at once.
const fn together<E: Element>() -> usize {
    match E::DTYPE {
        Dtype::Bf16 => 2,
        Dtype::F32 | Dtype::F64 => 1,
    }
}

/// Whether products with other such numbers, and sums of these, are zero or normal, however they are rounded: all but zeros are
/// 2⁻⁵⁰ or more, so that a product, of which bf16 has 16 bits, is a multiple of 2⁻¹¹⁴. Only bf16 takes denormals as zeros, which
/// some levels have to look for.
fn products_are_normal<E: Element>(numbers: &[E]) -> bool {
    const SMALLEST: u16 = (127 - 50) << 7;
    let normal = |x: &bf16| (x.to_bits() & 0x7fff).wrapping_sub(1) >= SMALLEST - 1;
    match E::DTYPE {
        Dtype::Bf16 => bytemuck::cast_slice(numbers).iter().all(normal),
        Dtype::F32 | Dtype::F64 => true,
    }
}

/// The scores of `q` `[rows, head_dim]` with the keys of some `panels`, into `out` `[rows, keys]`.
pub fn scores<E: Element>(
    level: Level,
    q: &[E],
    keys: &PackedKeys<E>,
    panels: Range<usize>,
    out: &mut [E::Acc],
) {
    let rows = q.len() / keys.head_dim;
    let fits = q.len() == rows * keys.head_dim && out.len() == rows * panels.len() * KEYS;
    assert!(fits, "q and out sizes");
    if out.is_empty() {
        return;
    }
    let head_dim = keys.head_dim;
    let panel = keys.panels.cols();
    let normal = keys.products_are_normal && products_are_normal(q);
    let keys = &keys.panels.as_slice()[panels.start * panel..panels.end * panel];
    let scores = Scores {
        q,
        head_dim,
        keys,
        normal,
        out,
    };
    E::by_type::<AtLevel>((level, scores));
}

/// What [`scores`] is called with.
struct Scores<'a, E: Element> {
    q: &'a [E],
    head_dim: usize,
    keys: &'a [E],
    /// Whether no product or sum is denormal.
    normal: bool,
    out: &'a mut [E::Acc],
}

/// The tasks of the compute types: blocks of how many elements, how many of them to a lane.
macro_rules! task {
    ($($x:ty, $b:literal, $together:literal);*) => {$(
        impl Task for Scores<'_, $x> {
            type Output = ();

            #[inline(always)]
            fn run<S: Simd>(self, simd: S) {
                if const { <S as Lanes<$x, $x, $b>>::LOOKS_FOR_DENORMALS } && self.normal {
                    all_scores::<S, $x, $b, $together, true>(simd, self);
                } else {
                    all_scores::<S, $x, $b, $together, false>(simd, self);
                }
            }
        }
    )*};
}
task!(f64, 16, 1; f32, 16, 1; bf16, 32, 2);

/// Runs [`Scores`] of each compute type.
struct AtLevel<'a>(PhantomData<&'a ()>);

impl<'a> ByType for AtLevel<'a> {
    type Input<E: Element> = (Level, Scores<'a, E>);
    run_at_level!();
}

/// Every panel with every query, four queries at a time where registers have room for their sums.
#[inline(always)]
fn all_scores<L, E, const B: usize, const P: usize, const NORMAL: bool>(
    lanes: L,
    scores: Scores<'_, E>,
) where
    L: Lanes<E, E, B, Acc = E::Acc>,
    E: Element,
{
    let Scores {
        q,
        head_dim,
        keys,
        out,
        ..
    } = scores;
    let q = steps::<E, P>(q, head_dim);
    let steps = head_dim.div_ceil(P);
    let (vectors, _) = keys.as_chunks::<B>();
    let (vectors, _) = vectors.as_chunks::<VECTORS>();
    let width = vectors.len() / steps * KEYS;
    // Written before they are read. Filling them for each tile would take a twentieth of its time.
    let zero = lanes.zero().as_ref()[0];
    let (mut of_four, mut of_one) = ([[[zero; VECTORS]; 4]; 4], [[[zero; VECTORS]; 1]; 4]);
    for (panel, keys) in vectors.chunks_exact(steps).enumerate() {
        let mut row = 0;
        while row * steps < q.len() {
            let (q, out) = (&q[row * steps..], &mut out[row * width + panel * KEYS..]);
            row += if const { !L::TILE.is(1, 1) } && q.len() >= 4 * steps {
                tile::<L, E, B, P, NORMAL, 4>(lanes, q, keys, &mut of_four, out, width)
            } else {
                tile::<L, E, B, P, NORMAL, 1>(lanes, q, keys, &mut of_one, out, width)
            };
        }
    }
}

/// Rows of `head_dim` numbers in steps of `P`, the last of each row filled with zeros.
fn steps<E: Element, const P: usize>(q: &[E], head_dim: usize) -> Cow<'_, [[E; P]]> {
    if head_dim.is_multiple_of(P) {
        return q.as_chunks().0.into();
    }
    let rows = q.chunks_exact(head_dim);
    let rows = rows.flat_map(|row| row.chunks(P).map(padded));
    rows.collect()
}

/// A panel with `R` queries, into the first numbers of rows of `width`. Returns `R`. Sums of left branches are in `waiting` until the
/// right ones are there, one of each depth, and the outcome is in the last.
#[inline(always)]
fn tile<L, E, const B: usize, const P: usize, const NORMAL: bool, const R: usize>(
    lanes: L,
    q: &[[E; P]],
    keys: &[[[E; B]; VECTORS]],
    waiting: &mut [[[L::Sum; VECTORS]; R]; 4],
    out: &mut [E::Acc],
    width: usize,
) -> usize
where
    L: Lanes<E, E, B, Acc = E::Acc>,
    E: Element,
{
    let q: [_; R] = from_fn(|r| &q[r * keys.len()..(r + 1) * keys.len()]);
    for part in 0..L::PARTS {
        let mut keys = keys;
        for (pair, &[first, second]) in LANES.as_chunks().0.iter().enumerate() {
            let left = lane::<L, E, B, P, NORMAL, R>(lanes, q, &mut keys, first, part);
            let mut sums = lane::<L, E, B, P, NORMAL, R>(lanes, q, &mut keys, second, part);
            add(lanes, left, &mut sums);
            let branches = pair.trailing_ones() as usize;
            for left in &waiting[..branches] {
                add(lanes, *left, &mut sums);
            }
            waiting[branches] = sums;
        }
        for (r, sums) in waiting[3].iter().enumerate() {
            let (blocks, _) = out[r * width..][..KEYS].as_chunks_mut();
            for (block, &sum) in blocks.iter_mut().zip(sums) {
                lanes.store_partial(sum, block, part);
            }
        }
    }
    R
}

/// One lane of every score, for which it takes its steps from `keys`.
#[inline(always)]
fn lane<L, E, const B: usize, const P: usize, const NORMAL: bool, const R: usize>(
    lanes: L,
    q: [&[[E; P]]; R],
    keys: &mut &[[[E; B]; VECTORS]],
    lane: usize,
    part: usize,
) -> [[L::Sum; VECTORS]; R]
where
    L: Lanes<E, E, B, Acc = E::Acc>,
    E: Element,
{
    let steps = of_lane(lane, q[0].len());
    let q = q.map(|of_row| &of_row[..q[0].len()]);
    let (of_lane, rest) = keys.split_at(steps.len());
    *keys = rest;
    let mut sums = [[lanes.zero().as_ref()[part]; VECTORS]; R];
    for (keys, step) in of_lane.iter().zip(steps) {
        let mut vectors = [lanes.widen(&keys[0], part); VECTORS];
        for v in 1..VECTORS {
            vectors[v] = lanes.widen(&keys[v], part);
        }
        for r in 0..R {
            let q = lanes.load(&from_fn(|i| q[r][step][i % P]), part);
            for v in 0..VECTORS {
                sums[r][v] = if NORMAL {
                    lanes.multiply_add_normal(sums[r][v], vectors[v], q)
                } else {
                    lanes.multiply_add(sums[r][v], vectors[v], q)
                };
            }
        }
    }
    sums
}

/// Adds `left` to `sums`.
#[inline(always)]
fn add<L, E, const B: usize, const R: usize>(
    lanes: L,
    left: [[L::Sum; VECTORS]; R],
    sums: &mut [[L::Sum; VECTORS]; R],
) where
    L: Lanes<E, E, B, Acc = E::Acc>,
    E: Element,
{
    for r in 0..R {
        for v in 0..VECTORS {
            sums[r][v] = lanes.add_sums(left[r][v], sums[r][v]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::dot;
    use crate::tensor::Float;

    /// Of numbers below `size`.
    fn agrees<E: Element>(size: f64) {
        let number = |i: usize| E::from_f64(libm::sin(i as f64 * 1.7) * size);
        for (rows, keys, head_dim) in [
            (1, 1, 1),
            (3, 33, 16),
            (9, 70, 72),
            (4, 100, 31),
            (5, 64, 256),
        ] {
            let q: Vec<E> = (0..rows * head_dim).map(number).collect();
            let keys: Vec<E> = (0..keys * head_dim).map(|i| number(i + 7)).collect();
            let packed = PackedKeys::new(&keys, head_dim);
            let first = keys.len() / head_dim / KEYS / 2;
            let panels = first..(keys.len() / head_dim).div_ceil(KEYS);
            let width = panels.len() * KEYS;
            for level in Level::available() {
                let mut got = vec![E::Acc::ZERO; rows * width];
                scores(level, &q, &packed, panels.clone(), &mut got);
                for (q, got) in q.chunks(head_dim).zip(got.chunks(width)) {
                    let keys = keys[first * KEYS * head_dim..].chunks(head_dim);
                    let want: Vec<_> = keys.map(|key| dot(level, key, q)).collect();
                    let (of_keys, of_none) = got.split_at(want.len());
                    assert_eq!(of_keys, want, "{level} {head_dim}");
                    assert!(of_none.iter().all(|&score| score == E::Acc::ZERO));
                }
            }
        }
    }

    #[test]
    fn every_score_is_the_documented_product() {
        agrees::<f64>(3.0);
        agrees::<f32>(3.0);
        agrees::<bf16>(3.0);
        // Sums of products about 2⁻¹²⁶, which denormal numbers are below.
        agrees::<bf16>(2f64.powi(-63));
    }

    #[test]
    fn the_smallest_product_of_those_called_normal_is_normal() {
        let (zero, least) = (bf16::from_f32(-0.0), bf16::from_f32(2f32.powi(-50)));
        let below = bf16::from_bits(least.to_bits() - 1);
        for x in [
            zero,
            least,
            -least,
            bf16::MAX,
            bf16::NEG_INFINITY,
            bf16::NAN,
        ] {
            assert!(products_are_normal(&[x, bf16::ONE]), "{x}");
        }
        for x in [below, -below, bf16::MIN_POSITIVE, bf16::from_bits(1)] {
            assert!(!products_are_normal(&[bf16::ONE, x]), "{x}");
        }
        // The last place of a product of two, each of them 2⁻⁵⁰ and its last place.
        let last_place = least.to_f64() * 2f64.powi(-7);
        assert!(last_place * last_place >= f32::MIN_POSITIVE.into());
    }
}
