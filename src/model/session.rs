//! One sequence on its way through a model.

use std::ops::Range;

use super::{Cache, LayerChange, Model, Recorder, Run, Sequence};
use crate::error::Result;
use crate::patch::Overlay;
use crate::tensor::{Element, Matrix};

/// Tokens that go through the layers together. A matter of speed: any division gives the same bits.
const CHUNK: usize = 256;

/// A sequence, its key-value cache, and the patch it runs under, if any.
#[derive(Clone, Debug)]
pub struct Session<'m, E: Element> {
    model: &'m Model,
    cache: Cache<E>,
    position: usize,
    overlay: Option<&'m Overlay<E>>,
    chunk: usize,
}

impl<'m, E: Element> Session<'m, E> {
    /// An empty sequence.
    pub fn new(model: &'m Model) -> Self {
        Self {
            model,
            cache: model.new_cache(),
            position: 0,
            overlay: None,
            chunk: CHUNK,
        }
    }

    /// The same sequence under a patch.
    #[must_use]
    pub fn with_overlay(mut self, overlay: &'m Overlay<E>) -> Self {
        self.overlay = Some(overlay);
        self
    }

    /// The same sequence, whose next token is at `position`.
    #[must_use]
    pub fn at(mut self, position: usize) -> Self {
        self.position = position;
        self
    }

    /// The same sequence, whose tokens go through the layers at most `chunk` (at least 1) at a time.
    #[must_use]
    pub fn with_chunk(mut self, chunk: usize) -> Self {
        self.chunk = chunk.max(1);
        self
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// This sequence as some rows of a batch that someone else drives through the layers, who then
    /// calls [`skip`](Self::skip).
    pub(crate) fn as_rows<'a>(
        &'a mut self,
        rows: Range<usize>,
        positions: &'a [usize],
    ) -> Sequence<'a, E> {
        Sequence {
            rows,
            positions,
            cache: &mut self.cache,
        }
    }

    /// Counts tokens that were taken in as rows of a batch.
    pub(crate) fn skip(&mut self, tokens: usize) {
        self.position += tokens;
    }

    /// The position of the next token.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Takes `tokens` in, and gives the logits of the last `last` of them, `[last, vocab]`.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyPrompt`](crate::Error::EmptyPrompt), [`Error::TokenId`](crate::Error::TokenId) and
    /// [`Error::PromptTooLong`](crate::Error::PromptTooLong) before anything is computed;
    /// [`Error::NotFinite`](crate::Error::NotFinite) or the tensor at fault after.
    pub fn forward(&mut self, tokens: &[u32], last: usize) -> Result<Matrix<E>> {
        self.advance(tokens, last, None)
    }

    /// The same with someone listening.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward).
    pub fn forward_recorded(
        &mut self,
        tokens: &[u32],
        last: usize,
        recorder: &mut dyn Recorder,
    ) -> Result<Matrix<E>> {
        self.advance(tokens, last, Some(recorder))
    }

    fn advance(
        &mut self,
        tokens: &[u32],
        last: usize,
        recorder: Option<&mut dyn Recorder>,
    ) -> Result<Matrix<E>> {
        self.model.check_tokens(tokens, self.position)?;
        let mut run = Run::new(self.model.level(), recorder);
        let silent = tokens.len().saturating_sub(last);
        let mut logits = Vec::new();
        for (i, chunk) in tokens.chunks(self.chunk).enumerate() {
            let x = self.chunk_forward(&mut run, chunk)?;
            let first = silent.saturating_sub(i * self.chunk);
            if first < chunk.len() {
                let x = x.slice_rows(first..chunk.len());
                logits.extend(self.model.logits(&mut run, &x)?.into_vec());
            }
        }
        Ok(Matrix::from_vec(self.model.config().vocab_size, logits))
    }

    /// The last block's output for a chunk.
    fn chunk_forward(&mut self, run: &mut Run<'_>, tokens: &[u32]) -> Result<Matrix<E>> {
        let x = self.model.embed(run, tokens);
        let positions: Vec<_> = (self.position..self.position + tokens.len()).collect();
        self.position += tokens.len();
        let rows = 0..tokens.len();
        let sequence = Sequence {
            rows: rows.clone(),
            positions: &positions,
            cache: &mut self.cache,
        };
        let overlay = self.overlay;
        let changes = |layer: usize| {
            let change = overlay.map(|overlay| -> &LayerChange<E> { overlay.layer(layer) });
            change
                .map(|change| (rows.clone(), change))
                .into_iter()
                .collect()
        };
        self.model.blocks(run, x, &mut [sequence], changes)
    }
}
