//! A GPU, through the driver's own interface.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::error::{Error, Result};
use super::machine::{Launch, Machine};
use super::source;

/// A GPU: its context, a stream of its own, and the kernels by name.
pub(super) struct Gpu {
    name: String,
    context: Arc<CudaContext>,
    stream: sys::CUstream,
    module: sys::CUmodule,
    kernels: HashMap<String, sys::CUfunction>,
    /// Whether a kernel may begin before the last has ended: from compute capability 9.0 on.
    kernels_overlap: bool,
    marks: Mutex<Vec<sys::CUevent>>,
}

/// How long [`Gpu::pause`] is: more than a thousand launches take.
const PAUSE: Duration = Duration::from_millis(20);

// SAFETY: handles of the driver may be used by any thread that has the context, which every method makes current.
unsafe impl Send for Gpu {}
// SAFETY: as above; the driver's calls are safe from several threads at once.
unsafe impl Sync for Gpu {}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({})", self.name)
    }
}

impl Gpu {
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        // SAFETY: it only looks whether the library can be loaded.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoDriver);
        }
        let unnamed = format!("CUDA device {ordinal}");
        let failed = |what: &'static str| {
            let device = unnamed.clone();
            move |error| refused(&device, what, error)
        };
        let devices = CudaContext::device_count().map_err(failed("be counted"))?;
        let devices = usize::try_from(devices).unwrap_or(0);
        if ordinal >= devices {
            return Err(Error::NoDevice { ordinal, devices });
        }
        let context = CudaContext::new(ordinal).map_err(failed("be opened"))?;
        let name = context.name().map_err(failed("say its name"))?;
        let (major, minor) = context
            .compute_capability()
            .map_err(failed("say what it can do"))?;
        let ptx = source::ptx(&format!("compute_{major}{minor}"), &name)?;
        let image = CString::new(ptx).unwrap_or_default();
        // SAFETY: the image is a string that ends with a zero, as PTX has to.
        let module = unsafe { result::module::load_data(image.as_ptr().cast::<c_void>()) };
        let module = module.map_err(failed("load the kernels"))?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking);
        let mut gpu = Self {
            stream: stream.map_err(failed("make a stream"))?,
            name,
            context,
            module,
            kernels: HashMap::new(),
            kernels_overlap: major >= 9,
            marks: Mutex::default(),
        };
        for kernel in entries(&image.to_string_lossy()) {
            let name = CString::new(kernel.as_str()).unwrap_or_default();
            // SAFETY: the module is loaded, and stays so as long as its functions are known.
            let function = unsafe { result::module::get_function(module, name) };
            let function = function.map_err(|error| refused(&gpu.name, "find a kernel", error))?;
            gpu.kernels.insert(kernel, function);
        }
        Ok(gpu)
    }

    /// Makes the context current, and says what went wrong in `call`.
    fn call<T>(&self, what: &str, call: impl FnOnce() -> Result<T, DriverError>) -> Result<T> {
        let done = self.context.bind_to_thread().and_then(|()| call());
        done.map_err(|error| refused(&self.name, what, error))
    }
}

/// The names of the kernels in PTX.
fn entries(ptx: &str) -> Vec<String> {
    let lines = ptx.lines().filter_map(|line| line.split_once(".entry "));
    let names = lines.map(|(_, rest)| rest.trim_end_matches('(').trim().to_owned());
    names.collect()
}

fn refused(device: &str, what: &str, error: DriverError) -> Error {
    let message = error.error_string().map_or_else(
        |_| format!("error {:?}", error.0),
        |text| text.to_string_lossy().into(),
    );
    Error::Device {
        device: device.into(),
        what: what.into(),
        message,
    }
}

impl Machine for Gpu {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn memory(&self) -> Result<[usize; 2]> {
        let (free, total) = self.call("say how much memory is free", result::mem_get_info)?;
        Ok([free, total])
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        // SAFETY: the memory is written before it is read, as every kernel's outputs are.
        self.call("store an array", || unsafe { result::malloc_sync(bytes) })
    }

