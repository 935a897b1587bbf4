//! A mixture of experts: f with a router that activates a few experts, g the sum of their outputs.

use super::inner::{FirstMap, FirstMaps, Mlp};
use super::linear::Linear;
use super::norm::Norm;
use crate::kernels::{Level, softmax, weighted_sum};
use crate::patch::Precondition;
use crate::patch::lemmas::lemma_11;
use crate::patch::theorem_5::{Change, OutputControllable, wide};
use crate::tensor::Float;

/// An expert that is active for a token.
#[derive(Clone, Debug)]
pub struct Active<A: Float> {
    /// Which one.
    pub expert: usize,
    /// s_j, its share of the softmax over the active experts.
    pub gate: A,
    /// h_j.
    pub h: Vec<A>,
}

/// f of a mixture of experts. The router is a first linear map like the others, so the patch activates the same
/// experts with the same gates.
#[derive(Clone, Debug)]
pub struct ExpertsInner<A: Float> {
    pub(super) norm: Norm<A>,
    pub(super) router: Linear<A>,
    pub(super) experts: Vec<Mlp<A>>,
    /// How many experts are active for a token.
    pub(super) active: usize,
}

impl<A: Float> FirstMaps<A> for ExpertsInner<A> {
    type Output = Vec<Active<A>>;

    fn norm(&self) -> &Norm<A> {
        &self.norm
    }

    fn maps(&self) -> Vec<FirstMap<'_, A>> {
        let router = FirstMap {
            name: "router",
            expert: None,
            map: &self.router,
        };
        let experts = self.experts.iter().enumerate();
        let experts = experts.flat_map(|(expert, mlp)| mlp.maps(Some(expert)));
        std::iter::once(router).chain(experts).collect()
    }

    fn maps_mut(&mut self) -> Vec<&mut Linear<A>> {
        let experts = self.experts.iter_mut().flat_map(Mlp::maps_mut);
        std::iter::once(&mut self.router).chain(experts).collect()
    }

    fn finish(&self, level: Level, outputs: &[Vec<A>]) -> Vec<Active<A>> {
        let (router, outputs) = (&outputs[0], &outputs[1..]);
        let chosen = largest(router, self.active);
        let mut gates: Vec<_> = chosen.iter().map(|&expert| router[expert]).collect();
        softmax(level, &mut gates);
        let active = chosen.into_iter().zip(gates).map(|(expert, gate)| {
            let mlp = &self.experts[expert];
            let first = expert * mlp.count();
            let h = mlp.finish(&outputs[first..first + mlp.count()]);
            Active { expert, gate, h }
        });
        active.collect()
    }
}

/// The indices of the `count` largest numbers, the lowest of equals first.
fn largest<A: Float>(x: &[A], count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = Vec::new();
    for _ in 0..count.min(x.len()) {
        let left = (0..x.len()).filter(|j| !places.contains(j));
        let best = left.reduce(|best, j| if x[j] > x[best] { j } else { best });
        places.extend(best);
    }
    places
}

/// g = Σ s_j W_j h_j over the active experts; there is at least one expert.
#[derive(Clone, Debug)]
pub struct ExpertsOuter<A: Float> {
    pub(super) down: Vec<Linear<A>>,
}

impl<A: Float> OutputControllable<A> for ExpertsOuter<A> {
    type Input = Vec<Active<A>>;

    fn forward(&self, level: Level, active: &Self::Input) -> Vec<A> {
        let gates: Vec<_> = active.iter().map(|active| active.gate).collect();
        let said: Vec<_> = active
            .iter()
            .flat_map(|active| self.down[active.expert].forward(level, &active.h))
            .collect();
        let mut sum = vec![A::ZERO; self.down[0].outputs()];
        weighted_sum(level, &gates, &said, &mut sum);
        sum
    }

    /// Lemma 11.
    fn delta(
        &self,
        _: Level,
        active: &Self::Input,
        delta_y: &[f64],
    ) -> Result<Vec<Change>, Precondition> {
        let h: Vec<_> = active.iter().map(|active| wide(&active.h)).collect();
        let gates = active.iter().map(|active| active.gate.to_f64());
        let pairs: Vec<_> = gates.zip(h.iter().map(Vec::as_slice)).collect();
        let patches = lemma_11(&pairs, delta_y)?;
        let changes = active.iter().zip(patches).filter_map(|(active, patch)| {
            Some(Change {
                parameter: "down",
                expert: Some(active.expert),
                lemma: 11,
                delta: self.down[active.expert].oriented(patch?),
            })
        });
        Ok(changes.collect())
    }

    fn plus(&self, delta: &[Change]) -> Result<Self, Precondition> {
        let mut patched = self.clone();
        for change in delta {
            if let Some(expert) = change.expert {
                patched.down[expert].add(change)?;
            }
        }
        Ok(patched)
    }
}
