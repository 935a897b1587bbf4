//! W + U V row by row: a change of low rank written into weights.

use crate::kernels::simd::{Level, Simd, Task};

/// Columns at once: their sums stay in registers.
const COLUMNS: usize = 64;

/// Adds U V to `sums` `[rows, cols]`, where `u` is `[rows, rank]` and `v` `[rank, cols]`: ((s + u₁ v₁) + u₂ v₂) + … for every
/// number, without fused multiply-add.
pub(crate) fn add_outer_products(
    level: Level,
    u: &[f64],
    v: &[f64],
    cols: usize,
    sums: &mut [f64],
) {
    let (rows, rank) = (sums.len() / cols, v.len() / cols);
    assert!(
        sums.len() == rows * cols && v.len() == rank * cols && u.len() == rows * rank,
        "sizes of outer products"
    );
    if rank > 0 {
        level.run(OuterProducts { u, v, cols, sums });
    }
}

struct OuterProducts<'a> {
    u: &'a [f64],
    v: &'a [f64],
    cols: usize,
    sums: &'a mut [f64],
}

impl Task for OuterProducts<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { u, v, cols, sums } = self;
        let rank = v.len() / cols;
        // Rows of V may lie a power of two apart and fall into one set of the cache; these do not.
        let mut some = vec![[0.0; COLUMNS]; rank];
        for first in (0..cols).step_by(COLUMNS) {
            let columns = first..cols.min(first + COLUMNS);
            for (some, v) in some.iter_mut().zip(v.chunks_exact(cols)) {
                some[..columns.len()].copy_from_slice(&v[columns.clone()]);
            }
            for (sums, u) in sums.chunks_exact_mut(cols).zip(u.chunks_exact(rank)) {
                let sums = &mut sums[columns.clone()];
                let mut so_far = [0.0; COLUMNS];
                so_far[..sums.len()].copy_from_slice(sums);
                for (&u, v) in u.iter().zip(&some) {
                    for (sum, &v) in so_far.iter_mut().zip(v) {
                        *sum += u * v;
                    }
                }
                sums.copy_from_slice(&so_far[..sums.len()]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_adds_in_the_documented_order() {
        let mut state = 1u32;
        let mut numbers = |n: usize| -> Vec<f64> {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f64::from(state as i32) / 1e9
            };
            (0..n).map(|_| next()).collect()
        };
        let mut fused_differs = false;
        for (rows, rank, cols) in [(1, 1, 1), (3, 2, 64), (5, 7, 130), (4, 3, 63), (2, 0, 9)] {
            let (u, v) = (numbers(rows * rank), numbers(rank * cols));
            let mut want = numbers(rows * cols);
            let w = want.clone();
            for (i, sum) in want.iter_mut().enumerate() {
                for k in 0..rank {
                    *sum += u[i / cols * rank + k] * v[k * cols + i % cols];
                }
            }
            for level in Level::available() {
                let mut got = w.clone();
                add_outer_products(level, &u, &v, cols, &mut got);
                assert_eq!(got, want, "{level} {rows} {rank} {cols}");
            }
            let fused = (0..rank).fold(w[0], |sum, k| u[k].mul_add(v[k * cols], sum));
            fused_differs |= fused != want[0];
        }
        assert!(fused_differs, "a rounding less would not be noticed");
    }
}
