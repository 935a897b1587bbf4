//! A checkpoint written as a GGUF file, with every tensor as it is stored.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::super::Checkpoint;
use super::super::error::{Error, Result};
use super::architecture::{Architecture, Order};
use super::cursor::Cursor;
use super::described;
use super::metadata::Metadata;
use super::rows::{extent, grouped, halves, inverse, reordered};
use super::tensors::EXPERTS;
use super::tokenizer;
use super::writer::{Layout, Values, write_gguf};
use super::{Gguf, Placed};
use crate::checkpoint::config::Config;
use crate::checkpoint::files::Files;
use crate::checkpoint::folder::convert;
use crate::checkpoint::form::BlockForm;
use crate::tensor::{Storage, Tensor};

/// A tensor on its way into a file: its name there, and what is done, while it is written, to the tensors it comes from.
struct Outgoing {
    layout: Layout,
    /// One, or those of all experts.
    from: Vec<Tensor>,
    /// For each row there its place here.
    order: Option<Vec<usize>>,
    /// What is added to a vector, which llama.cpp wants in f32.
    vector: Option<f64>,
    transposed: bool,
}

impl Checkpoint {
    /// Writes the model as one GGUF file.
    ///
    /// Of a model that is a GGUF file everything is copied, but for tensors that were replaced and for the division into several
    /// files. Of another one matrices are written as they are stored, or as `storage`, and vectors in f32, which for Gemma's norms
    /// (1 + w) is a rounding.
    ///
    /// A tokenizer and its chat templates are written where a reader of the file gets the same ids from them. Else there are none in
    /// the file, and what comes back is the reason.
    ///
    /// # Errors
    ///
    /// [`Error::NotForGguf`] where GGUF cannot say all of the config or has no place for a tensor, and [`Error::Io`].
    pub fn write_gguf(&self, file: &Path, storage: Option<Storage>) -> Result<Option<String>> {
        let (values, mut tensors, without_tokenizer) = match self.gguf() {
            Some(gguf) => (gguf.copied_values(), self.copied(gguf)?, None),
            None => self.described(file)?,
        };
        if let Some(storage) = storage {
            tensors
                .iter_mut()
                .for_each(|tensor| tensor.store_as(storage));
        }
        let layouts: Vec<_> = tensors.iter().map(|tensor| tensor.layout.clone()).collect();
        write_gguf(file, &values, &layouts, |place| {
            Ok::<_, Error>(tensors[place].bytes())
        })?;
        Ok(without_tokenizer)
    }

