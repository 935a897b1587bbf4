//! The attention's average of values: Σ pⱼ vⱼ.

use super::Level;
use super::lanes::{Simd, Task};
use crate::tensor::{Element, Float};

/// Adds pⱼ vⱼ to `out` for each key j in order, a fused multiply-add per element, so that the pieces the keys
/// come in do not show. `values` is `[keys, out.len()]`.
pub fn weighted_sum<E: Element>(level: Level, p: &[E::Acc], values: &[E], out: &mut [E::Acc]) {
    assert_eq!(
        p.len() * out.len(),
        values.len(),
        "a probability for every value"
    );
    level.run(WeightedSum { p, values, out });
}

struct WeightedSum<'a, E: Element> {
    p: &'a [E::Acc],
    values: &'a [E],
    out: &'a mut [E::Acc],
}

impl<E: Element> Task for WeightedSum<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let width = self.out.len();
        // A stretch of the output stays in registers while all keys go by.
        const STRETCH: usize = 128;
        let (stretches, rest) = self.out.as_chunks_mut::<STRETCH>();
        for (i, out) in stretches.iter_mut().enumerate() {
            let mut sum = *out;
            for (&p, v) in self.p.iter().zip(self.values.chunks_exact(width)) {
                let v = &v[i * STRETCH..(i + 1) * STRETCH];
                for (sum, v) in sum.iter_mut().zip(v) {
                    *sum = p.mul_add(v.acc(), *sum);
                }
            }
            *out = sum;
        }
        let start = width - rest.len();
        for (&p, v) in self.p.iter().zip(self.values.chunks_exact(width)) {
            for (sum, v) in rest.iter_mut().zip(&v[start..]) {
                *sum = p.mul_add(v.acc(), *sum);
            }
        }
    }
}
