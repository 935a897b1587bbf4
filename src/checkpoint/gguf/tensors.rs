//! The tensors of a GGUF file as Hugging Face's checkpoint has them. Nothing is widened; what is in another order there is
//! copied as it is stored.

use std::collections::BTreeMap;

use super::super::error::{Error, Result};
use super::super::tensors::{Entry, Tensors};
use super::architecture::Order;
use super::{Gguf, Placed};
use crate::message::shown;
use crate::tensor::{Storage, Tensor};

/// What a layer has of all experts at once: GGUF's name, and the one that each expert's tensor has.
const EXPERTS: [(&str, &str); 3] = [("ffn_gate", "w1"), ("ffn_down", "w2"), ("ffn_up", "w3")];

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
                    stored: placed.name.clone(),
                };
                entries.insert(name, entry);
            }
        }
        Ok(Tensors::new(self.path(), entries, BTreeMap::new()))
    }

    /// What a tensor is there, under its name or names there.
    fn as_stored_there(&self, placed: &Placed, heads: [usize; 2]) -> Result<Vec<(String, Tensor)>> {
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
            (Order::Neighbours, "attn_q") => self.halves(placed, heads[0])?,
            (Order::Neighbours, "attn_k") => self.halves(placed, heads[1])?,
            (Order::Concatenated, "attn_qkv") => self.grouped(placed, heads)?,
            _ if self.architecture.norm_offset && gguf.ends_with("norm.weight") => {
                without_offset(tensor)
            }
            _ => tensor.clone(),
        };
        Ok(vec![(name, tensor)])
    }

    /// Query heads and key heads.
    fn heads(&self) -> Result<[usize; 2]> {
        let of = |name: &str| -> Result<Option<usize>> {
            let key = self.architecture.key(name);
            let heads = if self.metadata.is_array(&key) {
                self.metadata
                    .unsigneds(&key)?
                    .unwrap_or_default()
                    .first()
                    .copied()
            } else {
                self.metadata.unsigned(&key)?
            };
            match heads.map(usize::try_from) {
                Some(Ok(heads)) if (1..=1 << 12).contains(&heads) => Ok(Some(heads)),
                None => Ok(None),
                _ => Err(self.metadata.wrong(&key, "a number of heads up to 4096")),
            }
        };
        let heads = of("attention.head_count")?.unwrap_or(1);
        Ok([heads, of("attention.head_count_kv")?.unwrap_or(heads)])
    }

    /// Rows of q or k: in each head the first numbers of all rotations before the second ones.
    fn halves(&self, placed: &Placed, heads: usize) -> Result<Tensor> {
        let rows = matrix(&placed.tensor)[0];
        if !rows.is_multiple_of(2 * heads) {
            return Err(self.wrong(
                placed,
                format!("has {rows} rows, which are not pairs of {heads} heads"),
            ));
        }
        let head = rows / heads;
        let order = (0..rows).map(|row| {
            let (first, within) = (row / head * head, row % head);
            first + 2 * (within % (head / 2)) + within / (head / 2)
        });
        Ok(reordered(&placed.tensor, order))
    }

    /// Rows of queries, keys and values: for each key head its queries, its key and its value.
    fn grouped(&self, placed: &Placed, [heads, kv_heads]: [usize; 2]) -> Result<Tensor> {
        let rows = matrix(&placed.tensor)[0];
        let all = heads + 2 * kv_heads;
        if !rows.is_multiple_of(all) || !heads.is_multiple_of(kv_heads) {
            return Err(self.wrong(
                placed,
                format!(
                    "has {rows} rows, which are not {heads} queries and {kv_heads} keys and values"
                ),
            ));
        }
        let (head, queries) = (rows / all, heads / kv_heads);
        let order = (0..rows).map(|row| {
            let (group, within) = (row / head / (queries + 2), row / head % (queries + 2));
            let place = match within.checked_sub(queries) {
                None => group * queries + within,
                Some(which) => heads + which * kv_heads + group,
            };
            place * head + row % head
        });
        Ok(reordered(&placed.tensor, order))
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

/// Rows and columns, where a vector is one number a row.
fn matrix(tensor: &Tensor) -> [usize; 2] {
    match *tensor.shape() {
        [length] => [length, 1],
        _ => [tensor.rows(), tensor.cols()],
    }
}

/// The tensor with its rows (its numbers, where it is a vector) in another order: `order` has the place that each comes from.
fn reordered(tensor: &Tensor, order: impl Iterator<Item = usize>) -> Tensor {
    let stride = tensor.bytes().len() / matrix(tensor)[0];
    let rows = order.flat_map(|row| &tensor.bytes()[row * stride..(row + 1) * stride]);
    let bytes: Vec<u8> = rows.copied().collect();
    Tensor::new(tensor.storage(), tensor.shape().into(), bytes.into())
        .unwrap_or_else(|| tensor.clone())
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
