//! An adapter for Hugging Face PEFT.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::json;

use super::{
    TensorDelta, base_of, block_of, f32_data, factors, has_experts, layer_and_module, rank,
    some_changes,
};
use crate::checkpoint::hub::Origin;
use crate::checkpoint::{TensorData, write_safetensors};
use crate::message::IoError;
use crate::model::Model;
use crate::output;
use crate::patch::{Error, LowRank, Patch, Result};

/// Writes `patch` as a PEFT adapter of rank r = α in f32 to the new folder `dir`; what has a smaller rank
/// is filled with zeros. A changed norm is listed in `modules_to_save`, with all of its weight.
///
/// `base` is the name of the model that the adapter belongs to; where it is `None` that is the repository and commit of
/// one in the Hugging Face cache, and the path from the root of another.
///
/// On a base of bf16 PEFT rounds a saved norm to bf16: load in f32 for an exact check. vLLM refuses saved
/// modules.
///
/// # Errors
///
/// [`EmptyPatch`](crate::patch::Error::EmptyPatch), [`ExportTensor`](crate::patch::Error::ExportTensor), [`PatchShape`](crate::patch::Error::PatchShape),
/// [`StorageOverflow`](crate::patch::Error::StorageOverflow), and [`Io`](crate::patch::Error::Io) where `dir` is there and
/// not empty or cannot be written.
pub fn peft(model: &Model, patch: &Patch, base: Option<&str>, dir: &Path) -> Result<()> {
    let mut changes = some_changes(model, patch)?;
    let nothing = no_change(model);
    add_a_linear_map(model, &mut changes, &nothing);
    let rank = rank(&changes);
    let path = model.decoder().form.layers;
    let prefix = if model.config().multimodal {
        "base_model.model.model.language_model.layers".to_owned()
    } else {
        format!("base_model.model.{path}")
    };
    let mut tensors = BTreeMap::new();
    for (name, change) in &changes {
        let there = layer_and_module(model, name);
        let held = |(layer, _): &(&str, &str)| {
            block_of(model, layer).is_some_and(|block| !has_experts(block))
        };
        let Some((layer, module)) = there.filter(held) else {
            // A bias, or an expert, which transformers keeps in one parameter with the others.
            return Err(Error::ExportTensor {
                tensor: name.clone(),
                format: "a PEFT adapter",
            });
        };
        let place = format!("{prefix}.{layer}.{module}");
        add(&mut tensors, &place, name, change, rank)?;
    }
    let config = config(model, base_of(model, base), &changes, rank);
    output::write_dir(dir, |dir| {
        let path = dir.join("adapter_config.json");
        std::fs::write(&path, config).map_err(IoError::at("write", path))?;
        let metadata = BTreeMap::from([("format".into(), "pt".into())]);
        write_safetensors(&dir.join("adapter_model.safetensors"), &metadata, &tensors)
    })?;
    Ok(())
}

/// The tensors of one change, of the module `place`.
fn add(
    tensors: &mut BTreeMap<String, TensorData<'static>>,
    place: &str,
    name: &str,
    change: &TensorDelta<'_>,
    rank: usize,
) -> Result<()> {
    match change {
        TensorDelta::Linear(delta, _) => {
            let [a, b] = factors(name, delta, rank)?;
            tensors.insert(format!("{place}.lora_A.weight"), a);
            tensors.insert(format!("{place}.lora_B.weight"), b);
        }
        TensorDelta::Vector(w) => {
            let w = f32_data(name, vec![w.len()], w)?;
            tensors.insert(format!("{place}.weight"), w);
        }
    }
    Ok(())
}

/// ΔW_down = 0 at rank 1.
fn no_change(model: &Model) -> LowRank {
    let config = model.config();
    LowRank::rank_1(
        vec![0.0; config.hidden_size],
        vec![0.0; config.intermediate_size],
    )
}

/// PEFT refuses a LoRA without a linear map: norms alone get `nothing` beside the first of them.
fn add_a_linear_map<'a>(
    model: &Model,
    changes: &mut BTreeMap<String, TensorDelta<'a>>,
    nothing: &'a LowRank,
) {
    let linear = |change: &TensorDelta<'_>| matches!(change, TensorDelta::Linear(..));
    if changes.values().any(linear) {
        return;
    }
    let first = changes
        .keys()
        .next()
        .and_then(|name| layer_and_module(model, name));
    let Some((layer, _)) = first else { return };
    let down = block_of(model, layer).and_then(|block| block.outer.down().first());
    if let Some(down) = down {
        let path = model.decoder().form.layers;
        let name = format!("{path}.{layer}.{}.weight", down.name());
        changes.insert(name, TensorDelta::Linear(nothing, down.form.transposed));
    }
}

/// The content of adapter_config.json.
fn config(
    model: &Model,
    base: Origin,
    changes: &BTreeMap<String, TensorDelta<'_>>,
    rank: usize,
) -> String {
    let (mut linear, mut saved) = (BTreeMap::<usize, BTreeSet<&str>>::new(), BTreeSet::new());
    let mut transposed = false;
    let path = model.decoder().form.layers;
    let last = path.rsplit('.').next().unwrap_or(path);
    for (name, change) in changes {
        let Some((layer, module)) = layer_and_module(model, name) else {
            continue;
        };
        let number = layer.parse::<usize>().unwrap_or_default();
        match change {
            TensorDelta::Linear(_, stored) => {
                transposed |= stored;
                linear.entry(number).or_default().insert(module);
            }
            TensorDelta::Vector(_) => {
                saved.insert((number, format!("{last}.{layer}.{module}")));
            }
        }
    }
    let saved: Vec<_> = saved.into_iter().map(|(_, name)| name).collect();
    let (target, layers) = targets(last, &linear, model.layers().len());
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": true,
        "target_modules": target,
        "layers_to_transform": layers,
        "modules_to_save": (!saved.is_empty()).then_some(saved),
    });
    format!("{config:#}\n")
}

/// `target_modules` and `layers_to_transform`: the modules' names where they are the same in every layer
/// changed, else one name for each layer and module.
fn targets(
    path: &str,
    linear: &BTreeMap<usize, BTreeSet<&str>>,
    layers: usize,
) -> (Vec<String>, Option<Vec<usize>>) {
    let mut sets = linear.values();
    let first = sets.next();
    if let Some(modules) = first
        && sets.all(|other| other == modules)
    {
        let short = modules.iter().map(|m| m.trim_start_matches("mlp.").into());
        let some = linear.len() < layers;
        let changed = some.then(|| linear.keys().copied().collect());
        return (short.collect(), changed);
    }
    let each = linear.iter().flat_map(|(layer, modules)| {
        let full = move |module: &&str| format!("{path}.{layer}.{module}");
        modules.iter().map(full)
    });
    (each.collect(), None)
}
