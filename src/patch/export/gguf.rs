//! An adapter for llama.cpp: a GGUF file, version 3.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use super::{
    TensorDelta, base_of, block_of, factors, has_experts, layer_and_module, rank, some_changes,
};
use crate::checkpoint::TensorData;
use crate::checkpoint::hub::Origin;
use crate::model::{Block, Linear, Model};
use crate::output;
use crate::patch::{Error, LayerPatch, Part, Patch, Result};

/// Every tensor begins at a multiple of it, counted from where the first one begins.
const ALIGNMENT: usize = 32;

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
    let architecture = model.decoder().form.gguf;
    let header = header(architecture, &base_of(model, base), &tensors, rank);
    output::write_file(file, |out| {
        out.write_all(&header)?;
        tensors.values().try_for_each(|t| padded(out, &t.bytes))
    })?;
    Ok(())
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

/// Everything before the first tensor's bytes.
fn header(
    architecture: &str,
    base: &Origin,
    tensors: &BTreeMap<String, TensorData<'_>>,
    rank: usize,
) -> Vec<u8> {
    let mut out = Vec::from(b"GGUF");
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    let mut texts = vec![
        ("general.type", "adapter"),
        ("general.architecture", architecture),
        ("adapter.type", "lora"),
        ("general.base_model.0.name", &base.name),
    ];
    texts.extend(
        base.revision
            .as_deref()
            .map(|commit| ("general.base_model.0.version", commit)),
    );
    out.extend((texts.len() as u64 + 2).to_le_bytes());
    for (key, value) in texts {
        string(&mut out, key);
        out.extend(8u32.to_le_bytes()); // A string.
        string(&mut out, value);
    }
    string(&mut out, "general.base_model.count");
    out.extend(4u32.to_le_bytes()); // A u32.
    out.extend(1u32.to_le_bytes());
    string(&mut out, "adapter.lora.alpha");
    out.extend(6u32.to_le_bytes()); // An f32.
    out.extend((rank as f32).to_le_bytes());
    let mut offset = 0usize;
    for (name, tensor) in tensors {
        string(&mut out, name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for &extent in tensor.shape.iter().rev() {
            out.extend((extent as u64).to_le_bytes());
        }
        out.extend(0u32.to_le_bytes()); // Of f32.
        out.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes.len().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

/// A length and the bytes.
fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// `bytes` and as many zeros as the alignment asks for.
fn padded(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let padding = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
    out.write_all(bytes)?;
    out.write_all(&[0; ALIGNMENT][..padding])
}
