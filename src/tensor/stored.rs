//! Tensors as a checkpoint stores them: never widened, never copied.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use half::{bf16, f16};

use super::storage::{Block, Storage};
use super::{ByType, Element, Matrix, quantised, round_to_bf16, round_to_f16};

/// A tensor in its stored form: little-endian, row-major, lent by a mapping or a buffer.
#[derive(Clone)]
pub struct Tensor {
    storage: Storage,
    shape: Vec<usize>,
    data: Bytes,
    frobenius: Arc<OnceLock<f64>>,
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {:?})", self.storage, self.shape)
    }
}

impl Tensor {
    /// A tensor over `data`, or `None` where the bytes are not as many as shape and type say, or a row is not whole blocks.
    pub fn new(storage: Storage, shape: Vec<usize>, data: Bytes) -> Option<Self> {
        let mut dimensions = shape.iter().rev();
        let row = storage.bytes_of(dimensions.next().copied().unwrap_or(1))?;
        let bytes = dimensions.try_fold(row, |n, &d| n.checked_mul(d))?;
        (bytes == data.len()).then_some(Self {
            storage,
            shape,
            data,
            frobenius: Arc::default(),
        })
    }

    /// A tensor of `values`, each rounded once to `storage`, or `None` where they are not as many as the
    /// shape says, or `storage` is quantised.
    pub fn from_f64(storage: Storage, shape: Vec<usize>, values: &[f64]) -> Option<Self> {
        if storage.is_quantised() {
            return None;
        }
        Self::new(storage, shape, encoded(storage, values).into())
    }

    /// A tensor of the numbers of a matrix, each rounded once to `storage`, or to F32 where that is quantised.
    pub(crate) fn from_matrix(storage: Storage, matrix: &Matrix<f64>) -> Self {
        let storage = storage.for_new_numbers();
        Self {
            storage,
            shape: vec![matrix.rows(), matrix.cols()],
            data: encoded(storage, matrix.as_slice()).into(),
            frobenius: Arc::default(),
        }
    }

    /// The type of the stored numbers.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// The dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The length of the innermost dimension: the elements of one row.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The number of rows, all dimensions but the innermost taken together.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// The stored bytes, row after row.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// The stored bytes of one row.
    pub fn row_bytes(&self, row: usize) -> &[u8] {
        self.rows_bytes(row..row + 1)
    }

    /// The stored bytes of some rows.
    pub(crate) fn rows_bytes(&self, rows: Range<usize>) -> &[u8] {
        let Block { numbers, bytes } = self.storage.block();
        let stride = self.cols() / numbers * bytes;
        &self.data[rows.start * stride..rows.end * stride]
    }

    /// The tensors of `shape`, whose rows are whole blocks, that follow one another in this one; they share its bytes.
    pub(crate) fn parts(&self, shape: &[usize]) -> impl Iterator<Item = Self> {
        let Block { numbers, bytes } = self.storage.block();
        let size = shape.iter().product::<usize>() / numbers * bytes;
        let starts = (0..self.data.len()).step_by(size.max(1));
        starts.filter_map(move |start| {
            let bytes = self.data.get(start..start + size)?;
            Self::new(self.storage, shape.into(), self.data.slice_ref(bytes))
        })
    }

    /// The same numbers as a matrix: all dimensions but the first, of which there are some, taken together.
    pub(crate) fn with_long_rows(mut self) -> Self {
        let rows = self.shape.first().copied().unwrap_or(1);
        self.shape = vec![rows, self.shape.iter().skip(1).product()];
        self
    }

    /// The matrix with rows and columns exchanged: a copy, of a quantised one in F64, which has its numbers exactly.
    pub(crate) fn transposed(&self) -> Self {
        if self.storage.is_quantised() {
            let numbers = Matrix::from_vec(self.cols(), self.to_vec::<f64>());
            return Self::from_matrix(Storage::F64, &numbers.transposed());
        }
        let (rows, cols, size) = (self.rows(), self.cols(), self.storage.block().bytes);
        let mut bytes = vec![0; self.data.len()];
        for (row, numbers) in self.data.chunks_exact(cols * size).enumerate() {
            for (col, number) in numbers.chunks_exact(size).enumerate() {
                let at = (col * rows + row) * size;
                bytes[at..at + size].copy_from_slice(number);
            }
        }
        Self {
            storage: self.storage,
            shape: vec![cols, rows],
            data: bytes.into(),
            frobenius: Arc::default(),
        }
    }

    /// Row `row` converted to a compute type, each number rounded once (a quantised one for bf16 to f32 first). `out` has
    /// [`cols`](Self::cols) elements.
    pub fn read_row<E: Element>(&self, row: usize, out: &mut [E]) {
        decode(self.storage, self.row_bytes(row), out);
    }

