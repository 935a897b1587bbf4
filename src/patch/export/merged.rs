//! A complete checkpoint with the patch in its weights.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use super::super::merged::{TensorDelta, changes};
use crate::checkpoint::{Layout, SINGLE, Stored, is_index, write_tensors, written, written_length};
use crate::message::IoError;
use crate::model::Model;
use crate::output;
use crate::patch::{Patch, Result, StoredAs, materialise};
use crate::tensor::{Storage, Tensor};

/// Writes the checkpoint of `model` with `patch` in it, as [`materialise`](crate::patch::materialise)
/// does, to the new folder `dir`.
///
/// All tensors, also those that nothing is computed with, go into one file of weights under the names they had,
/// with the metadata of the files they come from; the other files are copied as they are. config.json therefore
/// still says the type of the original weights, to which Hugging Face rounds what it loads unless it is told another:
/// where they are stored as F32, load with `dtype=torch.float32`. Quantised tensors are widened to F32. One patched or widened tensor is
/// in memory at a time.
///
/// # Errors
///
/// [`Io`](crate::patch::Error::Io) where `dir` is there and not empty or cannot be written, and those of
/// [`materialise`](crate::patch::materialise).
pub fn merged(model: &Model, patch: &Patch, stored: StoredAs, dir: &Path) -> Result<()> {
    let changes = changes(model, patch)?;
    output::write_dir(dir, |dir| {
        model.checkpoint().write_files(dir)?;
        let named = model.checkpoint().weights_file().unwrap_or(SINGLE);
        let file = if is_index(named) { SINGLE } else { named };
        weights(model, &changes, stored, &dir.join(file))?;
        if is_index(named) {
            let names = model.checkpoint().tensors().stored();
            let places: BTreeMap<_, _> = names.map(|tensor| (tensor.name, file)).collect();
            let index = serde_json::json!({"metadata": {}, "weight_map": places});
            let path = dir.join(named);
            std::fs::write(&path, index.to_string()).map_err(IoError::at("write", path))?;
        }
        Ok(())
    })
}

/// What a merged GGUF file has not.
#[derive(Clone, Debug)]
pub struct MergedGguf {
    /// Why it has no tokenizer, where it has none.
    pub no_tokenizer: Option<String>,
    /// [`Materialised::lost`](crate::patch::Materialised::lost), where tensors were quantised again.
    pub lost: Option<(String, f64)>,
}

/// Writes the model with `patch` in it as a GGUF file, as [`Checkpoint::write_gguf`](crate::Checkpoint::write_gguf) does: of one
/// that is such a file everything but the patched tensors is copied.
///
/// # Errors
///
/// Those of [`materialise`](crate::patch::materialise) and [`Checkpoint::write_gguf`](crate::Checkpoint::write_gguf).
pub fn merged_gguf(
    model: &Model,
    patch: &Patch,
    stored: StoredAs,
    file: &Path,
) -> Result<MergedGguf> {
    let patched = materialise(model, patch, stored)?;
    let lost = match stored {
        StoredAs::Quantised => patched.lost(patch)?,
        StoredAs::Type(_) | StoredAs::Own => None,
    };
    let no_tokenizer = patched.into_model().checkpoint().write_gguf(file, None)?;
    Ok(MergedGguf { no_tokenizer, lost })
}

fn weights(
    model: &Model,
    changes: &BTreeMap<String, TensorDelta<'_>>,
    stored: StoredAs,
    path: &Path,
) -> Result<()> {
    // A folder holds no quantised tensor.
    let stored_as = match stored {
        StoredAs::Quantised => StoredAs::Own,
        stored => stored,
    };
    let tensors = model.checkpoint().tensors();
    let stored: BTreeMap<_, _> = tensors
        .stored()
        .map(|tensor| (tensor.name, tensor))
        .collect();
    let layout = stored.values().map(|tensor| {
        let changed = change(changes, tensor).map(|(change, old)| change.storage(old, stored_as));
        let numbers = tensor.shape.iter().product::<usize>();
        let length = match (changed, tensor.tensor) {
            (Some(storage), _) => numbers * storage.block().bytes,
            (None, Some(old)) => written_length(old.storage(), tensor.bytes),
            (None, None) => tensor.bytes.len(),
        };
        Layout {
            name: tensor.name,
            dtype: changed.map_or(tensor.dtype, Storage::into),
            shape: tensor.shape,
            length,
        }
    });
    let layout: Vec<_> = layout.collect();
    let mut metadata = tensors.metadata().clone();
    metadata.entry("format".into()).or_insert("pt".into());
    write_tensors(path, &metadata, &layout, |name| {
        let tensor = &stored[name];
        Ok(match (change(changes, tensor), tensor.tensor) {
            (Some((change, old)), _) => {
                Cow::Owned(change.apply(name, old, stored_as)?.bytes().to_vec())
            }
            (None, Some(old)) => written(old.storage(), tensor.bytes),
            (None, None) => Cow::Borrowed(tensor.bytes),
        })
    })
}

/// What is to be done to a stored tensor, and the tensor.
fn change<'a>(
    changes: &'a BTreeMap<String, TensorDelta<'a>>,
    stored: &Stored<'a>,
) -> Option<(&'a TensorDelta<'a>, &'a Tensor)> {
    Some((changes.get(stored.canonical?)?, stored.tensor?))
}
