//! Where patches are solved and where they are applied.

use std::fmt;

use context_patch::kernels::Backend;

/// A row of a verification: one backend, or the way from one to another.
#[derive(Clone, Copy)]
pub(super) struct Platform {
    pub(super) solved: Backend,
    pub(super) applied: Backend,
}

impl Platform {
    /// Each backend by itself, then every way from one to another.
    pub(super) fn all(backends: &[Backend]) -> Vec<Self> {
        let pairs = backends.iter().flat_map(|&solved| {
            let applied = backends.iter();
            applied.map(move |&applied| Self { solved, applied })
        });
        let mut all: Vec<_> = pairs.collect();
        all.sort_by_key(|platform| platform.crosses());
        all
    }

    pub(super) fn crosses(self) -> bool {
        self.solved != self.applied
    }
}

/// Nothing for the native backend by itself, which is what is meant where none is named.
impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.solved, self.applied) {
            (Backend::Native, Backend::Native) => Ok(()),
            (solved, _) if !self.crosses() => write!(f, " {solved}"),
            (solved, applied) => write!(f, " {solved}→{applied}"),
        }
    }
}
