//! The decoder around the blocks: embedding, final norm, head.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::images::looked_up;
use super::ops::Ops;
use super::overlay::OverlaidRows;
use super::pass::{Pass, Sequence};
use super::run::ForwardRun;
use super::{Cache, Linear, Model, Norm, Tokens};
use crate::checkpoint::form::DecoderForm;
use crate::kernels::elementwise;
use crate::tensor::{Dtype, Element, Matrix, Tensor, round_to_bf16};

/// What goes into the first block of a sequence with images, in recordings: no module outputs it.
pub(crate) const INPUTS_EMBEDS: &str = "inputs_embeds";

/// What is around the blocks.
#[derive(Clone, Debug)]
pub(crate) struct Decoder {
    pub(crate) form: DecoderForm,
    /// `[vocab, hidden]`
    pub(crate) embed: Tensor,
    /// The learned positions `[positions, hidden]`, where there are some.
    pub(crate) positions: Option<Tensor>,
    pub(crate) norm: Norm,
    /// `[vocab, hidden]`
    pub(crate) head: Linear,
}

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

/// What a row of the embedding is multiplied by.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Embedding {
    /// √hidden, rounded.
    Scaled(EmbeddingScale),
    /// √hidden, rounded to the wrong type: to bf16 in f64 and f32, and to f32 in bf16.
    OtherType,
    /// 1.
    Unscaled,
}

impl Default for Embedding {
    fn default() -> Self {
        Self::Scaled(EmbeddingScale::default())
    }
}

impl Embedding {
    /// How √hidden is rounded in the model without a bug.
    pub(crate) fn scale(self) -> EmbeddingScale {
        match self {
            Self::Scaled(scale) => scale,
            Self::OtherType | Self::Unscaled => EmbeddingScale::default(),
        }
    }

    /// The number, for a width and a compute type.
    pub(crate) fn factor(self, hidden_size: usize, dtype: Dtype) -> f64 {
        let root = (hidden_size as f64).sqrt();
        let bf16 = round_to_bf16(root).to_f64();
        match (self, dtype) {
            (Self::Unscaled, _) => 1.0,
            (Self::Scaled(EmbeddingScale::Bf16), _)
            | (Self::Scaled(EmbeddingScale::Compute), Dtype::Bf16)
            | (Self::OtherType, Dtype::F64 | Dtype::F32) => bf16,
            (Self::Scaled(EmbeddingScale::Compute), Dtype::F64) => root,
            (Self::Scaled(EmbeddingScale::Compute), Dtype::F32)
            | (Self::OtherType, Dtype::Bf16) => f64::from(root as f32),
        }
    }
}

impl Decoder {
    /// The logits of every row of the last block's output.
    pub(crate) fn logits<O: Ops>(&self, ops: &mut O, x: &O::Rows) -> O::Rows {
        let x = ops.norm(&self.norm, x);
        ops.record_global(self.norm.name(), &x);
        let logits = ops.logits(&self.head, self.form.softcap, &x);
        ops.record_global(self.head.name(), &logits);
        logits
    }
}

impl Model {
    /// An empty cache for one sequence.
    pub(crate) fn new_cache<E: Element>(&self) -> Cache<E> {
        let config = self.config();
        let windows = self.layers.iter().map(|block| block.attention.form.window);
        let cache = Cache::new(windows, config.num_key_value_heads, config.head_dim);
        #[cfg(feature = "cuda")]
        let cache = cache.on(self.device().cloned());
        cache
    }

    /// The most bytes that the keys and values of a sequence of `tokens` take, before one of them is allocated:
    /// what a [`Session`](super::Session) needs to be [allowed](super::Session::with_cache_limit).
    ///
    /// Full layers hold all tokens, sliding ones their window and 256 more, or as many as an image has that has more. The largest of the vectors counts
    /// twice, as it is copied when it grows. A pass needs room for its activations besides, which is freed after
    /// it and depends on its [chunk](super::Session::with_chunk), not on the sequence.
    pub fn cache_bytes<E: Element>(&self, tokens: usize) -> usize {
        self.new_cache::<E>().bytes(tokens, 1)
    }

