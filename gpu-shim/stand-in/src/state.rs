//! All that the driver knows, under one lock, and what happens to it as a whole.

use crate::Code;
use crate::calls::Call;
use crate::capture;
use crate::context::Contexts;
use crate::event::Event;
use crate::failures::Failures;
use crate::handles::{Handle, Kind, Table};
use crate::leaving;
use crate::memory::Memory;
use crate::module::{Function, Module};
use crate::operation::{Operation, Point};
use crate::report::Counts;
use crate::settings::{Setting, Settings};
use crate::stream::{self, Stream};
use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};

/// Most violations whose text is kept.
const TEXTS: usize = 64;

static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| Mutex::new(State::new()));
static CHANGED: Condvar = Condvar::new();

/// The driver.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) settings: Settings,
    pub(crate) initialized: bool,
    pub(crate) contexts: Contexts,
    pub(crate) memory: Memory,
    pub(crate) streams: Table<Stream>,
    pub(crate) events: Table<Event>,
    pub(crate) modules: Table<Module>,
    pub(crate) functions: Table<Function>,
    pub(crate) failures: Failures,
    pub(crate) counts: Counts,
    pub(crate) violations: Vec<String>,
}

/// The state, locked.
pub(crate) struct Held(Option<MutexGuard<'static, State>>);

impl Held {
    pub(crate) fn lock() -> Self {
        Self(Some(STATE.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Lets go of the lock until something has changed.
    pub(crate) fn wait(&mut self) {
        self.0 =
            self.0.take().map(|guard| CHANGED.wait(guard).unwrap_or_else(PoisonError::into_inner));
    }

    /// Does something without the lock.
    pub(crate) fn unlocked(&mut self, act: impl FnOnce()) {
        self.0 = None;
        act();
        *self = Self::lock();
    }

    /// Waits until all before the point is over.
    pub(crate) fn wait_for(&mut self, point: Point) {
        while !self.has_reached(point) {
            self.wait();
        }
    }

    /// Tells whoever waits.
    pub(crate) fn changed(&self) {
        CHANGED.notify_all();
    }

    /// Memory is about to go: nobody may still be about to touch it.
    pub(crate) fn leave(&mut self, call: Call, start: u64, end: u64) {
        if self.streams.iter().any(|(_, stream)| stream.will_touch(start, end)) {
            let bytes = end - start;
            self.violate(call, format!("an operation still touches {start:#x} + {bytes}"));
        }
        while self.streams.iter().any(|(_, stream)| stream.is_running_on(start, end)) {
            self.wait();
        }
    }

    /// Drops what has not started on the streams that are meant, and waits for the rest.
    pub(crate) fn abandon(&mut self, meant: impl Fn(&Stream) -> bool) {
        self.streams.values_mut().filter(|stream| meant(stream)).for_each(Stream::abandon);
        while self.streams.iter().any(|(_, stream)| meant(stream) && stream.is_running()) {
            self.wait();
        }
    }

    /// Destroys a context with all that is in it, of which nothing should be left.
    pub(crate) fn destroy_context(&mut self, call: Call, context: Handle) {
        let left = self.report_of(Some(context)).objects();
        if !left.is_empty() {
            self.violate(call, format!("the context still had {}", left.join(", ")));
        }
        if self.contexts.is_pushed(context) {
            self.violate(call, "the context is on the stack of a thread".to_owned());
        }
        self.abandon(|stream| stream.context == context);
        self.contexts.table.remove(context);
        self.forget(|owner| owner == context);
        self.changed();
    }

    /// As if the library had just been loaded, but for `cuInit`, and for handles: old ones stay
    /// unknown.
    pub(crate) fn reset(&mut self) {
        self.abandon(|_| true);
        self.forget(|_| true);
        self.contexts.reset();
        self.streams.reset();
        self.events.reset();
        self.modules.reset();
        self.functions.reset();
        self.settings = Settings::from_environment();
        self.failures = Failures::default();
        self.counts = Counts::default();
        self.violations.clear();
        self.changed();
    }
}

impl Deref for Held {
    type Target = State;

    fn deref(&self) -> &State {
        self.0.as_ref().expect("the lock is only let go inside `wait` and `unlocked`")
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut State {
        self.0.as_mut().expect("the lock is only let go inside `wait` and `unlocked`")
    }
}

impl State {
    fn new() -> Self {
        leaving::tell_at_exit();
        Self {
            settings: Settings::from_environment(),
            initialized: false,
            contexts: Contexts::new(),
            memory: Memory::default(),
            streams: Table::new(Kind::Stream),
            events: Table::new(Kind::Event),
            modules: Table::new(Kind::Module),
            functions: Table::new(Kind::Function),
            failures: Failures::default(),
            counts: Counts::default(),
            violations: Vec::new(),
        }
    }

    /// Enters a violation of the driver's rules.
    pub(crate) fn violate(&mut self, call: Call, what: String) {
        self.counts.violations += 1;
        if self.violations.len() < TEXTS {
            self.violations.push(format!("{}: {what}", call.name()));
        }
    }

    /// A handle that stands for nothing is no handle; one that did is used too long.
    pub(crate) fn no_object(
        &mut self,
        call: Call,
        what: &str,
        handle: Handle,
        stale: bool,
    ) -> Code {
        if stale {
            self.violate(call, format!("{what} {handle} was destroyed"));
        }
        Code::INVALID_HANDLE
    }

    /// The context is dead from now on: what waits on its streams never starts.
    pub(crate) fn kill(&mut self, context: Handle, code: Code) {
        if let Some(context) = self.contexts.table.get_mut(context) {
            context.dead.get_or_insert(code);
        }
        let streams = self.streams.values_mut().filter(|stream| stream.context == context);
        streams.for_each(Stream::abandon);
        CHANGED.notify_all();
    }

    /// Fails for a stream that an engine captures: nobody waits for it, and what is put on it
    /// becomes part of a graph.
    pub(crate) fn check_not_captured(&mut self, call: Call, stream: Handle) -> Result<(), Code> {
        if self.settings.get(Setting::Capturing) != stream.0 {
            return Ok(());
        }
        self.violate(call, "an engine captures this stream".to_owned());
        Err(Code::STREAM_CAPTURE_UNSUPPORTED)
    }

    /// The stream that a handle stands for: 0 and 1 are the current context's default stream.
    pub(crate) fn stream(&mut self, call: Call, handle: Handle) -> Result<Handle, Code> {
        if handle.0 <= 1 {
            let context = self.contexts.current(call)?;
            return self.default_stream(context);
        }
        match self.streams.get(handle) {
            Some(stream) if !(stream.destroyed || stream.is_default) => {
                let context = stream.context;
                self.contexts.check(context, call)?;
                Ok(handle)
            }
            Some(_) => Err(self.no_object(call, "stream", handle, true)),
            None => {
                let stale = self.streams.is_stale(handle);
                Err(self.no_object(call, "stream", handle, stale))
            }
        }
    }

    fn default_stream(&mut self, context: Handle) -> Result<Handle, Code> {
        let found = self.contexts.table.get(context).ok_or(Code::INVALID_CONTEXT)?;
        if let Some(stream) = found.default_stream {
            return Ok(stream);
        }
        let stream = self.streams.insert(Stream::new(context, true, true));
        if let Err(code) = stream::start(stream) {
            self.streams.remove(stream);
            return Err(code);
        }
        if let Some(context) = self.contexts.table.get_mut(context) {
            context.default_stream = Some(stream);
        }
        Ok(stream)
    }

    /// As [`State::stream`], for what moves bytes: the stream's context must be current.
    pub(crate) fn busy_stream(
        &mut self,
        call: Call,
        handle: Handle,
    ) -> Result<(Handle, Handle), Code> {
        let context = self.contexts.current(call)?;
        let stream = self.stream(call, handle)?;
        let same = self.streams.get(stream).is_some_and(|stream| stream.context == context);
        same.then_some((context, stream)).ok_or(Code::INVALID_HANDLE)
    }

    /// Queues an operation. Between the default stream and those that block there is an order.
    pub(crate) fn submit(&mut self, handle: Handle, mut operation: Operation) -> Point {
        if let Some(this) = self.streams.get(handle).filter(|stream| stream.blocking) {
            let others = self.streams.iter().filter(|(_, other)| {
                other.context == this.context
                    && other.blocking
                    && other.is_default != this.is_default
                    && other.pending() > 0
            });
            let points = others.map(|(stream, it)| Point { stream, count: it.submitted() });
            operation.after.extend(points);
        }
        let count = self.streams.get_mut(handle).map_or(0, |stream| stream.push(operation));
        CHANGED.notify_all();
        Point { stream: handle, count }
    }

    /// Forgets all that belongs to some contexts; none of it is in use any more.
    fn forget(&mut self, owner: impl Fn(Handle) -> bool) {
        let device: Vec<u64> = {
            let all = self.memory.device.iter();
            all.filter(|(_, _, it)| owner(it.context)).map(|(start, ..)| start).collect()
        };
        device.into_iter().for_each(|start| drop(self.memory.device.remove(start)));
        let pinned: Vec<u64> = {
            let all = self.memory.pinned.iter();
            all.filter(|(_, _, it)| owner(it.context)).map(|(start, ..)| start).collect()
        };
        pinned.into_iter().for_each(|start| drop(self.memory.pinned.remove(start)));
        self.streams.retain(|stream| !owner(stream.context));
        self.events.retain(|event| !owner(event.context));
        self.modules.retain(|module| !owner(module.context));
        self.functions.retain(|function| !owner(function.context));
    }
}

/// Answers a call: what was planned to fail fails, what needs `cuInit` has it, and the rest is
/// the call's own.
pub(crate) fn answer(call: Call, act: impl FnOnce(&mut Held) -> Result<(), Code>) -> i32 {
    let mut held = Held::lock();
    let result = run(&mut held, call, act);
    result.err().unwrap_or(Code::SUCCESS).0
}

fn run(
    held: &mut Held,
    call: Call,
    act: impl FnOnce(&mut Held) -> Result<(), Code>,
) -> Result<(), Code> {
    held.counts.count_call(call);
    if let Some(code) = held.failures.planned(call) {
        held.counts.failed_calls += 1;
        return Err(code);
    }
    if !(held.initialized || call.needs_no_init()) {
        return Err(Code::NOT_INITIALIZED);
    }
    let capturing = held.settings.is_on(Setting::Capturing);
    if capturing && call.is_unsafe_in_a_capture() && !capture::is_relaxed() {
        let what = "an engine captures, and this thread's mode is not relaxed".to_owned();
        held.violate(call, what);
        return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
    }
    let Some(code) = held.failures.by_chance(call) else {
        return act(held);
    };
    held.counts.failed_calls += 1;
    if call.destroys() {
        // What a destroying call answers is about other things: it has done what it does.
        act(held)?;
    }
    Err(code)
}
