//! A span held against the contextual pass, token by token.

use crate::error::Result;

use crate::model::{Model, Session};
use crate::patch::{Overlay, Split};
use crate::tensor::{Element, Matrix};

/// The logits of the tokens that a patch is for, `[N, vocab]`, in the reduced pass: under a patch or as the
/// model is.
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
    let last = split.queries().len();
    let (kept, queries) = tokens.split_at(tokens.len() - last);
    for (&token, &position) in kept.iter().zip(&positions) {
        session = session.at(position);
        session.forward(&[token], 0)?;
    }
    session.at(positions[kept.len()]).forward(queries, last)
}
