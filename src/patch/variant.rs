//! A patch and its negative controls.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::{Part, Patch, Solver};

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
    /// The negative controls of a solver: no patch, and each part of it left out.
    pub fn controls(solver: Solver) -> Vec<Self> {
        let parts = solver.parts();
        let each = parts.iter().map(|&part| Self::Without(part));
        // Without the only part there is no patch.
        let each = each.filter(|_| parts.len() > 1);
        std::iter::once(Self::NoPatch).chain(each).collect()
    }

    /// What is left of a patch.
    pub fn apply_to(self, patch: &Patch) -> Patch {
        let mut left = patch.clone();
        for layer in &mut left.layers {
            if !self.has(Part::GateUp) {
                (layer.gate, layer.up) = (None, None);
            }
            if !self.has(Part::Down) {
                layer.down = None;
            }
            if !self.has(Part::Scale) {
                layer.scale = None;
            }
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
