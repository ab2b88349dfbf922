//! Where an engine's blocks lie, and who copies them.

#![expect(unsafe_code, reason = "exported by name, for C; pointers come from there")]

use crate::client::UndercroftClient;
use crate::grows::{self, Grows};
use crate::keys::UndercroftGeometry;
use crate::outcome::{
    Fault, UNDERCROFT_ERROR_DEVICE, UNDERCROFT_OK, answer, miss, quietly, remember,
};
use crate::strings::{self, Place};
use std::ffi::c_void;
use std::sync::Arc;
use undercroft_client::MissReason;
use undercroft_gpu_shim::cuda::{
    self, After, CopyMode, CudaDevice, CudaDeviceAfter, CudaOptions, EngineStream,
};
use undercroft_gpu_shim::{
    Buffers, Device, DeviceError, HostDevice, HostOptions, KvLayout, Place as KvPlace, Tensor,
};

/// Every fragment by its tensor and its place: `tensors` and `places`.
pub const UNDERCROFT_LAYOUT_PLACES: u32 = 0;
/// `bases`: a tensor [blocks, …] for every fragment, in the order fragments have in a page.
pub const UNDERCROFT_LAYOUT_SPLIT: u32 = 1;
/// `bases`: a tensor [parts, blocks, …] for each layer.
pub const UNDERCROFT_LAYOUT_PARTS_FIRST: u32 = 2;
/// `bases`: a tensor [blocks, parts, …] for each layer.
pub const UNDERCROFT_LAYOUT_BLOCK_FIRST: u32 = 3;
/// `bases`: one tensor [blocks, layers, parts, …]: a block is a page as it stands.
pub const UNDERCROFT_LAYOUT_CROSS_LAYER: u32 = 4;
/// `bases`: a tensor [tokens, layers, …] for each part, `page_tokens` of its rows to a block.
pub const UNDERCROFT_LAYOUT_TOKEN_FIRST: u32 = 5;

/// What is fastest on this machine is found out when the device is made.
pub const UNDERCROFT_COPY_MEASURED: u32 = 0;
/// The copy engine, with one call for as many evenly spaced fragments as there are.
pub const UNDERCROFT_COPY_PITCHED: u32 = 1;
/// The copy engine, with one call for thousands of fragments (CUDA 12.8).
pub const UNDERCROFT_COPY_BATCHED: u32 = 2;
/// A kernel on few multiprocessors.
pub const UNDERCROFT_COPY_KERNEL: u32 = 3;

/// Where an engine keeps its blocks, and who copies between them and the daemon's memory. It refers to the
/// caller's memory, which must stay until the device is freed and every call and task that uses it is over.
/// Any number of threads may use it at once.
pub struct UndercroftDevice {
    pub(crate) kind: Kind,
}

#[derive(Clone)]
pub(crate) enum Kind {
    Host(Arc<dyn Device>),
    Cuda(Arc<CudaDevice>),
}

/// One allocation of the engine that holds fragments.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UndercroftTensor {
    /// Its first byte.
    pub base: *mut c_void,
    /// Its length, bytes.
    pub bytes: u64,
}

/// Where one fragment of every block lies.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UndercroftPlace {
    /// Index of the tensor it lies in.
    pub tensor: u32,
    /// Into how many rows of equal length it is cut; 1 where it is in one piece.
    pub rows: u32,
    /// Where it begins for block 0, bytes from the tensor's first.
    pub offset: u64,
    /// From one block to the next, bytes.
    pub block_stride: u64,
    /// From one row to the next, bytes; of no meaning with one row.
    pub row_stride: u64,
}

/// Where the fragments of each block lie. It and what it points to are needed during the call only; the memory it
/// tells of for as long as the device.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UndercroftLayout {
    /// `sizeof(undercroft_layout)`.
    pub size: usize,
    /// The shape of a page.
    pub geometry: UndercroftGeometry,
    /// Number of blocks.
    pub blocks: u32,
    /// One of `UNDERCROFT_LAYOUT_*`.
    pub kind: u32,
    /// For `UNDERCROFT_LAYOUT_TOKEN_FIRST`: tokens in a page.
    pub page_tokens: u32,
    /// Must be zero.
    pub reserved: u32,
    /// The first bytes of tensors, as the kind has them.
    pub bases: *const *mut c_void,
    /// How many.
    pub n_bases: usize,
    /// For `UNDERCROFT_LAYOUT_PLACES`: the tensors, which must not overlap.
    pub tensors: *const UndercroftTensor,
    /// How many.
    pub n_tensors: usize,
    /// For `UNDERCROFT_LAYOUT_PLACES`: one for each fragment in the order of a page: layer 0 part 0, layer 0
    /// part 1, layer 1 part 0, …
    pub places: *const UndercroftPlace,
    /// How many.
    pub n_places: usize,
}

