//! Several sequences on their way through the layers together.

use std::ops::Range;

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
        let mut start = 0;
        let each = self.sessions.iter_mut().zip(&next.positions);
        let mut sequences: Vec<_> = each
            .map(|(session, positions)| {
                let rows = start..start + positions.len();
                start = rows.end;
                session.as_rows(rows, positions)
            })
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

/// Writes on after each of `prompts`, which begin with the tokens that `prefix` has seen, until `ended` says so of what is written
/// or an end token is among it, at most `most` tokens. `draws` has how each is drawn, the likeliest token where there is none.
pub(super) fn write_on<'m, E: Element>(
    prefix: &Session<'m, E>,
    overlay: Option<&'m Overlay<E>>,
    prompts: &[&[u32]],
    most: usize,
    mut draw: impl FnMut(usize, &[E]) -> u32,
    ended: impl Fn(&[u32]) -> bool,
    mut on_token: impl FnMut(),
) -> Result<Vec<Vec<u32>>> {
    let model = prefix.model();
    let ends = model.checkpoint().eos_token_ids();
    let mut written = vec![Vec::new(); prompts.len()];
    for first in (0..prompts.len()).step_by(TOGETHER) {
        let together: Vec<usize> = (first..prompts.len().min(first + TOGETHER)).collect();
        let mut active = together.clone();
        let seen = prefix.position();
        let mut batch = Batch::new(model, vec![prefix.clone(); active.len()]).with_overlay(overlay);
        let mut next: Vec<Vec<u32>> = active
            .iter()
            .map(|&i| prompts[i][seen..].to_vec())
            .collect();
        for _ in 0..most {
            let rows: Vec<Range<usize>> = consecutive(next.iter().map(Vec::len)).collect();
            let x = batch.forward(next.iter().map(Vec::as_slice).collect(), None)?;
            let last = rows.iter().map(|rows| x.slice_rows(rows.end - 1..rows.end));
            let last = Matrix::stack(x.cols(), last.collect());
            let logits = model.logits(&mut ForwardRun::new(model, None, None), &last)?;
            let mut going_on = Vec::new();
            for (row, &i) in active.iter().enumerate() {
                let token = draw(i, logits.row(row));
                written[i].push(token);
                on_token();
                let room = batch.sessions[row].check_room(1).is_ok();
                if room && !ends.contains(&token) && !ended(&written[i]) {
                    going_on.push(row);
                }
            }
            if going_on.is_empty() {
                break;
            }
            let mut row = 0;
            batch.sessions.retain(|_| {
                row += 1;
                going_on.contains(&(row - 1))
            });
            active = going_on.iter().map(|&row| active[row]).collect();
            next = active
                .iter()
                .map(|&i| written[i][written[i].len() - 1..].to_vec())
                .collect();
        }
    }
    Ok(written)
}
