use crate::error::value;
use pyo3::buffer::PyUntypedBuffer;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyCapsuleMethods, PyTuple};
use std::ffi::{CStr, c_int, c_void};
use std::slice;

/// Memory that Python handed over, seen as an array. It lives as long as `owner`.
pub(crate) struct View {
    pub(crate) address: u64,
    pub(crate) item_bytes: u64,
    pub(crate) shape: Vec<u64>,
    /// From one index to the next of each dimension, bytes.
    pub(crate) strides: Vec<u64>,
    pub(crate) kind: Kind,
    pub(crate) owner: Owner,
}

/// Where memory lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Host,
    /// Host memory that must not be written.
    HostReadOnly,
    Cuda,
    /// Only the caller knows: an address and a length.
    Untold,
}

/// What keeps memory where it is.
#[derive(Debug)]
#[expect(dead_code, reason = "it is only ever kept")]
pub(crate) enum Owner {
    Nobody,
    Object(Py<PyAny>),
    /// A buffer that is exported cannot be resized.
    Buffer(PyUntypedBuffer),
}

impl View {
    /// What an argument called `name` is: a tensor as torch has them, anything with a buffer or
    /// `__dlpack__`, or an address with a length.
    pub(crate) fn of(name: &str, given: &Bound<'_, PyAny>) -> PyResult<Self> {
        if given.is_instance_of::<PyTuple>() {
            return of_address(name, given);
        }
        if given.hasattr("data_ptr")? {
            return of_tensor(given);
        }
        if let Ok(buffer) = PyUntypedBuffer::get(given) {
            return of_buffer(name, buffer);
        }
        if given.hasattr("__dlpack__")? {
            return of_dlpack(name, given);
        }
        let found = given.get_type().name()?.to_string();
        Err(value(format!(
            "{name} is of type {found}, allowed a tensor, a buffer, an object with __dlpack__, or \
             (address, bytes)"
        )))
    }

    /// From its first byte to behind its last one; what lies between elements counts. Sizes that no
    /// memory has come out as the largest, which is refused wherever memory is described.
    pub(crate) fn extent(&self) -> u64 {
        if self.shape.contains(&0) {
            return 0;
        }
        let last = self.shape.iter().zip(&self.strides).map(|(n, s)| (n - 1).saturating_mul(*s));
        last.fold(self.item_bytes, u64::saturating_add)
    }

    /// Its bytes, if nothing lies between them.
    pub(crate) fn dense_bytes(&self, name: &str) -> PyResult<u64> {
        let bytes = self.shape.iter().fold(self.item_bytes, |bytes, n| bytes.saturating_mul(*n));
        if bytes == self.extent() && bytes > 0 {
            return Ok(bytes);
        }
        Err(value(format!(
            "{name} has {bytes} bytes in {}, allowed memory in one piece that is not empty",
            self.extent()
        )))
    }
}

fn of_address(name: &str, given: &Bound<'_, PyAny>) -> PyResult<View> {
    let (address, bytes): (u64, u64) = given
        .extract()
        .map_err(|_| value(format!("{name} is a tuple, allowed (address, bytes)")))?;
    let (shape, strides) = (vec![bytes], vec![1]);
    let (kind, owner) = (Kind::Untold, Owner::Nobody);
    Ok(View { address, item_bytes: 1, shape, strides, kind, owner })
}

fn of_tensor(given: &Bound<'_, PyAny>) -> PyResult<View> {
    let item_bytes: u64 = given.call_method0("element_size")?.extract()?;
    let strides: Vec<u64> = given.call_method0("stride")?.extract()?;
    let device: String = given.getattr("device")?.getattr("type")?.extract()?;
    let kind = match device.as_str() {
        "cpu" => Kind::Host,
        "cuda" => Kind::Cuda,
        other => return Err(value(format!("a tensor lies on {other}, allowed cpu and cuda"))),
    };
    Ok(View {
        address: given.call_method0("data_ptr")?.extract()?,
        item_bytes,
        shape: given.getattr("shape")?.extract()?,
        strides: strides.into_iter().map(|stride| stride.saturating_mul(item_bytes)).collect(),
        kind,
        owner: Owner::Object(given.clone().unbind()),
    })
}

