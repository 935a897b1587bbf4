//! One token of a verification, and what came of it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::metrics::LogitsDistance;
use crate::json::or_nan;
use crate::message::hex;
use crate::patch::{SolverReport, Variant};
use crate::tensor::Element;

/// One token of a verification.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Which prompt, from 0.
    pub prompt: usize,
    /// Which token after the prompt, from 0.
    pub step: usize,
    /// The token both passes took in.
    pub token: u32,
    /// Its position in the reduced pass.
    pub position: usize,
    /// The token the contextual pass writes next.
    pub next: u32,
    /// SHA-256 of the logits of the contextual pass and of those of the patched one, little-endian in the compute type.
    pub logits: String,
    /// By how much that token leads, in logits.
    #[serde(deserialize_with = "or_nan")]
    pub margin: f64,
    /// What the logits may differ by.
    #[serde(deserialize_with = "or_nan")]
    pub bound: f64,
    /// The patched reduced pass against the contextual one.
    pub patched: LogitsDistance,
    /// The controls.
    pub controls: Vec<Control>,
    /// How the patch was solved. A span has one patch, whose report goes with its first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<SolverReport>,
}

/// A negative control of a step.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Control {
    /// What was left out of the patch.
    pub variant: Variant,
    /// The reduced pass under what was left, against the contextual one.
    pub reduced: LogitsDistance,
}

/// [`Step::logits`].
pub(super) fn logits_hash<E: Element>(contextual: &[E], patched: &[E]) -> String {
    let mut hash = Sha256::new();
    hash.update(bytemuck::cast_slice::<E, u8>(contextual));
    hash.update(bytemuck::cast_slice::<E, u8>(patched));
    hex(&hash.finalize())
}

impl Step {
    /// The reduced pass without a patch, where that is among the controls.
    pub fn no_patch(&self) -> Option<LogitsDistance> {
        let mut controls = self.controls.iter();
        let control = controls.find(|control| control.variant == Variant::NoPatch);
        control.map(|control| control.reduced)
    }

    /// Whether the patch does what it should: the logits within the bound, and the same token wherever
    /// the bound leaves no doubt which it is.
    pub fn holds(&self) -> bool {
        let token = self.patched.same_top || self.margin <= 2.0 * self.bound;
        self.patched.linf <= self.bound && token
    }
}
