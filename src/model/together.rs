//! Several sessions on their way through the layers together.

use std::ops::Range;

use super::{ForwardRun, Model, Sequence, Session};
use crate::tensor::{Element, Matrix};

/// Takes in tokens of several sessions of a model, each some rows of one batch. `layers` sends their embedding,
/// `[all tokens, hidden]`, through all layers.
pub(crate) fn together<'m, E: Element, T>(
    model: &Model,
    run: &mut ForwardRun<'_>,
    next: &mut [(&mut Session<'m, E>, &[u32])],
    layers: impl FnOnce(&mut ForwardRun<'_>, Matrix<E>, &mut [Sequence<'_, E>]) -> T,
) -> T {
    let positions = next.iter().map(|(session, tokens)| {
        let start = session.position();
        (start..start + tokens.len()).collect()
    });
    let positions: Vec<Vec<usize>> = positions.collect();
    let tokens: Vec<_> = next
        .iter()
        .flat_map(|(_, tokens)| *tokens)
        .copied()
        .collect();
    let x = model.embed(run, &tokens, &positions.concat());
    let rows = consecutive(positions.iter().map(Vec::len));
    let each = next.iter_mut().zip(&positions).zip(rows);
    let mut sequences: Vec<_> = each
        .map(|(((session, _), positions), rows)| session.as_rows(rows, positions))
        .collect();
    let result = layers(run, x, &mut sequences);
    for (session, tokens) in next {
        session.skip(tokens.len());
    }
    result
}

/// The rows of things that lie one after the other, each `counts` rows long.
pub(crate) fn consecutive(
    counts: impl IntoIterator<Item = usize>,
) -> impl Iterator<Item = Range<usize>> {
    counts.into_iter().scan(0, |first, count| {
        let rows = *first..*first + count;
        *first = rows.end;
        Some(rows)
    })
}
