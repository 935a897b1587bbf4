//! The attention's averages of values: Σ pⱼ vⱼ.

use std::marker::PhantomData;

use half::bf16;

use super::simd::{Lanes, Level, Simd, Task, run_at_level};
use crate::tensor::{ByType, Element, Float};

/// Bytes of values that all rows of probabilities read before others: well within a second cache.
const STRETCH_BYTES: usize = 64 << 10;

/// Adds pⱼ vⱼ to `out` for each key j in order, one fused multiply-add per element, so that the bits do not depend on how the
/// keys are divided into calls. `values` is `[keys, out.len()]`.
pub fn weighted_sum<E: Element>(level: Level, p: &[E::Acc], values: &[E], out: &mut [E::Acc]) {
    let width = out.len();
    assert_eq!(p.len() * width, values.len(), "a p for every value");
    weighted_sums(level, p, p.len(), values, out, width);
}

/// [`weighted_sum`] for several rows of probabilities over the same `values` `[keys, width]`: the first `keys` numbers of each row
/// of `p` `[rows, stride]`. `out` is `[rows, width]`.
pub fn weighted_sums<E: Element>(
    level: Level,
    p: &[E::Acc],
    stride: usize,
    values: &[E],
    out: &mut [E::Acc],
    width: usize,
) {
    let (rows, keys) = (out.len() / width, values.len() / width);
    let fits = keys <= stride && rows.saturating_sub(1) * stride + keys <= p.len();
    assert!(fits, "p sizes");
    if keys > 0 {
        let sums = WeightedSums {
            p,
            stride,
            values,
            out,
            width,
        };
        E::by_type::<AtLevel>((level, sums));
    }
}

/// What [`weighted_sums`] is called with.
struct WeightedSums<'a, E: Element> {
    p: &'a [E::Acc],
    stride: usize,
    values: &'a [E],
    out: &'a mut [E::Acc],
    width: usize,
}

/// The tasks of the compute types.
macro_rules! task {
    ($($x:ty),*) => {$(
        impl Task for WeightedSums<'_, $x> {
            type Output = ();

            #[inline(always)]
            fn run<S: Simd>(self, simd: S) {
                all_sums(simd, self);
            }
        }
    )*};
}
task!(f64, f32, bf16);

/// Runs [`WeightedSums`] of each compute type.
struct AtLevel<'a>(PhantomData<&'a ()>);

