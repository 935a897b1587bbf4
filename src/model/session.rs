//! One sequence on its way through a model.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::cache::{CacheBlock, pieces};
use super::error::{Error, Result};
use super::overlay::LayerOverlay;
use super::pass::Sequence;
use super::{Cache, ForwardRun, Images, Inputs, Model, Overlay, Recorder, Tokens};
use crate::tensor::{Element, Matrix};

/// Tokens that go through the layers together. It affects speed only: any division gives the same bits.
const CHUNK: usize = 512;

/// Tokens whose logits are computed together: a megabyte each for Gemma's vocabulary.
pub(super) const LOGIT_ROWS: usize = 16;

/// [`LOGIT_ROWS`] of a batch, whose memory is bounded elsewhere: so many that their products take longer than reading the head.
pub(super) const BATCH_LOGIT_ROWS: usize = 32;

/// A sequence, its key-value cache, and the patch it runs under, if any.
#[derive(Clone, Debug)]
pub struct Session<'m, E: Element> {
    model: &'m Model,
    cache: Cache<E>,
    position: usize,
    overlay: Option<&'m Overlay<E>>,
    chunk: usize,
    /// The most bytes of the cache.
    cache_limit: Option<usize>,
    cancel: Option<Arc<AtomicBool>>,
    /// Where the random numbers of a [disturbed](ForwardRun::disturbed) pass start.
    disturbed: Option<u64>,
    /// Whether tokens have gone through some layers and not through all.
    spent: bool,
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
            cache_limit: None,
            cancel: None,
            disturbed: None,
            spent: false,
        }
    }

    /// Runs the sequence under a patch.
    #[must_use]
    pub fn with_overlay(mut self, overlay: &'m Overlay<E>) -> Self {
        self.overlay = Some(overlay);
        self
    }

    /// Places the next token at `position`, which must not be before the tokens already seen.
    #[must_use]
    pub fn at(mut self, position: usize) -> Self {
        self.position = position;
        self
    }

    /// Sends at most `chunk` tokens (at least 1) through the layers at a time.
    #[must_use]
    pub fn with_chunk(mut self, chunk: usize) -> Self {
        self.chunk = chunk.max(1);
        self
    }

    /// Limits keys and values to `bytes`: tokens that would need more are refused before anything is computed for
    /// them. [`Model::cache_bytes`] says what a sequence needs.
    #[must_use]
    pub fn with_cache_limit(mut self, bytes: usize) -> Self {
        self.cache_limit = Some(bytes);
        self
    }

    /// Lets `cancel` end a pass: the flag is read before every layer of every chunk.
    #[must_use]
    pub fn with_cancel(mut self, cancel: Arc<AtomicBool>) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// [Disturbs](ForwardRun::disturbed) the passes of the sequence.
    pub(crate) fn disturbed(mut self, seed: u64) -> Self {
        self.disturbed = Some(seed);
        self
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// This sequence as some rows of a batch. Whoever sends the batch through the layers calls [`skip`](Self::skip)
    /// afterwards.
    pub(crate) fn as_rows<'a>(
        &'a mut self,
        rows: Range<usize>,
        positions: &'a [usize],
    ) -> Sequence<'a, E> {
        self.spent = true;
        Sequence {
            rows,
            positions,
            cache: &mut self.cache,
        }
    }

    /// Counts tokens that were taken in as rows of a batch, through all layers.
    pub(crate) fn skip(&mut self, tokens: usize) {
        self.position += tokens;
        self.spent = false;
    }

    /// A copy of what the sequence needs of the tokens at `positions`, the last [`SLACK`](super::cache::SLACK) or fewer of
    /// which it has taken in together; `None` where a device has it.
    pub(super) fn block(&self, positions: Range<usize>) -> Option<CacheBlock<E>> {
        self.cache.block(positions)
    }

    /// [`at`](Self::at), for a sequence under way.
    pub(super) fn go_to(&mut self, position: usize) {
        self.position = position;
    }

    /// Takes in `tokens` whose keys and values another sequence has computed.
    pub(super) fn append(&mut self, tokens: usize, block: &CacheBlock<E>) {
        self.cache.append(block);
        self.position += tokens;
    }

    /// Starts a pass for the next tokens, once they are checked.
    ///
    /// # Errors
    ///
    /// The errors that [`forward`](Self::forward) reports before anything is computed.
    pub(crate) fn start<'r>(
        &self,
        tokens: Tokens<'_, E>,
        recorder: Option<&'r mut dyn Recorder>,
    ) -> Result<ForwardRun<'r>> {
        if self.spent {
            return Err(Error::SpentSession);
        }
        let spans = tokens.spans(0);
        self.model
            .check_with_images(tokens.ids, &spans, self.position)?;
        let together = spans.iter().map(Range::len).max();
        self.check_room_together(tokens.ids.len(), together.unwrap_or(1))?;
        Ok(self.pass(recorder))
    }

    /// Starts a pass without the checks.
    pub(crate) fn pass<'r>(&self, recorder: Option<&'r mut dyn Recorder>) -> ForwardRun<'r> {
        let run = ForwardRun::new(self.model, recorder, self.cancel.clone());
        match self.disturbed {
            None => run,
            Some(seed) => run.disturbed(seed),
        }
    }

    /// Refuses `tokens` more than there is room for, in the model's positions and in the
    /// [bytes allowed](Self::with_cache_limit).
    ///
    /// # Errors
    ///
    /// [`Error::PromptTooLong`] and [`Error::CacheLimit`].
    pub fn check_room(&self, tokens: usize) -> Result<()> {
        self.check_room_together(tokens, 1)
    }

    /// [`check_room`](Self::check_room) for tokens of which some enter together.
    fn check_room_together(&self, tokens: usize, together: usize) -> Result<()> {
        self.model
            .check_length(self.position.saturating_add(tokens))?;
        let Some(allowed) = self.cache_limit else {
            return Ok(());
        };
        let tokens = self.cache.tokens().saturating_add(tokens);
        let needed = self.cache.bytes(tokens, together);
        if needed <= allowed {
            return Ok(());
        }
        let most = self.model.config().max_position_embeddings;
        Err(Error::CacheLimit {
            tokens,
            needed,
            allowed,
            fit: self.cache.fit(allowed, most, together),
        })
    }

    /// The position of the next token.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Takes `tokens` in, and gives the logits of the last `last` of them (of all where there are
    /// fewer), `[last, vocab]`. Slices of ids are text; [`Tokens::new`] has images among them.
    ///
    /// # Errors
    ///
    /// Before anything is computed: [`Error::EmptyPrompt`], [`Error::TokenId`],
    /// [`Error::PromptTooLong`], [`Error::CacheLimit`], and [`Error::SpentSession`] after one of the following. Then
    /// [`Error::Cancelled`]; and [`NotFinite`](crate::checkpoint::Error::NotFinite) or [`Error::Overflow`] where a number
    /// is not finite. After these the session has seen half a token and is of no further use.
    pub fn forward<'t>(
        &mut self,
        tokens: impl Into<Tokens<'t, E>>,
        last: usize,
    ) -> Result<Matrix<E>> {
        let mut logits = Vec::new();
        self.advance(tokens.into(), last, None, |rows| logits.push(rows))?;
        Ok(Matrix::stack(self.model.config().vocab_size, logits))
    }

    /// [`forward`](Self::forward) for tokens at `positions`, which ascend and may have gaps.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward).
    pub fn forward_at(
        &mut self,
        tokens: &[u32],
        positions: &[usize],
        last: usize,
    ) -> Result<Matrix<E>> {
        assert_eq!(tokens.len(), positions.len(), "a position for each token");
        // All of them, before the first stretch is computed.
        self.check_room(tokens.len())?;
        let mut logits = Vec::new();
        let mut left = tokens.len();
        for (stretch, positions) in consecutive(tokens, positions) {
            left -= stretch.len();
            self.position = positions[0];
            let rows = last.saturating_sub(left).min(stretch.len());
            self.advance(stretch.into(), rows, None, |rows| logits.push(rows))?;
        }
        Ok(Matrix::stack(self.model.config().vocab_size, logits))
    }

    /// Takes in a prompt but for its last token, which it gives back: the next one, at its position. `positions` ascend; those of a
    /// prompt with images have no gaps.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward) and of [`Images::of`].
    pub fn take_in(&mut self, prompt: Inputs<'_>, positions: &[usize]) -> Result<u32> {
        let Some((&last, before)) = prompt.ids.split_last() else {
            return Err(Error::EmptyPrompt);
        };
        if let Some(images) = Images::of(self.model, prompt)? {
            self.position = positions[0];
            self.forward(Tokens::new(before, Some(&images)), 0)?;
        } else {
            self.forward_at(before, &positions[..before.len()], 0)?;
        }
        self.position = positions[before.len()];
        Ok(last)
    }

    /// [`forward`](Self::forward) with a recorder, which receives the logits too.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward).
    pub fn forward_recorded<'t>(
        &mut self,
        tokens: impl Into<Tokens<'t, E>>,
        last: usize,
        recorder: &mut dyn Recorder,
    ) -> Result<()> {
        self.advance(tokens.into(), last, Some(recorder), drop)
    }

    /// Takes `tokens` in; `on_logits` gets those of the last `last` of them, some rows at a time.
    fn advance(
        &mut self,
        tokens: Tokens<'_, E>,
        last: usize,
        recorder: Option<&mut dyn Recorder>,
        mut on_logits: impl FnMut(Matrix<E>),
    ) -> Result<()> {
        let mut run = self.start(tokens, recorder)?;
        self.spent = true;
        let silent = tokens.ids.len().saturating_sub(last);
        let positions: Vec<_> = (self.position..self.position + tokens.ids.len()).collect();
        let spans = tokens.spans(self.position);
        self.cache.see_together(self.model.seen_together(&spans));
        for chunk in pieces(&positions, self.chunk, &spans) {
            let x = self.chunk_forward(&mut run, tokens, chunk.clone())?;
            let first = silent.saturating_sub(chunk.start);
            for start in (first..chunk.len()).step_by(LOGIT_ROWS) {
                let x = x.slice_rows(start..chunk.len().min(start + LOGIT_ROWS));
                on_logits(self.model.logits(&mut run, &x)?);
            }
        }
        self.spent = false;
        Ok(())
    }

    /// The last block's output for a chunk of `tokens`.
    fn chunk_forward(
        &mut self,
        run: &mut ForwardRun<'_>,
        tokens: Tokens<'_, E>,
        chunk: Range<usize>,
    ) -> Result<Matrix<E>> {
        run.clear_cos_sin();
        let rows = 0..chunk.len();
        let positions: Vec<_> = (self.position..self.position + rows.end).collect();
        self.position += rows.end;
        let x = self.model.embed_inputs(run, tokens, chunk, &positions);
        let sequence = Sequence {
            rows: rows.clone(),
            positions: &positions,
            cache: &mut self.cache,
        };
        let overlay = self.overlay;
        let changes = |layer: usize| {
            let change = overlay.map(|overlay| -> &LayerOverlay<E> { overlay.layer(layer) });
            change
                .map(|change| (rows.clone(), change))
                .into_iter()
                .collect()
        };
        self.model.blocks(run, x, &mut [sequence], changes)
    }
}

