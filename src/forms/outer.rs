//! g: outer functions, each with the lemma that controls it.

use super::linear::Linear;
use super::norm::EPS;
use crate::kernels::{Level, unscaled_rms_norm};
use crate::patch::Precondition;
use crate::patch::lemmas::{lemma_8, lemma_9, lemma_10};
use crate::patch::theorem_5::{Delta, OutputControllable, ParameterDelta, rounded_sum, wide};
use crate::tensor::Float;

/// What follows the activation.
#[derive(Clone, Debug)]
pub enum Outer<A: Float> {
    /// g = W h + b, controlled by b (Lemma 8).
    Bias(Linear<A>),
    /// g = W h, with or without b, controlled by W (Lemma 9).
    Weight(Linear<A>),
    /// g = m ⊙ n(W h), a post-norm, controlled by m (Lemma 10).
    Scale {
        /// W.
        down: Linear<A>,
        /// m.
        scale: Vec<A>,
    },
}

impl<A: Float> Outer<A> {
    /// n(W h), the u of Lemma 10.
    pub(super) fn normed(level: Level, down: &Linear<A>, h: &[A]) -> Vec<A> {
        unscaled_rms_norm(level, &down.forward(level, h), EPS)
    }
}

impl<A: Float> OutputControllable<A> for Outer<A> {
    type Input = Vec<A>;

    fn forward(&self, level: Level, h: &Vec<A>) -> Vec<A> {
        match self {
            Self::Bias(down) | Self::Weight(down) => down.forward(level, h),
            Self::Scale { down, scale } => {
                let u = Self::normed(level, down, h);
                scale.iter().zip(u).map(|(&m, u)| m * u).collect()
            }
        }
    }

    fn delta(
        &self,
        level: Level,
        h: &Vec<A>,
        delta_y: &[f64],
    ) -> Result<Vec<ParameterDelta>, Precondition> {
        let (parameter, lemma, delta) = match self {
            Self::Bias(_) => ("bias", 8, Delta::Vector(lemma_8(delta_y)?)),
            Self::Weight(down) => ("down", 9, down.oriented(lemma_9(&wide(h), delta_y)?)),
            Self::Scale { down, .. } => {
                let u = wide(&Self::normed(level, down, h));
                ("scale", 10, Delta::Vector(lemma_10(&u, delta_y)?))
            }
        };
        Ok(vec![ParameterDelta {
            parameter,
            expert: None,
            lemma,
            delta,
        }])
    }

    fn plus(&self, delta: &[ParameterDelta]) -> Result<Self, Precondition> {
        let mut patched = self.clone();
        for change in delta {
            match (&mut patched, &change.delta) {
                (Self::Scale { scale, .. }, Delta::Vector(delta)) => {
                    *scale = rounded_sum(change.parameter, scale, delta.iter().copied())?;
                }
                (Self::Bias(down) | Self::Weight(down) | Self::Scale { down, .. }, _) => {
                    down.add(change)?;
                }
            }
        }
        Ok(patched)
    }
}
