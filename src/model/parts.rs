//! The parts of a block that an operation of a pass may be of, as data; what they compute is in the file of each.

use std::ops::Range;

use super::{Linear, Norm};
use crate::checkpoint::form::{AttentionForm, FusedOrder};
use crate::kernels::Rotation;
use crate::tensor::{Element, Matrix};

/// A(C, x): norm, queries, keys and values, attention, output map, post-norm.
#[derive(Clone, Debug)]
pub struct Attention {
    pub(crate) form: AttentionForm,
    pub(crate) norm: Option<Norm>,
    pub(crate) projections: Projections,
    /// Of q and k.
    pub(crate) qk_norms: Option<[Norm; 2]>,
    pub(crate) rotation: Option<Rotation>,
    pub(crate) out: Linear,
    pub(crate) post_norm: Option<Norm>,
}

/// The maps that give queries, keys and values.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a model has one a layer, beside megabytes of weights"
)]
pub(crate) enum Projections {
    Separate([Linear; 3]),
    Fused(Linear, FusedOrder),
}

/// The first maps of experts, and the router.
#[derive(Clone, Debug)]
pub struct Experts {
    pub(crate) router: Linear,
    /// gate and up of each.
    pub(crate) maps: Vec<[Linear; 2]>,
    pub(crate) top_k: usize,
    /// Whether the gates are divided by their sum.
    pub(crate) renormalised: bool,
}

/// An expert that some tokens of a batch choose.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Active {
    pub(crate) expert: usize,
    /// The tokens' rows, ascending.
    pub(crate) rows: Vec<usize>,
    /// s_j of each of them: its share of the softmax, in the type of sums.
    pub(crate) gates: Vec<f64>,
}

impl Active {
    /// Those of its tokens that are among some rows of the batch, counted from the first of them, and which of its own rows they
    /// are.
    pub(crate) fn among(&self, rows: &Range<usize>) -> (Self, Range<usize>) {
        let place = |row: usize| self.rows.partition_point(|&own| own < row);
        let own = place(rows.start)..place(rows.end);
        let active = Self {
            expert: self.expert,
            rows: self.rows[own.clone()]
                .iter()
                .map(|row| row - rows.start)
                .collect(),
            gates: self.gates[own.clone()].to_vec(),
        };
        (active, own)
    }
}

/// What an inner function gives: h, or h of every active expert.
#[derive(Clone, Debug)]
pub(crate) enum Hidden<T> {
    Dense(T),
    Experts {
        /// The router's output.
        router: T,
        /// Those that any token chooses, ascending.
        active: Vec<(Active, T)>,
    },
}

impl<E: Element> Hidden<Matrix<E>> {
    /// Some rows of a batch.
    pub(crate) fn slice_rows(&self, rows: Range<usize>) -> Self {
        match self {
            Self::Dense(h) => Self::Dense(h.slice_rows(rows)),
            Self::Experts { router, active } => Self::Experts {
                router: router.slice_rows(rows.clone()),
                active: active
                    .iter()
                    .map(|(active, h)| {
                        let (active, own) = active.among(&rows);
                        (active, h.slice_rows(own))
                    })
                    .collect(),
            },
        }
    }
}
