//! f of Theorem 5: the inner function, pre-norm, first linear maps and activation.

use super::ops::Ops;
use super::parts::{Experts, Hidden};
use super::{Linear, Norm};
use crate::kernels::activation::Activation;

/// h = f(v): a norm z = N(v), linear maps of z, and an activation.
#[derive(Clone, Debug)]
pub struct Inner {
    pub(crate) norm: Option<Norm>,
    pub(crate) module: &'static str,
    pub(crate) maps: Maps,
    pub(crate) activation: Activation,
}

/// The first linear maps.
#[derive(Clone, Debug)]
pub enum Maps {
    /// h = act(W_gate z) ⊙ (W_up z).
    Gated {
        /// W_gate `[intermediate, hidden]`.
        gate: Linear,
        /// W_up `[intermediate, hidden]`.
        up: Linear,
    },
    /// The same, with the rows of W_gate before those of W_up in one map.
    Fused(Linear),
    /// h = act(W_up z).
    Plain(Linear),
    /// Gated maps, of which a router chooses some for each token.
    Experts(Experts),
}

impl Inner {
    /// A point of the module that is not always one of its modules' outputs.
    pub(crate) fn point(&self, name: &str) -> String {
        format!("{}.{name}", self.module)
    }

    /// The first linear maps.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The maps that see z, the router's first.
    pub(crate) fn first_maps(&self) -> Vec<&Linear> {
        match &self.maps {
            Maps::Gated { gate, up } => vec![gate, up],
            Maps::Fused(map) | Maps::Plain(map) => vec![map],
            Maps::Experts(experts) => {
                let maps = experts.maps.iter().flatten();
                std::iter::once(&experts.router).chain(maps).collect()
            }
        }
    }

    /// The maps whose output the activation is of, and those whose output it multiplies; a map alone is one of the latter.
    pub(crate) fn gates_and_ups(&self) -> (Vec<&Linear>, Vec<&Linear>) {
        match &self.maps {
            Maps::Gated { gate, up } => (vec![gate], vec![up]),
            Maps::Fused(map) | Maps::Plain(map) => (vec![], vec![map]),
            Maps::Experts(experts) => experts.maps.iter().map(|[gate, up]| (gate, up)).unzip(),
        }
    }

    /// z for every row of v, `[tokens, hidden]`, where there is a norm.
    pub(crate) fn input<O: Ops>(&self, ops: &mut O, v: &O::Rows) -> Option<O::Rows> {
        let norm = self.norm.as_ref()?;
        let z = ops.norm(norm, v);
        ops.record(norm.name(), &z);
        Some(z)
    }

    /// h for every row of z, `[tokens, intermediate]`.
    pub(crate) fn output<O: Ops>(&self, ops: &mut O, z: &O::Rows) -> Hidden<O::Rows> {
        let (gate, up) = match &self.maps {
            Maps::Gated { gate, up } => {
                let [g, u] = ops.linear([gate, up], z);
                ops.record(gate.name(), &g);
                (g, Some((up.name(), u)))
            }
            Maps::Fused(map) => {
                let [fused] = ops.linear([map], z);
                ops.record(map.name(), &fused);
                let [g, u] = ops.split_halves(&fused);
                (g, Some(("", u)))
            }
            Maps::Plain(map) => {
                let [u] = ops.linear([map], z);
                ops.record(map.name(), &u);
                (u, None)
            }
            Maps::Experts(experts) => return experts.forward(ops, self.activation, z),
        };
        let act = ops.activate(self.activation, gate);
        ops.record(&self.point("act_fn"), &act);
        let Some((name, up)) = up else {
            return Hidden::Dense(act);
        };
        if !name.is_empty() {
            ops.record(name, &up);
        }
        let h = ops.multiply(&act, &up);
        ops.record(&self.point("product"), &h);
        Hidden::Dense(h)
    }
}