// SAFETY: numbers and raw pointers.
unsafe impl Grows for UndercroftLayout {
    const NAME: &'static str = "undercroft_layout";
    const FIRST_BYTES: usize = 112;
}

/// How a GPU copies. A field that is zero has its default.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UndercroftCudaOptions {
    /// `sizeof(undercroft_cuda_options)`.
    pub size: usize,
    /// By what pages are loaded: one of `UNDERCROFT_COPY_*`.
    pub load: u32,
    /// By what pages are stored: one of `UNDERCROFT_COPY_*`.
    pub store: u32,
    /// The most multiprocessors the kernel may use; 0: 16, or an eighth of all if that is less.
    pub kernel_blocks: u32,
    /// Not 0: load on `load_stream` instead of a stream of the device's own.
    pub use_load_stream: u32,
    /// Not 0: store on `store_stream` instead of a stream of the device's own.
    pub use_store_stream: u32,
    /// Must be zero.
    pub reserved: u32,
    /// A `CUstream`, which is also a `cudaStream_t`.
    pub load_stream: *mut c_void,
    /// A `CUstream`, which is also a `cudaStream_t`.
    pub store_stream: *mut c_void,
}

// SAFETY: numbers and raw pointers.
unsafe impl Grows for UndercroftCudaOptions {
    const NAME: &'static str = "undercroft_cuda_options";
    const FIRST_BYTES: usize = 48;
}

impl UndercroftDevice {
    pub(crate) fn gpu(&self) -> Result<&CudaDevice, Fault> {
        match &self.kind {
            Kind::Cuda(device) => Ok(device),
            Kind::Host(_) => Err(Fault::argument("the device is no GPU")),
        }
    }
}

/// A device for one transfer, which may have to wait for the engine's own work first.
pub(crate) enum Copier {
    Host(Arc<dyn Device>),
    Cuda(Arc<CudaDevice>),
    After(CudaDeviceAfter<Arc<CudaDevice>>),
}

impl Copier {
    pub(crate) fn of(device: &UndercroftDevice) -> Self {
        match device.kind.clone() {
            Kind::Host(device) => Self::Host(device),
            Kind::Cuda(device) => Self::Cuda(device),
        }
    }

    /// Ordered after what is on the engine's stream now.
    pub(crate) fn after(device: &UndercroftDevice, stream: EngineStream) -> Result<Self, Fault> {
        let Kind::Cuda(device) = device.kind.clone() else {
            return Err(Fault::argument("after_stream is set, and the device is no GPU"));
        };
        let after = device.after_shared(After::Stream(stream));
        Ok(Self::After(after.map_err(DeviceError::from)?))
    }

    pub(crate) fn device(&self) -> &dyn Device {
        match self {
            Self::Host(device) => &**device,
            Self::Cuda(device) => &**device,
            Self::After(after) => after,
        }
    }
}

/// A device over blocks in host memory, laid out like an engine's KV cache. The calling thread copies. It goes to
/// `device`; free it with `undercroft_device_free`. A layout whose blocks share bytes is refused.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_device_host(
    layout: *const UndercroftLayout,
    device: *mut *mut UndercroftDevice,
) -> i32 {
    answer("undercroft_device_host", || {
        // SAFETY: the caller's, as the header says.
        unsafe { strings::clear(device) };
        // SAFETY: as above.
        let (layout, place) = unsafe { (kv_layout(layout)?, Place::new("device", device)?) };
        // SAFETY: as above: the tensors are there until the device and its calls are over.
        let host = unsafe { HostDevice::attach(layout, HostOptions::default()) }?;
        place.put(handed_out(Kind::Host(Arc::new(host))));
        Ok(UNDERCROFT_OK)
    })
}

