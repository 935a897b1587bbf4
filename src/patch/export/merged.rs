//! A complete checkpoint with the patch in its weights.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use super::super::merged::{Change, changes};
use crate::checkpoint::{Layout, write_tensors};
use crate::message::IoError;
use crate::model::Model;
use crate::output;
use crate::patch::{Patch, Result};
use crate::tensor::{Storage, Tensor};

/// What belongs to a checkpoint beside its weights, where it is there.
const FILES: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE",
    "NOTICE",
];

/// Writes the checkpoint of `model` with `patch` in it, as [`materialise`](crate::patch::materialise)
/// does, to the new folder `dir`.
///
/// All tensors, those of a vision part too, go into one `model.safetensors` under the names they had; the
/// other files are copied as they are. config.json therefore still says the type of the original
/// weights, to which Hugging Face rounds what it loads unless it is told another: with `storage` of
/// f32, load with `dtype=torch.float32`. One patched tensor is in memory at a time.
///
/// # Errors
///
/// [`Io`](crate::patch::Error::Io) where `dir` is there and not empty or cannot be written, those of
/// [`materialise`](crate::patch::materialise), and
/// [`UnsupportedDtype`](crate::checkpoint::Error::UnsupportedDtype) for a vision tensor of an unknown type.
pub fn merged(model: &Model, patch: &Patch, storage: Option<Storage>, dir: &Path) -> Result<()> {
    let changes = changes(model, patch)?;
    output::write_dir(dir, |dir| {
        for name in FILES {
            if let Some(content) = model.checkpoint().file(name)? {
                let path = dir.join(name);
                std::fs::write(&path, content).map_err(IoError::at("write", path))?;
            }
        }
        weights(model, &changes, storage, &dir.join("model.safetensors"))
    })
}

fn weights(
    model: &Model,
    changes: &BTreeMap<String, Change<'_>>,
    storage: Option<Storage>,
    path: &Path,
) -> Result<()> {
    let tensors = model.checkpoint().tensors().stored()?;
    let change = |canonical: Option<&str>| changes.get(canonical?);
    let layout = tensors.iter().map(|(&name, &(canonical, tensor))| {
        let storage = change(canonical).and(storage).unwrap_or(tensor.storage());
        Layout {
            name,
            storage,
            shape: tensor.shape(),
            length: tensor.shape().iter().product::<usize>() * storage.size(),
        }
    });
    let layout: Vec<_> = layout.collect();
    let metadata = BTreeMap::from([("format".into(), "pt".into())]);
    write_tensors(path, &metadata, &layout, |name| {
        let (canonical, tensor): (_, &Tensor) = tensors[name];
        Ok(match change(canonical) {
            None => Cow::Borrowed(tensor.bytes()),
            Some(change) => Cow::Owned(change.apply(name, tensor, storage)?.bytes().to_vec()),
        })
    })
}
