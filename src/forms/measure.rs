//! Theorem 5 on a block: how far the patched block is from its target, and that the patch matters.

use super::bounds::{Bounded, U64, first_maps};
use super::inner::FirstMaps;
use crate::kernels::Level;
use crate::patch::Precondition;
use crate::patch::lemmas::check_finite;
use crate::patch::theorem_5::{Change, InputControllable, Pass, Patched, theorem_5, wide};
use crate::tensor::Float;

/// What was measured of a patched block.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The parts of the patch, inner before outer.
    pub changes: Vec<Change>,
    /// The first linear maps, against their outputs for z_C; `None` where no inner patch is needed.
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

/// Patches f and g by [Theorem 5](theorem_5) and measures the result.
///
/// # Errors
///
/// Those of [`theorem_5`], and first linear maps whose output is not finite.
pub(super) fn measure<A, F, G>(
    level: Level,
    f: &F,
    g: &G,
    reduced: &Pass<A>,
    contextual: &Pass<A>,
) -> Result<Measured, Precondition>
where
    A: Float,
    F: FirstMaps<A>,
    G: Bounded<A, Input = <F as FirstMaps<A>>::Output>,
{
    let patched = theorem_5(level, f, g, reduced, contextual)?;
    let target = wide(&patched.target);
    let off = |f: &F, g: &G| {
        let said = wide(&reduced.output(&g.forward(level, &f.forward(level, &reduced.input))));
        Difference::new(&said, &target, &target).relative
    };
    let has_inner = !patched.delta_inner.is_empty();
    let controls = Controls {
        no_patch: off(f, g),
        without_inner: has_inner.then(|| off(f, &patched.outer)),
        without_outer: has_inner.then(|| off(&patched.inner, g)),
    };
    let bound = block_bound(level, g, &patched, reduced);
    let inner = has_inner.then(|| inner_difference(level, f, &patched.inner, reduced, contextual));
    Ok(Measured {
        inner: inner.transpose()?,
        block: Difference::new(&wide(&patched.output), &target, &bound),
        controls,
        changes: [patched.delta_inner, patched.delta_outer].concat(),
    })
}

/// The bound of |T(C∖Y, x) − T(C, x)| that [`bounds`](super::bounds) derives.
fn block_bound<A, F, G>(
    level: Level,
    g: &G,
    patched: &Patched<A, F, G>,
    reduced: &Pass<A>,
) -> Vec<f64>
where
    A: Float,
    F: InputControllable<A>,
    G: Bounded<A, Input = F::Output>,
{
    let h = patched.inner.forward(level, &reduced.input);
    let outer = g.bound(level, &patched.outer, &h, &patched.delta_y);
    let (target, residual) = (wide(&patched.target), wide(&reduced.residual));
    let said = wide(&patched.output);
    (0..outer.len())
        .map(|j| {
            let delta_y = (target[j] - residual[j]).abs() + patched.delta_y[j].abs();
            outer[j] + A::DTYPE.unit_roundoff() * said[j].abs() + U64 * delta_y
        })
        .collect()
}

fn inner_difference<A: Float, F: FirstMaps<A>>(
    level: Level,
    f: &F,
    patched: &F,
    reduced: &Pass<A>,
    contextual: &Pass<A>,
) -> Result<Difference, Precondition> {
    let flat = |maps: &F, v: &[A]| wide(&maps.first(level, v).concat());
    let got = flat(patched, &reduced.input);
    let wanted = flat(f, &contextual.input);
    let bound = first_maps(level, f, patched, &reduced.input, &contextual.input);
    check_finite("W z_C", &wanted)?;
    check_finite("(W + ΔW) z", &got)?;
    Ok(Difference::new(&got, &wanted, &bound.concat()))
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
