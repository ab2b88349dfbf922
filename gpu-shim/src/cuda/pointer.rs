use super::CudaError;
use super::context::Context;
use crate::Tensor;

/// As `CUpointer_attribute` numbers them.
const MEMORY_TYPE: i32 = 2;
const DEVICE_ORDINAL: i32 = 9;
/// As `CUmemorytype` numbers it.
const ON_DEVICE: u32 = 2;

/// Fails where a tensor's first or last byte is not memory of the context's device: a copy there
/// would end the engine's context.
pub(super) fn check(context: &Context, tensor: &Tensor) -> Result<(), CudaError> {
    let _entered = context.enter()?;
    for at in [tensor.base, tensor.base + tensor.bytes.saturating_sub(1)] {
        let refused = |found: String| CudaError::NotDeviceMemory { at, found };
        let kind = ask(context, MEMORY_TYPE, at).map_err(|error| refused(error.to_string()))?;
        if kind != ON_DEVICE {
            return Err(refused("memory of the host".to_owned()));
        }
        let device = ask(context, DEVICE_ORDINAL, at)?;
        if i64::from(device) != i64::from(context.device) {
            let here = context.device;
            return Err(refused(format!("memory of cuda:{device}, and the context is of {here}")));
        }
    }
    Ok(())
}

fn ask(context: &Context, attribute: i32, at: u64) -> Result<u32, CudaError> {
    let mut value = 0_u32;
    // SAFETY: both attributes are numbers of 32 bits, and the pointer is to a local.
    let code =
        unsafe { (context.driver.pointer_get_attribute)((&raw mut value).cast(), attribute, at) };
    context.check("cuPointerGetAttribute", code)?;
    Ok(value)
}
