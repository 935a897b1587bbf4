//! What is not so in a receipt.

use std::fmt;

use crate::verify::Place;

/// The first thing in a receipt that is not so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The field of the receipt that does not fit.
    pub field: &'static str,
    /// What about it.
    pub what: What,
}

/// What does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// The field is not what was written: its hash differs.
    Changed,
    /// What the receipt has, and what there is.
    Other {
        /// In the receipt.
        receipt: String,
        /// Here.
        here: String,
    },
    /// The logits of a draw, counted from 1.
    Logits {
        /// Which draw.
        step: usize,
    },
    /// The token of a draw, counted from 1.
    Token {
        /// Which draw.
        step: usize,
        /// In the receipt; none where the text ends.
        receipt: Option<u32>,
        /// Drawn here; none for one that ends the text.
        here: Option<u32>,
    },
    /// The logits of a token that was verified.
    Verified {
        /// Which token.
        place: Place,
    },
}

impl Difference {
    /// That the first of `changed`, the fields that [`AnyReceipt::load`](super::AnyReceipt::load) names, is not what was written, if there are any.
    pub fn of_changed(changed: &[&'static str]) -> Option<Self> {
        let what = What::Changed;
        changed.first().map(|field| Self { field, what })
    }
}

/// One line.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.field;
        match &self.what {
            What::Changed => write!(f, "{field}: not what was written, its hash differs"),
            What::Other { receipt, here } => {
                write!(f, "{field}: {receipt} in the receipt, {here} here")
            }
            What::Logits { step } => write!(f, "step {step}: the logits are others"),
            What::Verified { place } => write!(f, "{place}: the logits are others"),
            What::Token {
                step,
                receipt,
                here,
            } => {
                let name =
                    |id: &Option<u32>| id.map_or("the end".into(), |id| format!("token {id}"));
                let (receipt, here) = (name(receipt), name(here));
                write!(
                    f,
                    "step {step}: {field} has {receipt}, and {here} is drawn here"
                )
            }
        }
    }
}
