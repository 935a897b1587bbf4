//! The tensors of a checkpoint on their way into a GGUF file, each as it is stored.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;

use super::super::Checkpoint;
use super::super::error::Result;
use super::Gguf;
use super::architecture::{Architecture, Order};
use super::described;
use super::rows::{extent, grouped, halves, inverse, reordered};
use super::tensors::EXPERTS;
use super::writer::Layout;
use crate::checkpoint::folder::convert;
use crate::tensor::{Storage, Tensor};

/// A tensor on its way into a file: its name there, and what is done, while it is written, to the tensors it comes from.
pub(super) struct Outgoing {
    pub(super) layout: Layout,
    /// One, or those of all experts.
    pub(super) from: Vec<Tensor>,
    /// For each row there its place here.
    order: Option<Vec<usize>>,
    /// What is added to a vector, which llama.cpp wants in f32.
    vector: Option<f64>,
    transposed: bool,
}

impl Checkpoint {
    /// The tensors of a GGUF file, those that were replaced in their new form.
    pub(super) fn copied(&self, gguf: &Gguf) -> Result<Vec<Outgoing>> {
        let heads = gguf.heads()?;
        let mut outgoing = Vec::new();
        for placed in &gguf.tensors {
            let parts = gguf.as_stored_there(placed, heads)?;
            if !parts
                .iter()
                .any(|(name, _)| self.tensors().is_changed(name))
            {
                let (name, tensor) = (placed.name.clone(), &placed.tensor);
                outgoing.push(Outgoing::of_all(
                    name,
                    tensor.shape().to_vec(),
                    vec![tensor.clone()],
                ));
                continue;
            }
            let now = |(name, old): &(String, Tensor)| self.tensors().get(name, old.shape());
            let now: Vec<_> = parts.iter().map(now).collect::<Result<_>>()?;
            let name = placed.name.clone();
            outgoing.push(match now.as_slice() {
                [tensor] => self.outgoing_tensor(gguf.architecture, name, tensor)?,
                // Of the experts in one tensor those that were not replaced get the type of the others.
                experts => Outgoing::of_all(name, placed.tensor.shape().to_vec(), widened(experts)),
            });
        }
        Ok(outgoing)
    }

    /// All tensors, as they go into a file.
    pub(super) fn outgoing(&self, architecture: &'static Architecture) -> Result<Vec<Outgoing>> {
        let mut outgoing = Vec::new();
        let mut experts: BTreeMap<(usize, &str), BTreeMap<usize, Tensor>> = BTreeMap::new();
        let tensors = self.tensors().iter();
        for (name, tensor) in tensors.filter(|(name, _)| !is_buffer(name)) {
            if let Some((layer, expert, place)) = expert(name) {
                let all = experts.entry((layer, place)).or_default();
                all.insert(expert, tensor.clone());
                continue;
            }
            let Some(gguf) = architecture.gguf_name(name) else {
                return Err(self.not_for_gguf(format!("it has no place for the tensor {name}")));
            };
            outgoing.push(self.outgoing_tensor(architecture, gguf, tensor)?);
        }
        outgoing.extend(experts.into_iter().map(|((layer, place), of_each)| {
            let from: Vec<Tensor> = of_each.into_values().collect();
            let name = format!("blk.{layer}.{place}_exps.weight");
            Outgoing::of_all(name, [&[from.len()], from[0].shape()].concat(), from)
        }));
        let divisors = described::rope_divisors(self.config())
            .and_then(|divisors| Tensor::from_f64(Storage::F32, vec![divisors.len()], &divisors));
        if let Some(divisors) = divisors {
            let name = "rope_freqs.weight".into();
            outgoing.push(self.outgoing_tensor(architecture, name, &divisors)?);
        }
        Ok(outgoing)
    }

    fn outgoing_tensor(
        &self,
        architecture: &Architecture,
        name: String,
        tensor: &Tensor,
    ) -> Result<Outgoing> {
        let config = self.config();
        let module = name.rsplit('.').nth(1).unwrap_or_default();
        let [heads, kv_heads] = [config.num_attention_heads, config.num_key_value_heads];
        let rows = extent(tensor);
        let order = match (architecture.order, module) {
            (Order::Neighbours, "attn_q") => Some(halves(rows, heads)),
            (Order::Neighbours, "attn_k") => Some(halves(rows, kv_heads)),
            (Order::Concatenated, "attn_qkv") => Some(grouped(rows, [heads, kv_heads])),
            _ => None,
        };
        let order = match order {
            None => None,
            Some(Some(order)) => Some(inverse(&order)),
            Some(None) => {
                return Err(
                    self.not_for_gguf(format!("{rows} rows of {name} are none of so many heads"))
                );
            }
        };
        let is_norm = module.ends_with("norm");
        let offset = f64::from(u8::from(architecture.norm_offset && is_norm));
        let vector = (tensor.shape().len() == 1).then_some(offset);
        let maps_transposed = config
            .blocks
            .first()
            .is_some_and(|block| block.attention.out.transposed);
        let transposed = maps_transposed && vector.is_none() && name.starts_with("blk.");
        let mut shape = tensor.shape().to_vec();
        if transposed {
            shape.reverse();
        }
        let (storage, length) = match vector {
            Some(_) => (Storage::F32, 4 * rows),
            None => (tensor.storage(), tensor.bytes().len()),
        };
        Ok(Outgoing {
            layout: Layout {
                name,
                shape,
                storage,
                length,
            },
            from: vec![tensor.clone()],
            order,
            vector,
            transposed,
        })
    }
}

