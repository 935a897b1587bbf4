//! One task's share of a product: some rows of weights, some tokens.

use std::array::from_fn;

use crate::tensor::Element;

/// Activations `x` `[tokens, cols]`, weights `w` `[rows, cols]`, and for each token where its products with the rows
/// go: `[tokens][rows]`.
pub(crate) struct Panel<'a, 'y, X: Element, W> {
    pub(super) x: &'a [X],
    pub(super) w: &'a [W],
    pub(super) cols: usize,
    pub(super) out: &'a mut [&'y mut [X::Acc]],
}

impl<'a, 'y, X: Element, W> Panel<'a, 'y, X, W> {
    /// A panel of rows of `cols` numbers.
    pub(crate) fn new(
        x: &'a [X],
        w: &'a [W],
        cols: usize,
        out: &'a mut [&'y mut [X::Acc]],
    ) -> Self {
        let rows = w.len() / cols;
        let fits = x.len() == out.len() * cols && out.iter().all(|out| out.len() == rows);
        assert!(fits, "panel sizes");
        Self { x, w, cols, out }
    }
}

/// An incomplete block, filled with zeros.
#[inline(always)]
pub(in crate::kernels) fn padded<T: Element, const B: usize>(rest: &[T]) -> [T; B] {
    from_fn(|i| rest.get(i).copied().unwrap_or_default())
}