    /// Refuses sequences of more tokens than the model has positions.
    pub(crate) fn check_length(&self, tokens: usize) -> Result<()> {
        let positions = self.config().max_position_embeddings;
        if tokens > positions {
            return Err(Error::PromptTooLong { tokens, positions });
        }
        Ok(())
    }

    /// [`check_tokens`](Self::check_tokens) for tokens of which those at `spans` are images', which need no place in the
    /// vocabulary and must be there whole.
    pub(crate) fn check_with_images(
        &self,
        ids: &[u32],
        spans: &[Range<usize>],
        first_position: usize,
    ) -> Result<()> {
        #[cfg(feature = "cuda")]
        if !spans.is_empty() && self.device().is_some() {
            return Err(Error::ImageOnDevice);
        }
        let tokens = ids.len();
        if spans.iter().any(|span| span.end > tokens) {
            return Err(Error::ImageCut { tokens });
        }
        let ids = looked_up(ids, spans, self.config().vocab_size);
        self.check_tokens(&ids, first_position)
    }

    /// Refuses token ids outside the vocabulary, positions outside the model's, and nothing at all.
    pub(crate) fn check_tokens(&self, tokens: &[u32], first_position: usize) -> Result<()> {
        let config = self.config();
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        self.check_length(first_position.saturating_add(tokens.len()))?;
        match tokens
            .iter()
            .position(|&id| id as usize >= config.vocab_size)
        {
            None => Ok(()),
            Some(at) => Err(Error::TokenId {
                id: tokens[at],
                position: first_position + at,
                vocab_size: config.vocab_size,
            }),
        }
    }

    /// The rows of the embedding, and what they are multiplied by in a compute type.
    pub(crate) fn embedding(&self, dtype: Dtype) -> (&Tensor, f64) {
        let factor = self.embedding.factor(self.config().hidden_size, dtype);
        (&self.decoder.embed, factor)
    }

    /// The path of a layer: `model.layers.3`.
    pub(crate) fn layer_path(&self, layer: usize) -> String {
        format!("{}.{layer}", self.decoder.form.layers)
    }

    /// The names of the last norm's output and of the logits.
    pub(crate) fn ends(&self) -> [&str; 2] {
        [self.decoder.norm.name(), self.decoder.head.name()]
    }

    /// What is around the blocks.
    pub(crate) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// [`embed`](Self::embed) for some tokens, with what images put in the place of their embeddings, as it is.
    pub(crate) fn embed_inputs<E: Element>(
        &self,
        run: &mut ForwardRun<'_>,
        tokens: Tokens<'_, E>,
        rows: Range<usize>,
        positions: &[usize],
    ) -> Matrix<E> {
        let ids = looked_up(tokens.ids, &tokens.spans(0), self.config().vocab_size);
        let mut x = self.embed(run, &ids[rows.clone()], positions);
        if let Some(images) = tokens.images {
            images.put(rows, self.features_factor(E::DTYPE), &mut x);
            run.record_global(INPUTS_EMBEDS, &x);
        }
        x
    }

    /// The embedding times its scale, and with the learned positions added where there are some: `[tokens, hidden]`.
    pub(crate) fn embed<E: Element>(
        &self,
        run: &mut ForwardRun<'_>,
        tokens: &[u32],
        positions: &[usize],
    ) -> Matrix<E> {
        let (weight, factor) = self.embedding(E::DTYPE);
        let scale = E::Acc::from_f64(factor);
        let mut x: Matrix<E> = Matrix::zeros(tokens.len(), weight.cols());
        for (&token, x) in tokens.iter().zip(x.iter_rows_mut()) {
            weight.read_row(token as usize, x);
            for x in x {
                *x = E::round(x.acc() * scale);
            }
        }
        run.record_global(self.decoder.form.embed, &x);
        let (Some(form), Some(table)) = (self.decoder.form.positions, &self.decoder.positions)
        else {
            return x;
        };
        let mut learned: Matrix<E> = Matrix::zeros(tokens.len(), table.cols());
        for (&position, row) in positions.iter().zip(learned.iter_rows_mut()) {
            table.read_row(position + form.offset, row);
        }
        run.record_global(form.table, &learned);
        let x = elementwise::add(run.level, &x, &learned);
        run.record_global(form.sum, &x);
        x
    }