impl Outgoing {
    /// The bytes of these tensors, one after the other.
    fn of_all(name: String, shape: Vec<usize>, from: Vec<Tensor>) -> Self {
        let layout = Layout {
            name,
            shape,
            storage: from[0].storage(),
            length: from.iter().map(|tensor| tensor.bytes().len()).sum(),
        };
        Self {
            layout,
            from,
            order: None,
            vector: None,
            transposed: false,
        }
    }

    /// Makes a matrix one of this type.
    pub(super) fn store_as(&mut self, storage: Storage) {
        let numbers = self.layout.shape.iter().product::<usize>();
        if let ([tensor, ..], None, Some(length)) =
            (self.from.as_slice(), self.vector, storage.bytes_of(numbers))
            && tensor.shape().len() > 1
        {
            (self.layout.storage, self.layout.length) = (storage, length);
        }
    }

    pub(super) fn bytes(&self) -> Cow<'_, [u8]> {
        let bytes = self.as_stored();
        let (from, to) = (self.from[0].storage(), self.layout.storage);
        if self.vector.is_some() || from == to {
            return bytes;
        }
        let tensor = Tensor::new(from, self.layout.shape.clone(), bytes.into_owned().into());
        let mut converted = Vec::with_capacity(self.layout.length);
        if let Some(tensor) = tensor {
            let Ok(()) = convert::<Infallible>(&tensor, to, |bytes| {
                converted.extend(bytes);
                Ok(())
            });
        }
        Cow::Owned(converted)
    }

    /// The bytes in the type that the tensor is stored in here.
    fn as_stored(&self) -> Cow<'_, [u8]> {
        let tensor = match (&self.order, self.from.as_slice()) {
            (Some(order), [tensor]) => &reordered(tensor, order),
            (None, [tensor]) if self.transposed => &tensor.transposed(),
            (None, [tensor]) if self.vector.is_none() => return Cow::Borrowed(tensor.bytes()),
            (None, [tensor]) => tensor,
            (_, experts) => {
                let bytes = experts.iter().flat_map(|tensor| tensor.bytes());
                return Cow::Owned(bytes.copied().collect());
            }
        };
        Cow::Owned(match self.vector {
            Some(added) => {
                let numbers = tensor.to_vec::<f64>().into_iter();
                numbers
                    .flat_map(|x| ((x + added) as f32).to_le_bytes())
                    .collect()
            }
            None => tensor.bytes().to_vec(),
        })
    }
}

/// The tensors in the type of those among them that are not quantised.
fn widened(tensors: &[Tensor]) -> Vec<Tensor> {
    let types = tensors.iter().map(Tensor::storage);
    let to = types.max_by_key(|storage| usize::from(!storage.is_quantised()));
    let widen = |tensor: &Tensor| match to {
        Some(to) if tensor.storage() != to => {
            let numbers: Vec<f64> = tensor.to_vec::<f32>().into_iter().map(f64::from).collect();
            Tensor::from_f64(to, tensor.shape().into(), &numbers)
        }
        _ => None,
    };
    tensors
        .iter()
        .map(|tensor| widen(tensor).unwrap_or_else(|| tensor.clone()))
        .collect()
}

/// Whether a tensor is one that old checkpoints have beside their weights and that follows from the config.
fn is_buffer(name: &str) -> bool {
    let buffers = [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"];
    buffers.iter().any(|buffer| name.ends_with(buffer))
}

/// The layer and the number of an expert, and what GGUF calls its tensor's kind.
fn expert(name: &str) -> Option<(usize, usize, &'static str)> {
    let rest = name
        .strip_prefix("model.layers.")?
        .strip_suffix(".weight")?;
    let (layer, rest) = rest.split_once(".block_sparse_moe.experts.")?;
    let (expert, map) = rest.split_once('.')?;
    let (kind, _) = EXPERTS.iter().find(|(_, hf)| *hf == map)?;
    Some((layer.parse().ok()?, expert.parse().ok()?, kind))
}
