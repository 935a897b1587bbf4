//! What a product's sums become: y = W x + b in the compute type.

use super::rows::Rows;
use crate::kernels::elementwise::{self, zip_map};
use crate::kernels::simd::Level;
use crate::tensor::{Element, Matrix};

/// A linear map: W, and b where it has one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Map<'a, E: Element> {
    pub(crate) weight: Rows<'a, E>,
    pub(crate) bias: Option<Bias<'a, E::Acc>>,
}

/// b `[out]`, in the type of sums.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bias<'a, A> {
    pub(crate) numbers: &'a [A],
    /// Whether W x is rounded to the compute type before b comes to it.
    pub(crate) rounded_first: bool,
}

impl<E: Element> Map<'_, E> {
    /// W x + b in the compute type, for W x of all tokens.
    pub(crate) fn finish(&self, level: Level, sums: Matrix<E::Acc>) -> Matrix<E> {
        if self.bias.is_none() {
            return elementwise::round(level, sums);
        }
        let mut out = Matrix::recycled(sums.rows(), sums.cols());
        for (sums, out) in sums.iter_rows().zip(out.iter_rows_mut()) {
            finish_row(level, sums, self.bias, out);
        }
        out
    }
}

/// Some of a token's sums, with as many numbers of b, in the compute type.
pub(crate) fn finish_row<E: Element>(
    level: Level,
    sums: &[E::Acc],
    bias: Option<Bias<'_, E::Acc>>,
    out: &mut [E],
) {
    match bias {
        None => elementwise::round_into(level, sums, out),
        Some(Bias {
            numbers,
            rounded_first: false,
        }) => zip_map(level, sums, numbers, out, |y, b| E::round(y + b)),
        Some(Bias { numbers, .. }) => zip_map(level, sums, numbers, out, |y, b| {
            E::round(E::round(y).acc() + b)
        }),
    }
}
