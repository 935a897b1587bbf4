//! The tensors of a GGUF file as Hugging Face's checkpoint has them. Nothing is widened but norms; what is in another order
//! there is copied as it is stored.

use std::collections::BTreeMap;

use super::super::error::{Error, Result};
use super::super::tensors::{Entry, Tensors};
use super::architecture::Order;
use super::rows::{extent, grouped, halves, reordered};
use super::{Gguf, Placed};
use crate::message::shown;
use crate::tensor::{Storage, Tensor};

/// What a layer has of all experts at once: GGUF's name, and the one that each expert's tensor has.
pub(super) const EXPERTS: [(&str, &str); 3] =
    [("ffn_gate", "w1"), ("ffn_down", "w2"), ("ffn_up", "w3")];

/// Tensors that are no weights: they are looked at with the config, or follow from it.
const NO_WEIGHTS: [&str; 2] = ["rope_freqs.weight", "rope_factors.weight"];

impl Gguf {
    /// All tensors.
    ///
    /// # Errors
    ///
    /// [`Error::NotGguf`] for tensors that such models do not have, or of shapes that such models' cannot have.
    pub(in crate::checkpoint) fn checkpoint_tensors(&self) -> Result<Tensors> {
        let heads = self.heads()?;
        let mut entries = BTreeMap::new();
        for placed in &self.tensors {
            for (name, tensor) in self.as_stored_there(placed, heads)? {
                let entry = Entry {
                    tensor: Ok(tensor),
                    file: placed.file.clone(),
                    stored: name.clone(),
                };
                entries.insert(name, entry);
            }
        }
        Ok(Tensors::new(self.metadata.path(), entries, BTreeMap::new()))
    }

    /// What a tensor is there, under its name or names there.
    pub(super) fn as_stored_there(
        &self,
        placed: &Placed,
        heads: [usize; 2],
    ) -> Result<Vec<(String, Tensor)>> {
        let (gguf, tensor) = (placed.name.as_str(), &placed.tensor);
        if NO_WEIGHTS.contains(&gguf) {
            return Ok(Vec::new());
        }
        if let Some(experts) = experts(gguf, tensor) {
            return Ok(experts);
        }
        let Some(name) = self.architecture.hf_name(gguf) else {
            return Err(self.wrong(placed, "is none of this architecture's"));
        };
        let module = gguf.rsplit('.').nth(1).unwrap_or_default();
        let tensor = match (self.architecture.order, module) {
            (Order::Neighbours, "attn_q") => self.rows(placed, halves(extent(tensor), heads[0]))?,
            (Order::Neighbours, "attn_k") => self.rows(placed, halves(extent(tensor), heads[1]))?,
            (Order::Concatenated, "attn_qkv") => {
                self.rows(placed, grouped(extent(tensor), heads))?
            }
            _ if self.architecture.norm_offset && gguf.ends_with("norm.weight") => {
                without_offset(tensor)
            }
            _ => tensor.clone(),
        };
        Ok(vec![(name, tensor)])
    }

    /// Query heads and key heads.
    pub(super) fn heads(&self) -> Result<[usize; 2]> {
        let of = |name: &str| -> Result<Option<usize>> {
            let key = self.architecture.key(name);
            let heads = self.same_for_all_layers(name)?;
            match heads.map(|heads| heads.as_u64()) {
                Some(Some(heads @ 1..=4096)) => Ok(Some(heads as usize)),
                None => Ok(None),
                _ => Err(self.metadata.wrong(&key, "a number of heads up to 4096")),
            }
        };
        let heads = of("attention.head_count")?.unwrap_or(1);
        Ok([heads, of("attention.head_count_kv")?.unwrap_or(heads)])
    }

    /// A tensor with its rows as they are there.
    fn rows(&self, placed: &Placed, order: Option<Vec<usize>>) -> Result<Tensor> {
        match order {
            Some(order) => Ok(reordered(&placed.tensor, &order)),
            None => {
                let rows = extent(&placed.tensor);
                Err(self.wrong(
                    placed,
                    format!("has {rows} rows, which are none of so many heads"),
                ))
            }
        }
    }

    fn wrong(&self, placed: &Placed, reason: impl std::fmt::Display) -> Error {
        Error::NotGguf {
            path: placed.file.to_path_buf(),
            reason: format!(
                "the tensor {} {reason} (architecture {})",
                shown(&placed.name),
                self.architecture.name
            ),
        }
    }
}

/// The weight w of a norm stored as 1 + w: in f32 where that is exact, as it is for every model that was made in bf16, else in f64.
fn without_offset(tensor: &Tensor) -> Tensor {
    let values: Vec<f64> = tensor
        .to_vec::<f64>()
        .into_iter()
        .map(|m| m - 1.0)
        .collect();
    let narrow = values
        .iter()
        .all(|&w| f64::from(w as f32) == w || w.is_nan());
    let storage = if narrow { Storage::F32 } else { Storage::F64 };
    Tensor::from_f64(storage, tensor.shape().into(), &values).unwrap_or_else(|| tensor.clone())
}

/// The tensors of all experts of a layer that `name` holds, be they one tensor or each its own, or `None` where it holds no experts.
fn experts(name: &str, tensor: &Tensor) -> Option<Vec<(String, Tensor)>> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let module = rest.strip_suffix(".weight")?;
    EXPERTS.iter().find_map(|(gguf, hf)| {
        let of = |expert: usize| {
            format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.{hf}.weight")
        };
        match module.strip_prefix(gguf)? {
            "_exps" => {
                let shape = tensor.shape().get(1..).filter(|shape| shape.len() == 2)?;
                let parts = tensor.parts(shape).enumerate();
                Some(parts.map(|(expert, tensor)| (of(expert), tensor)).collect())
            }
            // As older files have it.
            rest => {
                let expert = rest.strip_prefix('.')?.parse().ok()?;
                Some(vec![(of(expert), tensor.clone())])
            }
        }
    })
}
