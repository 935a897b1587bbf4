//! The attention's average of values: Σ pⱼ vⱼ.

use super::Level;
use super::lanes::{Simd, Task};
use crate::tensor::{Element, Float};

/// Adds pⱼ vⱼ to each row of `out` for each key j in order, a fused multiply-add per element, so that the pieces
/// the keys come in do not show. `p` is `[heads, keys]`, `values` `[keys, width]` and `out` `[heads, width]`.
pub fn weighted_sum<E: Element>(
    level: Level,
    heads: usize,
    p: &[E::Acc],
    values: &[E],
    out: &mut [E::Acc],
) {
    let (keys, width) = (p.len() / heads, out.len() / heads);
    assert_eq!(keys * width, values.len(), "a probability for every value");
    if keys == 0 {
        return;
    }
    level.run(WeightedSum {
        keys,
        width,
        p,
        values,
        out,
    });
}

struct WeightedSum<'a, E: Element> {
    keys: usize,
    width: usize,
    p: &'a [E::Acc],
    values: &'a [E],
    out: &'a mut [E::Acc],
}

impl<E: Element> Task for WeightedSum<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let heads = self.p.chunks_exact(self.keys);
        for (p, out) in heads.zip(self.out.chunks_exact_mut(self.width)) {
            one_head(p, self.values, out);
        }
    }
}

#[inline(always)]
fn one_head<E: Element>(p: &[E::Acc], values: &[E], out: &mut [E::Acc]) {
    let width = out.len();
    // A stretch of the output stays in registers while all keys go by.
    const STRETCH: usize = 128;
    let (stretches, rest) = out.as_chunks_mut::<STRETCH>();
    for (i, out) in stretches.iter_mut().enumerate() {
        let mut sum = *out;
        for (&p, v) in p.iter().zip(values.chunks_exact(width)) {
            let v = &v[i * STRETCH..(i + 1) * STRETCH];
            for (sum, v) in sum.iter_mut().zip(v) {
                *sum = p.mul_add(v.acc(), *sum);
            }
        }
        *out = sum;
    }
    let start = width - rest.len();
    for (&p, v) in p.iter().zip(values.chunks_exact(width)) {
        for (sum, v) in rest.iter_mut().zip(&v[start..]) {
            *sum = p.mul_add(v.acc(), *sum);
        }
    }
}
