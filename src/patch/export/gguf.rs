//! An adapter for llama.cpp: a GGUF file, version 3.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use super::{
    TensorDelta, base_of, block_of, factors, has_experts, layer_and_module, rank, some_changes,
};
use crate::checkpoint::hub::Origin;
use crate::checkpoint::{GgufLayout, Values, write_gguf};
use crate::model::{Block, Linear, Model};
use crate::patch::{Error, LayerPatch, Part, Patch, Result};

/// Writes `patch`, which must change linear maps only, as a LoRA in f32 for llama.cpp. `base` names the model that it
/// belongs to, as in [`peft`](super::peft).
///
/// # Errors
///
/// [`Error::NormInGguf`], [`Error::ExportTensor`], [`Error::EmptyPatch`], [`Error::PatchShape`], [`Error::StorageOverflow`] and
/// [`Error::Io`].
pub fn gguf(model: &Model, patch: &Patch, base: Option<&str>, file: &Path) -> Result<()> {
    let mut layers = patch.layers.iter().zip(model.layers());
    let changes_norm = |(layer, block): (&LayerPatch, &Block)| {
        let mut tensors = layer.keys();
        tensors.any(|tensor| Part::of(block, tensor) == Some(Part::Scale))
    };
    if let Some(layer) = layers.position(changes_norm) {
        return Err(Error::NormInGguf { layer });
    }
    let changes = some_changes(model, patch)?;
    let rank = rank(&changes);
    let mut tensors = BTreeMap::new();
    for (name, change) in &changes {
        let (TensorDelta::Linear(delta, _), Some(place)) = (change, gguf_name(model, name)) else {
            return Err(Error::ExportTensor {
                tensor: name.clone(),
                format: "a llama.cpp adapter",
            });
        };
        let [a, b] = factors(name, delta, rank)?;
        tensors.insert(format!("{place}.lora_a"), a);
        tensors.insert(format!("{place}.lora_b"), b);
    }
    let values = values(model.decoder().form.gguf, &base_of(model, base), rank);
    let (names, tensors): (Vec<_>, Vec<_>) = tensors.into_iter().unzip();
    let layout = names
        .into_iter()
        .zip(&tensors)
        .map(|(name, tensor)| GgufLayout {
            name,
            shape: tensor.shape.clone(),
            storage: tensor.storage,
            length: tensor.bytes.len(),
        });
    let layout: Vec<_> = layout.collect();
    write_gguf(file, &values, &layout, |place| {
        Ok(Cow::Borrowed(&*tensors[place].bytes))
    })
}

/// llama.cpp's name for a tensor of a block's inner or outer function.
fn gguf_name(model: &Model, name: &str) -> Option<String> {
    let (layer, module) = layer_and_module(model, name)?;
    let block = block_of(model, layer).filter(|block| !has_experts(block))?;
    let (gates, ups) = block.inner.gates_and_ups();
    let is = |map: &&Linear| map.name() == module;
    let kind = if block.outer.down().iter().any(|map| is(&map)) {
        "down"
    } else if gates.iter().any(is) {
        "gate"
    } else {
        ups.iter().any(is).then_some("up")?
    };
    Some(format!("blk.{layer}.ffn_{kind}.weight"))
}

/// What the file says of itself.
fn values(architecture: &str, base: &Origin, rank: usize) -> Values {
    let mut values = Values::default();
    values.text("general.type", "adapter");
    values.text("general.architecture", architecture);
    values.text("adapter.type", "lora");
    values.text("general.base_model.0.name", &base.name);
    if let Some(commit) = &base.revision {
        values.text("general.base_model.0.version", commit);
    }
    values.count("general.base_model.count", 1);
    values.number("adapter.lora.alpha", rank as f32);
    values
}
