//! Memory of devices and pinned memory of the host.

use super::{check_flags, put};
use crate::Code;
use crate::calls::Call;
use crate::mappings::{Access, access};
use crate::memory::{HOST_ALLOC_FLAGS, Place, REGISTER_FLAGS, REGISTER_READ_ONLY};
use crate::settings::Setting;
use crate::state::{Held, State, answer};
use std::ffi::{c_int, c_uint, c_void};
use std::ptr::with_exposed_provenance_mut;

/// Of `CUpointer_attribute` those that are known here.
const POINTER_MEMORY_TYPE: c_int = 2;
const POINTER_DEVICE_ORDINAL: c_int = 9;
/// `CUmemorytype` of `cuda.h`.
const TYPE_HOST: c_uint = 1;
const TYPE_DEVICE: c_uint = 2;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuPointerGetAttribute(value: *mut c_uint, attribute: c_int, at: u64) -> i32 {
    answer(Call::PointerGetAttribute, |held| {
        let place = held.memory.place(at, 1).ok_or(Code::INVALID_VALUE)?;
        let found = match (attribute, place) {
            (POINTER_MEMORY_TYPE, Place::Device { .. }) => TYPE_DEVICE,
            (POINTER_MEMORY_TYPE, Place::Pinned { .. }) => TYPE_HOST,
            (POINTER_DEVICE_ORDINAL, Place::Device { context, .. }) => {
                held.contexts.table.get(context).ok_or(Code::INVALID_CONTEXT)?.device
            }
            _ => return Err(Code::INVALID_VALUE),
        };
        // SAFETY: the caller answers for its pointer, which is to a number for these attributes.
        unsafe { put(value, found) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> i32 {
    answer(Call::MemAlloc, |held| {
        let context = held.contexts.current(Call::MemAlloc)?;
        if address.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let room = held.settings.get(Setting::DeviceBytes);
        let at = held.memory.allocate(context, bytes as u64, room)?;
        // SAFETY: the caller answers for its pointer.
        unsafe { put(address, at) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> i32 {
    answer(Call::MemFree, |held| {
        held.contexts.current(Call::MemFree)?;
        let Some(end) = held.memory.device.end(address) else {
            return Err(held.not_allocated(Call::MemFree, address));
        };
        held.leave(Call::MemFree, address, end);
        held.memory.device.remove(address);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, flags: c_uint) -> i32 {
    answer(Call::MemHostAlloc, |held| {
        let context = held.contexts.current(Call::MemHostAlloc)?;
        check_flags(flags, HOST_ALLOC_FLAGS)?;
        if address.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        held.check_pinned(bytes as u64)?;
        let at = held.memory.allocate_host(context, bytes as u64)?;
        // SAFETY: the caller answers for its pointer.
        unsafe { put(address, with_exposed_provenance_mut(at as usize)) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(address: *mut c_void) -> i32 {
    answer(Call::MemFreeHost, |held| {
        held.contexts.current(Call::MemFreeHost)?;
        let at = address.addr() as u64;
        if held.memory.pinned.at(at).is_none_or(|pinned| pinned.block.is_none()) {
            return Err(held.not_allocated(Call::MemFreeHost, at));
        }
        held.unpin(Call::MemFreeHost, at);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostRegister_v2(address: *mut c_void, bytes: usize, flags: c_uint) -> i32 {
    answer(Call::MemHostRegister, |held| {
        let context = held.contexts.current(Call::MemHostRegister)?;
        check_flags(flags, REGISTER_FLAGS)?;
        let (at, bytes) = (address.expose_provenance() as u64, bytes as u64);
        let ceiling = held.settings.get(Setting::RegisterCeilingBytes);
        if at == 0 || bytes == 0 || bytes > ceiling {
            return Err(Code::INVALID_VALUE);
        }
        let read_only = flags & REGISTER_READ_ONLY != 0;
        if read_only && !held.settings.is_on(Setting::ReadOnlyRegistration) {
            return Err(Code::NOT_SUPPORTED);
        }
        match access(at, bytes) {
            Access::Write => {}
            Access::Read if read_only => {}
            Access::Read | Access::None => return Err(Code::INVALID_VALUE),
        }
        held.check_pinned(bytes)?;
        held.memory.register(context, at, bytes, read_only)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostUnregister(address: *mut c_void) -> i32 {
    answer(Call::MemHostUnregister, |held| {
        held.contexts.current(Call::MemHostUnregister)?;
        let at = address.addr() as u64;
        if held.memory.pinned.at(at).is_none_or(|pinned| pinned.block.is_some()) {
            return Err(Code::HOST_MEMORY_NOT_REGISTERED);
        }
        held.unpin(Call::MemHostUnregister, at);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostGetDevicePointer_v2(
    device: *mut u64,
    host: *mut c_void,
    flags: c_uint,
) -> i32 {
    answer(Call::MemHostGetDevicePointer, |held| {
        held.contexts.current(Call::MemHostGetDevicePointer)?;
        check_flags(flags, 0)?;
        let at = host.addr() as u64;
        match held.memory.place(at, 1) {
            // SAFETY: the caller answers for its pointer.
            Some(Place::Pinned { .. }) => unsafe { put(device, at) },
            _ => Err(Code::INVALID_VALUE),
        }
    })
}

impl State {
    fn not_allocated(&mut self, call: Call, address: u64) -> Code {
        self.violate(call, format!("{address:#x} is not the start of an allocation"));
        Code::INVALID_VALUE
    }

    /// Whether there is room for so many pinned bytes more.
    fn check_pinned(&self, bytes: u64) -> Result<(), Code> {
        let room = self.settings.get(Setting::PinnedBytes);
        let left = room.saturating_sub(self.memory.pinned.bytes());
        if bytes <= left { Ok(()) } else { Err(Code::OUT_OF_MEMORY) }
    }
}

impl Held {
    /// Memory of the host is pinned no longer; what the driver allocated is freed.
    fn unpin(&mut self, call: Call, start: u64) {
        if let Some(end) = self.memory.pinned.end(start) {
            self.leave(call, start, end);
            self.memory.pinned.remove(start);
        }
    }
}
