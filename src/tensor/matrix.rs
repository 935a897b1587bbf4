//! A row-major matrix: `[tokens, width]` for activations.

use std::ops::Range;

use rayon::prelude::*;

use super::Element;

/// Fewer numbers than this are not worth a second thread.
pub(crate) const SHARE: usize = 1 << 14;

/// A dense row-major matrix that owns its numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix<E> {
    cols: usize,
    data: Vec<E>,
}

impl<E: Element> Matrix<E> {
    /// A matrix of zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self {
            cols,
            data: vec![E::default(); rows * cols],
        }
    }

    /// A matrix over `data`, whose length must be a multiple of `cols`.
    pub fn from_vec(cols: usize, data: Vec<E>) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "ragged matrix");
        Self { cols, data }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.data.len() / self.cols
    }

    /// The length of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[E] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }

    /// One row, to be written.
    pub fn row_mut(&mut self, row: usize) -> &mut [E] {
        &mut self.data[row * self.cols..(row + 1) * self.cols]
    }

    /// All rows in order.
    pub fn iter_rows(&self) -> impl ExactSizeIterator<Item = &[E]> {
        self.data.chunks_exact(self.cols)
    }

    /// All rows in order, to be written.
    pub fn iter_rows_mut(&mut self) -> impl ExactSizeIterator<Item = &mut [E]> {
        self.data.chunks_exact_mut(self.cols)
    }

    /// A copy of some rows.
    pub fn slice_rows(&self, rows: Range<usize>) -> Self {
        Self {
            cols: self.cols,
            data: self.data[rows.start * self.cols..rows.end * self.cols].to_vec(),
        }
    }

    /// Whether no number is infinite or NaN.
    pub fn is_finite(&self) -> bool {
        // Without a way out of the inner loop, which then is a few instructions for many numbers.
        let mut pieces = self.data.chunks(1024);
        pieces.all(|piece| piece.iter().fold(true, |all, x| all & x.is_finite()))
    }

    /// Every number, row after row.
    pub fn as_slice(&self) -> &[E] {
        &self.data
    }

    /// Every number, row after row, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [E] {
        &mut self.data
    }

    /// The numbers, row after row.
    pub fn into_vec(self) -> Vec<E> {
        self.data
    }

    /// Rows as columns.
    pub fn transposed(&self) -> Self {
        let columns = (0..self.cols).flat_map(|j| self.iter_rows().map(move |row| row[j]));
        Self::from_vec(self.rows(), columns.collect())
    }

    /// The same shape with `f` applied to every number, by the threads of the current rayon pool.
    pub fn map<F: Element>(&self, f: impl Fn(E) -> F + Sync) -> Matrix<F> {
        let numbers = self.data.par_iter().with_min_len(SHARE);
        Matrix {
            cols: self.cols,
            data: numbers.map(|&a| f(a)).collect(),
        }
    }

    /// The same shape with `f` applied to every pair of numbers of two equally shaped matrices.
    pub fn zip_map<F: Element>(&self, other: &Self, f: impl Fn(E, E) -> F + Sync) -> Matrix<F> {
        assert_eq!(self.data.len(), other.data.len(), "shapes differ");
        let pairs = self.data.par_iter().zip(&other.data).with_min_len(SHARE);
        Matrix {
            cols: self.cols,
            data: pairs.map(|(&a, &b)| f(a, b)).collect(),
        }
    }
}
