//! What a comparison comes to.

use serde::Serialize;

use super::{Activations, Aside, Distance};
use crate::model::KnownBug;

/// Two recordings, tensor by tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The file of the reference.
    pub reference: String,
    /// The file of the other recording.
    pub other: String,
    /// The model's name.
    pub model: String,
    /// The compute type of the other recording.
    pub dtype: String,
    /// Whether that is only what its numbers look like.
    pub guessed: bool,
    /// How many tokens were run.
    pub tokens: usize,
    /// The tensors in forward order.
    pub rows: Vec<Row>,
    /// The names that only the reference has.
    pub missing: Vec<String>,
    /// The names in the other recording that were set aside.
    pub aside: Vec<Aside>,
    /// The first tensor that is beyond what rounding may do.
    pub finding: Option<Finding>,
}

/// One tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// How far it is from the reference.
    #[serde(flatten)]
    pub distance: Distance,
    /// How far our own passes are from f64 there.
    pub floor: Floor,
    /// Whether it was replayed from its recorded inputs; if not, it was held against our whole pass.
    pub replayed: bool,
    /// The largest difference of the replay from the reference.
    pub inherited: f64,
    /// The largest difference of the tensor from the replay.
    pub added: f64,
    /// How many numbers it has.
    pub numbers: usize,
    /// The type in which they were recorded.
    pub stored: String,
    /// Whether that is coarser than they were computed, so that each stands for all that round to it.
    pub coarse: bool,
    /// How many of them were too large for that type.
    pub overflowed: usize,
    /// What the activations of a product were rounded to, where that explains all that is beyond the compute type's rounding.
    pub activations: Option<Activations>,
    /// Those that rounding does not explain.
    pub beyond: Option<Beyond>,
}

/// The noise floor: max |difference from f64| of our own passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Floor {
    /// In f32.
    pub f32: f64,
    /// In bf16.
    pub bf16: f64,
}

/// Numbers beyond what rounding may do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Beyond {
    /// How many.
    pub numbers: usize,
    /// The row of the one that is furthest off, from 0.
    pub row: usize,
    /// Its column.
    pub column: usize,
    /// What was recorded there.
    pub got: f64,
    /// What it should be.
    pub want: f64,
    /// By how much it may be off.
    pub allowed: f64,
}

/// Where an engine parts from ours.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The tensor.
    pub tensor: String,
    /// The known bugs that give it as it is; none where it is none of them.
    pub causes: Vec<Cause>,
}

/// A known bug.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// Its name.
    pub name: &'static str,
    /// What is wrong.
    pub meaning: &'static str,
}

impl From<KnownBug> for Cause {
    fn from(bug: KnownBug) -> Self {
        Self {
            name: bug.name(),
            meaning: bug.meaning(),
        }
    }
}
