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
    pub(super) fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        Ok(Self(Arc::new(Allocation {
            address: device.take(bytes)?,
            device: device.clone(),
            bytes,
        })))
    }

    /// A copy of `numbers`.
    pub(super) fn of<T: bytemuck::NoUninit>(device: &Arc<Device>, numbers: &[T]) -> Result<Self> {
        let bytes: &[u8] = bytemuck::cast_slice(numbers);
        let memory = Self::new(device, bytes.len())?;
        device.machine().upload(bytes, memory.address())?;
        Ok(memory)
    }

    /// Zeros.
    pub(super) fn zeros(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let memory = Self::new(device, bytes)?;
        device.machine().clear(memory.address(), bytes)?;
        Ok(memory)
    }

    pub(super) fn address(&self) -> u64 {
        self.0.address
    }

    /// Whether nobody else has it.
    pub(super) fn is_ones_own(&self) -> bool {
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
    pub(super) fn new(device: &Arc<Device>, rows: usize, cols: usize) -> Result<Self> {
        let memory = Memory::new(device, rows * cols * size_of::<E>())?;
        Ok(Self {
            memory: Some(memory),
            ..Self::absent(rows, cols)
        })
    }

    /// Zeros.
    pub(super) fn zeros(device: &Arc<Device>, rows: usize, cols: usize) -> Result<Self> {
        let memory = Memory::zeros(device, rows * cols * size_of::<E>())?;
        Ok(Self {
            memory: Some(memory),
            ..Self::absent(rows, cols)
        })
    }

    /// What stands for rows that could not be computed.
    pub(super) fn absent(rows: usize, cols: usize) -> Self {
        Self {
            memory: None,
            first: 0,
            rows,
            cols,
            numbers: PhantomData,
        }
    }

    /// A copy of a matrix.
    pub(super) fn upload(device: &Arc<Device>, matrix: &Matrix<E>) -> Result<Self> {
        Ok(Self {
            memory: Some(Memory::of(device, matrix.as_slice())?),
            ..Self::absent(matrix.rows(), matrix.cols())
        })
    }

    /// A copy on the host.
    pub(super) fn download(&self, device: &Device) -> Result<Matrix<E>> {
        let mut matrix = Matrix::recycled(self.rows, self.cols);
        let bytes = bytemuck::cast_slice_mut(matrix.as_mut_slice());
        device.machine().download(self.address(), bytes)?;
        Ok(matrix)
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// All numbers.
    pub(super) fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Some of the rows, in the same memory.
    pub(super) fn view(&self, rows: Range<usize>) -> Self {
        Self {
            first: self.first + rows.start,
            rows: rows.len(),
            ..self.clone()
        }
    }

    /// The same memory as rows of type `F`, which generic code knows by another name: the two must be one type.
    pub(super) fn retyped<F: Element>(&self) -> DeviceRows<F> {
        assert_eq!(E::DTYPE, F::DTYPE, "numbers of another type");
        DeviceRows {
            memory: self.memory.clone(),
            first: self.first,
            rows: self.rows,
            cols: self.cols,
            numbers: PhantomData,
        }
    }

    /// Whether they may be written to: nobody else sees them.
    pub(super) fn is_ones_own(&self) -> bool {
        self.memory.as_ref().is_some_and(Memory::is_ones_own)
    }

    pub(super) fn address(&self) -> u64 {
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