/// Tokens and their positions, in stretches without a gap.
fn consecutive<'a>(
    tokens: &'a [u32],
    positions: &'a [usize],
) -> impl Iterator<Item = (&'a [u32], &'a [usize])> {
    let stretches = positions.chunk_by(|a, b| a + 1 == *b);
    let mut start = 0;
    stretches.map(move |positions| {
        let stretch = &tokens[start..start + positions.len()];
        start += positions.len();
        (stretch, positions)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Level, observed};
    use crate::model::ModelOptions;
    use half::bf16;

    /// Takes in `tokens` in pieces of `piece`, chunks of `chunk`: nothing is allocated beyond the figure.
    fn fill<E: Element>(model: &Model, tokens: usize, piece: usize, chunk: usize) {
        let bytes = model.cache_bytes::<E>(tokens);
        let mut session = Session::<E>::new(model)
            .with_chunk(chunk)
            .with_cache_limit(bytes);
        for piece in vec![5; tokens].chunks(piece) {
            session.forward(piece, 0).unwrap();
            assert!(session.cache.allocated() <= bytes, "{tokens} {chunk}");
        }
        assert!(session.cache.allocated() > bytes / 2);
    }

    /// Of a pass that is recorded and disturbed besides.
    #[test]
    fn every_operation_of_a_pass_runs_at_the_models_level() {
        struct All;
        impl Recorder for All {
            fn wants(&self, _: &str) -> bool {
                true
            }
            fn record(&mut self, _: &str, _: &Matrix<f64>) {}
        }
        fn levels<E: Element>(model: &Model) -> Vec<Level> {
            observed::levels(|| {
                let mut session = Session::<E>::new(model).disturbed(1);
                session.forward_recorded(&[5; 20], 2, &mut All).unwrap();
            })
        }
        for level in Level::available() {
            let options = ModelOptions {
                level: Some(level),
                ..ModelOptions::default()
            };
            let model = Model::open_with("reference/tiny", options).unwrap();
            assert_eq!(levels::<f64>(&model), [level]);
            assert_eq!(levels::<f32>(&model), [level]);
            assert_eq!(levels::<bf16>(&model), [level]);
        }
    }

    #[test]
    fn no_sequence_allocates_more_than_was_computed() {
        for dir in ["tiny", "checkpoints/window-3", "checkpoints/all-global"] {
            let model = Model::open(&format!("reference/{dir}")).unwrap();
            let most = model.config().max_position_embeddings;
            for (tokens, piece, chunk) in [(1, 1, 1), (70, 1, 1), (most, 100, 7), (most, most, 512)]
            {
                fill::<f32>(&model, tokens, piece, chunk);
                fill::<bf16>(&model, tokens, piece, chunk);
            }
        }
    }
}