    /// The number at a place in row-major order, exactly.
    pub(crate) fn number(&self, index: usize) -> f64 {
        let Block { numbers, bytes } = self.storage.block();
        let block = &self.data[index / numbers * bytes..][..bytes];
        if self.storage.is_quantised() {
            let mut values = vec![0.0; numbers];
            decode(self.storage, block, &mut values);
            return values[index % numbers];
        }
        let mut number = [0.0];
        decode(self.storage, block, &mut number);
        number[0]
    }

    /// The Frobenius norm, summed in f64 from first to last when it is first asked for: a figure for
    /// reports.
    pub fn frobenius(&self) -> f64 {
        *self.frobenius.get_or_init(|| {
            let squares = self.to_vec::<f64>().into_iter().map(|x| x * x);
            squares.sum::<f64>().sqrt()
        })
    }

    /// All numbers in a compute type, each rounded as [`read_row`](Self::read_row) does.
    pub fn to_vec<E: Element>(&self) -> Vec<E> {
        let Block { numbers, bytes } = self.storage.block();
        let mut out = vec![E::default(); self.data.len() / bytes * numbers];
        decode(self.storage, &self.data, &mut out);
        out
    }
}

/// Converts little-endian `bytes` of type `storage`, whole blocks, into `out`, each number rounded as [`Tensor::read_row`] does.
pub(crate) fn decode<E: Element>(storage: Storage, bytes: &[u8], out: &mut [E]) {
    fn each<E, const N: usize>(bytes: &[u8], out: &mut [E], f: impl Fn([u8; N]) -> E) {
        let (chunks, rest) = bytes.as_chunks::<N>();
        debug_assert!(rest.is_empty() && chunks.len() == out.len());
        for (o, &c) in out.iter_mut().zip(chunks) {
            *o = f(c);
        }
    }
    match storage {
        Storage::F64 => each(bytes, out, |b| E::from_f64(f64::from_le_bytes(b))),
        Storage::F32 => each(bytes, out, |b| E::from_f32(f32::from_le_bytes(b))),
        Storage::F16 => each(bytes, out, |b| E::from_f32(f16::from_le_bytes(b).to_f32())),
        Storage::Bf16 => each(bytes, out, |b| {
            E::from_f32(f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))
        }),
        quantised => E::by_type::<Blocks>((quantised, bytes, out)),
    }
}

/// Decodes the blocks of a quantised type, whatever the instructions, into each compute type.
struct Blocks<'a>(PhantomData<&'a ()>);

impl<'a> ByType for Blocks<'a> {
    type Input<E: Element> = (Storage, &'a [u8], &'a mut [E]);

    fn f64((storage, bytes, out): Self::Input<f64>) {
        quantised::decode(quantised::Plain, storage, bytes, out);
    }
    fn f32((storage, bytes, out): Self::Input<f32>) {
        quantised::decode(quantised::Plain, storage, bytes, out);
    }
    fn bf16((storage, bytes, out): Self::Input<bf16>) {
        quantised::decode(quantised::Plain, storage, bytes, out);
    }
}

/// `values` as [`encode`] writes them.
pub(crate) fn encoded(storage: Storage, values: &[f64]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * storage.block().bytes];
    encode(storage, values, &mut bytes);
    bytes
}

/// Writes `values` as little-endian bytes of type `storage`, which must not be quantised, each number rounded at most once, ties
/// to even.
pub(crate) fn encode(storage: Storage, values: &[f64], bytes: &mut [u8]) {
    fn each<const N: usize>(values: &[f64], bytes: &mut [u8], f: impl Fn(f64) -> [u8; N]) {
        let (chunks, rest) = bytes.as_chunks_mut::<N>();
        debug_assert!(rest.is_empty() && chunks.len() == values.len());
        for (chunk, &value) in chunks.iter_mut().zip(values) {
            *chunk = f(value);
        }
    }
    match storage {
        Storage::F64 => each(values, bytes, f64::to_le_bytes),
        Storage::F32 => each(values, bytes, |x| (x as f32).to_le_bytes()),
        Storage::F16 => each(values, bytes, |x| round_to_f16(x).to_le_bytes()),
        Storage::Bf16 => each(values, bytes, |x| round_to_bf16(x).to_le_bytes()),
        quantised => unreachable!("nothing is rounded to {quantised}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let values = [1.0, -2.5, 0.0, 65504.0, -0.09375];
        for storage in [Storage::F64, Storage::F32, Storage::F16] {
            let tensor = Tensor::from_f64(storage, vec![5], &values).unwrap();
            assert_eq!(tensor.to_vec::<f64>(), values, "{storage}");
        }
        let bf16 = Tensor::from_f64(Storage::Bf16, vec![5], &values).unwrap();
        assert_eq!(bf16.to_vec::<f64>(), [1.0, -2.5, 0.0, 65536.0, -0.09375]);
        assert!(Tensor::from_f64(Storage::F32, vec![4], &values).is_none());
    }
}
