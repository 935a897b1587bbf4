//! A device that passes run on.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::driver::Gpu;
use super::error::{Error, Result};
use super::machine::{Argument, Launch, Machine};
use super::pool::{Pool, Taken, rounded_up};
use super::twin::Twin;

/// A CUDA device with the kernels compiled for it. What it computes has the bits of the native kernels.
#[derive(Debug)]
pub struct Device {
    machine: Box<dyn Machine>,
    pool: Mutex<Pool>,
    /// The kernels that were launched since somebody [watches](Self::watched).
    launched: Mutex<Option<Vec<String>>>,
}

/// A kernel that ran while its device was watched.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct Launched {
    /// Its name, with its types.
    pub kernel: String,
    /// How long it took.
    pub seconds: f64,
}

/// The devices that this program has opened.
static OPENED: Mutex<Vec<(usize, Arc<Device>)>> = Mutex::new(Vec::new());

impl Device {
    /// The device of a number, from 0. Its kernels are compiled when it is first opened, which takes a while, and kept in the
    /// user's cache folder.
    ///
    /// # Errors
    ///
    /// [`Error::NoDriver`], [`Error::NoDevice`], [`Error::NoCompiler`], [`Error::Compile`] and [`Error::Device`].
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, device)) = opened.iter().find(|(known, _)| *known == ordinal) {
            return Ok(device.clone());
        }
        let device = Arc::new(Self::on(Gpu::open(ordinal)?));
        opened.push((ordinal, device.clone()));
        Ok(device)
    }

    /// The kernels' source on the CPU: the library that `tests/cuda/twin.cpp` is compiled to.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] where it cannot be loaded.
    #[doc(hidden)]
    pub fn twin(library: &Path) -> Result<Arc<Self>> {
        Ok(Arc::new(Self::on(Twin::load(library)?)))
    }

    fn on(machine: impl Machine + 'static) -> Self {
        Self {
            machine: Box::new(machine),
            pool: Mutex::default(),
            launched: Mutex::default(),
        }
    }

    /// What the driver calls it.
    pub fn name(&self) -> String {
        self.machine.name()
    }

    /// Bytes of its memory that are free, and all of them.
    ///
    /// # Errors
    ///
    /// [`Error::Device`].
    pub fn memory(&self) -> Result<[usize; 2]> {
        self.machine.memory()
    }

    pub(super) fn machine(&self) -> &dyn Machine {
        &*self.machine
    }

    /// Refuses what does not fit, before anything is stored.
    pub(crate) fn check_room(&self, what: &str, needed: usize) -> Result<()> {
        let [free, total] = self.memory()?;
        if needed <= free {
            return Ok(());
        }
        Err(Error::OutOfMemory {
            what: what.into(),
            device: self.name(),
            needed,
            free,
            total,
        })
    }

    /// The address of memory of a size, which was in use before if possible: everything is asked for in one order, so
    /// whoever used it is done.
    pub(crate) fn take(&self, bytes: usize) -> Result<u64> {
        let size = rounded_up(bytes);
        let mut pool = self.pool();
        if let Some(address) = pool.take(size) {
            return Ok(address);
        }
        let address = self.machine.allocate(size).or_else(|_| {
            pool.drain().into_iter().for_each(|x| self.machine.free(x));
            self.check_room("the pass's next array", size)?;
            self.machine.allocate(size)
        })?;
        pool.count(size);
        Ok(address)
    }

    /// Takes memory back.
    pub(crate) fn give_back(&self, address: u64, bytes: usize) {
        let unused = self.pool().give_back(address, rounded_up(bytes));
        unused.into_iter().for_each(|x| self.machine.free(x));
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes that its arrays take, and took at most.
    #[doc(hidden)]
    pub fn taken(&self) -> Taken {
        self.pool().taken()
    }

    /// Does something, and says which kernels it ran and how long each took by itself.
    ///
    /// # Errors
    ///
    /// [`Error::Device`].
    #[doc(hidden)]
    pub fn watched<T>(&self, run: impl FnOnce() -> T) -> Result<(T, Vec<Launched>)> {
        self.machine.pause()?;
        self.machine.mark()?;
        *self.launched() = Some(Vec::new());
        let outcome = run();
        let kernels = self.launched().take().unwrap_or_default().into_iter();
        let seconds = self.machine.between_marks()?;
        let launched = kernels
            .zip(seconds)
            .map(|(kernel, seconds)| Launched { kernel, seconds });
        Ok((outcome, launched.collect()))
    }

    fn launched(&self) -> MutexGuard<'_, Option<Vec<String>>> {
        self.launched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a kernel.
    pub(super) fn launch(
        &self,
        kernel: &str,
        grid: [usize; 3],
        threads: u32,
        arguments: &[Argument],
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        self.machine.launch(Launch {
            kernel,
            grid: grid.map(|blocks| blocks as u32),
            threads,
            arguments,
        })?;
        if let Some(launched) = &mut *self.launched() {
            launched.push(kernel.into());
            self.machine.mark()?;
        }
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let unused = self.pool().drain();
        unused.into_iter().for_each(|x| self.machine.free(x));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::Model;

    /// A machine with some bytes, on which nothing may be stored.
    #[derive(Debug)]
    struct Small(usize);

    impl Machine for Small {
        fn name(&self) -> String {
            "a small machine".into()
        }
        fn memory(&self) -> Result<[usize; 2]> {
            Ok([self.0, 2 * self.0])
        }
        fn allocate(&self, bytes: usize) -> Result<u64> {
            Err(Error::Device {
                device: self.name(),
                what: format!("store {bytes} bytes"),
                message: "nothing may be stored here".into(),
            })
        }
        fn free(&self, _: u64) {}
        fn clear(&self, _: u64, _: usize) -> Result<()> {
            Ok(())
        }
        fn upload(&self, _: &[u8], _: u64) -> Result<()> {
            Ok(())
        }
        fn download(&self, _: u64, _: &mut [u8]) -> Result<()> {
            Ok(())
        }
        fn copy(&self, _: u64, _: u64, _: usize) -> Result<()> {
            Ok(())
        }
        fn launch(&self, _: Launch<'_>) -> Result<()> {
            Ok(())
        }
        fn pause(&self) -> Result<()> {
            Ok(())
        }
        fn mark(&self) -> Result<()> {
            Ok(())
        }
        fn between_marks(&self) -> Result<Vec<f64>> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn a_model_that_does_not_fit_is_refused_before_anything_is_stored() {
        let model = Model::open("reference/tiny").unwrap();
        let matrices = model
            .matrices()
            .map(|w| (w.bytes().as_ptr(), w.bytes().len()));
        let bytes: usize = HashMap::<_, _>::from_iter(matrices).into_values().sum();
        let on = |free| {
            let device = Arc::new(Device::on(Small(free)));
            model.clone().on_device(&device).unwrap_err().to_string()
        };
        let expected = format!(
            "the model takes {bytes} bytes on a small machine, where {} of {} are free: end what else runs there, or use \
             --backend native",
            bytes - 1,
            2 * (bytes - 1)
        );
        assert_eq!(on(bytes - 1), expected);
        // The control: with room for it the first array is stored.
        assert!(on(bytes).contains("nothing may be stored here"));
    }
}
