//! Contexts.

use super::put;
use crate::Code;
use crate::calls::Call;
use crate::handles::Handle;
use crate::operation::Point;
use crate::state::answer;
use std::ffi::c_int;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int) -> i32 {
    answer(Call::PrimaryCtxRetain, |held| {
        let device = held.device(device)?;
        if context.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let found = held.contexts.retain(device)?;
        // SAFETY: the caller answers for its pointer.
        unsafe { put(context, found) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> i32 {
    answer(Call::PrimaryCtxRelease, |held| {
        let device = held.device(device)?;
        if let Some(context) = held.contexts.release(device)? {
            held.destroy_context(Call::PrimaryCtxRelease, context);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(context: *mut Handle) -> i32 {
    answer(Call::CtxGetCurrent, |held| {
        let top = held.contexts.top().unwrap_or(Handle::NULL);
        // SAFETY: the caller answers for its pointer.
        unsafe { put(context, top) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxPushCurrent_v2(context: Handle) -> i32 {
    answer(Call::CtxPushCurrent, |held| {
        if held.contexts.table.get(context).is_none() {
            let stale = held.contexts.table.is_stale(context);
            held.no_object(Call::CtxPushCurrent, "context", context, stale);
            return Err(Code::INVALID_CONTEXT);
        }
        held.contexts.push(context);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxPopCurrent_v2(context: *mut Handle) -> i32 {
    answer(Call::CtxPopCurrent, |held| {
        let Some(top) = held.contexts.pop() else {
            held.violate(Call::CtxPopCurrent, "nothing was pushed on this thread".to_owned());
            return Err(Code::INVALID_CONTEXT);
        };
        if !context.is_null() {
            // SAFETY: the caller answers for its pointer, which may be null here.
            unsafe { put(context, top)? };
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetDevice(device: *mut c_int) -> i32 {
    answer(Call::CtxGetDevice, |held| {
        let current = held.contexts.current(Call::CtxGetDevice)?;
        let context = held.contexts.table.get(current).ok_or(Code::INVALID_CONTEXT)?;
        // SAFETY: the caller answers for its pointer.
        unsafe { put(device, context.device as c_int) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> i32 {
    answer(Call::CtxSynchronize, |held| {
        let current = held.contexts.current(Call::CtxSynchronize)?;
        let streams = held.streams.iter().filter(|(_, stream)| stream.context == current);
        let points: Vec<Point> =
            streams.map(|(stream, it)| Point { stream, count: it.submitted() }).collect();
        points.iter().for_each(|point| held.wait_for(*point));
        held.contexts.check(current, Call::CtxSynchronize)?;
        // Every stream's failures are told, whatever the first of them is.
        let outcomes: Vec<_> = points.iter().map(|point| held.outcome(*point)).collect();
        outcomes.into_iter().collect()
    })
}
