//! The patches that are models of their own: `base+NAME`.

use std::any::Any;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use super::clock;
use super::error::{Error, Result};
use crate::model::{Model, Overlay};
use crate::patch::SavedPatch;
use crate::receipt::PatchUsed;
use crate::tensor::Element;

/// An [`Overlay`] of the compute type that the server was started with.
pub(super) type AnyOverlay = Arc<dyn Any + Send + Sync>;

/// A patch that can be asked for.
#[derive(Clone)]
pub(super) struct Loaded {
    pub(super) overlay: AnyOverlay,
    /// What receipts say of it.
    pub(super) used: PatchUsed,
    /// When it was loaded, in seconds since 1970.
    pub(super) created: u64,
}

/// The patches by name. One that is unloaded stays for the answers that use it.
pub(super) struct Patches {
    model: Arc<Model>,
    overlay: fn(&Model, &SavedPatch) -> AnyOverlay,
    loaded: RwLock<BTreeMap<String, Loaded>>,
}

impl Patches {
    /// None so far, of a model that computes in `E`.
    pub(super) fn new<E: Element>(model: Arc<Model>) -> Self {
        Self {
            model,
            overlay: |model, saved| {
                let form = saved.source.form();
                Arc::new(Overlay::<E>::new(model, &saved.patch, form))
            },
            loaded: RwLock::default(),
        }
    }

    /// Loads the patch in a file.
    ///
    /// # Errors
    ///
    /// [`Error::PatchName`], [`Error::PatchTaken`], and those of [`SavedPatch::load`] and [`SavedPatch::check`].
    pub(super) fn load(&self, name: &str, file: &Path) -> Result<()> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            return Err(Error::PatchName { name: name.into() });
        }
        let saved = SavedPatch::load(file)?;
        saved.check(&self.model)?;
        let patch = Loaded {
            used: PatchUsed::new(file, saved.source.form())?,
            overlay: (self.overlay)(&self.model, &saved),
            created: clock::now(),
        };
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        if loaded.contains_key(name) {
            return Err(Error::PatchTaken { name: name.into() });
        }
        loaded.insert(name.to_owned(), patch);
        Ok(())
    }

    /// Unloads a patch; whether there was one.
    pub(super) fn unload(&self, name: &str) -> bool {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        loaded.remove(name).is_some()
    }

    /// The patch of a name.
    pub(super) fn get(&self, name: &str) -> Option<Loaded> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        loaded.get(name).cloned()
    }

    /// The names, and when each was loaded.
    pub(super) fn list(&self) -> Vec<(String, u64)> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        let names = loaded
            .iter()
            .map(|(name, patch)| (name.clone(), patch.created));
        names.collect()
    }
}
