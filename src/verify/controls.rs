//! Something for each negative control.

use serde::Serialize;

use crate::patch::Variant;

/// One thing for each of [`Variant::CONTROLS`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Controls<T> {
    /// [`Variant::NoPatch`].
    pub no_patch: T,
    /// [`Variant::WithoutDeltaM`].
    pub without_delta_m: T,
    /// [`Variant::WithoutGateUp`].
    pub without_gate_up: T,
}

impl<T> From<[T; 3]> for Controls<T> {
    /// In the order of [`Variant::CONTROLS`].
    fn from([no_patch, without_delta_m, without_gate_up]: [T; 3]) -> Self {
        Self {
            no_patch,
            without_delta_m,
            without_gate_up,
        }
    }
}

impl<T> Controls<T> {
    /// With what each is for.
    pub fn iter(&self) -> impl Iterator<Item = (Variant, &T)> {
        let each = [&self.no_patch, &self.without_delta_m, &self.without_gate_up];
        Variant::CONTROLS.into_iter().zip(each)
    }
}
