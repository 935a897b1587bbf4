//! The keys and values of one head, as attention reads them.

use std::ops::Range;

use super::cache::LayerCache;
use crate::kernels::{Level, PackedKeys, Panel, multiply, scores, weighted_sums};
use crate::tensor::{Element, Matrix};

/// The keys and values of one head.
pub(super) enum KeyHead<'a, E: Element> {
    /// Where the cache has them, `[keys, head_dim]`.
    InPlace {
        keys: &'a [E],
        values: &'a [E],
        head_dim: usize,
    },
    /// Copied in the order in which many queries read them; the values are widened, and their rows filled to whole vectors.
    Packed {
        keys: PackedKeys<E>,
        values: Matrix<E::Acc>,
    },
}

impl<'a, E: Element> KeyHead<'a, E> {
    pub(super) fn in_place(cache: &'a LayerCache<E>, head: usize, head_dim: usize) -> Self {
        Self::InPlace {
            keys: cache.keys(head),
            values: cache.values(head),
            head_dim,
        }
    }

    pub(super) fn packed(cache: &LayerCache<E>, head: usize, head_dim: usize) -> Self {
        let (keys, values) = rayon::join(
            || PackedKeys::new(cache.keys(head), head_dim),
            || widened(cache.values(head), head_dim),
        );
        Self::Packed { keys, values }
    }

    /// The keys around `seen` whose scores are computed together.
    pub(super) fn around(&self, seen: Range<usize>) -> Range<usize> {
        match self {
            Self::InPlace { .. } => seen,
            Self::Packed { .. } => {
                let panel = PackedKeys::<E>::KEYS;
                seen.start / panel * panel..seen.end.next_multiple_of(panel)
            }
        }
    }

    /// The products of each query `q` `[rows, head_dim]` with some keys, which are [around](Self::around) others: `[rows, keys]`.
    pub(super) fn scores(
        &self,
        level: Level,
        q: &Matrix<E>,
        range: Range<usize>,
    ) -> Matrix<E::Acc> {
        let mut out = Matrix::recycled(q.rows(), range.len());
        match self {
            Self::InPlace { keys, head_dim, .. } => {
                let keys = &keys[range.start * head_dim..range.end * head_dim];
                let mut rows: Vec<_> = out.iter_rows_mut().collect();
                multiply(level, Panel::new(q.as_slice(), keys, *head_dim, &mut rows));
            }
            Self::Packed { keys, .. } => {
                let panel = PackedKeys::<E>::KEYS;
                let panels = range.start / panel..range.end / panel;
                scores(level, q.as_slice(), keys, panels, out.as_mut_slice());
            }
        }
        out
    }

    /// The length of a row of [sums](Self::add_values), at least head_dim.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::InPlace { head_dim, .. } => *head_dim,
            Self::Packed { values, .. } => values.cols(),
        }
    }

    /// Adds pⱼ vⱼ for some keys to rows of `sums`, as [`weighted_sums`] does.
    pub(super) fn add_values(
        &self,
        level: Level,
        p: &[E::Acc],
        stride: usize,
        range: Range<usize>,
        sums: &mut [E::Acc],
    ) {
        let width = self.width();
        let numbers = range.start * width..range.end * width;
        match self {
            Self::InPlace { values, .. } => {
                weighted_sums(level, p, stride, &values[numbers], sums, width);
            }
            Self::Packed { values, .. } => {
                let values = &values.as_slice()[numbers];
                weighted_sums::<E::Acc>(level, p, stride, values, sums, width);
            }
        }
    }
}

/// Rows of `head_dim` numbers in the type of sums, filled to whole vectors with zeros.
fn widened<E: Element>(values: &[E], head_dim: usize) -> Matrix<E::Acc> {
    let width = head_dim.next_multiple_of(16);
    let mut wide = Matrix::recycled(values.len() / head_dim, width);
    for (wide, values) in wide.iter_rows_mut().zip(values.chunks_exact(head_dim)) {
        let (wide, rest) = wide.split_at_mut(head_dim);
        for (wide, value) in wide.iter_mut().zip(values) {
            *wide = value.acc();
        }
        rest.fill(E::Acc::default());
    }
    wide
}
