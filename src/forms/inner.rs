//! f: inner functions, which begin with a norm and linear maps of what it gives.

use super::linear::Linear;
use super::norm::Norm;
use crate::kernels::Level;
use crate::kernels::activation::Activation;
use crate::patch::Precondition;
use crate::patch::lemmas::lemma_6;
use crate::patch::theorem_5::{Change, InputControllable, wide};
use crate::tensor::Float;

/// One of the first linear maps of an inner function.
#[derive(Debug)]
pub struct FirstMap<'a, A: Float> {
    /// Its name.
    pub name: &'static str,
    /// The expert that it belongs to, where there are experts.
    pub expert: Option<usize>,
    /// The map.
    pub map: &'a Linear<A>,
}

/// A function that sees v through the linear maps of z = N(v) alone.
///
/// By Lemma 6, or by Lemma 7 where there is a norm, every such function is input-controllable.
pub trait FirstMaps<A: Float>: Clone {
    /// What the function gives.
    type Output;

    /// N.
    fn norm(&self) -> &Norm<A>;
    /// The first linear maps.
    fn maps(&self) -> Vec<FirstMap<'_, A>>;
    /// The first linear maps in the order of [`maps`](Self::maps), to be changed.
    fn maps_mut(&mut self) -> Vec<&mut Linear<A>>;
    /// What the function makes of the maps' outputs, in the same order.
    fn finish(&self, level: Level, outputs: &[Vec<A>]) -> Self::Output;

    /// The output of every map.
    fn first(&self, level: Level, v: &[A]) -> Vec<Vec<A>> {
        let z = self.norm().forward(level, v);
        let maps = self.maps();
        maps.iter().map(|m| m.map.forward(level, &z)).collect()
    }
}

impl<A: Float, F: FirstMaps<A>> InputControllable<A> for F {
    type Output = <F as FirstMaps<A>>::Output;

    fn forward(&self, level: Level, v: &[A]) -> Self::Output {
        self.finish(level, &self.first(level, v))
    }

    /// ΔW = W (z_C − z) zᵀ/‖z‖² for every first map.
    fn delta(&self, level: Level, v: &[A], v_ctx: &[A]) -> Result<Vec<Change>, Precondition> {
        let z = wide(&self.norm().forward(level, v));
        let z_ctx = wide(&self.norm().forward(level, v_ctx));
        let delta_z: Vec<_> = z_ctx.iter().zip(&z).map(|(z_ctx, z)| z_ctx - z).collect();
        let change = |FirstMap { name, expert, map }: FirstMap<'_, A>| {
            let w = map.weight().map(|w| w.to_f64());
            let delta = lemma_6(level, (&w).into(), &z, &delta_z)?;
            Ok(Change {
                parameter: name,
                expert,
                lemma: self.norm().lemma(),
                delta: map.oriented(delta),
            })
        };
        self.maps().into_iter().map(change).collect()
    }

    fn plus(&self, delta: &[Change]) -> Result<Self, Precondition> {
        let mut patched = self.clone();
        for (map, change) in patched.maps_mut().into_iter().zip(delta) {
            map.add(change)?;
        }
        Ok(patched)
    }
}

/// First linear maps and activation: act(W_up z + b), or act(W_gate z) ⊙ (W_up z) where there is a gate.
#[derive(Clone, Debug)]
pub struct Mlp<A: Float> {
    pub(super) gate: Option<Linear<A>>,
    pub(super) up: Linear<A>,
    pub(super) activation: Activation,
}

impl<A: Float> Mlp<A> {
    pub(super) fn maps(&self, expert: Option<usize>) -> impl Iterator<Item = FirstMap<'_, A>> {
        let map = move |name, map| FirstMap { name, expert, map };
        let gate = self.gate.iter().map(move |gate| map("gate", gate));
        gate.chain([map("up", &self.up)])
    }

    pub(super) fn maps_mut(&mut self) -> impl Iterator<Item = &mut Linear<A>> {
        self.gate.iter_mut().chain([&mut self.up])
    }

    /// How many first maps there are.
    pub(super) fn count(&self) -> usize {
        1 + usize::from(self.gate.is_some())
    }

    /// h from the maps' outputs.
    pub(super) fn finish(&self, outputs: &[Vec<A>]) -> Vec<A> {
        let act = |x: &A| self.activation.apply(*x);
        match outputs {
            [gate, up] => gate
                .iter()
                .zip(up)
                .map(|(gate, &up)| act(gate) * up)
                .collect(),
            outputs => outputs.iter().flatten().map(act).collect(),
        }
    }
}

/// f(v) = h: a norm and one [`Mlp`]'s first half.
#[derive(Clone, Debug)]
pub struct Inner<A: Float> {
    pub(super) norm: Norm<A>,
    pub(super) mlp: Mlp<A>,
}

impl<A: Float> FirstMaps<A> for Inner<A> {
    type Output = Vec<A>;

    fn norm(&self) -> &Norm<A> {
        &self.norm
    }

    fn maps(&self) -> Vec<FirstMap<'_, A>> {
        self.mlp.maps(None).collect()
    }

    fn maps_mut(&mut self) -> Vec<&mut Linear<A>> {
        self.mlp.maps_mut().collect()
    }

    fn finish(&self, _: Level, outputs: &[Vec<A>]) -> Vec<A> {
        self.mlp.finish(outputs)
    }
}
