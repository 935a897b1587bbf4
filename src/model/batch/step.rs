//! A step of a batch: one pass through the model, and what it gives.

use std::ops::Range;
use std::sync::Arc;

use super::SequenceId;
use super::member::Member;
use crate::model::session::BATCH_LOGIT_ROWS;
use crate::model::{Error, ForwardRun, Model, Overlay, Result, consecutive, together};
use crate::tensor::{Element, Matrix};

/// What a step gave.
#[derive(Debug)]
pub struct Step<E: Element> {
    /// The sequences that failed, each with the reason. They have left the batch.
    pub failed: Vec<(SequenceId, Error)>,
    /// Of each row of the logits that counts: whose it is, the token's position, and the row.
    rows: Vec<(SequenceId, usize, usize)>,
    /// [`BATCH_LOGIT_ROWS`] rows each.
    logits: Vec<Matrix<E>>,
}

/// The logits that a sequence goes on from.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a, E> {
    /// The sequence.
    pub id: SequenceId,
    /// The position of the token that they come after.
    pub position: usize,
    /// `[vocab]`
    pub logits: &'a [E],
}

impl<E: Element> Step<E> {
    /// The logits after the last token of each sequence that has no more to take in, and after every token of those that
    /// want them, by sequence and position.
    pub fn said(&self) -> impl ExactSizeIterator<Item = Said<'_, E>> {
        self.rows.iter().map(|&(id, position, row)| Said {
            id,
            position,
            logits: self.logits[row / BATCH_LOGIT_ROWS].row(row % BATCH_LOGIT_ROWS),
        })
    }

    /// Has each sequence take in its share of tokens.
    ///
    /// # Errors
    ///
    /// What is the fault of no sequence.
    pub(super) fn take(
        model: &Model,
        mut members: Vec<(SequenceId, &mut Member<'_, E>, usize)>,
    ) -> Result<Self> {
        members.retain(|(.., share)| *share > 0);
        // Side by side under one patch: its products are of all their rows at once.
        members.sort_by_key(|(_, member, _)| member.overlay.as_ref().map(Arc::as_ptr));
        let rows = consecutive(members.iter().map(|(.., share)| *share));
        let rows: Vec<_> = rows.collect();
        let parts = members.into_iter().zip(rows);
        let mut parts: Vec<_> = parts
            .map(|((id, member, _), rows)| Part { id, member, rows })
            .collect();
        let mut step = Self {
            failed: Vec::new(),
            rows: Vec::new(),
            logits: Vec::new(),
        };
        if parts.is_empty() {
            return Ok(step);
        }
        let mut run = ForwardRun::new(model, None, None);
        let x = step.layers(model, &mut run, &mut parts)?;
        step.head(model, &mut run, &x, &parts)?;
        Ok(step)
    }

    /// The last block's output for the rows of all parts.
    fn layers(
        &mut self,
        model: &Model,
        run: &mut ForwardRun<'_>,
        parts: &mut [Part<'_, '_, E>],
    ) -> Result<Matrix<E>> {
        let whose: Vec<_> = parts
            .iter()
            .map(|part| (part.id, part.rows.clone()))
            .collect();
        let overlays = overlays(parts);
        let changes = |layer| {
            let changes = overlays.iter();
            changes
                .map(|(rows, overlay)| (rows.clone(), overlay.layer(layer)))
                .collect()
        };
        let mut next: Vec<_> = parts
            .iter_mut()
            .map(|part| part.member.next(part.rows.len()))
            .collect();
        together(model, run, &mut next, |run, x, sequences| {
            model.checked_blocks(run, x, sequences, changes, |layer, x| {
                if !x.is_finite() {
                    let whose = whose.iter().cloned();
                    self.note(whose, |rows| model.check_layer(layer, &x.slice_rows(rows)));
                }
                Ok(())
            })
        })
    }

    /// The logits of the rows that are asked for, `BATCH_LOGIT_ROWS` at a time.
    fn head(
        &mut self,
        model: &Model,
        run: &mut ForwardRun<'_>,
        x: &Matrix<E>,
        parts: &[Part<'_, '_, E>],
    ) -> Result<()> {
        let parts = parts.iter().filter(|part| !self.has_failed(part.id));
        let mut rows: Vec<_> = parts.flat_map(Part::asked).collect();
        rows.sort_unstable();
        for rows in rows.chunks(BATCH_LOGIT_ROWS) {
            let numbers = rows.iter().flat_map(|&(.., row)| x.row(row));
            let x = Matrix::from_vec(x.cols(), numbers.copied().collect());
            let piece = model.computed_logits(run, &x)?;
            if !piece.is_finite() {
                let whose = rows.iter().enumerate().map(|(i, &(id, ..))| (id, i..i + 1));
                self.note(whose, |rows| model.check_logits(&piece.slice_rows(rows)));
            }
            self.logits.push(piece);
        }
        let rows = rows.into_iter().enumerate();
        self.rows = rows
            .map(|(i, (id, position, _))| (id, position, i))
            .collect();
        let failed: Vec<_> = self.failed.iter().map(|(id, _)| *id).collect();
        self.rows.retain(|(id, ..)| !failed.contains(id));
        Ok(())
    }

    /// Records the first failure of each sequence.
    fn note(
        &mut self,
        whose: impl Iterator<Item = (SequenceId, Range<usize>)>,
        check: impl Fn(Range<usize>) -> Result<()>,
    ) {
        for (id, rows) in whose {
            if !self.has_failed(id)
                && let Err(error) = check(rows)
            {
                self.failed.push((id, error));
            }
        }
    }

    fn has_failed(&self, id: SequenceId) -> bool {
        self.failed.iter().any(|(failed, _)| *failed == id)
    }
}

/// A sequence in a pass, and its rows there.
struct Part<'a, 'm, E: Element> {
    id: SequenceId,
    member: &'a mut Member<'m, E>,
    rows: Range<usize>,
}

impl<E: Element> Part<'_, '_, E> {
    /// The rows whose logits are asked for, once they are taken in, each with its position.
    fn asked(&self) -> impl Iterator<Item = (SequenceId, usize, usize)> {
        let after = self.member.session.position();
        let asked = match (self.member.every_logits, self.member.left()) {
            (true, _) => self.rows.len(),
            (false, 0) => 1,
            (false, _) => 0,
        };
        (after - asked..after)
            .zip(self.rows.end - asked..)
            .map(|(position, row)| (self.id, position, row))
    }
}

/// Which rows run under which patch.
fn overlays<E: Element>(parts: &[Part<'_, '_, E>]) -> Vec<(Range<usize>, Arc<Overlay<E>>)> {
    let mut all: Vec<(Range<usize>, Arc<Overlay<E>>)> = Vec::new();
    for part in parts {
        let Some(overlay) = &part.member.overlay else {
            continue;
        };
        match all.last_mut() {
            Some((rows, before)) if Arc::ptr_eq(before, overlay) => rows.end = part.rows.end,
            _ => all.push((part.rows.clone(), overlay.clone())),
        }
    }
    all
}