    /// The tensors of a GGUF file, those that were replaced in their new form.
    fn copied(&self, gguf: &Gguf) -> Result<Vec<Outgoing>> {
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

    /// What is written of a model that is no GGUF file, and why there is no tokenizer in it where there is none.
    fn described(&self, file: &Path) -> Result<(Values, Vec<Outgoing>, Option<String>)> {
        let config = self.config();
        let Some(architecture) = Architecture::of_config(config) else {
            let family = &config.model_type;
            return Err(self.not_for_gguf(format!(
                "no architecture of GGUF's is known here for {family}"
            )));
        };
        let tensors = self.outgoing(architecture)?;
        let read = |values: &Values| self.read_back(file, architecture, values, &tensors);
        let mut values = described::values(architecture, config);
        let reason = match self.with_tokenizer(architecture, &values, read) {
            Ok(with_tokenizer) => {
                values = with_tokenizer;
                None
            }
            Err(reason) => {
                values.text(tokenizer::MODEL, "no_vocab");
                let eos = self.eos_token_ids().first().copied();
                for (key, id) in [("bos", config.bos_token_id), ("eos", eos)] {
                    if let Some(id) = id {
                        values.count(&format!("tokenizer.ggml.{key}_token_id"), id);
                    }
                }
                Some(reason)
            }
        };
        match difference(config, &read(&values)?.config) {
            Some(what) => Err(self.not_for_gguf(format!("{what} cannot be said there"))),
            None => Ok((values, tensors, reason)),
        }
    }

    /// The values with the tokenizer among them, from which `read` gets the same one, or why that cannot be.
    fn with_tokenizer(
        &self,
        architecture: &Architecture,
        values: &Values,
        read: impl Fn(&Values) -> Result<Self>,
    ) -> std::result::Result<Values, String> {
        let in_words = |e: Error| e.to_string();
        let own = self.tokenizer().map_err(in_words)?;
        let parts = own.parts().map_err(|e| e.to_string())?;
        let (templates, special) = self.chat_sources().map_err(in_words)?;
        let templates = templates.map(|(_, sources)| sources).unwrap_or_default();
        let source = tokenizer::Source {
            parts: &parts,
            special: &special,
            templates: &templates,
            bos: self.config().bos_token_id,
            eos: self.eos_token_ids(),
            rows: self.config().vocab_size,
            architecture: architecture.name,
        };
        let mut values = values.clone();
        tokenizer::write(&source, &mut values)?;
        let back = read(&values).map_err(in_words)?;
        let (read_templates, read_special) = back.chat_sources().map_err(in_words)?;
        let read_templates = read_templates
            .map(|(_, sources)| sources)
            .unwrap_or_default();
        // Of the tokens that have a name, templates use some.
        let used = |name: &&String| templates.values().any(|source| source.contains(&**name));
        let names = special.keys().chain(read_special.keys()).filter(used);
        let differs = |name: &&String| special.get(*name) != read_special.get(*name);
        let what = if read_templates != templates {
            Some("its chat templates".into())
        } else if let Some(name) = names.into_iter().find(differs) {
            Some(format!(
                "a {name} of its chat template that is not the model's"
            ))
        } else {
            own.difference(&parts, &back.tokenizer().map_err(in_words)?)
        };
        match what {
            Some(what) => Err(format!("GGUF has no place for {what}")),
            None => Ok(values),
        }
    }

    /// What a reader of the file will see, but for the tensors.
    fn read_back(
        &self,
        file: &Path,
        architecture: &'static Architecture,
        values: &Values,
        tensors: &[Outgoing],
    ) -> Result<Self> {
        let written: Bytes = values.written().to_vec().into();
        let place = |tensor: &Outgoing| Placed {
            name: tensor.layout.name.clone(),
            tensor: tensor.from[0].clone(),
            file: file.into(),
        };
        let gguf = Gguf {
            metadata: Metadata::read(file, &mut Cursor::new(file, &written), values.len())?,
            architecture,
            tensors: tensors.iter().map(place).collect(),
        };
        let json = gguf.file("config.json")?.unwrap_or_default();
        let mut config = Config::parse(file, &json)?;
        config.as_stored_in_gguf();
        Ok(Self {
            files: Files::Gguf(Arc::new(gguf)),
            config,
            ..self.clone()
        })
    }

    /// All tensors, as they go into a file.
    fn outgoing(&self, architecture: &'static Architecture) -> Result<Vec<Outgoing>> {
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

    fn not_for_gguf(&self, reason: String) -> Error {
        Error::NotForGguf {
            model: self.name().into(),
            reason,
        }
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
    fn store_as(&mut self, storage: Storage) {
        let numbers = self.layout.shape.iter().product::<usize>();
        if let ([tensor, ..], None, Some(length)) =
            (self.from.as_slice(), self.vector, storage.bytes_of(numbers))
            && tensor.shape().len() > 1
        {
            (self.layout.storage, self.layout.length) = (storage, length);
        }
    }

    fn bytes(&self) -> Cow<'_, [u8]> {
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

/// What a GGUF file's config says otherwise than the config it was made from, in a word.
fn difference(config: &Config, written: &Config) -> Option<String> {
    let mut config = config.clone();
    config.as_stored_in_gguf();
    let same = |differs: bool, what: &str| differs.then(|| what.to_owned());
    let decoder = config.decoder != written.decoder;
    let sizes = |config: &Config| {
        [
            config.vocab_size,
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.max_position_embeddings,
        ]
    };
    same(sizes(&config) != sizes(written), "a size of the model")
        .or_else(|| same(decoder, "the norm or the cap before the head"))
        .or_else(|| {
            let blocks = config.blocks.iter().zip(&written.blocks).enumerate();
            let differs = |(layer, (block, written)): (usize, (&BlockForm, &BlockForm))| {
                let (a, b) = (&block.attention, &written.attention);
                let parts = [
                    ("the window", a.window != b.window),
                    ("the rotation", a.rope != b.rope),
                    ("the scaling of scores", a.scaling != b.scaling),
                    ("the attention", a != b),
                    (
                        "the MLP",
                        (&block.inner, &block.outer, block.sum)
                            != (&written.inner, &written.outer, written.sum),
                    ),
                ];
                let (part, _) = parts.into_iter().find(|(_, differs)| *differs)?;
                Some(format!("{part} of layer {layer}"))
            };
            blocks.into_iter().find_map(differs)
        })
}