    /// The last block's output for every row of x; `changes` are those of a layer.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`], and those of [`check_finite`](Self::check_finite).
    pub(crate) fn blocks<'c, E: Element>(
        &self,
        run: &mut ForwardRun<'_>,
        x: Matrix<E>,
        sequences: &mut [Sequence<'_, E>],
        changes: impl Fn(usize) -> Vec<OverlaidRows<'c, E>>,
    ) -> Result<Matrix<E>> {
        let check = |layer, x: &_| self.check_layer(layer, x);
        self.checked_blocks(run, x, sequences, changes, check)
    }

    /// [`blocks`](Self::blocks), with another check of what a layer gives. A device checks in the end, and only what is not
    /// finite, as the output of the first layer that was not.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`], and those of `check`.
    pub(crate) fn checked_blocks<'c, E: Element>(
        &self,
        run: &mut ForwardRun<'_>,
        mut x: Matrix<E>,
        sequences: &mut [Sequence<'_, E>],
        changes: impl Fn(usize) -> Vec<OverlaidRows<'c, E>>,
        mut check: impl FnMut(usize, &Matrix<E>) -> Result<()>,
    ) -> Result<Matrix<E>> {
        #[cfg(feature = "cuda")]
        if let Some(device) = run.whole_pass_device() {
            return self.device_blocks(device, run, &x, sequences, changes, check);
        }
        for (layer, block) in self.layers.iter().enumerate() {
            run.enter(layer)?;
            x = block.forward(&mut Pass::new(run, sequences, &changes(layer)), x);
            check(layer, &x)?;
        }
        Ok(x)
    }

    /// [`check_finite`](Self::check_finite) for the output of a layer.
    pub(crate) fn check_layer<E: Element>(&self, layer: usize, x: &Matrix<E>) -> Result<()> {
        self.check_finite(x, || self.layer_path(layer))
    }

    /// Refuses infinities and NaN in a module's output.
    ///
    /// # Errors
    ///
    /// [`NotFinite`](crate::checkpoint::Error::NotFinite) with the weights' tensor they come from, [`Error::Overflow`]
    /// with the module where the weights are finite.
    fn check_finite<E: Element>(&self, x: &Matrix<E>, module: impl Fn() -> String) -> Result<()> {
        if x.is_finite() {
            return Ok(());
        }
        #[cfg(feature = "cuda")]
        if let Some(device) = self.device() {
            device.check()?;
        }
        self.checkpoint.tensors().check_finite()?;
        Err(Error::Overflow {
            module: module(),
            dtype: E::DTYPE,
        })
    }

    /// The logits of every row of the last block's output, `[tokens, vocab]`.
    ///
    /// # Errors
    ///
    /// Those of [`check_finite`](Self::check_finite).
    pub(crate) fn logits<E: Element>(
        &self,
        run: &mut ForwardRun<'_>,
        x: &Matrix<E>,
    ) -> Result<Matrix<E>> {
        let logits = self.computed_logits(run, x)?;
        self.check_logits(&logits)?;
        Ok(logits)
    }

    /// [`logits`](Self::logits), finite or not.
    ///
    /// # Errors
    ///
    /// The failure of a device.
    pub(crate) fn computed_logits<E: Element>(
        &self,
        run: &mut ForwardRun<'_>,
        x: &Matrix<E>,
    ) -> Result<Matrix<E>> {
        #[cfg(feature = "cuda")]
        if let Some(device) = run.whole_pass_device() {
            return self.device_logits(device, run, x);
        }
        let logits = self.unchecked_logits(run, x);
        run.check_device()?;
        Ok(logits)
    }

    /// [`logits`](Self::logits) on the CPU, without any check.
    pub(crate) fn unchecked_logits<E: Element>(
        &self,
        run: &mut ForwardRun<'_>,
        x: &Matrix<E>,
    ) -> Matrix<E> {
        self.decoder.logits(&mut Pass::of_rows(run, &[]), x)
    }

    /// [`check_finite`](Self::check_finite) for logits.
    pub(crate) fn check_logits<E: Element>(&self, logits: &Matrix<E>) -> Result<()> {
        self.check_finite(logits, || self.decoder.head.name().into())
    }
}
