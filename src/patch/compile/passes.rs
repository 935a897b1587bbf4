//! Several sequences on their way through the layers together.

use std::ops::Range;

use super::lesson::Lesson;
use crate::model::{ForwardRun, Model, Overlay, Pass, Recorder, Result, Session};
use crate::model::{consecutive, together};
use crate::tensor::{Element, Matrix};

/// Sequences whose rows lie one after the other in a batch.
pub(super) struct Batch<'m, E: Element> {
    model: &'m Model,
    sessions: Vec<Session<'m, E>>,
    overlay: Option<&'m Overlay<E>>,
}

impl<'m, E: Element> Batch<'m, E> {
    /// As many sequences as there are `sessions`, of one model.
    pub(super) fn new(model: &'m Model, sessions: Vec<Session<'m, E>>) -> Self {
        Self {
            model,
            sessions,
            overlay: None,
        }
    }

    /// The sequences of lessons without the prompt, from their beginning.
    pub(super) fn bare(model: &'m Model, lessons: &[&Lesson<E>]) -> Self {
        Self::new(model, vec![Session::new(model); lessons.len()])
    }

    /// Runs them all under a patch.
    pub(super) fn with_overlay(mut self, overlay: Option<&'m Overlay<E>>) -> Self {
        self.overlay = overlay;
        self
    }

    /// The sequences, and the tokens that each takes in next.
    fn next<'b>(&'b mut self, tokens: Vec<&'b [u32]>) -> Vec<(&'b mut Session<'m, E>, &'b [u32])> {
        self.sessions.iter_mut().zip(tokens).collect()
    }

    /// Takes in tokens of each sequence; the last block's output, `[all tokens, hidden]`.
    pub(super) fn forward(
        &mut self,
        tokens: Vec<&[u32]>,
        recorder: Option<&mut dyn Recorder>,
    ) -> Result<Matrix<E>> {
        let mut run = match self.sessions.first() {
            Some(session) => session.pass(recorder),
            None => return Ok(Matrix::zeros(0, self.model.config().hidden_size)),
        };
        for (session, tokens) in self.sessions.iter().zip(&tokens) {
            session.start((*tokens).into(), None)?;
        }
        let (model, overlay) = (self.model, self.overlay);
        together(
            model,
            &mut run,
            &mut self.next(tokens),
            |run, x, sequences| {
                let rows = 0..x.rows();
                let changes = |layer| {
                    let change = overlay.map(|overlay| (rows.clone(), overlay.layer(layer)));
                    change.into_iter().collect()
                };
                model.blocks(run, x, sequences, changes)
            },
        )
    }

    /// Whether each sequence has room for these tokens.
    pub(super) fn open(&self, tokens: &[Vec<u32>]) -> Vec<bool> {
        let pairs = self.sessions.iter().zip(tokens);
        let open = pairs.map(|(session, tokens)| session.check_room(tokens.len()).is_ok());
        open.collect()
    }

    /// Goes on with some of the sequences.
    pub(super) fn retain(&mut self, stay: &[bool]) {
        let mut stay = stay.iter();
        self.sessions.retain(|_| stay.next() == Some(&true));
    }

    /// Takes in tokens of each sequence; the logits after the last of each, `[sequences, vocab]`.
    pub(super) fn last_logits(&mut self, tokens: &[Vec<u32>]) -> Result<Matrix<E>> {
        let x = self.forward(tokens.iter().map(Vec::as_slice).collect(), None)?;
        let rows = consecutive(tokens.iter().map(Vec::len));
        let last = rows.map(|rows| x.slice_rows(rows.end - 1..rows.end));
        let last = Matrix::stack(x.cols(), last.collect());
        let mut run = ForwardRun::new(self.model, None, None);
        self.model.logits(&mut run, &last)
    }

    /// Calls `layer` with a pass for each of some blocks, and what the one before it gave; what enters the first is `x`, or the
    /// tokens' embedding.
    pub(super) fn layer_by_layer(
        &mut self,
        tokens: Vec<&[u32]>,
        x: Option<Matrix<E>>,
        layers: Range<usize>,
        mut layer: impl FnMut(
            &mut Pass<'_, '_, '_, E>,
            usize,
            Matrix<E>,
        ) -> crate::patch::Result<Matrix<E>>,
    ) -> crate::patch::Result<Matrix<E>> {
        for (session, tokens) in self.sessions.iter().zip(&tokens) {
            session.start((*tokens).into(), None)?;
        }
        let mut run = ForwardRun::new(self.model, None, None);
        let model = self.model;
        together(
            model,
            &mut run,
            &mut self.next(tokens),
            |run, embedded, sequences| {
                let mut x = x.unwrap_or(embedded);
                for i in layers {
                    run.enter(i)?;
                    x = layer(&mut Pass::new(run, sequences, &[]), i, x)?;
                    model.check_layer(i, &x)?;
                }
                Ok(x)
            },
        )
    }
}
