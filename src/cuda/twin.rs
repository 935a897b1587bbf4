//! The kernels' source on the CPU, to be tested without a GPU.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use std::{fmt, ptr, slice};

use libloading::Library;

use super::error::{Error, Result};
use super::machine::{Launch, Machine};

/// `twin_launch` of tests/cuda/twin.cpp.
type LaunchKernel =
    unsafe extern "C" fn(*const c_char, *const [u32; 3], u32, *mut *mut c_void) -> c_int;

/// Memory is the host's, and a kernel's threads run one after the other.
pub(super) struct Twin {
    run: LaunchKernel,
    marks: Mutex<Vec<Instant>>,
    /// Which has to stay loaded.
    _library: Library,
}

/// One kernel at a time: the state of a twin is global, and libraries of the same source may share it.
static RUNNING: Mutex<()> = Mutex::new(());

impl fmt::Debug for Twin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Twin")
    }
}

/// Bytes before an array, which hold its size.
const HEAD: usize = 64;

impl Twin {
    pub(super) fn load(library: &Path) -> Result<Self> {
        let failed = |error: libloading::Error| {
            let message = format!("{}: {error}", library.display());
            failed("load its kernels", message)
        };
        // SAFETY: the library is one of ours, which does nothing when it is loaded.
        let loaded = unsafe { Library::new(library) }.map_err(failed)?;
        // SAFETY: the function has this type, and is called as long as the library is there.
        let run = *unsafe { loaded.get::<LaunchKernel>(b"twin_launch") }.map_err(failed)?;
        Ok(Self {
            run,
            marks: Mutex::default(),
            _library: loaded,
        })
    }
}

fn failed(what: &str, message: String) -> Error {
    Error::Device {
        device: "the CPU twin".into(),
        what: what.into(),
        message,
    }
}

fn layout(bytes: usize) -> Result<std::alloc::Layout> {
    std::alloc::Layout::from_size_align(HEAD + bytes, HEAD)
        .map_err(|error| failed("store an array", error.to_string()))
}

impl Machine for Twin {
    fn name(&self) -> String {
        "the CPU twin".into()
    }

    fn memory(&self) -> Result<[usize; 2]> {
        Ok([1 << 40; 2])
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let layout = layout(bytes)?;
        // SAFETY: the layout is not empty.
        let start = unsafe { std::alloc::alloc(layout) };
        if start.is_null() {
            return Err(failed(
                "store an array",
                format!("{bytes} bytes are refused"),
            ));
        }
        // SAFETY: the head is within the allocation, and aligned.
        unsafe {
            start.cast::<usize>().write(bytes);
            Ok(start.add(HEAD) as u64)
        }
    }

    fn free(&self, address: u64) {
        let start = (address as usize - HEAD) as *mut u8;
        // SAFETY: `allocate` gave the address, and wrote the size into its head.
        unsafe {
            if let Ok(layout) = layout(start.cast::<usize>().read()) {
                std::alloc::dealloc(start, layout);
            }
        }
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        // SAFETY: the memory is as large as that: whoever calls has allocated it.
        unsafe { ptr::write_bytes(address as *mut u8, 0, bytes) };
        Ok(())
    }

    fn upload(&self, bytes: &[u8], to: u64) -> Result<()> {
        self.copy(bytes.as_ptr() as u64, to, bytes.len())
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: the memory is as large as that.
        bytes.copy_from_slice(unsafe { slice::from_raw_parts(from as *const u8, bytes.len()) });
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: both are as large as that.
        unsafe { ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    fn launch(&self, launch: Launch<'_>) -> Result<()> {
        let mut arguments: Vec<u64> = launch
            .arguments
            .iter()
            .map(|argument| argument.bits())
            .collect();
        let places = arguments
            .iter_mut()
            .map(|argument| ptr::from_mut(argument).cast());
        let mut places: Vec<*mut c_void> = places.collect();
        let kernel = CString::new(launch.kernel).unwrap_or_default();
        let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: as for a GPU: each kernel gets the arguments of its signature.
        let missing = unsafe {
            (self.run)(
                kernel.as_ptr(),
                &raw const launch.grid,
                launch.threads,
                places.as_mut_ptr(),
            )
        };
        if missing != 0 {
            let message = "there is none of that name".into();
            return Err(failed(
                &format!("find the kernel {}", launch.kernel),
                message,
            ));
        }
        Ok(())
    }

    fn pause(&self) -> Result<()> {
        Ok(())
    }

    fn mark(&self) -> Result<()> {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.push(Instant::now());
        Ok(())
    }

    fn between_marks(&self) -> Result<Vec<f64>> {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let marks = std::mem::take(&mut *marks);
        let pairs = marks.windows(2);
        Ok(pairs
            .map(|pair| (pair[1] - pair[0]).as_secs_f64())
            .collect())
    }
}
