//! A row-major matrix: `[tokens, width]` for activations.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::Element;
use super::buffer::Buffer;

/// Numbers that a task looks at, where all are looked at.
const CHECKED_PER_TASK: usize = 1 << 16;

/// A dense row-major matrix that owns its numbers.
pub struct Matrix<E> {
    rows: usize,
    cols: usize,
    buffer: Buffer,
    numbers: PhantomData<E>,
}

impl<E: Element> Matrix<E> {
    /// A matrix of zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        let mut zeros = Self::recycled(rows, cols);
        zeros.as_mut_slice().fill(E::default());
        zeros
    }

    /// A matrix whose numbers are still to be written: until then they are what earlier use left there.
    pub(crate) fn recycled(rows: usize, cols: usize) -> Self {
        Self {
            rows,
            cols,
            buffer: Buffer::recycled::<E>(rows * cols),
            numbers: PhantomData,
        }
    }

    /// A matrix over `data`, whose length must be a multiple of `cols`.
    pub fn from_vec(cols: usize, data: Vec<E>) -> Self {
        Self::from_slice(cols, &data)
    }

    /// A matrix with a copy of `data`, whose length must be a multiple of `cols`.
    pub(crate) fn from_slice(cols: usize, data: &[E]) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "ragged matrix");
        let mut matrix = Self::recycled(data.len() / cols, cols);
        matrix.as_mut_slice().copy_from_slice(data);
        matrix
    }

    /// All rows of some matrices of `cols` columns.
    pub(crate) fn stack(cols: usize, mut parts: Vec<Self>) -> Self {
        if parts.len() == 1 {
            return parts.remove(0);
        }
        let mut all = Self::recycled(parts.iter().map(Self::rows).sum(), cols);
        let mut left = all.as_mut_slice();
        for part in &parts {
            let (now, later) = left.split_at_mut(part.as_slice().len());
            now.copy_from_slice(part.as_slice());
            left = later;
        }
        all
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The length of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[E] {
        &self.as_slice()[row * self.cols..(row + 1) * self.cols]
    }

    /// One row, to be written.
    pub fn row_mut(&mut self, row: usize) -> &mut [E] {
        let cols = self.cols;
        &mut self.as_mut_slice()[row * cols..(row + 1) * cols]
    }

    /// All rows in order.
    pub fn iter_rows(&self) -> impl ExactSizeIterator<Item = &[E]> {
        self.as_slice().chunks_exact(self.cols)
    }

    /// All rows in order, to be written.
    pub fn iter_rows_mut(&mut self) -> impl ExactSizeIterator<Item = &mut [E]> {
        let cols = self.cols;
        self.as_mut_slice().chunks_exact_mut(cols)
    }

    /// Some rows each, to be written at once: the ranges ascend and do not overlap.
    pub(crate) fn parts_mut(&mut self, rows: impl Iterator<Item = Range<usize>>) -> Vec<&mut [E]> {
        let cols = self.cols;
        let (mut left, mut next) = (self.as_mut_slice(), 0);
        let mut part = |rows: Range<usize>| {
            let (_, from) = std::mem::take(&mut left).split_at_mut((rows.start - next) * cols);
            let (part, after) = from.split_at_mut(rows.len() * cols);
            (left, next) = (after, rows.end);
            part
        };
        rows.map(&mut part).collect()
    }

    /// A copy of some rows.
    pub fn slice_rows(&self, rows: Range<usize>) -> Self {
        let numbers = &self.as_slice()[rows.start * self.cols..rows.end * self.cols];
        let mut copy = Self::recycled(rows.len(), self.cols);
        copy.as_mut_slice().copy_from_slice(numbers);
        copy
    }

    /// A copy of some columns, one range after the other.
    pub(crate) fn select_columns(&self, columns: &[Range<usize>]) -> Self {
        let width = columns.iter().map(Range::len).sum();
        let mut copy = Self::recycled(self.rows, width);
        for (row, copy) in self.iter_rows().zip(copy.iter_rows_mut()) {
            let mut left = copy;
            for columns in columns {
                let (now, later) = left.split_at_mut(columns.len());
                now.copy_from_slice(&row[columns.clone()]);
                left = later;
            }
        }
        copy
    }

    /// The first rows, as many as the first of `rows` says, then the next ones. The first part is not copied.
    pub(crate) fn split(mut self, rows: &[usize]) -> Vec<Self> {
        let [first, others @ ..] = rows else {
            return Vec::new();
        };
        let starts = others.iter().scan(*first, |start, rows| {
            let part = *start..*start + rows;
            *start = part.end;
            Some(part)
        });
        let others: Vec<_> = starts.map(|part| self.slice_rows(part)).collect();
        self.truncate(*first);
        std::iter::once(self).chain(others).collect()
    }

    /// Leaves the first `rows` rows.
    pub(crate) fn truncate(&mut self, rows: usize) {
        self.rows = self.rows.min(rows);
    }

    /// Whether no number is infinite or NaN.
    pub fn is_finite(&self) -> bool {
        // Without a way out of the inner loop, which then is a few instructions for many numbers.
        let is_finite = |piece: &[E]| piece.iter().fold(true, |all, x| all & x.is_finite());
        let pieces = self.as_slice().par_chunks(CHECKED_PER_TASK);
        if pieces.len() <= 1 {
            return is_finite(self.as_slice());
        }
        pieces.all(is_finite)
    }

    /// Every number, row after row.
    pub fn as_slice(&self) -> &[E] {
        self.buffer.numbers(self.rows * self.cols)
    }

    /// Every number, row after row, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [E] {
        self.buffer.numbers_mut(self.rows * self.cols)
    }

    /// The numbers, row after row.
    pub fn into_vec(self) -> Vec<E> {
        self.as_slice().to_vec()
    }

    /// Rows as columns.
    pub fn transposed(&self) -> Self {
        /// Rows and columns at once: the cache lines of so many columns stay in the first cache.
        const BLOCK: usize = 16;
        let (rows, cols) = (self.rows, self.cols);
        let mut transposed = Self::recycled(cols, rows);
        let from = self.as_slice();
        let some_columns = transposed
            .as_mut_slice()
            .par_chunks_mut(BLOCK * rows.max(1));
        some_columns.enumerate().for_each(|(block, to)| {
            for first in (0..rows).step_by(BLOCK) {
                for (j, to) in (BLOCK * block..).zip(to.chunks_exact_mut(rows)) {
                    for i in first..rows.min(first + BLOCK) {
                        to[i] = from[i * cols + j];
                    }
                }
            }
        });
        transposed
    }

    /// `f` of every number, in the same shape. One number after the other: passes use the kernels instead.
    pub fn map<F: Element>(&self, f: impl Fn(E) -> F) -> Matrix<F> {
        let mut out = Matrix::recycled(self.rows, self.cols);
        for (out, &x) in out.as_mut_slice().iter_mut().zip(self.as_slice()) {
            *out = f(x);
        }
        out
    }

    /// The matrix as one of type `F`, which generic code knows by another name: the two must be one type.
    pub(crate) fn retyped<F: Element>(self) -> Matrix<F> {
        assert_eq!(E::DTYPE, F::DTYPE, "numbers of another type");
        Matrix {
            rows: self.rows,
            cols: self.cols,
            buffer: self.buffer,
            numbers: PhantomData,
        }
    }

    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }
}

impl<E: Element> Clone for Matrix<E> {
    fn clone(&self) -> Self {
        self.slice_rows(0..self.rows)
    }
}

impl<E: Element> PartialEq for Matrix<E> {
    fn eq(&self, other: &Self) -> bool {
        self.shape() == other.shape() && self.as_slice() == other.as_slice()
    }
}

impl<E: Element> fmt::Debug for Matrix<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter_rows()).finish()
    }
}
