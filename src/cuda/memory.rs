//! Memory of a device, and rows of numbers in it.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use super::device::Device;
use super::error::Result;
use super::machine::Argument;
use crate::tensor::{Element, Matrix};

/// Bytes of a device. Clones share them; the last gives them back.
#[derive(Clone, Debug)]
pub(crate) struct Memory(Arc<Allocation>);

#[derive(Debug)]
struct Allocation {
    device: Arc<Device>,
    address: u64,
    bytes: usize,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.device.give_back(self.address, self.bytes);
    }
}

impl Memory {
    /// Bytes that are still to be written.
    pub(crate) fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        Ok(Self(Arc::new(Allocation {
            address: device.take(bytes)?,
            device: device.clone(),
            bytes,
        })))
    }

    /// A copy of `numbers`.
    pub(crate) fn of<T: bytemuck::NoUninit>(device: &Arc<Device>, numbers: &[T]) -> Result<Self> {
        let bytes: &[u8] = bytemuck::cast_slice(numbers);
        let memory = Self::new(device, bytes.len())?;
        device.machine().upload(bytes, memory.address())?;
        Ok(memory)
    }

    /// Zeros.
    pub(crate) fn zeros(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let memory = Self::new(device, bytes)?;
        device.machine().clear(memory.address(), bytes)?;
        Ok(memory)
    }

    pub(crate) fn address(&self) -> u64 {
        self.0.address
    }

    /// A number of it.
    pub(super) fn at<T>(&self, index: usize) -> Argument {
        Argument::Address(self.address() + (index * size_of::<T>()) as u64)
    }

    /// Whether nobody else has it.
    pub(crate) fn is_ones_own(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl From<&Memory> for Argument {
    fn from(memory: &Memory) -> Self {
        Self::Address(memory.address())
    }
}

/// Rows of numbers, `[rows, cols]`. A clone is the same memory.
#[derive(Clone, Debug)]
pub(crate) struct DeviceRows<E> {
    /// `None` after a failure: nothing is computed any more.
    memory: Option<Memory>,
    first: usize,
    rows: usize,
    cols: usize,
    numbers: PhantomData<E>,
}

impl<E: Element> DeviceRows<E> {
    /// Rows that are still to be written.
    pub(crate) fn new(device: &Arc<Device>, rows: usize, cols: usize) -> Result<Self> {
        let memory = Memory::new(device, rows * cols * size_of::<E>())?;
        Ok(Self {
            memory: Some(memory),
            ..Self::absent(rows, cols)
        })
    }

    /// Zeros.
    pub(crate) fn zeros(device: &Arc<Device>, rows: usize, cols: usize) -> Result<Self> {
        let memory = Memory::zeros(device, rows * cols * size_of::<E>())?;
        Ok(Self {
            memory: Some(memory),
            ..Self::absent(rows, cols)
        })
    }

    /// What stands for rows that could not be computed.
    pub(crate) fn absent(rows: usize, cols: usize) -> Self {
        Self {
            memory: None,
            first: 0,
            rows,
            cols,
            numbers: PhantomData,
        }
    }

    /// A copy of a matrix.
    pub(crate) fn upload(device: &Arc<Device>, matrix: &Matrix<E>) -> Result<Self> {
        Ok(Self {
            memory: Some(Memory::of(device, matrix.as_slice())?),
            ..Self::absent(matrix.rows(), matrix.cols())
        })
    }

    /// A copy on the host.
    pub(crate) fn download(&self, device: &Device) -> Result<Matrix<E>> {
        let mut matrix = Matrix::recycled(self.rows, self.cols);
        let bytes = bytemuck::cast_slice_mut(matrix.as_mut_slice());
        device.machine().download(self.address(), bytes)?;
        Ok(matrix)
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// All numbers.
    pub(crate) fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Some of the rows, in the same memory.
    pub(crate) fn view(&self, rows: Range<usize>) -> Self {
        Self {
            first: self.first + rows.start,
            rows: rows.len(),
            ..self.clone()
        }
    }

    /// The same memory as rows of type `F`, which generic code knows by another name: the two must be one type.
    pub(crate) fn retyped<F: Element>(&self) -> DeviceRows<F> {
        assert_eq!(E::DTYPE, F::DTYPE, "numbers of another type");
        DeviceRows {
            memory: self.memory.clone(),
            first: self.first,
            rows: self.rows,
            cols: self.cols,
            numbers: PhantomData,
        }
    }

    /// Whether both are the same rows of the same memory.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.memory.is_some()
            && self.address() == other.address()
            && [self.rows, self.cols] == [other.rows, other.cols]
    }

    pub(crate) fn address(&self) -> u64 {
        let offset = self.first * self.cols * size_of::<E>();
        self.memory
            .as_ref()
            .map_or(0, |memory| memory.address() + offset as u64)
    }
}

impl<E: Element> From<&DeviceRows<E>> for Argument {
    fn from(rows: &DeviceRows<E>) -> Self {
        Self::Address(rows.address())
    }
}