    fn free(&self, address: u64) {
        // A device that is lost has nothing to give back.
        // SAFETY: the address is one that `allocate` gave, and nobody has it any more; the call waits for running kernels.
        let _ = self.call("free an array", || unsafe { result::free_sync(address) });
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        // SAFETY: the memory is as large as that: whoever calls has allocated it.
        self.call("clear an array", || unsafe {
            result::memset_d8_async(address, 0, bytes, self.stream)
        })
    }

    fn upload(&self, bytes: &[u8], to: u64) -> Result<()> {
        // SAFETY: the memory is as large as that; memory that is not pinned has been read when the call returns.
        self.call("take numbers in", || unsafe {
            result::memcpy_htod_async(to, bytes, self.stream)
        })
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.call("give numbers back", || {
            // SAFETY: the memory is as large as that, and `bytes` is lent until the stream is through.
            unsafe {
                result::memcpy_dtoh_async(bytes, from, self.stream)?;
                result::stream::synchronize(self.stream)
            }
        })
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: both are as large as that.
        self.call("copy an array", || unsafe {
            result::memcpy_dtod_async(to, from, bytes, self.stream)
        })
    }

    fn launch(&self, launch: Launch<'_>) -> Result<()> {
        let Some(&function) = self.kernels.get(launch.kernel) else {
            return Err(Error::Device {
                device: self.name.clone(),
                what: format!("find the kernel {}", launch.kernel),
                message: "there is none of that name".into(),
            });
        };
        let mut arguments: Vec<u64> = launch
            .arguments
            .iter()
            .map(|argument| argument.bits())
            .collect();
        let mut places: Vec<*mut c_void> = arguments
            .iter_mut()
            .map(|argument| ptr::from_mut(argument).cast::<c_void>())
            .collect();
        let [x, y, z] = launch.grid;
        let mut overlap = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: self.stream,
            attrs: &raw mut overlap,
            numAttrs: self.kernels_overlap.into(),
        };
        // SAFETY: this module's callers give each kernel the arguments of its signature, with arrays of the size it reads and
        // writes; each is in the low bytes of its eight. A kernel that overlaps with the last waits for it (`order.cuh`).
        self.call(launch.kernel, || unsafe {
            let none = ptr::null_mut();
            sys::cuLaunchKernelEx(&raw const config, function, places.as_mut_ptr(), none).result()
        })
    }

    fn pause(&self) -> Result<()> {
        extern "C" fn sleep(_: *mut c_void) {
            thread::sleep(PAUSE);
        }
        // SAFETY: the function uses nothing.
        self.call("pause", || unsafe {
            result::stream::launch_host_function(self.stream, sleep, ptr::null_mut())
        })
    }

    fn mark(&self) -> Result<()> {
        let event = self.call("take the time", || {
            let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?;
            // SAFETY: the event and the stream are there.
            unsafe { result::event::record(event, self.stream) }.map(|()| event)
        })?;
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.push(event);
        Ok(())
    }

    fn between_marks(&self) -> Result<Vec<f64>> {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let marks = std::mem::take(&mut *marks);
        self.call("tell the time", || {
            // SAFETY: the events were recorded, and are destroyed once all are through.
            unsafe {
                result::stream::synchronize(self.stream)?;
                let pairs = marks.windows(2);
                let milliseconds = pairs.map(|pair| result::event::elapsed(pair[0], pair[1]));
                let seconds = milliseconds.map(|time| time.map(|time| f64::from(time) / 1e3));
                let seconds = seconds.collect();
                for event in marks {
                    result::event::destroy(event)?;
                }
                seconds
            }
        })
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // A device that is lost has nothing to give back.
        // SAFETY: nobody has the module or the stream any more.
        let _ = self.call("be closed", || unsafe {
            result::module::unload(self.module)?;
            result::stream::destroy(self.stream)
        });
    }
}
