//! The operations of a pass, each from tensors that have a name to one that has.

use std::ops::Range;

use super::Recording;
use super::interval::Rounding;
use crate::kernels::activation::Activation;
use crate::model::{Attention, Experts, Grid, Linear, Norm, Operation as Planned, Plan};
use crate::tensor::{Matrix, Tensor};
use crate::trace::Rows;

/// An operation of a model and what it takes in.
pub(super) struct Operation<'p> {
    pub(super) kind: Kind<'p>,
    pub(super) inputs: Vec<Taken>,
    /// Those of the outcome.
    pub(super) rows: Rows,
}

/// What an operation takes in: a tensor under its name, as it is or after something that has no name.
pub(super) struct Taken {
    pub(super) name: String,
    /// Those of the tensor.
    pub(super) rows: Rows,
    view: View,
}

/// What becomes of a tensor before it is taken in.
enum View {
    Whole,
    /// Some columns.
    Columns(Vec<Range<usize>>),
    /// The patches of pixels.
    Patches(Grid),
}

pub(super) enum Kind<'p> {
    Embedding,
    Pixels,
    /// The learned positions from one on.
    Positions(&'p Tensor, usize),
    /// The mean of patches.
    Pool(Grid),
    /// Embeddings, with what images put in the place of some.
    PutImages,
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
            Planned::Pixels => Kind::Pixels,
            Planned::Positions(table, first) => Kind::Positions(table, *first),
            Planned::Pool(grid) => Kind::Pool(*grid),
            Planned::PutImages => Kind::PutImages,
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
            Planned::Patches(_) | Planned::SplitHeads(..) | Planned::SplitHalves(_) => return None,
        };
        let inputs = inputs.into_iter().map(|place| Taken::of(plan, place));
        let inputs = inputs.collect::<Option<_>>()?;
        Some(Self {
            kind,
            inputs,
            rows: node.rows,
        })
    }

    /// Whether a token's row takes rows of other tokens.
    pub(super) fn sees_others(&self) -> bool {
        matches!(self.kind, Kind::Mix(_)) && self.rows == Rows::Tokens
    }
}

impl Taken {
    /// What the node at `place` gives.
    fn of(plan: &Plan, place: usize) -> Option<Self> {
        let node = &plan.nodes[place];
        if let Some(name) = plan.name(place) {
            return Some(Self {
                name: name.to_owned(),
                rows: node.rows,
                view: View::Whole,
            });
        }
        let view = match &node.operation {
            Planned::SplitHeads(attention, which) => {
                View::Columns(attention.fused_columns()[*which].clone())
            }
            Planned::SplitHalves(which) => {
                let half = which * node.width..(which + 1) * node.width;
                View::Columns([half].into())
            }
            Planned::Patches(grid) => View::Patches(*grid),
            _ => return None,
        };
        let input = *node.inputs.first()?;
        Some(Self {
            name: plan.name(input)?.to_owned(),
            rows: plan.nodes[input].rows,
            view,
        })
    }

    /// The tensor as the operation takes it in.
    pub(super) fn view(&self, tensor: Matrix<f64>, rounding: Rounding) -> Matrix<f64> {
        match &self.view {
            View::Whole => tensor,
            View::Columns(columns) => tensor.select_columns(columns),
            View::Patches(grid) => {
                let pixels = tensor.map(|x| rounding.nearest(x));
                let images = (0..tensor.rows()).step_by(3 * tensor.cols());
                let each = images
                    .map(|first| grid.cut(&pixels.slice_rows(first..first + 3 * tensor.cols())));
                let each: Vec<_> = each.collect();
                let cols = each.first().map_or(1, Matrix::cols);
                Matrix::stack(cols, each)
            }
        }
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
