//! Several sequences on their way through the layers together.

use crate::model::{ForwardRun, Model, Overlay, Pass, Recorder, Result, Sequence, Session};
use crate::patch::reduced_pass::consecutive;
use crate::tensor::{Element, Matrix};

/// Sequences that are written on at once: the logits of each are a megabyte.
const TOGETHER: usize = 64;

/// Sequences whose rows lie one after the other in a batch.
pub(super) struct Batch<'m, E: Element> {
    model: &'m Model,
    sessions: Vec<Session<'m, E>>,
    overlay: Option<&'m Overlay<E>>,
}

/// The tokens that each sequence of a batch takes in next, and where.
struct Next<'t> {
    tokens: Vec<&'t [u32]>,
    positions: Vec<Vec<usize>>,
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

    /// Runs them all under a patch.
    pub(super) fn with_overlay(mut self, overlay: Option<&'m Overlay<E>>) -> Self {
        self.overlay = overlay;
        self
    }

    fn next<'t>(&self, tokens: Vec<&'t [u32]>) -> Next<'t> {
        let pairs = self.sessions.iter().zip(&tokens);
        let positions = pairs.map(|(session, tokens)| {
            let start = session.position();
            (start..start + tokens.len()).collect()
        });
        Next {
            positions: positions.collect(),
            tokens,
        }
    }

    /// Calls `f` with a pass over the tokens of `next`, and their embedding.
    fn pass<T>(
        &mut self,
        run: &mut ForwardRun<'_>,
        next: &Next<'_>,
        f: impl FnOnce(&Model, &mut ForwardRun<'_>, Matrix<E>, &mut [Sequence<'_, E>]) -> T,
    ) -> T {
        let positions: Vec<_> = next.positions.iter().flatten().copied().collect();
        let x = self.model.embed(run, &next.tokens.concat(), &positions);
        let rows = consecutive(next.positions.iter().map(Vec::len));
        let each = self.sessions.iter_mut().zip(&next.positions).zip(rows);
        let mut sequences: Vec<_> = each
            .map(|((session, positions), rows)| session.as_rows(rows, positions))
            .collect();
        let result = f(self.model, run, x, &mut sequences);
        drop(sequences);
        for (session, tokens) in self.sessions.iter_mut().zip(&next.tokens) {
            session.skip(tokens.len());
        }
        result
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
            session.start(tokens, None)?;
        }
        let overlay = self.overlay;
        let next = self.next(tokens);
        self.pass(&mut run, &next, |model, run, x, sequences| {
            let rows = 0..x.rows();
            let changes = |layer| {
                let change = overlay.map(|overlay| (rows.clone(), overlay.layer(layer)));
                change.into_iter().collect()
            };
            model.blocks(run, x, sequences, changes)
        })
    }

    /// Takes in tokens of each sequence; the logits after the last of each, `[sequences, vocab]`.
    fn last_logits(&mut self, tokens: &[Vec<u32>]) -> Result<Matrix<E>> {
        let x = self.forward(tokens.iter().map(Vec::as_slice).collect(), None)?;
        let rows = consecutive(tokens.iter().map(Vec::len));
        let last = rows.map(|rows| x.slice_rows(rows.end - 1..rows.end));
        let last = Matrix::stack(x.cols(), last.collect());
        let mut run = ForwardRun::new(self.model, None, None);
        self.model.logits(&mut run, &last)
    }

    /// Calls `layer` with a pass for every block, and what the one before it gave.
    pub(super) fn layer_by_layer(
        &mut self,
        tokens: Vec<&[u32]>,
        mut layer: impl FnMut(
            &mut Pass<'_, '_, '_, E>,
            usize,
            Matrix<E>,
        ) -> crate::patch::Result<Matrix<E>>,
    ) -> crate::patch::Result<Matrix<E>> {
        for (session, tokens) in self.sessions.iter().zip(&tokens) {
            session.start(tokens, None)?;
        }
        let mut run = ForwardRun::new(self.model, None, None);
        let next = self.next(tokens);
        self.pass(&mut run, &next, |model, run, mut x, sequences| {
            for i in 0..model.layers().len() {
                run.enter(i)?;
                x = layer(&mut Pass::new(run, sequences, &[]), i, x)?;
                model.check_layer(i, &x)?;
            }
            Ok(x)
        })
    }
}

/// How sequences are written on.
pub(super) struct Writing<'f, E> {
    /// Tokens at most.
    pub(super) most: usize,
    /// Chooses the next token of a prompt, by its number, from the logits.
    pub(super) draw: &'f mut dyn FnMut(usize, &[E]) -> u32,
    /// Whether what is written is the end; an end token always is.
    pub(super) ended: &'f dyn Fn(&[u32]) -> bool,
    /// Called after each token.
    pub(super) on_token: &'f mut dyn FnMut(),
}

impl<E: Element> Writing<'_, E> {
    /// What follows each of `prompts`, which begin with the tokens that `prefix` has seen and have more.
    pub(super) fn after<'m>(
        &mut self,
        prefix: &Session<'m, E>,
        overlay: Option<&'m Overlay<E>>,
        prompts: &[&[u32]],
    ) -> Result<Vec<Vec<u32>>> {
        let mut written = Vec::with_capacity(prompts.len());
        for prompts in prompts.chunks(TOGETHER) {
            let sessions = vec![prefix.clone(); prompts.len()];
            let batch = Batch::new(prefix.model(), sessions).with_overlay(overlay);
            let left = prompts.iter().map(|prompt| &prompt[prefix.position()..]);
            let first = written.len();
            written.extend(self.together(batch, first, left.collect())?);
        }
        Ok(written)
    }

    /// The same for sequences that go through the layers together; the first is prompt number `first`.
    fn together(
        &mut self,
        mut batch: Batch<'_, E>,
        first: usize,
        prompts: Vec<&[u32]>,
    ) -> Result<Vec<Vec<u32>>> {
        let model = batch.model;
        let ends = model.checkpoint().eos_token_ids();
        let mut written = vec![Vec::new(); prompts.len()];
        let mut active: Vec<usize> = (0..prompts.len()).collect();
        let mut next: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.to_vec()).collect();
        for _ in 0..self.most {
            let logits = batch.last_logits(&next)?;
            let mut goes_on = Vec::with_capacity(active.len());
            for (row, &i) in active.iter().enumerate() {
                let token = (self.draw)(first + i, logits.row(row));
                written[i].push(token);
                (self.on_token)();
                let room = batch.sessions[row].check_room(1).is_ok();
                goes_on.push(room && !ends.contains(&token) && !(self.ended)(&written[i]));
            }
            let mut flags = goes_on.iter();
            batch.sessions.retain(|_| flags.next() == Some(&true));
            let mut flags = goes_on.iter();
            active.retain(|_| flags.next() == Some(&true));
            if active.is_empty() {
                break;
            }
            let last = active
                .iter()
                .map(|&i| written[i][written[i].len() - 1..].to_vec());
            next = last.collect();
        }
        Ok(written)
    }
}
