//! A split held against the contextual pass, token by token, under a patch that is there already.

use super::Bounds;
use super::error::Result;
use super::metrics::{LogitsDistance, margin};
use super::step::{Control, Step, logits_hash};
use crate::model::generate::greedy;
use crate::model::{Images, Model, Recorder, Session, Tokens};
use crate::patch::{Overlay, SolverReport, Split, Variant};
use crate::tensor::{Element, Matrix};

/// The logits of the tokens that the patch of a split is for, `[N, vocab]`, in the reduced pass: under a
/// patch or as the model is.
///
/// # Errors
///
/// Those of [`Session::forward`].
pub fn reduced<E: Element>(
    model: &Model,
    split: &Split,
    overlay: Option<&Overlay<E>>,
) -> Result<Matrix<E>> {
    let mut session = Session::new(model);
    if let Some(overlay) = overlay {
        session = session.with_overlay(overlay);
    }
    let (tokens, positions) = (split.reduced_tokens(), split.reduced_positions());
    Ok(session.forward_at(&tokens, &positions, split.queries().len())?)
}

/// One step for each token of a split's span: the reduced pass under `overlay` against the contextual pass;
/// the control is the reduced pass without it. `images` are those of the context. The report goes with the first step.
///
/// # Errors
///
/// Those of [`Session::forward`].
pub fn check<E: Element>(
    model: &Model,
    split: &Split,
    images: Option<&Images<E>>,
    overlay: &Overlay<E>,
    prompt: usize,
    report: Option<SolverReport>,
) -> Result<Vec<Step>> {
    let bounds = Bounds::new(E::DTYPE, model);
    check_within(bounds, model, split, images, overlay, prompt, report)
}

/// [`check`] with the bounds of the platform that the patch was solved on.
pub(super) fn check_within<E: Element>(
    bounds: Bounds,
    model: &Model,
    split: &Split,
    images: Option<&Images<E>>,
    overlay: &Overlay<E>,
    prompt: usize,
    mut report: Option<SolverReport>,
) -> Result<Vec<Step>> {
    let contextual = Contextual::new(model, split, images)?;
    let patched = reduced(model, split, Some(overlay))?;
    let unpatched = reduced::<E>(model, split, None)?;
    let positions = split.reduced_positions();
    let first = positions.len() - split.queries().len();
    let branch = report.as_ref().map_or(0.0, SolverReport::last_branch);
    let mut steps = Vec::new();
    for (i, &token) in split.queries().iter().enumerate() {
        let want: Vec<E> = contextual.logits[i]
            .iter()
            .map(|&x| E::from_f64(x))
            .collect();
        // Without a norm behind its last branch a span reaches T(C, x) itself.
        let last = model.layers().last();
        let normed = last.is_some_and(|block| block.outer.post_norm().is_some());
        let eps = if normed {
            model.config().norm_eps()
        } else {
            0.0
        };
        let control = Control {
            variant: Variant::NoPatch,
            reduced: LogitsDistance::new(unpatched.row(i), &want),
        };
        steps.push(Step {
            prompt,
            step: i,
            token,
            position: positions[first + i],
            next: greedy(&want),
            logits: logits_hash(&want, patched.row(i)),
            margin: margin(&want),
            bound: bounds.span(&want, branch, eps, contextual.mean_squares[i]),
            patched: LogitsDistance::new(patched.row(i), &want),
            controls: vec![control],
            report: report.take(),
        });
    }
    Ok(steps)
}

/// What the contextual pass gives for the span.
struct Contextual {
    last_layer: String,
    head: String,
    /// `[N][vocab]`
    logits: Vec<Vec<f64>>,
    /// Of the last block's outputs; those of the whole sequence until it is through.
    mean_squares: Vec<f64>,
}

impl Contextual {
    fn new<E: Element>(model: &Model, split: &Split, images: Option<&Images<E>>) -> Result<Self> {
        let mut contextual = Self {
            last_layer: model.layer_path(model.layers().len() - 1),
            head: model.ends()[1].to_owned(),
            logits: Vec::new(),
            mean_squares: Vec::new(),
        };
        let last = split.queries().len();
        let tokens = Tokens::new(split.tokens(), images);
        Session::new(model).forward_recorded(tokens, last, &mut contextual)?;
        let before = contextual.mean_squares.len() - last;
        contextual.mean_squares.drain(..before);
        Ok(contextual)
    }
}

impl Recorder for Contextual {
    fn wants(&self, name: &str) -> bool {
        name == self.last_layer || name == self.head
    }

    fn record(&mut self, name: &str, rows: &Matrix<f64>) {
        for row in rows.iter_rows() {
            if name == self.head {
                self.logits.push(row.to_vec());
            } else {
                let squares: f64 = row.iter().map(|x| x * x).sum();
                self.mean_squares.push(squares / row.len() as f64);
            }
        }
    }
}
