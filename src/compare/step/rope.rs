//! Rotary position embedding.

use super::Step;
use crate::checkpoint::RopeScaling;
use crate::checkpoint::form::{RopeForm, RopePairing};
use crate::compare::interval::Interval;
use crate::kernels::Rotation;
use crate::model::Attention;

impl Step<'_> {
    /// q · cos + rotate_half(q) · sin, head by head.
    pub(super) fn rope(&self, attention: &Attention, row: usize) -> Vec<Interval> {
        let mut out = self.row(0, row);
        let (Some(rotation), Some(form)) = (&attention.rotation, &attention.form.rope) else {
            return out;
        };
        let cos_sin = self.cos_sin(form, rotation, self.run.first + row);
        let pairs = cos_sin.len();
        let place = |i: usize| match form.pairing {
            RopePairing::Halves => (i, i + pairs),
            RopePairing::Interleaved => (2 * i, 2 * i + 1),
        };
        // Each product is rounded, or only the sum.
        let once = |x: Interval| match form.rounded_once {
            true => x.off(self.rounding.unit() * x.size()),
            false => self.rounding.once(x),
        };
        for head in out.chunks_exact_mut(attention.form.head_dim) {
            for (i, &(cos, sin)) in cos_sin.iter().enumerate() {
                let (a, b) = place(i);
                let [x, y] = [head[a], head[b]];
                let first = once(x.times(cos)).minus(once(y.times(sin)));
                let second = once(y.times(cos)).plus(once(x.times(sin)));
                (head[a], head[b]) = (self.rounding.once(first), self.rounding.once(second));
            }
        }
        out
    }

    /// cos and sin at a position. Engines work out the angle in the type of sums: θ to a power, or a product of up to i
    /// factors, is off by as many u and ln θ (below 16) more; where two frequencies are blended, by as many more as one is
    /// larger than the other.
    fn cos_sin(
        &self,
        form: &RopeForm,
        rotation: &Rotation,
        position: usize,
    ) -> Vec<(Interval, Interval)> {
        let (cos, sin) = rotation.at(position);
        let (blended, scale) = match form.rope.scaling {
            RopeScaling::Linear { .. } => (0.0, 1.0),
            RopeScaling::Llama3 { factor, .. } => (8.0 * factor, 1.0),
            RopeScaling::Yarn {
                factor, attention, ..
            } => (8.0 * factor, attention),
        };
        let angles = rotation.angles(position);
        let turns = cos.iter().zip(&sin).zip(angles).enumerate();
        let of = |x: f64, off: f64| match form.rounded_once {
            true => Interval::around(x, off),
            false => self.rounding.of(Interval::around(x, off)),
        };
        turns
            .map(|(i, ((&cos, &sin), angle))| {
                let relative = (2 * i + 16) as f64 + blended;
                let off = scale * self.rounding.unit() * (relative * angle + 2.0);
                (of(cos, off), of(sin, off))
            })
            .collect()
    }
}
