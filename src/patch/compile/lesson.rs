//! What the model with the prompt says of a sample, layer by layer.

use super::passes::Batch;
use super::sample::{Sample, common};
use crate::model::{Model, Overlay, Recorder, Result, Session, consecutive};
use crate::tensor::{Element, Matrix};

/// Rows that go through the layers together at most, where a sequence alone does not have more.
const ROWS: usize = 1024;

/// A sample, and every layer's output at its rows with the prompt.
#[derive(Clone, Debug)]
pub struct Lesson<E: Element> {
    /// The sample.
    pub sample: Sample,
    /// T `[rows, hidden]` of every layer.
    pub(super) targets: Vec<Matrix<E>>,
}

impl<E: Element> Lesson<E> {
    /// The lessons of some samples; `on_sample` is called after each.
    ///
    /// # Errors
    ///
    /// Those of [`Session::forward`].
    pub fn all(
        model: &Model,
        samples: &[Sample],
        mut on_sample: impl FnMut(),
    ) -> Result<Vec<Self>> {
        let mut lessons = Vec::with_capacity(samples.len());
        // Queries share their prompt, and texts that must not change the first token alone.
        for alike in samples.chunk_by(|a, b| a.role == b.role) {
            // What they share of the queries too has rows.
            let before: Vec<&[u32]> = alike.iter().map(Sample::before).collect();
            let shared = prefix::<E>(model, None, &before)?;
            let mut left = alike;
            while !left.is_empty() {
                let mut rows = 0;
                let more = left.iter().take_while(|sample| {
                    rows += sample.taken_prompted().len() - shared.position();
                    rows <= ROWS
                });
                let (now, later) = left.split_at(more.count().max(1));
                lessons.extend(Self::together(&shared, now)?);
                now.iter().for_each(|_| on_sample());
                left = later;
            }
        }
        Ok(lessons)
    }

    /// The tokens that are compared.
    pub(super) fn answer(&self) -> &[u32] {
        let answer = self.sample.answer.min(self.sample.rows());
        &self.sample.bare[self.sample.bare.len() - answer..]
    }

    /// The last block's output that they follow on, with the prompt.
    pub(super) fn wanted(&self) -> Matrix<E> {
        let rows = self.answer().len();
        match self.targets.last() {
            Some(last) => last.slice_rows(last.rows() - rows..last.rows()),
            None => Matrix::zeros(0, 1),
        }
    }

    /// Those of samples that go through the layers together.
    fn together(shared: &Session<'_, E>, samples: &[Sample]) -> Result<Vec<Self>> {
        let model = shared.model();
        let tokens: Vec<&[u32]> = samples
            .iter()
            .map(|sample| &sample.taken_prompted()[shared.position()..])
            .collect();
        let mut outputs = Outputs {
            layers: format!("{}.", model.config().decoder.layers),
            all: vec![Matrix::zeros(0, 1); model.layers().len()],
        };
        let ends: Vec<_> = consecutive(tokens.iter().map(|tokens| tokens.len())).collect();
        let mut batch = Batch::new(model, vec![shared.clone(); samples.len()]);
        batch.forward(tokens, Some(&mut outputs))?;
        let lessons = samples.iter().zip(ends).map(|(sample, rows)| {
            let fitted = rows.end - sample.rows()..rows.end;
            let targets = outputs.all.iter().map(|x| x.slice_rows(fitted.clone()));
            Self {
                sample: sample.clone(),
                targets: targets.collect(),
            }
        });
        Ok(lessons.collect())
    }
}

/// The tokens of lessons that go through the model without the prompt.
pub(super) fn taken<'l, E: Element>(lessons: &[&'l Lesson<E>]) -> Vec<&'l [u32]> {
    lessons.iter().map(|lesson| lesson.sample.taken()).collect()
}

/// Of each lesson the last block's output that its answer follows on, where `x` has that at all tokens of all of them without the prompt.
pub(super) fn answers_of<E: Element>(lessons: &[&Lesson<E>], x: &Matrix<E>) -> Vec<Matrix<E>> {
    let rows = consecutive(taken(lessons).into_iter().map(<[u32]>::len));
    let each = lessons.iter().zip(rows);
    each.map(|(lesson, rows)| x.slice_rows(rows.end - lesson.answer().len()..rows.end))
        .collect()
}

/// A session that has seen what some sequences have in common at the beginning, but for the last token of each.
pub(super) fn prefix<'m, E: Element>(
    model: &'m Model,
    overlay: Option<&'m Overlay<E>>,
    sequences: &[&[u32]],
) -> Result<Session<'m, E>> {
    let shortest = sequences
        .iter()
        .map(|tokens| tokens.len())
        .min()
        .unwrap_or_default();
    let seen = common(sequences).min(shortest.saturating_sub(1));
    let mut session = Session::new(model);
    if let Some(overlay) = overlay {
        session = session.with_overlay(overlay);
    }
    if seen > 0 {
        session.forward(&sequences[0][..seen], 0)?;
    }
    Ok(session)
}

/// Keeps every layer's output.
struct Outputs<E: Element> {
    layers: String,
    all: Vec<Matrix<E>>,
}

impl<E: Element> Outputs<E> {
    fn layer(&self, name: &str) -> Option<usize> {
        name.strip_prefix(&self.layers)?.parse().ok()
    }
}

impl<E: Element> Recorder for Outputs<E> {
    fn wants(&self, name: &str) -> bool {
        self.layer(name).is_some()
    }

    fn record(&mut self, name: &str, rows: &Matrix<f64>) {
        if let Some(layer) = self.layer(name) {
            self.all[layer] = rows.map(E::from_f64);
        }
    }
}
