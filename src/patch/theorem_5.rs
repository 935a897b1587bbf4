//! Theorem 5: a residual block whose inner function is input-controllable and whose outer function is
//! output-controllable has a perfect patch.
//!
//! A block is T(C, x) = v + g(f(v)) with v = A(C, x), the attention with its residual; or, in parallel,
//! T(C, x) = x + A(C, x) + g(f(x)). Subscript C is the contextual pass, no subscript the reduced one, in which a
//! part Y of the context is gone.
//!
//! 1. f is input-controllable: some Δθ_f makes f see v_C where it is given v.
//! 2. The patched f gives some h. In exact arithmetic that is h_C; here it is what was *really* computed.
//! 3. g is output-controllable: some Δθ_g makes it say, of this h, δy = T(C, x) − v − g(h) more.
//!
//! So the second half corrects whatever the rounding of the first one left, in every precision. In a
//! parallel block f sees x in both passes, and step 1 has nothing to do (Lemma 12).

use super::lemmas::check_finite;
use super::{LowRank, Precondition};
use crate::kernels::Level;
use crate::tensor::Float;

/// Definition 3. f is *input-controllable* if for every nonzero z and z + δz there is a Δθ with
/// f(z; θ + Δθ) = f(z + δz; θ).
///
/// Where f begins with a norm N, its input is v, and what must not be zero is z = N(v) (Lemma 7).
pub trait InputControllable<A: Float>: Sized {
    /// What f gives: h, or gate and h of every active expert.
    type Output;

    /// f(v; θ).
    fn forward(&self, level: Level, v: &[A]) -> Self::Output;

    /// Δθ with f(v; θ + Δθ) = f(v_ctx; θ), in f64.
    ///
    /// # Errors
    ///
    /// z = 0, or numbers that are not finite.
    fn delta(
        &self,
        level: Level,
        v: &[A],
        v_ctx: &[A],
    ) -> Result<Vec<ParameterDelta>, Precondition>;

    /// f with the parameters θ + Δθ, rounded once; Δθ may be empty.
    ///
    /// # Errors
    ///
    /// A parameter that is not finite then.
    fn plus(&self, delta: &[ParameterDelta]) -> Result<Self, Precondition>;
}

/// Definition 4. g is *output-controllable* if for every fixed nonzero h and every δy there is a Δθ with
/// g(h; θ + Δθ) = g(h; θ) + δy.
pub trait OutputControllable<A: Float>: Sized {
    /// What g is given: what f gives.
    type Input;

    /// g(h; θ).
    fn forward(&self, level: Level, h: &Self::Input) -> Vec<A>;

    /// Δθ with g(h; θ + Δθ) = g(h; θ) + δy, in f64.
    ///
    /// # Errors
    ///
    /// An activation that the construction divides by is zero, or numbers are not finite.
    fn delta(
        &self,
        level: Level,
        h: &Self::Input,
        delta_y: &[f64],
    ) -> Result<Vec<ParameterDelta>, Precondition>;

    /// g with the parameters θ + Δθ, rounded once; Δθ may be empty.
    ///
    /// # Errors
    ///
    /// A parameter that is not finite then.
    fn plus(&self, delta: &[ParameterDelta]) -> Result<Self, Precondition>;
}

/// A part of Δθ: the change of one parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterDelta {
    /// The parameter, such as `gate` or `bias`.
    pub parameter: &'static str,
    /// The expert that it belongs to, where there are experts.
    pub expert: Option<usize>,
    /// The lemma that gave it.
    pub lemma: u8,
    /// What is added to it.
    pub delta: Delta,
}

/// What is added to a parameter, in the shape in which it is stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Delta {
    /// To a weight.
    Matrix(LowRank),
    /// To a bias or a scale.
    Vector(Vec<f64>),
}

impl ParameterDelta {
    /// The rank of a matrix's change; `None` for a vector's.
    pub fn rank(&self) -> Option<usize> {
        match &self.delta {
            Delta::Matrix(delta) => Some(delta.v.rows()),
            Delta::Vector(_) => None,
        }
    }
}

/// What one pass hands to the inner and the outer function.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockStates<A> {
    /// What f is given: v, or x in a parallel block.
    pub input: Vec<A>,
    /// What g's output is added to: v, or x + A(C, x) in a parallel block.
    pub residual: Vec<A>,
}

impl<A: Float> BlockStates<A> {
    /// The block's output: the residual with g's output added.
    pub fn output(&self, said: &[A]) -> Vec<A> {
        let pairs = self.residual.iter().zip(said);
        pairs.map(|(&residual, &said)| residual + said).collect()
    }
}

/// A block that Theorem 5 has patched.
#[derive(Clone, Debug)]
pub struct Patched<A, F, G> {
    /// f with θ_f + Δθ_f.
    pub inner: F,
    /// g with θ_g + Δθ_g.
    pub outer: G,
    /// Δθ_f; empty where f sees the same in both passes.
    pub delta_inner: Vec<ParameterDelta>,
    /// Δθ_g.
    pub delta_outer: Vec<ParameterDelta>,
    /// T(C, x), which the patched block has to say.
    pub target: Vec<A>,
    /// The patched block's output in the reduced pass.
    pub output: Vec<A>,
    /// δy, which g had to say more.
    pub delta_y: Vec<f64>,
}

/// Theorem 5, as its proof goes: patches f and g so that the block gives in the reduced pass what it gives in
/// the contextual one.
///
/// # Errors
///
/// Those of the two Δθ, and numbers that are not finite, by name.
pub fn theorem_5<A, F, G>(
    level: Level,
    f: &F,
    g: &G,
    reduced: &BlockStates<A>,
    contextual: &BlockStates<A>,
) -> Result<Patched<A, F, G>, Precondition>
where
    A: Float,
    F: InputControllable<A>,
    G: OutputControllable<A, Input = F::Output>,
{
    let h_ctx = f.forward(level, &contextual.input);
    let target = contextual.output(&g.forward(level, &h_ctx));
    check_finite("T(C, x)", &wide(&target))?;

    let delta_inner = if reduced.input == contextual.input {
        Vec::new()
    } else {
        f.delta(level, &reduced.input, &contextual.input)?
    };
    let inner = f.plus(&delta_inner)?;

    let h = inner.forward(level, &reduced.input);
    let said = wide(&g.forward(level, &h));
    let (wanted, residual) = (wide(&target), wide(&reduced.residual));
    let delta_y: Vec<_> = (0..said.len())
        .map(|j| wanted[j] - residual[j] - said[j])
        .collect();
    let delta_outer = g.delta(level, &h, &delta_y)?;
    let outer = g.plus(&delta_outer)?;

    let output = reduced.output(&outer.forward(level, &h));
    check_finite("T(C∖Y, x)", &wide(&output))?;
    Ok(Patched {
        inner,
        outer,
        delta_inner,
        delta_outer,
        target,
        output,
        delta_y,
    })
}

/// `θ` + `delta`, summed in f64 and rounded once; `parameter` names it should it not be finite.
///
/// # Errors
///
/// A sum that is not finite.
pub fn rounded_sum<A: Float>(
    parameter: &str,
    theta: &[A],
    delta: impl IntoIterator<Item = f64>,
) -> Result<Vec<A>, Precondition> {
    let pairs = theta.iter().zip(delta);
    let sum: Vec<A> = pairs
        .map(|(theta, delta)| A::from_f64(theta.to_f64() + delta))
        .collect();
    check_finite(&format!("{parameter} + Δ{parameter}"), &wide(&sum))?;
    Ok(sum)
}

/// Numbers in f64.
pub(crate) fn wide<A: Float>(x: &[A]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}
