//! A model of any family: blocks of attention, inner and outer function, and the decoder around them.

mod attend;
mod attention;
mod block;
mod build;
mod cache;
mod decoder;
mod disturbance;
mod error;
mod experts;
pub mod generate;
mod inner;
mod known_bug;
mod linear;
mod load;
mod norm;
mod ops;
mod outer;
mod overlay;
mod parts;
mod pass;
mod plan;
mod rope;
mod run;
mod session;
#[cfg(test)]
mod tests;

pub use block::Block;
pub(crate) use block::{Attended, Rest};
pub(crate) use build::Weights;
pub(crate) use cache::Cache;
pub use decoder::EmbeddingScale;
pub(crate) use decoder::{Decoder, Embedding};
pub use error::{Error, Result};
pub use inner::{Inner, Maps};
pub use known_bug::KnownBug;
pub use linear::Linear;
pub use load::ModelOptions;
pub use norm::Norm;
pub(crate) use ops::Ops;
pub use outer::Outer;
pub use overlay::Overlay;
pub(crate) use overlay::{LayerOverlay, OverlaidRows, TensorOverlay};
pub use parts::{Attention, Experts};
pub(crate) use parts::{Hidden, Projections};
pub(crate) use pass::{Pass, Sequence};
pub(crate) use plan::{Operation, Plan};
pub(crate) use run::ForwardRun;
pub use run::Recorder;
pub use session::Session;

use crate::checkpoint::{Checkpoint, Config};
use crate::kernels::{Backend, Level};

/// A language model: weights as stored, shared by any number of [`Session`]s and threads, never changed.
#[derive(Clone, Debug)]
pub struct Model {
    checkpoint: Checkpoint,
    decoder: Decoder,
    layers: Vec<Block>,
    level: Level,
    backend: Backend,
    embedding: Embedding,
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
