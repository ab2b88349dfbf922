//! The driver itself, its errors and its devices.

use super::{check_flags, put};
use crate::Code;
use crate::calls::Call;
use crate::settings::Setting;
use crate::state::{State, answer};
use std::ffi::{c_char, c_int, c_uint};

const ATTRIBUTE_MAX_PITCH: c_int = 11;
const ATTRIBUTE_MULTIPROCESSOR_COUNT: c_int = 16;
const ATTRIBUTE_UNIFIED_ADDRESSING: c_int = 41;
const ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: c_int = 75;
const ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: c_int = 76;
const ATTRIBUTE_HOST_REGISTER_SUPPORTED: c_int = 99;
const ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED: c_int = 113;

/// Most bytes from row to row in a 2D copy.
pub(super) const MAX_PITCH: u64 = 0x7fff_ffff;

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: c_uint) -> i32 {
    answer(Call::Init, |held| {
        check_flags(flags, 0)?;
        if held.settings.get(Setting::Devices) == 0 {
            return Err(Code::NO_DEVICE);
        }
        held.initialized = true;
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> i32 {
    answer(Call::DriverGetVersion, |held| {
        // SAFETY: the caller answers for its pointer.
        unsafe { put(version, held.settings.get(Setting::DriverVersion) as c_int) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(error: c_int, text: *mut *const c_char) -> i32 {
    answer(Call::GetErrorName, |_| {
        let name = Code(error).c_name().ok_or(Code::INVALID_VALUE)?;
        // SAFETY: the caller answers for its pointer.
        unsafe { put(text, name) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(error: c_int, text: *mut *const c_char) -> i32 {
    answer(Call::GetErrorString, |_| {
        let sentence = Code(error).c_text().ok_or(Code::INVALID_VALUE)?;
        // SAFETY: the caller answers for its pointer.
        unsafe { put(text, sentence) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> i32 {
    answer(Call::DeviceGetCount, |held| {
        // SAFETY: the caller answers for its pointer.
        unsafe { put(count, held.settings.get(Setting::Devices) as c_int) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> i32 {
    answer(Call::DeviceGet, |held| {
        held.device(ordinal)?;
        // SAFETY: the caller answers for its pointer.
        unsafe { put(device, ordinal) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) -> i32 {
    answer(Call::DeviceGetName, |held| {
        held.device(device)?;
        let room = usize::try_from(len).ok().filter(|len| *len > 0 && !name.is_null());
        let room = room.ok_or(Code::INVALID_VALUE)?;
        let text = format!("Stand-in device {device}");
        let fits = text.len().min(room - 1);
        // SAFETY: the caller answers for `len` bytes, and these are one less, and a NUL.
        unsafe {
            name.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), fits);
            name.add(fits).write(0);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(
    value: *mut c_int,
    attribute: c_int,
    device: c_int,
) -> i32 {
    answer(Call::DeviceGetAttribute, |held| {
        held.device(device)?;
        let setting = |setting| held.settings.get(setting);
        let found = match attribute {
            ATTRIBUTE_MAX_PITCH => MAX_PITCH,
            ATTRIBUTE_MULTIPROCESSOR_COUNT => setting(Setting::Multiprocessors),
            ATTRIBUTE_UNIFIED_ADDRESSING | ATTRIBUTE_HOST_REGISTER_SUPPORTED => 1,
            ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR => setting(Setting::ComputeCapability) / 10,
            ATTRIBUTE_COMPUTE_CAPABILITY_MINOR => setting(Setting::ComputeCapability) % 10,
            ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED => setting(Setting::ReadOnlyRegistration),
            _ => return Err(Code::INVALID_VALUE),
        };
        // SAFETY: the caller answers for its pointer.
        unsafe { put(value, found as c_int) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> i32 {
    answer(Call::DeviceTotalMem, |held| {
        held.device(device)?;
        // SAFETY: the caller answers for its pointer.
        unsafe { put(bytes, held.settings.get(Setting::DeviceBytes) as usize) }
    })
}

impl State {
    /// The device's number, if there is such a device.
    pub(super) fn device(&self, device: c_int) -> Result<u32, Code> {
        let found = u32::try_from(device).ok();
        let devices = self.settings.get(Setting::Devices);
        found.filter(|found| u64::from(*found) < devices).ok_or(Code::INVALID_DEVICE)
    }
}
