use crate::error::{device as failed, value};
use crate::identity::Geometry;
use crate::layout::Layout;
use crate::memory::{Kind, Owner, View};
use pyo3::prelude::*;
use pyo3::types::PyList;
use std::sync::Arc;
use undercroft_client::wire;
use undercroft_gpu_shim::cuda::{self, After, CopyMode, CudaOptions, EngineStream};
use undercroft_gpu_shim::{self as shim, HostOptions};

/// A device, and what keeps its memory where it is: the fields are dropped in this order.
pub(crate) struct Held {
    pub(crate) device: Box<dyn shim::Device>,
    pub(crate) cuda: Option<Arc<cuda::CudaDevice>>,
    _owners: Arc<Vec<Owner>>,
}

/// What all devices are.
#[pyclass(frozen, subclass, module = "undercroft")]
pub(crate) struct Device {
    pub(crate) held: Arc<Held>,
}

#[pymethods]
impl Device {
    #[getter]
    fn geometry(&self) -> Geometry {
        Geometry(self.held.device.geometry())
    }

    #[getter]
    fn blocks(&self) -> u32 {
        self.held.device.blocks()
    }
}

impl Device {
    fn of(
        device: Box<dyn shim::Device>,
        cuda: Option<Arc<cuda::CudaDevice>>,
        owners: Arc<Vec<Owner>>,
    ) -> Self {
        Self { held: Arc::new(Held { device, cuda, _owners: owners }) }
    }
}

/// An engine's KV cache in host memory.
#[pyclass(frozen, extends = Device, module = "undercroft")]
pub(crate) struct HostDevice;

#[pymethods]
impl HostDevice {
    #[new]
    fn new(layout: &Layout) -> PyResult<PyClassInitializer<Self>> {
        refuse(layout, &[Kind::Cuda, Kind::HostReadOnly], "host memory that can be written")?;
        let options = HostOptions::default();
        // SAFETY: the owners keep the memory, which is on the host and writable or said to be, for
        // as long as the device and its transfers live; it is part of the contract of every call
        // that takes a device that nothing else touches its blocks meanwhile.
        let device = unsafe { shim::HostDevice::attach(layout.layout.clone(), options) };
        let device = device.map_err(failed)?;
        let base = Device::of(Box::new(device), None, Arc::clone(&layout.owners));
        Ok(PyClassInitializer::from(base).add_subclass(Self))
    }
}

/// An engine's KV cache on a GPU.
#[pyclass(frozen, extends = Device, module = "undercroft")]
pub(crate) struct CudaDevice {
    cuda: Arc<cuda::CudaDevice>,
    owners: Arc<Vec<Owner>>,
}

/// Lets many hold one device.
struct Shared(Arc<cuda::CudaDevice>);

impl shim::Device for Shared {
    fn geometry(&self) -> wire::Geometry {
        self.0.geometry()
    }

    fn blocks(&self) -> u32 {
        self.0.blocks()
    }

    fn load(&self, jobs: Vec<shim::LoadJob>) -> Result<shim::Transfer, shim::DeviceError> {
        self.0.load(jobs)
    }

    fn load_by_layer(&self, jobs: Vec<shim::LoadJob>) -> Result<shim::Transfer, shim::DeviceError> {
        self.0.load_by_layer(jobs)
    }

    fn store(&self, jobs: Vec<shim::StoreJob>) -> Result<shim::Transfer, shim::DeviceError> {
        self.0.store(jobs)
    }
}

#[pymethods]
impl CudaDevice {
    #[new]
    #[pyo3(signature = (layout, *, load = None, store = None, kernel_blocks = None,
                        load_stream = None, store_stream = None))]
    fn new(
        python: Python<'_>,
        layout: &Layout,
        load: Option<&str>,
        store: Option<&str>,
        kernel_blocks: Option<u32>,
        load_stream: Option<usize>,
        store_stream: Option<usize>,
    ) -> PyResult<PyClassInitializer<Self>> {
        refuse(layout, &[Kind::Host, Kind::HostReadOnly], "memory of a GPU")?;
        let mode = |name: Option<&str>| name.map(str::parse::<CopyMode>).transpose().map_err(value);
        let stream = |raw: Option<usize>| raw.map(engine_stream);
        let options = CudaOptions {
            load: mode(load)?,
            store: mode(store)?,
            kernel_blocks,
            load_stream: stream(load_stream),
            store_stream: stream(store_stream),
            ..CudaOptions::default()
        };
        let described = layout.layout.clone();
        // SAFETY: the driver is asked whether the addresses are its memory; the owners keep it for
        // as long as the device and its transfers live, and with the engine's process its context.
        // Streams are the caller's to keep, and blocks not to touch while they are copied.
        let cuda = python.detach(|| unsafe { cuda::CudaDevice::attach(described, options) });
        let cuda = Arc::new(cuda.map_err(failed)?);
        let owners = Arc::clone(&layout.owners);
        let device = Box::new(Shared(Arc::clone(&cuda)));
        let base = Device::of(device, Some(Arc::clone(&cuda)), Arc::clone(&owners));
        Ok(PyClassInitializer::from(base).add_subclass(Self { cuda, owners }))
    }

    /// The device for transfers that wait for all that is on a stream of the engine's now.
    fn after(&self, python: Python<'_>, stream: usize) -> PyResult<Device> {
        let cuda = Arc::clone(&self.cuda);
        let after = python.detach(|| cuda.after_shared(After::Stream(engine_stream(stream))));
        let device = Box::new(after.map_err(failed)?);
        Ok(Device::of(device, Some(cuda), Arc::clone(&self.owners)))
    }

    #[getter]
    fn name(&self) -> PyResult<String> {
        self.cuda.name().map_err(failed)
    }

    #[getter]
    fn modes(&self) -> (String, String) {
        let modes = self.cuda.modes();
        (modes.load.to_string(), modes.store.to_string())
    }
}

