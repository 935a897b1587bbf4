//! Reduced passes side by side in the rows of a batch: the same tokens, each pass under its own variant of a patch.

use std::ops::Range;

use super::{Part, Variant};
use crate::model::{Cache, LayerOverlay, OverlaidRows, Sequence, consecutive};
use crate::tensor::Element;

/// A reduced pass under one variant of the patch.
pub(super) struct ReducedPass<E: Element> {
    pub(super) variant: Variant,
    /// How many tokens it has, each a row.
    pub(super) tokens: usize,
    pub(super) cache: Cache<E>,
}

/// The rows of each pass, in a batch in which they begin at row `first`.
pub(super) fn row_ranges<E: Element>(
    passes: &[ReducedPass<E>],
    first: usize,
) -> impl Iterator<Item = Range<usize>> {
    let rows = consecutive(passes.iter().map(|pass| pass.tokens));
    rows.map(move |rows| first + rows.start..first + rows.end)
}

/// The passes as sequences of a batch in which their rows begin at row `first`.
pub(super) fn sequences<'p, E: Element>(
    passes: &'p mut [ReducedPass<E>],
    positions: &'p [usize],
    first: usize,
) -> impl Iterator<Item = Sequence<'p, E>> {
    let rows: Vec<_> = row_ranges(passes, first).collect();
    let pairs = passes.iter_mut().zip(rows);
    pairs.map(move |(pass, rows)| Sequence {
        rows,
        positions,
        cache: &mut pass.cache,
    })
}

/// `change` for the rows of those passes whose variant has `part` of it, in a batch in which the rows of all begin at row
/// `first`.
pub(super) fn changed_rows<'c, E: Element>(
    passes: &[ReducedPass<E>],
    part: Part,
    change: &'c LayerOverlay<E>,
    first: usize,
) -> Vec<OverlaidRows<'c, E>> {
    let pairs = passes.iter().zip(row_ranges(passes, first));
    let having = pairs.filter(|(pass, _)| pass.variant.has(part));
    having.map(|(_, rows)| (rows, change)).collect()
}
