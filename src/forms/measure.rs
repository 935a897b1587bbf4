//! Theorem 5 on a block: how far the patched block is from its target, and that the patch matters.

use super::bounds::{self, wide};
use super::random::{Sample, Tokens};
use super::table::Control;
use crate::kernels::{Backend, Level};
use crate::model::{Attended, Cache, ForwardRun, Ops, Pass, Sequence};
use crate::patch::lemmas::check_finite;
use crate::patch::theorem_5::{OutputControllable, say, theorem_5};
use crate::patch::{ApplyMode, ByWeight, LayerPatch, Precondition, layer_overlay};
use crate::tensor::{Element, Matrix};

/// What was measured of a patched block.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The patch of the inner function; empty where it sees the same in both passes.
    pub delta_inner: LayerPatch,
    /// The patch of the outer function.
    pub delta_outer: LayerPatch,
    /// The first linear maps that are changed, against their outputs for z_C; `None` where no inner patch is needed.
    pub inner: Option<Difference>,
    /// The block, against T(C, x).
    pub block: Difference,
    /// How far the block is off without the patch, or with half of it.
    pub controls: Controls,
}

/// A difference of two vectors.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Difference {
    /// The largest |difference|, over the largest |number| that was wanted.
    pub relative: f64,
    /// The largest bound of a difference, over the same.
    pub bound: f64,
    /// The largest |difference| over its own bound: at most 1, or something is broken.
    pub share: f64,
}

impl Difference {
    /// The difference of `got` from `wanted`; `bound` has the bound of each number.
    fn new(got: &[f64], wanted: &[f64], bound: &[f64]) -> Self {
        let difference: Vec<_> = got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).collect();
        let size = largest(wanted);
        let shares = difference.iter().zip(bound);
        let shares: Vec<_> = shares
            .map(|(&difference, &bound)| over(difference, bound))
            .collect();
        Self {
            relative: over(largest(&difference), size),
            bound: over(largest(bound), size),
            share: largest(&shares),
        }
    }

    /// Whether every difference is within its bound.
    pub fn holds(&self) -> bool {
        self.share <= 1.0
    }

    /// The worst of both.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            relative: largest(&[self.relative, other.relative]),
            bound: largest(&[self.bound, other.bound]),
            share: largest(&[self.share, other.share]),
        }
    }
}

/// One number for each negative control: the largest |difference| of T over the largest |T(C, x)|.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Controls {
    /// No patch.
    pub no_patch: f64,
    /// The outer patch without the inner one; `None` where there is no inner one.
    pub without_inner: Option<f64>,
    /// The inner patch without the outer one; `None` where there is no inner one.
    pub without_outer: Option<f64>,
}

impl Controls {
    /// The smallest.
    pub fn least(&self) -> f64 {
        let halves = [self.without_inner, self.without_outer];
        halves.into_iter().flatten().fold(self.no_patch, f64::min)
    }

    /// The smaller of each.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        let least = |a: Option<f64>, b: Option<f64>| a.into_iter().chain(b).reduce(f64::min);
        Self {
            no_patch: self.no_patch.min(other.no_patch),
            without_inner: least(self.without_inner, other.without_inner),
            without_outer: least(self.without_outer, other.without_outer),
        }
    }
}

impl<E: Element> Sample<E> {
    /// Patches the block by Theorem 5 and measures the result.
    ///
    /// # Errors
    ///
    /// A precondition of one of the lemmas does not hold, or numbers are not finite.
    pub fn measure(&self, level: Level) -> Result<Measured, Precondition> {
        match self.control {
            Control::First => self.measure_by(level, &self.block.outer),
            Control::Weights => self.measure_by(level, &ByWeight(&self.block.outer)),
        }
    }

