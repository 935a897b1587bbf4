//! The weights of a product.

use crate::tensor::{Element, Matrix, Tensor};

/// The rows of a weight matrix W `[out, in]`: as a checkpoint stores them, or in the compute type.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a, E> {
    /// As stored. Numbers are widened exactly, or rounded once where the compute type is narrower.
    Stored(&'a Tensor),
    /// Row-major numbers of the compute type; the second field is the length of a row.
    Typed(&'a [E], usize),
}

impl<E: Element> Rows<'_, E> {
    /// The number of rows: the length of y.
    pub fn rows(&self) -> usize {
        match self {
            Self::Stored(tensor) => tensor.rows(),
            Self::Typed(data, cols) => data.len() / cols,
        }
    }

    /// The length of a row, and of x.
    pub fn cols(&self) -> usize {
        match self {
            Self::Stored(tensor) => tensor.cols(),
            Self::Typed(_, cols) => *cols,
        }
    }
}

impl<'a, E: Element> From<&'a Matrix<E>> for Rows<'a, E> {
    fn from(matrix: &'a Matrix<E>) -> Self {
        Self::Typed(matrix.as_slice(), matrix.cols())
    }
}

impl<'a, E> From<&'a Tensor> for Rows<'a, E> {
    fn from(tensor: &'a Tensor) -> Self {
        Self::Stored(tensor)
    }
}