/// A device of pages that each lie whole in a buffer of their own, in host memory: block `i` is `buffers[i]`, of
/// as many bytes as the geometry's page. With `read_only` not 0 pages can be stored out of them only. It goes to
/// `device`; free it with `undercroft_device_free`. Buffers that overlap are refused unless they are read-only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_device_buffers(
    geometry: *const UndercroftGeometry,
    buffers: *const *mut c_void,
    count: usize,
    read_only: u32,
    device: *mut *mut UndercroftDevice,
) -> i32 {
    answer("undercroft_device_buffers", || {
        // SAFETY: the caller's, as the header says.
        unsafe { strings::clear(device) };
        // SAFETY: as above.
        let geometry = unsafe { strings::handle("geometry", geometry) }?.check()?;
        // SAFETY: as above.
        let (buffers, place) =
            unsafe { (strings::items("buffers", buffers, count)?, Place::new("device", device)?) };
        let addresses = addresses(buffers);
        // SAFETY: as above: the buffers are there until the device and its calls are over.
        let pages = unsafe { Buffers::new(geometry, &addresses, read_only == 0) }?;
        place.put(handed_out(Kind::Host(Arc::new(pages))));
        Ok(UNDERCROFT_OK)
    })
}

/// A device over blocks in a GPU's memory, in the CUDA context that is current in this thread. `options` may be
/// null. It goes to `device`; free it with `undercroft_device_free`.
///
/// By what it copies is measured now, unless `options` say it: some blocks are read and written back as they
/// were, so nothing else may touch them during the call. The memory, the context and the streams in `options`
/// must outlive the device. `UNDERCROFT_ERROR_DEVICE` if there is no driver, no context, or a call of it failed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_device_cuda(
    layout: *const UndercroftLayout,
    options: *const UndercroftCudaOptions,
    device: *mut *mut UndercroftDevice,
) -> i32 {
    answer("undercroft_device_cuda", || {
        // SAFETY: the caller's, as the header says.
        unsafe { strings::clear(device) };
        // SAFETY: as above.
        let (layout, place) = unsafe { (kv_layout(layout)?, Place::new("device", device)?) };
        // SAFETY: as above.
        let options = unsafe { cuda_options(options) }?;
        if !cuda::is_present() {
            remember(&"undercroft_device_cuda: there is no CUDA driver on this machine");
            return Ok(UNDERCROFT_ERROR_DEVICE);
        }
        // SAFETY: as above: the layout is memory of the current context.
        let gpu = unsafe { CudaDevice::attach(layout, options) }?;
        place.put(handed_out(Kind::Cuda(Arc::new(gpu))));
        Ok(UNDERCROFT_OK)
    })
}

/// Copies with this GPU from now on, for a client that connected before it had its device: the daemon's memory is
/// registered with it in the background, and `undercroft status` says by what it copies.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_client_attach_gpu(
    client: *const UndercroftClient,
    device: *const UndercroftDevice,
) -> i32 {
    answer("undercroft_client_attach_gpu", || {
        // SAFETY: the caller's, as the header says.
        let (client, device) =
            unsafe { (strings::handle("client", client)?, strings::handle("device", device)?) };
        let gpu = device.gpu()?;
        if client.is_foreign() {
            return Ok(miss(Some(MissReason::Forked)));
        }
        let attached = client.client.attach_gpu(gpu);
        attached.map_err(DeviceError::from)?;
        Ok(UNDERCROFT_OK)
    })
}

/// Frees a device. Null is allowed. Blocks of a task that is under way are still written to or read: wait for it
/// first, before the memory goes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_device_free(device: *mut UndercroftDevice) {
    quietly("undercroft_device_free", || {
        if !device.is_null() {
            // SAFETY: the caller's, as the header says: it is ours, and is not used again.
            drop(unsafe { Box::from_raw(device) });
        }
    });
}

fn handed_out(kind: Kind) -> *mut UndercroftDevice {
    Box::into_raw(Box::new(UndercroftDevice { kind }))
}

fn addresses(pointers: &[*mut c_void]) -> Vec<u64> {
    pointers.iter().map(|pointer| pointer.expose_provenance() as u64).collect()
}

