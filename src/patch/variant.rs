//! A patch and its negative controls.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::{Part, Patch, Solver};
use crate::model::Model;

/// What of a solved patch a reduced pass runs under: the whole of it, or a negative control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// All of it.
    Whole,
    /// Nothing.
    NoPatch,
    /// All of it but one part.
    Without(Part),
}

impl Variant {
    /// The negative controls of a solver on a model: no patch, and each part of it left out.
    pub fn controls(solver: Solver, model: &Model) -> Vec<Self> {
        let parts = solver.parts(model);
        let each = parts.iter().map(|&part| Self::Without(part));
        // Without the only part there is no patch.
        let each = each.filter(|_| parts.len() > 1);
        std::iter::once(Self::NoPatch).chain(each).collect()
    }

    /// The most controls that a solver has on any model.
    pub fn most_controls(solver: Solver) -> usize {
        match solver {
            Solver::AppendixB => 4,
            Solver::Theorem1 | Solver::Theorem5 | Solver::ClosedForm => 3,
            Solver::Span => 1,
        }
    }

    /// What is left of a patch of `model`.
    pub fn apply_to(self, model: &Model, patch: &Patch) -> Patch {
        let mut left = patch.clone();
        for (layer, block) in left.layers.iter_mut().zip(model.layers()) {
            layer.retain(|tensor, _| Part::of(block, tensor).is_some_and(|part| self.has(part)));
        }
        left
    }

    pub(super) fn has(self, part: Part) -> bool {
        match self {
            Self::Whole => true,
            Self::NoPatch => false,
            Self::Without(other) => part != other,
        }
    }
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole => f.pad("patched"),
            Self::NoPatch => f.pad("no patch"),
            Self::Without(part) => f.pad(&format!("{part} left out")),
        }
    }
}

impl Serialize for Variant {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Variant {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        let parts = [Part::GateUp, Part::Down, Part::Scale].map(Self::Without);
        let mut all = [Self::Whole, Self::NoPatch].into_iter().chain(parts);
        let named = all.find(|variant| variant.to_string() == name);
        named.ok_or_else(|| D::Error::custom("no such variant of a patch"))
    }
}
