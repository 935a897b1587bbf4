//! A model of any family: blocks of attention, inner and outer function, and the decoder around them.

mod attend;
mod attention;
pub mod batch;
mod block;
mod build;
mod cache;
mod decoder;
#[cfg(feature = "cuda")]
mod device_pass;
mod disturbance;
mod error;
mod experts;
pub mod generate;
mod grid;
mod images;
mod inner;
mod key_head;
mod known_bug;
mod linear;
mod load;
mod log_probabilities;
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
mod together;
mod vision;

pub use block::Block;
pub(crate) use block::{Attended, Rest};
pub(crate) use build::Weights;
pub(crate) use cache::Cache;
pub use decoder::EmbeddingScale;
pub(crate) use decoder::{Decoder, Embedding, INPUTS_EMBEDS};
pub use error::{Error, Result};
pub(crate) use grid::Grid;
pub(crate) use images::looked_up;
pub use images::{Images, Inputs, Tokens};
pub use inner::{Inner, Maps};
pub use known_bug::KnownBug;
pub use linear::Linear;
pub use load::ModelOptions;
pub use log_probabilities::LogProbabilities;
pub use norm::Norm;
pub(crate) use ops::Ops;
pub use outer::Outer;
pub use overlay::Overlay;
pub(crate) use overlay::{LayerOverlay, OverlaidRows, TensorOverlay};
pub(crate) use parts::{Active, Hidden, Projections};
pub use parts::{Attention, Experts};
pub(crate) use pass::{Pass, Sequence};
pub use plan::Rows;
pub(crate) use plan::{Operation, Plan};
pub(crate) use run::ForwardRun;
pub use run::Recorder;
pub use session::Session;
pub(crate) use together::{consecutive, together};
pub(crate) use vision::PIXEL_VALUES;
pub use vision::Vision;

#[cfg(feature = "cuda")]
use std::sync::{Arc, Mutex, PoisonError};

use crate::checkpoint::{Checkpoint, Config};
#[cfg(feature = "cuda")]
use crate::cuda::{self, OnDevice};
use crate::kernels::{Backend, Level};
#[cfg(feature = "cuda")]
use crate::tensor::Tensor;

/// A language model: weights as stored, shared by any number of [`Session`]s and threads, never changed.
#[derive(Clone, Debug)]
pub struct Model {
    checkpoint: Checkpoint,
    decoder: Decoder,
    layers: Vec<Block>,
    level: Level,
    backend: Backend,
    embedding: Embedding,
    /// The known bug that it was given, for what is built and done when images come.
    bug: Option<KnownBug>,
    /// The device it is on.
    #[cfg(feature = "cuda")]
    device: Option<Arc<OnDevice>>,
    /// The devices that it or a clone was on: they keep its weights.
    #[cfg(feature = "cuda")]
    stored_on: Arc<Mutex<Vec<Arc<OnDevice>>>>,
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

    /// Has another backend compute the matrix products, or everything. A clone of a model shares the weights, on a device too.
    ///
    /// # Errors
    ///
    /// `Error::Cuda` where a device cannot be used or has too little memory for the weights.
    pub fn on(self, backend: Backend) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Backend::Cuda(ordinal) = backend {
            let device = cuda::Device::open(ordinal.into())?;
            let on_device = self.on_device(&device)?;
            return Ok(Self {
                backend,
                ..on_device
            });
        }
        Ok(Self {
            backend,
            #[cfg(feature = "cuda")]
            device: None,
            ..self
        })
    }

    /// [`on`](Self::on) for a device that is open. The weights are stored there, unless a clone's are.
    ///
    /// # Errors
    ///
    /// Those of [`on`](Self::on).
    #[cfg(feature = "cuda")]
    pub fn on_device(mut self, device: &Arc<cuda::Device>) -> Result<Self> {
        let mut stored_on = self
            .stored_on
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        stored_on.retain(|known| known.check().is_ok());
        let known = stored_on
            .iter()
            .find(|known| Arc::ptr_eq(known.device(), device));
        let on_device = match known {
            Some(known) => known.clone(),
            None => {
                let new = Arc::new(OnDevice::new(device.clone(), self.matrices())?);
                stored_on.push(new.clone());
                new
            }
        };
        drop(stored_on);
        self.backend = Backend::Cuda(0);
        self.device = Some(on_device);
        Ok(self)
    }

    /// The device it is on.
    #[cfg(feature = "cuda")]
    pub(crate) fn device(&self) -> Option<&Arc<OnDevice>> {
        self.device.as_ref()
    }

    /// Every matrix of weights, the head's among them; the embedding's only where it is the head's.
    #[cfg(feature = "cuda")]
    pub(crate) fn matrices(&self) -> impl Iterator<Item = &Tensor> {
        let layers = self.layers.iter().flat_map(Block::maps);
        layers.chain([&self.decoder.head]).map(Linear::weight)
    }
}