/// # Safety
/// As [`grows::read`], and its arrays as [`strings::items`].
unsafe fn kv_layout(at: *const UndercroftLayout) -> Result<KvLayout, Fault> {
    // SAFETY: the caller's.
    let given = unsafe { grows::read(at) }?;
    if given.reserved != 0 {
        return Err(Fault::argument("layout.reserved is not 0"));
    }
    let (geometry, blocks) = (given.geometry.check()?, given.blocks);
    // SAFETY: the caller's.
    let bases = addresses(unsafe { strings::items("layout.bases", given.bases, given.n_bases) }?);
    let layout = match given.kind {
        UNDERCROFT_LAYOUT_PLACES => {
            // SAFETY: the caller's.
            let (tensors, places) = unsafe { places(&given) }?;
            KvLayout::new(geometry, blocks, tensors, places)
        }
        UNDERCROFT_LAYOUT_SPLIT => KvLayout::split(geometry, blocks, &bases),
        UNDERCROFT_LAYOUT_PARTS_FIRST => KvLayout::parts_first(geometry, blocks, &bases),
        UNDERCROFT_LAYOUT_BLOCK_FIRST => KvLayout::block_first(geometry, blocks, &bases),
        UNDERCROFT_LAYOUT_CROSS_LAYER => match bases[..] {
            [base] => KvLayout::cross_layer(geometry, blocks, base),
            _ => {
                return Err(Fault::argument("layout.n_bases is not 1, and the kind is one tensor"));
            }
        },
        UNDERCROFT_LAYOUT_TOKEN_FIRST => {
            KvLayout::token_first(geometry, blocks, given.page_tokens, &bases)
        }
        kind => {
            let what = format!("layout.kind is {kind}, allowed UNDERCROFT_LAYOUT_* (0 to 5)");
            return Err(Fault::Argument(what));
        }
    };
    layout.map_err(|error| Fault::argument(format!("layout: {error}")))
}

/// # Safety
/// Its arrays are as [`strings::items`].
unsafe fn places(given: &UndercroftLayout) -> Result<(Vec<Tensor>, Vec<KvPlace>), Fault> {
    // SAFETY: the caller's.
    let tensors = unsafe { strings::items("layout.tensors", given.tensors, given.n_tensors) }?;
    // SAFETY: the caller's.
    let places = unsafe { strings::items("layout.places", given.places, given.n_places) }?;
    let tensors = tensors
        .iter()
        .map(|tensor| Tensor { base: tensor.base.expose_provenance() as u64, bytes: tensor.bytes });
    let places = places.iter().map(|place| KvPlace {
        tensor: place.tensor as usize,
        offset: place.offset,
        block_stride: place.block_stride,
        rows: place.rows,
        row_stride: place.row_stride,
    });
    Ok((tensors.collect(), places.collect()))
}

/// # Safety
/// As [`grows::read`]; null has the defaults. Its streams are streams of the current context.
unsafe fn cuda_options(at: *const UndercroftCudaOptions) -> Result<CudaOptions, Fault> {
    if at.is_null() {
        return Ok(CudaOptions::default());
    }
    // SAFETY: the caller's.
    let given = unsafe { grows::read(at) }?;
    if given.reserved != 0 {
        return Err(Fault::argument("options.reserved is not 0"));
    }
    let stream = |is_used: u32, handle| {
        // SAFETY: the caller's: it is a stream.
        (is_used != 0).then(|| unsafe { EngineStream::new(handle) })
    };
    Ok(CudaOptions {
        load: copy_mode("options.load", given.load)?,
        store: copy_mode("options.store", given.store)?,
        kernel_blocks: (given.kernel_blocks != 0).then_some(given.kernel_blocks),
        pace: None,
        load_stream: stream(given.use_load_stream, given.load_stream),
        store_stream: stream(given.use_store_stream, given.store_stream),
    })
}

fn copy_mode(what: &str, given: u32) -> Result<Option<CopyMode>, Fault> {
    Ok(match given {
        UNDERCROFT_COPY_MEASURED => None,
        UNDERCROFT_COPY_PITCHED => Some(CopyMode::Pitched),
        UNDERCROFT_COPY_BATCHED => Some(CopyMode::Batched),
        UNDERCROFT_COPY_KERNEL => Some(CopyMode::Kernel),
        _ => {
            let what = format!("{what} is {given}, allowed UNDERCROFT_COPY_* (0 to 3)");
            return Err(Fault::Argument(what));
        }
    })
}