    fn measure_by(
        &self,
        level: Level,
        g: &impl OutputControllable<E>,
    ) -> Result<Measured, Precondition> {
        let (block, mut run) = (&self.block, ForwardRun::on(level, Backend::Native));
        let contextual = self.attend(&mut run, &self.contextual);
        let reduced = self.attend(&mut run, &self.reduced);
        let patched = theorem_5(&mut run, block, g, &reduced, &contextual)?;
        let target = &patched.target;
        let mut off = |delta: &LayerPatch| {
            let said = wide(&say(&mut run, block, &reduced, delta).t);
            Difference::new(&said, target, target).relative
        };
        let has_inner = !patched.delta_inner.is_empty();
        let controls = Controls {
            no_patch: off(&LayerPatch::new()),
            without_inner: has_inner.then(|| off(&patched.delta_outer)),
            without_outer: has_inner.then(|| off(&patched.delta_inner)),
        };
        let bound = bounds::block(level, block, &patched, &reduced.rest);
        let inner = has_inner
            .then(|| self.inner_difference(&mut run, &patched.delta_inner, &reduced, &contextual));
        Ok(Measured {
            inner: inner.transpose()?,
            block: Difference::new(&wide(&patched.said.t), target, &bound),
            controls,
            delta_inner: patched.delta_inner,
            delta_outer: patched.delta_outer,
        })
    }

    /// What attention leaves of the last token to the rest of the block.
    fn attend(&self, run: &mut ForwardRun<'_>, tokens: &Tokens<E>) -> Attended<Matrix<E>> {
        let form = &self.block.attention.form;
        let mut cache = Cache::new([form.window], form.kv_heads, form.head_dim);
        let mut sequences = [Sequence {
            rows: 0..tokens.rows.rows(),
            positions: &tokens.positions,
            cache: &mut cache,
        }];
        let mut pass = Pass::new(run, &mut sequences, &[]);
        let Attended { z, rest } = self.block.attend(&mut pass, tokens.rows.clone());
        let last = tokens.rows.rows() - 1..tokens.rows.rows();
        Attended {
            z: z.slice_rows(last.clone()),
            rest: rest.slice_rows(last),
        }
    }

    /// The first maps that are changed, against their outputs for z_C.
    fn inner_difference(
        &self,
        run: &mut ForwardRun<'_>,
        delta: &LayerPatch,
        reduced: &Attended<Matrix<E>>,
        contextual: &Attended<Matrix<E>>,
    ) -> Result<Difference, Precondition> {
        let overlay = layer_overlay(&self.block, delta, ApplyMode::Materialise);
        let changes = [(0..1, &overlay)];
        let (z, z_ctx) = (wide(&reduced.z), wide(&contextual.z));
        let [mut got, mut wanted, mut bound] = [const { Vec::new() }; 3];
        for map in self.block.inner.first_maps() {
            let Some(delta) = bounds::low_rank(delta, map) else {
                continue;
            };
            let [output] = Pass::of_rows(run, &[]).linear([map], &contextual.z);
            wanted.extend(wide(&output));
            let [output] = Pass::of_rows(run, &changes).linear([map], &reduced.z);
            got.extend(wide(&output));
            bound.extend(bounds::first_map::<E>(map, delta, &z, &z_ctx));
        }
        check_finite("W z_C", &wanted)?;
        check_finite("(W + ΔW) z", &got)?;
        Ok(Difference::new(&got, &wanted, &bound))
    }
}

/// The largest |x|, or NaN where there is one.
fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |max, x| {
        if x.abs() > max || x.is_nan() {
            x.abs()
        } else {
            max
        }
    })
}

/// `a` / `b`, where 0 / 0 is 0.
fn over(a: f64, b: f64) -> f64 {
    if a == 0.0 { 0.0 } else { a / b }
}

#[cfg(test)]
mod tests {
    use super::super::table::Form;
    use super::*;
    use crate::model::Hidden;

    /// An outer function that no change makes say anything else.
    struct Fixed;

    impl OutputControllable<f32> for Fixed {
        fn delta(
            &self,
            _: &mut ForwardRun<'_>,
            _: &Hidden<Matrix<f32>>,
            _: &[f64],
        ) -> Result<LayerPatch, Precondition> {
            Ok(LayerPatch::new())
        }
    }

    #[test]
    fn a_block_whose_outer_function_is_not_controllable_has_no_patch() {
        for form in Form::all().unwrap() {
            let sample = Sample::from_seed(&form, 0);
            let measured = sample.measure_by(Level::best(), &Fixed).unwrap();
            assert!(
                measured.inner.is_none_or(|inner| inner.holds()),
                "{}",
                form.name
            );
            assert!(!measured.block.holds(), "{}", form.name);
            assert!(
                measured.block.relative > 1e4 * measured.block.bound,
                "{}",
                form.name
            );
        }
    }
}
