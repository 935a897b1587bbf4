//! The operations of a pass, each from tensors that have a name to one that has.

use std::ops::Range;

use super::Recording;
use crate::kernels::activation::Activation;
use crate::model::{Attention, Experts, Linear, Norm, Operation as Planned, Plan};

/// An operation of a model and what it takes in.
pub(super) struct Operation<'p> {
    pub(super) kind: Kind<'p>,
    pub(super) inputs: Vec<Taken>,
}

/// What an operation takes in: a tensor under its name, or some columns of it.
pub(super) struct Taken {
    pub(super) name: String,
    pub(super) columns: Option<Vec<Range<usize>>>,
}

pub(super) enum Kind<'p> {
    Embedding,
    Positions,
    Norm(&'p Norm),
    Product(&'p Linear),
    Logits(&'p Linear, Option<f64>),
    Rope(&'p Attention),
    Mix(&'p Attention),
    Activation(Activation),
    /// An activation and a product in one, for engines that fuse them.
    Gated(Activation),
    Times,
    /// A sum from the left.
    Sum,
    /// All that experts do: from the router's output and z.
    Experts(Mixture<'p>),
}

/// The maps of experts.
pub(super) struct Mixture<'p> {
    pub(super) experts: &'p Experts,
    pub(super) activation: Activation,
    pub(super) down: Vec<&'p Linear>,
}

impl<'p> Operation<'p> {
    /// What gives the tensor `name` in a plan, or `None` where no tensor is called so or what it comes from has no name.
    /// Where `other` has not what it takes in, it may be this operation and the one before in one.
    pub(super) fn of(plan: &'p Plan, name: &str, other: &Recording) -> Option<Self> {
        let node = &plan.nodes[plan.place(name)?];
        let mut inputs = node.inputs.clone();
        let kind = match &node.operation {
            Planned::Embedding => Kind::Embedding,
            Planned::Positions => Kind::Positions,
            Planned::Norm(norm) => Kind::Norm(norm),
            Planned::Linear(map) => Kind::Product(map),
            Planned::Logits(map, cap) => Kind::Logits(map, *cap),
            Planned::Rope(attention) => Kind::Rope(attention),
            Planned::Attend(attention) => Kind::Mix(attention),
            Planned::Activation(activation) => Kind::Activation(*activation),
            Planned::Multiply => match before_product(plan, &inputs, other) {
                Some((activation, gate)) => {
                    inputs[0] = gate;
                    Kind::Gated(activation)
                }
                None => Kind::Times,
            },
            Planned::Add => {
                // The sum of both branches of a parallel block has no name.
                let first = &plan.nodes[inputs[0]];
                if plan.name(inputs[0]).is_none() && matches!(first.operation, Planned::Add) {
                    inputs.splice(..1, first.inputs.iter().copied());
                }
                Kind::Sum
            }
            Planned::Combine(experts) => {
                let (mixture, z) = mixture(plan, &inputs, experts)?;
                inputs = vec![inputs[0], z];
                Kind::Experts(mixture)
            }
            // A recording of text has nothing of images.
            Planned::Pixels | Planned::Patches | Planned::Pool => return None,
            Planned::SplitHeads(..) | Planned::SplitHalves(_) => return None,
        };
        let inputs = inputs.into_iter().map(|place| Taken::of(plan, place));
        let inputs = inputs.collect::<Option<_>>()?;
        Some(Self { kind, inputs })
    }

    /// Whether a token's row takes rows of the tokens before it.
    pub(super) fn looks_back(&self) -> bool {
        matches!(self.kind, Kind::Mix(_))
    }
}

impl Taken {
    /// What the node at `place` gives.
    fn of(plan: &Plan, place: usize) -> Option<Self> {
        if let Some(name) = plan.name(place) {
            return Some(Self {
                name: name.to_owned(),
                columns: None,
            });
        }
        let node = &plan.nodes[place];
        let columns = match &node.operation {
            Planned::SplitHeads(attention, which) => attention.fused_columns()[*which].clone(),
            Planned::SplitHalves(which) => {
                let half = which * node.width..(which + 1) * node.width;
                [half].into()
            }
            _ => return None,
        };
        let name = plan.name(*node.inputs.first()?)?.to_owned();
        Some(Self {
            name,
            columns: Some(columns),
        })
    }
}

/// The activation in front of a product and what it is of, where `other` has not its outcome.
fn before_product(plan: &Plan, inputs: &[usize], other: &Recording) -> Option<(Activation, usize)> {
    let act = *inputs.first()?;
    if plan.name(act).is_some_and(|act| other.contains(act)) {
        return None;
    }
    match plan.nodes[act].operation {
        Planned::Activation(activation) => Some((activation, *plan.nodes[act].inputs.first()?)),
        _ => None,
    }
}

/// The maps of experts whose sum takes `inputs`, the router's output first, and z.
fn mixture<'p>(
    plan: &'p Plan,
    inputs: &[usize],
    experts: &'p Experts,
) -> Option<(Mixture<'p>, usize)> {
    let (&router, said) = inputs.split_first()?;
    let down = said.iter().map(|&said| match &plan.nodes[said].operation {
        Planned::Linear(map) => Some(map),
        _ => None,
    });
    let down = down.collect::<Option<_>>()?;
    // W_down h, h = act ⊙ up.
    let h = *plan.nodes[*said.first()?].inputs.first()?;
    let act = *plan.nodes[h].inputs.first()?;
    let Planned::Activation(activation) = plan.nodes[act].operation else {
        return None;
    };
    let z = *plan.nodes[router].inputs.first()?;
    let mixture = Mixture {
        experts,
        activation,
        down,
    };
    Some((mixture, z))
}