impl<'a> ByType for AtLevel<'a> {
    type Input<E: Element> = (Level, WeightedSums<'a, E>);
    run_at_level!();
}

/// All sums, in tiles of `R` rows and at most `MOST` blocks, as many as registers have room for.
#[inline(always)]
fn all_sums<L, E>(lanes: L, sums: WeightedSums<'_, E>)
where
    L: Lanes<E::Acc, E, 16, Acc = E::Acc>,
    E: Element,
{
    if const { L::TILE.is(4, 4) } {
        stretches::<L, E, 4, 5>(lanes, sums);
    } else if const { L::TILE.is(4, 3) } {
        stretches::<L, E, 4, 2>(lanes, sums);
    } else {
        stretches::<L, E, 1, 1>(lanes, sums);
    }
}

/// One stretch of keys after the other, so that all rows find its values in a cache.
#[inline(always)]
fn stretches<L, E, const R: usize, const MOST: usize>(lanes: L, sums: WeightedSums<'_, E>)
where
    L: Lanes<E::Acc, E, 16, Acc = E::Acc>,
    E: Element,
{
    let WeightedSums {
        p,
        stride,
        values,
        out,
        width,
    } = sums;
    let most = (STRETCH_BYTES / (width * size_of::<E>())).max(1);
    for (i, values) in values.chunks(most * width).enumerate() {
        let keys = i * most..i * most + values.len() / width;
        let row_of_p = |row: usize| &p[row * stride..][keys.clone()];
        for (i, out) in out.chunks_mut(R * width).enumerate() {
            if out.len() == R * width {
                let p: [_; R] = std::array::from_fn(|r| row_of_p(i * R + r));
                row_of_tiles::<L, E, R, MOST>(lanes, p, values, out);
                continue;
            }
            for (r, out) in out.chunks_exact_mut(width).enumerate() {
                row_of_tiles::<L, E, 1, MOST>(lanes, [row_of_p(i * R + r)], values, out);
            }
        }
    }
}

/// All of `R` rows, `[R, width]`.
#[inline(always)]
fn row_of_tiles<L, E, const R: usize, const MOST: usize>(
    lanes: L,
    p: [&[E::Acc]; R],
    values: &[E],
    out: &mut [E::Acc],
) where
    L: Lanes<E::Acc, E, 16, Acc = E::Acc>,
    E: Element,
{
    let width = out.len() / R;
    let blocks = width / 16;
    let mut block = 0;
    while block < blocks {
        let left = blocks - block;
        let at = 16 * block;
        // Tiles of about one size.
        let together = left.div_ceil(left.div_ceil(MOST));
        block += if const { MOST >= 5 } && together == 5 {
            tile::<L, E, R, 5>(lanes, p, values, at, out)
        } else if const { MOST >= 4 } && together == 4 {
            tile::<L, E, R, 4>(lanes, p, values, at, out)
        } else if const { MOST >= 3 } && together == 3 {
            tile::<L, E, R, 3>(lanes, p, values, at, out)
        } else if const { MOST >= 2 } && together == 2 {
            tile::<L, E, R, 2>(lanes, p, values, at, out)
        } else {
            tile::<L, E, R, 1>(lanes, p, values, at, out)
        };
    }
    let at = 16 * blocks;
    if at == width {
        return;
    }
    for (p, out) in p.into_iter().zip(out.chunks_exact_mut(width)) {
        for (&p, v) in p.iter().zip(values.chunks_exact(width)) {
            for (sum, v) in out[at..].iter_mut().zip(&v[at..]) {
                *sum = p.mul_add(v.acc(), *sum);
            }
        }
    }
}

/// `J` blocks of `R` rows, from column `at` on. Returns `J`.
#[inline(always)]
fn tile<L, E, const R: usize, const J: usize>(
    lanes: L,
    p: [&[E::Acc]; R],
    values: &[E],
    at: usize,
    out: &mut [E::Acc],
) -> usize
where
    L: Lanes<E::Acc, E, 16, Acc = E::Acc>,
    E: Element,
{
    let width = out.len() / R;
    let keys = values.len() / width;
    let p = p.map(|p| &p[..keys]);
    for part in 0..L::PARTS {
        let mut sums: [[L::Sum; J]; R] = std::array::from_fn(|r| {
            let (blocks, _) = out[r * width + at..].as_chunks();
            std::array::from_fn(|j| lanes.load_partial(&blocks[j], part))
        });
        for (k, v) in values.chunks_exact(width).enumerate() {
            let (v, _) = v[at..at + 16 * J].as_chunks();
            let v: [_; J] = std::array::from_fn(|j| lanes.widen(&v[j], part));
            for r in 0..R {
                let p = lanes.load(&[p[r][k]; 16], part);
                for j in 0..J {
                    sums[r][j] = lanes.multiply_add(sums[r][j], v[j], p);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let (blocks, _) = out[r * width + at..].as_chunks_mut();
            for (block, &sum) in blocks.iter_mut().zip(sums) {
                lanes.store_partial(sum, block, part);
            }
        }
    }
    J
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    /// Many rows at every level, against one key after the other.
    fn agrees<E: Element>() {
        for (rows, keys, width) in [(1, 1, 1), (3, 5, 16), (4, 9, 70), (9, 33, 256), (2, 0, 8)] {
            let number = |i: usize| libm::sin(i as f64 * 1.7) * 3.0;
            let stride = keys + 2;
            let p: Vec<_> = (0..rows * stride)
                .map(|i| E::Acc::from_f64(number(i)))
                .collect();
            let values: Vec<E> = (0..keys * width)
                .map(|i| E::from_f64(number(i + 7)))
                .collect();
            let start: Vec<_> = (0..rows * width)
                .map(|i| E::Acc::from_f64(number(i + 3)))
                .collect();
            let mut want = start.clone();
            for (row, out) in want.chunks_mut(width).enumerate() {
                for (k, v) in values.chunks(width).enumerate() {
                    for (out, v) in out.iter_mut().zip(v) {
                        *out = p[row * stride + k].mul_add(v.acc(), *out);
                    }
                }
            }
            for level in Level::available() {
                let mut got = start.clone();
                weighted_sums(level, &p, stride, &values, &mut got, width);
                assert!(got == want, "{level} {rows} rows, {keys} keys of {width}");
            }
        }
    }

    #[test]
    fn every_level_adds_key_after_key() {
        agrees::<f64>();
        agrees::<f32>();
        agrees::<bf16>();
    }
}
