//! Captures of an engine's, as far as they concern others.

use super::put;
use crate::Code;
use crate::calls::Call;
use crate::capture;
use crate::handles::Handle;
use crate::settings::Setting;
use crate::state::answer;
use std::ffi::c_int;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuThreadExchangeStreamCaptureMode(mode: *mut c_int) -> i32 {
    answer(Call::ThreadExchangeStreamCaptureMode, |_| {
        if mode.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller answers for its pointer.
        let wished = unsafe { mode.read() };
        let before = capture::exchange(wished).ok_or(Code::INVALID_VALUE)?;
        // SAFETY: as above.
        unsafe { put(mode, before) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamIsCapturing(stream: Handle, status: *mut c_int) -> i32 {
    answer(Call::StreamIsCapturing, |held| {
        let captured = held.settings.get(Setting::Capturing);
        let found = held.stream(Call::StreamIsCapturing, stream)?;
        // SAFETY: the caller answers for its pointer.
        unsafe { put(status, c_int::from(captured != 0 && found.0 == captured)) }
    })
}
