//! The operations of a pass, each between two points that have a name.

use super::Recording;
use crate::kernels::activation::Activation;
use crate::model::{Attention, Linear, Norm, Operation as Planned, Plan};

/// An operation of a model and the names of what it takes in.
pub(super) struct Operation<'p> {
    pub(super) kind: Kind<'p>,
    pub(super) inputs: Vec<String>,
}

pub(super) enum Kind<'p> {
    Embedding,
    Norm(&'p Norm),
    Product(&'p Linear),
    Logits(&'p Linear, Option<f64>),
    Rope(&'p Attention),
    Mix(&'p Attention),
    Activation(Activation),
    /// An activation and a product in one, for engines that fuse them.
    Gated(Activation),
    Times,
    Plus,
}

impl<'p> Operation<'p> {
    /// What gives the tensor `name` in a plan, or `None` where no tensor is called so or what it comes from has no name.
    /// Where `other` has not what it takes in, it may be this operation and the one before in one.
    pub(super) fn of(plan: &'p Plan, name: &str, other: &Recording) -> Option<Self> {
        let node = &plan.nodes[plan.place(name)?];
        let name_of = |place: usize| plan.name(place).map(str::to_owned);
        let kind = match &node.operation {
            Planned::Embedding => Kind::Embedding,
            Planned::Norm(norm) => Kind::Norm(norm),
            Planned::Linear(map) => Kind::Product(map),
            Planned::Logits(map, cap) => Kind::Logits(map, *cap),
            Planned::Rope(attention) => Kind::Rope(attention),
            Planned::Attend(attention) => Kind::Mix(attention),
            Planned::Activation(activation) => Kind::Activation(*activation),
            Planned::Multiply => Kind::Times,
            Planned::Add => Kind::Plus,
            _ => return None,
        };
        let inputs = node.inputs.iter().map(|&place| name_of(place));
        let inputs: Vec<_> = inputs.collect::<Option<_>>()?;
        if matches!(kind, Kind::Times) && !other.contains(&inputs[0]) {
            let before = &plan.nodes[node.inputs[0]];
            if let Planned::Activation(activation) = before.operation {
                let gate = name_of(before.inputs[0])?;
                return Some(Self {
                    kind: Kind::Gated(activation),
                    inputs: vec![gate, inputs[1].clone()],
                });
            }
        }
        Some(Self { kind, inputs })
    }

    /// Whether a token's row takes rows of the tokens before it.
    pub(super) fn looks_back(&self) -> bool {
        matches!(self.kind, Kind::Mix(_))
    }
}
