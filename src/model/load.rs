//! From a checkpoint to a model: every tensor found and of the shape the config says.

#[cfg(feature = "cuda")]
use std::sync::Arc;

use super::build::Weights;
use super::error::{Error, Result};
use super::{Block, Decoder, Embedding, EmbeddingScale, Linear, Model, Norm};
use crate::checkpoint::form::{LinearForm, NormForm, NormKind};
use crate::checkpoint::{self, Access, Checkpoint, Config, Tensors};
use crate::kernels::{Backend, Level};
use crate::tensor::Tensor;

/// Choices on opening a model.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelOptions {
    /// How the weights' files are read.
    pub access: Access,
    /// The instructions to use; the best of the machine where it is `None`. The bits are the same.
    pub level: Option<Level>,
    /// The rounding of the embedding's scale.
    pub embedding_scale: EmbeddingScale,
}

impl Model {
    /// Opens a Hugging Face directory, a GGUF file, or a repository id in the local Hugging Face cache.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoint::open`] and [`Model::from_checkpoint`].
    pub fn open(model: &str) -> Result<Self> {
        Self::open_with(model, ModelOptions::default())
    }

    /// [`open`](Self::open) with choices.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn open_with(model: &str, options: ModelOptions) -> Result<Self> {
        Self::from_checkpoint(Checkpoint::open(model, options.access)?, options)
    }

    /// A model over the tensors of a checkpoint.
    ///
    /// # Errors
    ///
    /// [`checkpoint::Error::MissingTensor`], [`checkpoint::Error::TensorShape`] and
    /// [`checkpoint::Error::ExtraLayer`].
    pub fn from_checkpoint(checkpoint: Checkpoint, options: ModelOptions) -> Result<Self> {
        let (config, tensors) = (checkpoint.config(), checkpoint.tensors());
        let path = config.decoder.layers;
        refuse_extra_layers(tensors, tensors.names(), path, config.num_hidden_layers)?;
        let loader = |prefix: String| Loader {
            config,
            tensors,
            get: Tensors::get,
            prefix,
        };
        let layers = config.blocks.iter().enumerate();
        let layers: Vec<_> = layers
            .map(|(i, form)| {
                let mut loader = loader(format!("{path}.{i}."));
                Block::build(form, config.hidden_size, &mut loader)
            })
            .collect::<Result<_>>()?;
        let embedding = if config.decoder.embed_scaled {
            Embedding::Scaled(options.embedding_scale)
        } else {
            Embedding::Unscaled
        };
        Ok(Self {
            decoder: loader(String::new()).decoder()?,
            layers,
            level: options.level.unwrap_or_else(Level::best),
            backend: Backend::default(),
            embedding,
            bug: None,
            checkpoint,
            #[cfg(feature = "cuda")]
            device: None,
            #[cfg(feature = "cuda")]
            stored_on: Arc::default(),
        })
    }
}

impl Model {
    /// A copy of the model with some tensors replaced, by their canonical names; the others are shared.
    pub(crate) fn replaced(
        &self,
        with: impl IntoIterator<Item = (String, Tensor)>,
    ) -> Result<Self> {
        let options = ModelOptions {
            level: Some(self.level),
            ..ModelOptions::default()
        };
        let model = Self::from_checkpoint(self.checkpoint.replaced(with), options)?;
        Ok(Self {
            embedding: self.embedding,
            ..model.on(self.backend)?
        })
    }
}

/// Refuses weights of more than `layers` layers, which have the path `path`, because that would silently run a shorter model.
pub(super) fn refuse_extra_layers<'n>(
    tensors: &Tensors,
    mut names: impl Iterator<Item = &'n str>,
    path: &str,
    layers: usize,
) -> Result<()> {
    let layer = |name: &str| {
        let rest = name.strip_prefix(path)?.strip_prefix('.')?;
        rest.split('.').next()?.parse::<usize>().ok()
    };
    match names.find(|name| layer(name).is_some_and(|layer| layer >= layers)) {
        None => Ok(()),
        Some(tensor) => Err(checkpoint::Error::ExtraLayer {
            file: tensors.source().into(),
            tensor: tensor.into(),
            layers,
        }
        .into()),
    }
}

/// The tensors whose names begin with `prefix`: those of a layer, or all.
pub(super) struct Loader<'a> {
    config: &'a Config,
    tensors: &'a Tensors,
    /// Of the text model, or of the vision part.
    get: fn(&Tensors, &str, &[usize]) -> checkpoint::Result<Tensor>,
    prefix: String,
}

impl<'a> Loader<'a> {
    /// Those of the vision part.
    pub(super) fn vision(model: &'a Model, prefix: String) -> Self {
        Self {
            config: model.config(),
            tensors: model.checkpoint().tensors(),
            get: Tensors::vision,
            prefix,
        }
    }

    fn decoder(&mut self) -> Result<Decoder> {
        let (form, hidden) = (&self.config.decoder, self.config.hidden_size);
        let [embed, head] = self.embeddings()?;
        let positions = form.positions.map(|learned| {
            let rows = self.config.max_position_embeddings + learned.offset;
            self.tensor(&format!("{}.weight", learned.table), &[rows, hidden])
        });
        let bias = [self.config.vocab_size];
        Ok(Decoder {
            form: form.clone(),
            embed,
            positions: positions.transpose()?,
            norm: self.norm(&form.norm, hidden)?,
            head: Linear {
                form: form.head.clone(),
                weight: head,
                bias: self.bias(&form.head.name, form.head.bias, &bias)?,
            },
        })
    }

    /// The embedding and the head. Where they are tied, the one that is stored is both; where both are, each is itself.
    fn embeddings(&self) -> Result<[Tensor; 2]> {
        let form = &self.config.decoder;
        let names = [form.embed, &form.head.name].map(|name| format!("{name}.weight"));
        let shape = [self.config.vocab_size, self.config.hidden_size];
        let stored = names.each_ref().map(|name| self.tensors.contains(name));
        let chosen = match (self.config.tie_word_embeddings, stored) {
            (true, [true, false]) => [0, 0],
            (true, [false, true]) => [1, 1],
            _ => [0, 1],
        };
        let [embed, head] = chosen.map(|i| self.tensor(&names[i], &shape));
        Ok([embed?, head?])
    }

    fn bias(&self, name: &str, there: bool, shape: &[usize]) -> Result<Option<Tensor>> {
        let bias = there.then(|| self.tensor(&format!("{name}.bias"), shape));
        bias.transpose()
    }

    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let name = format!("{}{name}", self.prefix);
        Ok((self.get)(self.tensors, &name, shape)?)
    }
}

impl Weights for Loader<'_> {
    type Error = Error;

    fn linear(&mut self, form: &LinearForm, outputs: usize, inputs: usize) -> Result<Linear> {
        let name = format!("{}.weight", form.name);
        let weight = if form.transposed {
            self.tensor(&name, &[inputs, outputs])?.transposed()
        } else {
            self.tensor(&name, &[outputs, inputs])?
        };
        Ok(Linear {
            weight,
            bias: self.bias(&form.name, form.bias, &[outputs])?,
            form: form.clone(),
        })
    }

    fn norm(&mut self, form: &NormForm, length: usize) -> Result<Norm> {
        let bias = matches!(form.kind, NormKind::Layer { bias: true });
        Ok(Norm {
            weight: self.tensor(&format!("{}.weight", form.name), &[length])?,
            bias: self.bias(&form.name, bias, &[length])?,
            form: form.clone(),
        })
    }
}
