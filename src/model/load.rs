//! From a checkpoint to a model: every tensor found and of the shape the config says.

use serde::{Deserialize, Serialize};

use super::attention::Attention;
use super::error::Result;
use super::{Block, Embedding, Inner, Model, Outer, RmsNorm, RopePairing, Scaling};
use crate::checkpoint::{self, Access, Checkpoint, Config, LayerKind, Tensors};
use crate::kernels::activation::Activation;
use crate::kernels::{Backend, Level, Rotation};
use crate::tensor::Tensor;

/// What the embedding is multiplied by: √hidden, rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbeddingScale {
    /// Rounded to the compute type, as Hugging Face does: 25.298221 in f32 for 640.
    #[default]
    Compute,
    /// Always rounded to bf16, as Google's own code does: 25.25 for 640.
    Bf16,
}

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
    /// Opens a Hugging Face directory, or a repository id in the local Hugging Face cache.
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
        refuse_extra_layers(config, tensors)?;
        let hidden = config.hidden_size;
        let [embed_tokens, lm_head] = embeddings(config, tensors)?;
        let layers = config.layer_types.iter().enumerate();
        let layers: Vec<_> = layers
            .map(|(i, &kind)| {
                Loader {
                    config,
                    tensors,
                    prefix: format!("model.layers.{i}"),
                }
                .block(kind)
            })
            .collect::<Result<_>>()?;
        let norm = RmsNorm {
            weight: tensors.get("model.norm.weight", &[hidden])?,
            eps: config.rms_norm_eps,
            scaling: Scaling::default(),
        };
        Ok(Self {
            embed_tokens,
            layers,
            norm,
            lm_head,
            level: options.level.unwrap_or_else(Level::best),
            backend: Backend::default(),
            embedding: Embedding::Scaled(options.embedding_scale),
            final_softcap: None,
            checkpoint,
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
            ..model.on(self.backend)
        })
    }
}

/// The embedding and the head. Where they are tied, the one that is stored is both; where both are, each is itself.
fn embeddings(config: &Config, tensors: &Tensors) -> Result<[Tensor; 2]> {
    const NAMES: [&str; 2] = ["model.embed_tokens.weight", "lm_head.weight"];
    let shape = [config.vocab_size, config.hidden_size];
    let stored = NAMES.map(|name| tensors.contains(name));
    let names = match (config.tie_word_embeddings, stored) {
        (true, [true, false]) => [NAMES[0]; 2],
        (true, [false, true]) => [NAMES[1]; 2],
        _ => NAMES,
    };
    Ok([
        tensors.get(names[0], &shape)?,
        tensors.get(names[1], &shape)?,
    ])
}

/// Refuses weights of more layers than the config has, because that would silently run a shorter model.
fn refuse_extra_layers(config: &Config, tensors: &Tensors) -> Result<()> {
    let layers = config.num_hidden_layers;
    let layer = |name: &str| {
        let rest = name.strip_prefix("model.layers.")?;
        rest.split('.').next()?.parse::<usize>().ok()
    };
    match tensors
        .names()
        .find(|name| layer(name).is_some_and(|layer| layer >= layers))
    {
        None => Ok(()),
        Some(tensor) => Err(checkpoint::Error::ExtraLayer {
            file: tensors.source().into(),
            tensor: tensor.into(),
            layers,
        }
        .into()),
    }
}

/// The tensors of one layer.
struct Loader<'a> {
    config: &'a Config,
    tensors: &'a Tensors,
    prefix: String,
}

impl Loader<'_> {
    fn block(&self, kind: LayerKind) -> Result<Block> {
        let Config {
            hidden_size,
            intermediate_size,
            ..
        } = *self.config;
        Ok(Block {
            attention: self.attention(kind)?,
            inner: Inner {
                pre_feedforward_layernorm: self.norm("pre_feedforward_layernorm", hidden_size)?,
                gate_proj: self.weight("mlp.gate_proj", &[intermediate_size, hidden_size])?,
                up_proj: self.weight("mlp.up_proj", &[intermediate_size, hidden_size])?,
                activation: Activation::GeluTanh,
            },
            outer: Outer {
                down_proj: self.weight("mlp.down_proj", &[hidden_size, intermediate_size])?,
                post_feedforward_layernorm: self.norm("post_feedforward_layernorm", hidden_size)?,
            },
        })
    }

    fn attention(&self, kind: LayerKind) -> Result<Attention> {
        let Config {
            hidden_size,
            head_dim,
            ..
        } = *self.config;
        let queries = self.config.num_attention_heads * head_dim;
        let keys = self.config.num_key_value_heads * head_dim;
        let rope = self.config.rope(kind);
        Ok(Attention {
            input_layernorm: self.norm("input_layernorm", hidden_size)?,
            q_proj: self.weight("self_attn.q_proj", &[queries, hidden_size])?,
            k_proj: self.weight("self_attn.k_proj", &[keys, hidden_size])?,
            v_proj: self.weight("self_attn.v_proj", &[keys, hidden_size])?,
            o_proj: self.weight("self_attn.o_proj", &[hidden_size, queries])?,
            q_norm: self.norm("self_attn.q_norm", head_dim)?,
            k_norm: self.norm("self_attn.k_norm", head_dim)?,
            post_attention_layernorm: self.norm("post_attention_layernorm", hidden_size)?,
            head_dim,
            scaling: 1.0 / self.config.query_pre_attn_scalar.sqrt(),
            window: (kind == LayerKind::Sliding).then_some(self.config.sliding_window),
            rotation: Rotation::new(head_dim, rope.theta, rope.factor),
            pairing: RopePairing::default(),
            norm_after_rope: false,
            softcap: None,
        })
    }

    fn norm(&self, name: &str, length: usize) -> Result<RmsNorm> {
        Ok(RmsNorm {
            weight: self.weight(name, &[length])?,
            eps: self.config.rms_norm_eps,
            scaling: Scaling::default(),
        })
    }

    fn weight(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let name = format!("{}.{name}.weight", self.prefix);
        Ok(self.tensors.get(&name, shape)?)
    }
}
