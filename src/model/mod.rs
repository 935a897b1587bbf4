//! Gemma 3: blocks of attention, inner and outer function, and the decoder around them.

mod attention;
mod block;
mod cache;
mod decoder;
mod disturbance;
mod error;
pub mod generate;
mod inner;
mod load;
mod mutation;
mod norm;
mod outer;
mod overlay;
mod run;
mod session;
#[cfg(test)]
mod tests;

pub use attention::Attention;
pub(crate) use attention::{RopePairing, Sequence};
pub use block::Block;
pub(crate) use cache::Cache;
pub(crate) use decoder::Embedding;
pub use error::{Error, Result};
pub use inner::Inner;
pub use load::{EmbeddingScale, ModelOptions};
pub use mutation::Mutation;
pub use norm::RmsNorm;
pub(crate) use norm::Scaling;
pub use outer::Outer;
pub use overlay::Overlay;
pub(crate) use overlay::{Changed, LayerChange, LinearChange};
pub use run::Recorder;
pub(crate) use run::Run;
pub use session::Session;

use crate::checkpoint::{Checkpoint, Config};
use crate::kernels::{Backend, Level};
use crate::tensor::Tensor;

/// A Gemma 3 text model: weights as stored, shared by any number of [`Session`]s and threads, never changed.
#[derive(Clone, Debug)]
pub struct Model {
    checkpoint: Checkpoint,
    embed_tokens: Tensor,
    layers: Vec<Block>,
    norm: RmsNorm,
    lm_head: Tensor,
    level: Level,
    backend: Backend,
    embedding: Embedding,
    /// Logits l become cap · tanh(l / cap), which Gemma 3 does not do.
    final_softcap: Option<f64>,
}

impl Model {
    /// The checkpoint the model came from: its name, tokenizer and tensors.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The shape of the model.
    pub fn config(&self) -> &Config {
        self.checkpoint.config()
    }

    /// The rounding of the embedding's scale.
    pub fn embedding_scale(&self) -> EmbeddingScale {
        self.embedding.scale()
    }

    /// The blocks in order.
    pub fn layers(&self) -> &[Block] {
        &self.layers
    }

    /// The instructions it runs with.
    pub fn level(&self) -> Level {
        self.level
    }

    /// What multiplies its matrices: [`Backend::Native`] unless [told otherwise](Self::on).
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Has another backend compute the matrix products. A clone of a model shares the weights.
    #[must_use]
    pub fn on(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }
}
