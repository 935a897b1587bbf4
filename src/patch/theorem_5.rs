//! Theorem 5: a residual block whose inner function is input-controllable and whose outer function is
//! output-controllable has a perfect patch.
//!
//! A block is T(C, x) = v + g(f(v)) with v = A(C, x), the attention with its residual; or, in parallel,
//! T(C, x) = x + A(C, x) + g(f(x)). Subscript C is the contextual pass, no subscript the reduced one, in which a
//! part Y of the context is gone.
//!
//! 1. f is input-controllable (Definition 3): some Δθ_f makes f see z_C where it is given z. Where f begins with a norm N,
//!    that is N(v) (Lemma 7), else v itself (Lemma 6).
//! 2. The patched f gives some h. In exact arithmetic that is h_C; here it is what was *really* computed.
//! 3. g is output-controllable (Definition 4): some Δθ_g makes it say, of this h, δy = T(C, x) − v − g(h) more.
//!
//! So the second half corrects whatever the rounding of the first one left, in every precision. In a
//! parallel block f sees x in both passes, and step 1 has nothing to do (Lemma 12).
//!
//! [`Inner`](crate::model::Inner) and [`Outer`](crate::model::Outer) are controllable as the [`lemmas`](super::lemmas) say, and
//! [Algorithm 1](super::algorithm_1) controls the layers of a model by the same Δθ. It takes several passes through a layer at
//! once and corrects what rounding leaves, so its layers go through a loop of their own (`layer.rs`); what is proved here is
//! what `context-patch lemmas` checks.

use super::lemmas::check_finite;
use super::overlay::{ApplyMode, layer_overlay};
use super::{LayerPatch, Precondition, wide};
use crate::model::{Attended, Block, ForwardRun, Hidden, Pass};
use crate::tensor::{Element, Matrix};

/// Definition 3. f is *input-controllable* if for every nonzero z and z + δz there is a Δθ with
/// f(z; θ + Δθ) = f(z + δz; θ).
pub(crate) trait InputControllable<E: Element> {
    /// Δθ with f(z; θ + Δθ) = f(z_ctx; θ), in f64.
    ///
    /// # Errors
    ///
    /// z = 0, or numbers that are not finite.
    fn delta(
        &self,
        run: &mut ForwardRun<'_>,
        z: &[E],
        z_ctx: &[E],
    ) -> Result<LayerPatch, Precondition>;
}

/// Definition 4. g is *output-controllable* if for every fixed nonzero h and every δy there is a Δθ with
/// g(h; θ + Δθ) = g(h; θ) + δy.
pub(crate) trait OutputControllable<E: Element> {
    /// Δθ with g(h; θ + Δθ) = g(h; θ) + δy, in f64; h is of one token.
    ///
    /// # Errors
    ///
    /// An activation that the construction divides by is zero, or numbers are not finite.
    fn delta(
        &self,
        run: &mut ForwardRun<'_>,
        h: &Hidden<Matrix<E>>,
        delta_y: &[f64],
    ) -> Result<LayerPatch, Precondition>;
}

/// A block that Theorem 5 has patched.
#[derive(Clone, Debug)]
pub(crate) struct Patched<E: Element> {
    /// Δθ_f; empty where f sees the same in both passes.
    pub(crate) delta_inner: LayerPatch,
    /// Δθ_g.
    pub(crate) delta_outer: LayerPatch,
    /// T(C, x), which the patched block has to say.
    pub(crate) target: Vec<f64>,
    /// δy, which g had to say more.
    pub(crate) delta_y: Vec<f64>,
    /// g(h; θ), which was not enough.
    pub(crate) before: Matrix<E>,
    /// What the patched block says in the reduced pass.
    pub(crate) said: Said<E>,
}

/// Theorem 5, as its proof goes: patches f and g so that `block` gives in the reduced pass what it gives in
/// the contextual one. `g` is the block's outer function, as it is to be controlled.
///
/// # Errors
///
/// Those of the two Δθ, and numbers that are not finite, by name.
pub(crate) fn theorem_5<E: Element>(
    run: &mut ForwardRun<'_>,
    block: &Block,
    g: &impl OutputControllable<E>,
    reduced: &Attended<Matrix<E>>,
    contextual: &Attended<Matrix<E>>,
) -> Result<Patched<E>, Precondition> {
    let f = &block.inner;
    let target = wide(&say(run, block, contextual, &LayerPatch::new()).t, 0);
    check_finite("T(C, x)", &target)?;

    let delta_inner = if reduced.z == contextual.z {
        LayerPatch::new()
    } else {
        f.delta(run, reduced.z.row(0), contextual.z.row(0))?
    };

    let halfway = say(run, block, reduced, &delta_inner);
    let (rest, g_of_h) = (reduced.rest.to_f64(0), wide(&halfway.g, 0));
    let delta_y: Vec<_> = (0..target.len())
        .map(|j| target[j] - rest[j] - g_of_h[j])
        .collect();
    let delta_outer = g.delta(run, &halfway.h, &delta_y)?;

    let both = delta_inner.iter().chain(&delta_outer);
    let both = both.map(|(name, change)| (name.clone(), change.clone()));
    let said = say(run, block, reduced, &both.collect());
    check_finite("T(C∖Y, x)", &wide(&said.t, 0))?;
    Ok(Patched {
        delta_inner,
        delta_outer,
        target,
        delta_y,
        before: halfway.g,
        said,
    })
}

/// What a block says of one token.
#[derive(Clone, Debug)]
pub(crate) struct Said<E: Element> {
    /// h = f(z).
    pub(crate) h: Hidden<Matrix<E>>,
    /// g(h).
    pub(crate) g: Matrix<E>,
    /// T.
    pub(crate) t: Matrix<E>,
}

/// What `block` says with the parameters θ + Δθ, each rounded once to the compute type.
pub(crate) fn say<E: Element>(
    run: &mut ForwardRun<'_>,
    block: &Block,
    attended: &Attended<Matrix<E>>,
    delta: &LayerPatch,
) -> Said<E> {
    let change = layer_overlay(block, delta, ApplyMode::Materialise);
    let changes = [(0..1, &change)];
    let mut pass = Pass::of_rows(run, &changes);
    let h = block.inner.output(&mut pass, &attended.z);
    let d = block.outer.project(&mut pass, &h);
    let g = block.outer.output(&mut pass, d);
    let t = block.add(&mut pass, &attended.rest, &g);
    Said { h, g, t }
}
