//! What a model has written, kept so that it writes it once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::message::{IoError, hex};
use crate::model::{EmbeddingScale, Model};
use crate::output::write_file;
use crate::patch::{Error, Result};
use crate::tensor::Element;

/// The texts that a model has written in one compute type, each by what it follows and how it was drawn.
///
/// What is here is not written again, and a text that was interrupted goes on where it stopped, with the tokens that it would
/// have had: the samples are the same whatever is kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Kept {
    texts: BTreeMap<String, Vec<u32>>,
    #[serde(skip)]
    pub(super) cancel: Option<Arc<AtomicBool>>,
}

impl Kept {
    /// Lets `cancel` interrupt the writing, with [`Cancelled`](crate::model::Error::Cancelled); what is written stays here.
    #[must_use]
    pub fn with_cancel(mut self, cancel: Arc<AtomicBool>) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// The file in a folder of the texts that a model has written in a compute type.
    pub fn file<E: Element>(dir: &Path, model: &Model) -> PathBuf {
        dir.join(kept_of::<E>("texts", model) + ".json")
    }

    /// Reads what [`save`](Self::save) wrote; nothing where there is no such file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], and [`Error::Kept`] for another kind of file.
    pub fn load(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let bytes = std::fs::read(path).map_err(IoError::at("read", path))?;
        serde_json::from_slice(&bytes).map_err(|_| Error::Kept { path: path.into() })
    }

    /// Writes all of it, as JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(write_file(path, |out| {
            Ok(serde_json::to_writer(out, self)?)
        })?)
    }

    /// What is written under a key.
    pub(super) fn text(&self, key: &str) -> &[u32] {
        self.texts.get(key).map_or(&[], Vec::as_slice)
    }

    pub(super) fn keep(&mut self, key: String, text: Vec<u32>) {
        self.texts.insert(key, text);
    }
}

/// The name of what is kept of a model in a compute type.
pub(super) fn kept_of<E: Element>(what: &str, model: &Model) -> String {
    let scale = match model.embedding_scale() {
        EmbeddingScale::Compute => "",
        EmbeddingScale::Bf16 => "-bf16-embedding-scale",
    };
    let hash = model.checkpoint().tensors().content_hash();
    format!("{what}-{}{scale}-{hash:.16}", E::DTYPE)
}

/// The key of what follows `tokens`, drawn in the way that `how` names.
pub(super) fn key(how: &str, tokens: &[u32]) -> String {
    let bytes: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
    format!("{how}-{}", hex(&Sha256::digest(bytes)[..16]))
}
