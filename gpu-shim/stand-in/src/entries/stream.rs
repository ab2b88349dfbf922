//! Streams and events.

use super::{check_flags, put};
use crate::Code;
use crate::calls::Call;
use crate::event::{EVENT_FLAGS, EVENT_INTERPROCESS, Event};
use crate::handles::Handle;
use crate::operation::{Operation, Point, Work};
use crate::state::answer;
use crate::stream::{self, Stream};
use std::ffi::c_uint;

/// Flag of `cuStreamCreate`: has nothing to do with the default stream.
const STREAM_NON_BLOCKING: u32 = 1;
/// Flag of `cuEventRecord` and `cuStreamWaitEvent`: for captures.
const EVENT_EXTERNAL: u32 = 1;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut Handle, flags: c_uint) -> i32 {
    answer(Call::StreamCreate, |held| {
        let context = held.contexts.current(Call::StreamCreate)?;
        check_flags(flags, STREAM_NON_BLOCKING)?;
        if stream.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let blocking = flags & STREAM_NON_BLOCKING == 0;
        let handle = held.streams.insert(Stream::new(context, false, blocking));
        if let Err(code) = stream::start(handle) {
            held.streams.remove(handle);
            return Err(code);
        }
        // SAFETY: the caller answers for its pointer.
        unsafe { put(stream, handle) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: Handle) -> i32 {
    answer(Call::StreamDestroy, |held| {
        if stream.0 <= 1 {
            return Err(Code::INVALID_HANDLE);
        }
        let stream = held.stream(Call::StreamDestroy, stream)?;
        // What is queued is still done, as with the driver.
        if let Some(stream) = held.streams.get_mut(stream) {
            stream.destroyed = true;
        }
        held.changed();
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: Handle) -> i32 {
    answer(Call::StreamSynchronize, |held| {
        let stream = held.stream(Call::StreamSynchronize, stream)?;
        held.check_not_captured(Call::StreamSynchronize, stream)?;
        let count = held.streams.get(stream).map_or(0, Stream::submitted);
        let point = Point { stream, count };
        held.wait_for(point);
        held.outcome(point)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, flags: c_uint) -> i32 {
    answer(Call::StreamWaitEvent, |held| {
        check_flags(flags, EVENT_EXTERNAL)?;
        let stream = held.stream(Call::StreamWaitEvent, stream)?;
        let recorded = held.event(Call::StreamWaitEvent, event)?;
        if let Some(point) = recorded {
            let after = vec![point];
            held.submit(stream, Operation { after, ..Operation::new(Work::Nothing) });
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut Handle, flags: c_uint) -> i32 {
    answer(Call::EventCreate, |held| {
        let context = held.contexts.current(Call::EventCreate)?;
        check_flags(flags, EVENT_FLAGS & !EVENT_INTERPROCESS)?;
        if event.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let handle = held.events.insert(Event { context, recorded: None });
        // SAFETY: the caller answers for its pointer.
        unsafe { put(event, handle) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> i32 {
    answer(Call::EventRecord, |held| {
        let stream = held.stream(Call::EventRecord, stream)?;
        held.check_not_captured(Call::EventRecord, stream)?;
        held.event(Call::EventRecord, event)?;
        let context = held.streams.get(stream).map(|stream| stream.context);
        if held.events.get(event).map(|event| event.context) != context {
            return Err(Code::INVALID_HANDLE);
        }
        let point = held.submit(stream, Operation::new(Work::Nothing));
        if let Some(event) = held.events.get_mut(event) {
            event.recorded = Some(point);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: Handle) -> i32 {
    answer(Call::EventQuery, |held| match held.event(Call::EventQuery, event)? {
        None => Ok(()),
        Some(point) if held.has_reached(point) => held.outcome(point),
        Some(_) => Err(Code::NOT_READY),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: Handle) -> i32 {
    answer(Call::EventSynchronize, |held| {
        let Some(point) = held.event(Call::EventSynchronize, event)? else {
            return Ok(());
        };
        held.wait_for(point);
        held.outcome(point)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: Handle) -> i32 {
    answer(Call::EventDestroy, |held| {
        held.event(Call::EventDestroy, event)?;
        held.events.remove(event);
        Ok(())
    })
}