fn of_buffer(name: &str, buffer: PyUntypedBuffer) -> PyResult<View> {
    let positive = |stride: &isize| {
        u64::try_from(*stride).map_err(|_| value(format!("{name} has a negative stride")))
    };
    Ok(View {
        address: buffer.buf_ptr().expose_provenance() as u64,
        item_bytes: buffer.item_size() as u64,
        shape: buffer.shape().iter().map(|n| *n as u64).collect(),
        strides: buffer.strides().iter().map(positive).collect::<PyResult<_>>()?,
        kind: if buffer.readonly() { Kind::HostReadOnly } else { Kind::Host },
        owner: Owner::Buffer(buffer),
    })
}

/// `DLManagedTensor` of DLPack's C interface, up to what is read here.
#[repr(C)]
struct Managed {
    data: *mut c_void,
    device_type: c_int,
    device_id: c_int,
    dimensions: c_int,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

const NAME: &CStr = c"dltensor";
/// `kDLCPU`, `kDLCUDAHost`: memory that the processor reads and writes.
const HOST: [c_int; 2] = [1, 3];
/// `kDLCUDA`, `kDLCUDAManaged`.
const CUDA: [c_int; 2] = [2, 13];

fn of_dlpack(name: &str, given: &Bound<'_, PyAny>) -> PyResult<View> {
    let capsule = given.call_method0("__dlpack__")?;
    let capsule = capsule.cast::<PyCapsule>()?;
    // It is never taken out of its capsule: that frees it when the capsule goes.
    let managed = capsule.pointer_checked(Some(NAME))?.cast::<Managed>();
    // SAFETY: a capsule of this name holds such a tensor, as DLPack's interface for Python has it,
    // and lives until the view is gone.
    let tensor = unsafe { managed.as_ref() };
    let count = usize::try_from(tensor.dimensions)
        .map_err(|_| value(format!("{name} has {} dimensions", tensor.dimensions)))?;
    // SAFETY: the interface promises as many entries as there are dimensions.
    let shape = unsafe { numbers(tensor.shape, count) };
    let shape = shape.ok_or_else(|| value(format!("{name} has no shape")))?;
    let item_bytes = u64::from(tensor.bits) * u64::from(tensor.lanes) / 8;
    // SAFETY: as above, or none where it is dense.
    let strides = match unsafe { numbers(tensor.strides, count) } {
        Some(strides) => strides,
        None => dense(&shape),
    };
    let negative = || value(format!("{name} has a negative size or stride"));
    let positive = |n: &i64| u64::try_from(*n).map_err(|_| negative());
    let shape = shape.iter().map(positive).collect::<PyResult<Vec<_>>>()?;
    let strides = strides.iter().map(positive).collect::<PyResult<Vec<_>>>()?;
    let kind = match tensor.device_type {
        host if HOST.contains(&host) => Kind::Host,
        cuda if CUDA.contains(&cuda) => Kind::Cuda,
        other => return Err(value(format!("{name} lies on a device of type {other} of DLPack"))),
    };
    Ok(View {
        address: (tensor.data.expose_provenance() as u64).saturating_add(tensor.byte_offset),
        item_bytes,
        strides: strides.into_iter().map(|stride| stride.saturating_mul(item_bytes)).collect(),
        shape,
        kind,
        owner: Owner::Object(capsule.clone().into_any().unbind()),
    })
}

/// # Safety
/// Null, or `count` numbers lie there.
unsafe fn numbers(at: *const i64, count: usize) -> Option<Vec<i64>> {
    if at.is_null() {
        return (count == 0).then(Vec::new);
    }
    // SAFETY: the caller's promise.
    Some(unsafe { slice::from_raw_parts(at, count) }.to_vec())
}

fn dense(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for at in (1..shape.len()).rev() {
        strides[at - 1] = i64::saturating_mul(strides[at], shape[at].max(1));
    }
    strides
}
