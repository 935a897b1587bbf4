//! A model's weights on a device, each stored once, and their products.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use half::bf16;

use super::device::Device;
use super::error::{Error, Result};
use super::memory::{DeviceRows, Memory};
use super::products::{Into, Weights};
use crate::kernels::{Backend, Level, Rows};
use crate::tensor::{Dtype, Element, Matrix, Storage, Tensor};

/// A model on a device: its weights, which go there once.
#[derive(Debug)]
pub(crate) struct OnDevice {
    device: Arc<Device>,
    /// Every tensor that is there, in each form it is there in. The tensor itself is kept so that its address stays its own.
    stored: Mutex<HashMap<Key, (Tensor, Memory)>>,
    /// What went wrong in a product whose numbers are therefore none.
    failure: Mutex<Option<Error>>,
}

/// A tensor by the place of its bytes, and the form it is stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    address: usize,
    bytes: usize,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Form {
    /// A matrix in a type that kernels multiply.
    Matrix(Storage),
    /// A vector in the type of sums of a compute type.
    Vector(Dtype),
    /// The same, with 1 added.
    OnePlus(Dtype),
}

/// The type that a matrix has on the device for a compute type: its own if kernels multiply that, else one that loses nothing.
fn storage_for(dtype: Dtype, stored: Storage) -> Storage {
    match (dtype, stored) {
        (Dtype::Bf16, _) => Storage::Bf16,
        (Dtype::F64, stored) if stored.is_quantised() => Storage::F64,
        (Dtype::F32, Storage::F64) | (_, Storage::F16) => Storage::F32,
        (_, stored) if stored.is_quantised() => Storage::F32,
        _ => stored,
    }
}

impl OnDevice {
    /// Stores the matrices of a model, which may be the same tensor more than once.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`] before anything is stored; [`Error::Device`].
    pub(crate) fn new<'t>(
        device: Arc<Device>,
        matrices: impl Iterator<Item = &'t Tensor>,
    ) -> Result<Self> {
        let on_device = Self {
            device,
            stored: Mutex::default(),
            failure: Mutex::default(),
        };
        let mut needed = HashMap::new();
        let multiplied = |storage| matches!(storage, Storage::F64 | Storage::F32 | Storage::Bf16);
        let matrices = matrices.filter(|w| multiplied(w.storage()));
        let matrices: Vec<_> = matrices.collect();
        for w in &matrices {
            needed.insert(w.bytes().as_ptr(), w.bytes().len());
        }
        let needed = needed.values().sum();
        on_device.device.check_room("the model", needed)?;
        for w in matrices {
            on_device.matrix(w, w.storage())?;
        }
        Ok(on_device)
    }

    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// What a tensor is stored as, which `bytes` gives where it is not there yet.
    fn stored<T: bytemuck::NoUninit>(
        &self,
        tensor: &Tensor,
        form: Form,
        numbers: impl FnOnce() -> Vec<T>,
    ) -> Result<Memory> {
        let key = Key {
            address: tensor.bytes().as_ptr() as usize,
            bytes: tensor.bytes().len(),
            form,
        };
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, memory)) = stored.get(&key) {
            return Ok(memory.clone());
        }
        let own = matches!(form, Form::Matrix(storage) if storage == tensor.storage());
        let memory = if own {
            Memory::of(&self.device, tensor.bytes())?
        } else {
            Memory::of(&self.device, &numbers())?
        };
        stored.insert(key, (tensor.clone(), memory.clone()));
        Ok(memory)
    }

    fn matrix(&self, w: &Tensor, storage: Storage) -> Result<Weights> {
        let form = Form::Matrix(storage);
        let (memory, storage) = match storage {
            Storage::F64 => (self.stored(w, form, || w.to_vec::<f64>())?, Dtype::F64),
            Storage::Bf16 => (self.stored(w, form, || w.to_vec::<bf16>())?, Dtype::Bf16),
            _ => (self.stored(w, form, || w.to_vec::<f32>())?, Dtype::F32),
        };
        Ok(Weights {
            memory,
            storage,
            rows: w.rows(),
            cols: w.cols(),
        })
    }

    /// W for a compute type.
    pub(crate) fn weights<E: Element>(&self, w: &Tensor) -> Result<Weights> {
        self.matrix(w, storage_for(E::DTYPE, w.storage()))
    }

    /// A vector in the type of sums of E, which `numbers` gives: a bias, or a norm's scale, which has 1 added or not.
    pub(crate) fn vector<E: Element>(
        &self,
        tensor: &Tensor,
        one_plus: bool,
        numbers: impl FnOnce() -> Vec<E::Acc>,
    ) -> Result<Memory> {
        let form = match one_plus {
            true => Form::OnePlus(E::DTYPE),
            false => Form::Vector(E::DTYPE),
        };
        self.stored(tensor, form, numbers)
    }

    /// Keeps the error of a product, to be told by whoever finds that its numbers are none.
    pub(super) fn fail(&self, error: Error) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(error);
    }

    /// Refuses to go on after a failure; [`Model::on_device`](crate::Model::on_device) then stores the weights anew.
    ///
    /// # Errors
    ///
    /// What failed first.
    pub(crate) fn check(&self) -> Result<()> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.clone().map_or(Ok(()), Err)
    }

    /// W x, as [`Backend::matmul`]: a stored W is on the device. Where the device fails the numbers are NaN, and
    /// [`check`](Self::check) says why.
    pub(crate) fn matmul<E: Element>(
        &self,
        level: Level,
        x: &Matrix<E>,
        w: Rows<'_, E>,
    ) -> Matrix<E::Acc> {
        let Rows::Stored(w) = w else {
            return Backend::Native.matmul(level, x, w);
        };
        self.product(x, w).unwrap_or_else(|error| {
            self.fail(error);
            not_a_number(x.rows(), w.rows())
        })
    }

    fn product<E: Element>(&self, x: &Matrix<E>, w: &Tensor) -> Result<Matrix<E::Acc>> {
        let device = self.device();
        let x = DeviceRows::upload(device, x)?;
        let w = self.weights::<E>(w)?;
        let sums = DeviceRows::new(device, x.rows(), w.rows)?;
        device.multiply(&x, &[(&w, Into::Sums(&sums))])?;
        sums.download(device)
    }
}

/// What stands for numbers that a device failed to give.
pub(super) fn not_a_number<E: Element>(rows: usize, cols: usize) -> Matrix<E> {
    Matrix::from_vec(cols, vec![E::from_f64(f64::NAN); rows * cols])
}