/// Pages in memories of their own: each whole in one, or each fragment in one.
#[pyclass(frozen, extends = Device, module = "undercroft")]
pub(crate) struct Buffers;

#[derive(FromPyObject)]
enum Page {
    Bytes(u32),
    Geometry(Geometry),
}

#[pymethods]
impl Buffers {
    #[new]
    #[pyo3(signature = (geometry, memories, *, writable = true))]
    #[expect(clippy::needless_pass_by_value, reason = "what Python hands over")]
    fn new(
        geometry: Page,
        memories: Vec<Bound<'_, PyAny>>,
        writable: bool,
    ) -> PyResult<PyClassInitializer<Self>> {
        let geometry = match geometry {
            Page::Bytes(bytes) => Geometry::of(1, &[bytes])?.0,
            Page::Geometry(geometry) => geometry.0,
        };
        let mut lent = Lent { writable, addresses: Vec::new(), owners: Vec::new() };
        // What one is, all are: `Lent::fragments` and `Lent::take` refuse the others.
        let in_fragments = memories.first().is_some_and(|first| first.is_instance_of::<PyList>());
        for (index, given) in memories.iter().enumerate() {
            let name = format!("memories[{index}]");
            if in_fragments {
                lent.fragments(&name, given, geometry)?;
            } else {
                lent.take(&name, given, geometry.page_bytes(), "a page")?;
            }
        }
        // SAFETY: the owners keep a page, or a fragment, at each address, on the host and writable
        // if that was said; it is part of the contract of every call that takes a device that
        // nothing else touches its blocks meanwhile.
        let device = unsafe {
            if in_fragments {
                shim::Buffers::of_fragments(geometry, &lent.addresses, writable)
            } else {
                shim::Buffers::new(geometry, &lent.addresses, writable)
            }
        };
        let device = device.map_err(value)?;
        let base = Device::of(Box::new(device), None, Arc::new(lent.owners));
        Ok(PyClassInitializer::from(base).add_subclass(Self))
    }
}

/// Memories as they were handed over, and what keeps them.
struct Lent {
    writable: bool,
    addresses: Vec<u64>,
    owners: Vec<Owner>,
}

impl Lent {
    fn fragments(
        &mut self,
        name: &str,
        given: &Bound<'_, PyAny>,
        geometry: wire::Geometry,
    ) -> PyResult<()> {
        let sizes = geometry.part_bytes().repeat(geometry.layers() as usize);
        let found = given.cast::<PyList>().map_or(0, PyListMethods::len);
        if found != sizes.len() {
            let allowed = sizes.len();
            return Err(value(format!(
                "{name} is a list of {found} memories, allowed {allowed}, one for each fragment"
            )));
        }
        for (at, (fragment, bytes)) in given.try_iter()?.zip(sizes).enumerate() {
            self.take(&format!("{name}[{at}]"), &fragment?, bytes, "a fragment")?;
        }
        Ok(())
    }

    fn take(
        &mut self,
        name: &str,
        given: &Bound<'_, PyAny>,
        bytes: u32,
        what: &str,
    ) -> PyResult<()> {
        let view = View::of(name, given)?;
        let (found, allowed) = (view.dense_bytes(name)?, u64::from(bytes));
        if found != allowed {
            return Err(value(format!("{name} has {found} bytes, allowed {allowed}, {what}")));
        }
        if view.kind == Kind::Cuda || (self.writable && view.kind == Kind::HostReadOnly) {
            let kind = view.kind;
            return Err(value(format!("{name} is {kind:?}, allowed memory as was said")));
        }
        self.addresses.push(view.address);
        self.owners.push(view.owner);
        Ok(())
    }
}

fn refuse(layout: &Layout, kinds: &[Kind], allowed: &str) -> PyResult<()> {
    match layout.kinds.iter().position(|kind| kinds.contains(kind)) {
        None => Ok(()),
        Some(index) => {
            let kind = layout.kinds[index];
            Err(value(format!("tensors[{index}] is {kind:?}, allowed {allowed}")))
        }
    }
}

/// Why there is no GPU to copy with; `None` if there is a driver.
#[pyfunction]
pub(crate) fn probe_cuda(python: Python<'_>) -> Option<&'static str> {
    let is_present = python.detach(cuda::is_present);
    (!is_present).then_some("there is no CUDA driver on this machine that has what is needed")
}

/// A stream's handle, as torch has it in `cuda_stream`.
fn engine_stream(handle: usize) -> EngineStream {
    // SAFETY: it is part of the contract of what takes a stream that it is one of the device's
    // context, and outlives the device.
    unsafe { EngineStream::new(std::ptr::with_exposed_provenance_mut(handle)) }
}
