//! Host memory that the device may reach by itself.
//!
//! Registering takes the kernel a tenth of a second for a GiB of small pages. So the arena's parts
//! are registered one after another by a thread of its own, and pages of a part that is not
//! registered yet, or was refused, are copied all the same, through memory of the driver's.

use super::CudaError;
use super::context::Context;
use super::device::Shared;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use undercroft_arena::{MappingId, PartView, Span, StagingView};

/// Counts as pinned for all contexts.
const PORTABLE: u32 = 1;
/// Has an address on the device, for kernels.
const DEVICE_MAP: u32 = 2;
/// Is only ever read by the device: the one way to register what this process may not write.
const READ_ONLY: u32 = 8;
/// What a driver takes in one call, bytes: more was refused wherever somebody tried.
const MAX_CALL_BYTES: usize = 512 << 30;
/// How often to look whether a staging area is still in use.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What is registered with a device, and what is not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PinFacts {
    /// Bytes that the device reaches by itself.
    pub pinned_bytes: u64,
    /// Bytes that are still to be registered.
    pub waiting_bytes: u64,
    /// Bytes that the driver refused to register: their pages are copied through its own memory.
    pub refused_bytes: u64,
    /// What it said to the last of them.
    pub refusal: Option<CudaError>,
}

/// What a device knows of host memory. Cheap to clone; the registrations go with the last one.
#[derive(Debug, Clone)]
pub struct Pins(Arc<Inner>);

struct Inner {
    table: Arc<Table>,
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.table.fmt(f)
    }
}

#[derive(Debug)]
struct Table {
    context: Arc<Context>,
    /// Whose copies are to be over before anything is unregistered.
    device: OnceLock<Weak<Shared>>,
    /// The device is gone, and with it the right to use its context.
    closed: AtomicBool,
    /// Held over each call that registers or unregisters, so that nothing leaves in the middle.
    working: Mutex<()>,
    ranges: RwLock<HashMap<MappingId, Range>>,
}

/// A mapping, as far as it is used.
#[derive(Debug, Clone)]
struct Range {
    base: usize,
    bytes: usize,
    writable: bool,
    /// How many have said that it is there, and not that it leaves.
    holders: usize,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Waiting,
    Pinned {
        /// Where the device sees the first byte.
        on_device: u64,
    },
    Refused(CudaError),
}

/// What became of a mapping that somebody told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Added {
    New,
    Known,
    /// The device is gone, or the parent process's.
    Closed,
}

enum Order {
    Register(MappingId),
    /// Keeps the area mapped until nobody else does.
    Keep(StagingView),
    /// Lets all areas go.
    Close,
}

/// What the driver of this process has registered: once, for all devices, whoever asked first.
static REGISTERED: Mutex<Option<HashMap<MappingId, Claims>>> = Mutex::new(None);

/// Who has a claim on a mapping that is registered.
#[derive(Debug, Default)]
struct Claims {
    /// What is registered of it: from here to before there.
    base: usize,
    end: usize,
    /// Devices that use it.
    devices: usize,
    /// Devices that keep the staging area mapped.
    keepers: usize,
}

/// Looks at the claims on a mapping, and forgets it where none is left.
fn claims<R>(id: &MappingId, change: impl FnOnce(&mut Claims) -> R) -> R {
    let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    let registered = registered.get_or_insert_default();
    let entry = registered.entry(id.clone()).or_default();
    let changed = change(entry);
    if entry.devices == 0 && entry.keepers == 0 {
        registered.remove(id);
    }
    changed
}

impl Pins {
    pub(super) fn new(context: Arc<Context>) -> std::io::Result<Self> {
        let ranges = RwLock::default();
        let (device, closed) = (OnceLock::new(), AtomicBool::new(false));
        let table = Table { context, device, closed, working: Mutex::default(), ranges };
        let table = Arc::new(table);
        let (orders, received) = crossbeam_channel::unbounded();
        let work = Arc::clone(&table);
        let thread =
            std::thread::Builder::new().name("undercroft-pins".into()).spawn(move || {
                Worker { table: work, kept: Vec::new(), again: Vec::new() }.run(&received)
            })?;
        Ok(Self(Arc::new(Inner { table, orders, thread: Some(thread) })))
    }

    /// From now on the device's copies are over before anything is unregistered.
    pub(super) fn serve(&self, device: &Arc<Shared>) {
        let _once = self.0.table.device.set(Arc::downgrade(device));
    }

    /// The device goes: lets go of everything, and takes nothing on any more.
    pub(super) fn close(&self) {
        let table = &self.0.table;
        if table.context.is_foreign() {
            return;
        }
        {
            let _nobody_adds = table.ranges_mut();
            table.closed.store(true, Ordering::Release);
        }
        let _gone = self.0.orders.send(Order::Close);
        table.forget_all();
        // Whoever was in the middle of registering or letting go is through.
        drop(table.work());
    }

    /// A part of the arena is mapped: starts to register it.
    pub fn part(&self, part: &PartView) {
        let range = Range {
            base: part.base_ptr() as usize,
            bytes: part.len(),
            writable: false,
            holders: 1,
            state: State::Waiting,
        };
        self.enlist(part.mapping_id(), range);
    }

    /// A part is about to be unmapped, and no span of it is left. When this returns the device
    /// knows nothing of it any more.
    pub fn part_leaves(&self, part: &PartView) {
        self.0.table.forget(&part.mapping_id());
    }

    /// A staging area is mapped: starts to register it. It stays mapped here until it is
    /// unregistered, which is some time after the last other user is gone.
    pub fn staging(&self, staging: &StagingView) {
        let whole = staging.span();
        let id = staging.mapping_id();
        if self.enlist(id.clone(), Range::of(&whole)) {
            // Before it counts as a keeper's: a view more is a user more.
            let kept = staging.clone();
            claims(&id, |claims| claims.keepers += 1);
            let _gone = self.0.orders.send(Order::Keep(kept));
        }
    }

    /// Says whether it is to be registered, or is already.
    fn enlist(&self, id: MappingId, range: Range) -> bool {
        let added = self.0.table.add(&id, range);
        if added == Added::New {
            // The thread only ends with the last of us.
            let _gone = self.0.orders.send(Order::Register(id));
        }
        added != Added::Closed
    }

    /// Registers memory now, until [`Pins::unlist`].
    pub(super) fn register(&self, span: &Span) -> Result<(), CudaError> {
        let (id, table) = (span.mapping_id(), &self.0.table);
        table.context.alive()?;
        let refused =
            |reason: &str| CudaError::NoMode { mode: "registration", reason: reason.to_owned() };
        if table.add(&id, Range::of(span)) == Added::Closed {
            return Err(refused("the device is gone"));
        }
        let passes = !table.register(&id);
        let state = table.ranges().get(&id).map(|range| range.state.clone());
        let answer = match state {
            Some(State::Refused(error)) => Err(error),
            _ if passes => Err(CudaError::Capturing),
            _ if self.on_device(span).is_none() => {
                Err(refused("another piece of the same mapping is registered"))
            }
            _ => Ok(()),
        };
        answer.inspect_err(|_| table.forget(&id))
    }

    /// Ends what [`Pins::register`] began.
    pub(super) fn unlist(&self, span: &Span) {
        self.0.table.forget(&span.mapping_id());
    }

    /// Waits until nothing is waiting to be registered, at most for about `patience`. Says whether
    /// that is so.
    #[must_use]
    pub fn settle(&self, patience: Duration) -> bool {
        let until = std::time::Instant::now() + patience;
        while self.facts().waiting_bytes > 0 {
            if std::time::Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// How much is registered.
    #[must_use]
    pub fn facts(&self) -> PinFacts {
        let mut facts = PinFacts::default();
        for range in self.0.table.ranges().values() {
            let bytes = range.bytes as u64;
            match &range.state {
                State::Pinned { .. } => facts.pinned_bytes += bytes,
                State::Waiting => facts.waiting_bytes += bytes,
                State::Refused(error) => {
                    facts.refused_bytes += bytes;
                    facts.refusal = Some(error.clone());
                }
            }
        }
        facts
    }

    /// Where the device sees the span; `None` where it cannot reach it by itself.
    pub(super) fn on_device(&self, span: &Span) -> Option<u64> {
        let ranges = self.0.table.ranges();
        let range = ranges.get(&span.mapping_id())?;
        let State::Pinned { on_device } = range.state else {
            return None;
        };
        let into = (span.as_ptr() as usize).checked_sub(range.base)?;
        (into + span.len() <= range.bytes).then_some(on_device + into as u64)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Without senders the thread ends.
        let (orders, _) = crossbeam_channel::bounded(0);
        drop(std::mem::replace(&mut self.orders, orders));
        if self.table.context.is_foreign() {
            // Thread and registrations are the parent's.
            std::mem::forget(self.thread.take());
            return;
        }
        let thread = self.thread.take();
        // The worker itself may have been the last to use the device. It ends without senders.
        let thread = thread.filter(|it| it.thread().id() != std::thread::current().id());
        if let Some(thread) = thread {
            // Nothing in it panics; if it did, there is nobody to tell.
            let _ended = thread.join();
        }
        self.table.forget_all();
    }
}

impl Range {
    fn of(span: &Span) -> Self {
        Self {
            base: span.as_ptr() as usize,
            bytes: span.len(),
            writable: span.is_writable(),
            holders: 1,
            state: State::Waiting,
        }
    }
}

impl Table {
    fn ranges(&self) -> std::sync::RwLockReadGuard<'_, HashMap<MappingId, Range>> {
        self.ranges.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn ranges_mut(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<MappingId, Range>> {
        self.ranges.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) -> MutexGuard<'_, ()> {
        self.working.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a mapping.
    fn add(&self, id: &MappingId, range: Range) -> Added {
        if self.context.is_foreign() {
            return Added::Closed;
        }
        let mut ranges = self.ranges_mut();
        if self.closed.load(Ordering::Acquire) {
            return Added::Closed;
        }
        if let Some(known) = ranges.get_mut(id) {
            known.holders += 1;
            return Added::Known;
        }
        ranges.insert(id.clone(), range);
        Added::New
    }

    /// Registers what waits, if it has not left meanwhile. `false`: try again later.
    fn register(&self, id: &MappingId) -> bool {
        let _working = self.work();
        if self.closed.load(Ordering::Acquire) {
            return true;
        }
        let Some(range) = self.ranges().get(id).cloned() else {
            return true;
        };
        if !matches!(range.state, State::Waiting) {
            return true;
        }
        let state = match self.ask(id, &range) {
            Ok(on_device) => State::Pinned { on_device },
            Err(error) if error.is_passing() => return false,
            Err(error) => State::Refused(error),
        };
        // It cannot have left: that waits for this one to end.
        if let Some(range) = self.ranges_mut().get_mut(id) {
            range.state = state;
        }
        true
    }

    fn ask(&self, id: &MappingId, range: &Range) -> Result<u64, CudaError> {
        if range.bytes > MAX_CALL_BYTES {
            let reason = format!(
                "{} bytes in one piece, and the driver takes {MAX_CALL_BYTES}; choose smaller parts",
                range.bytes
            );
            return Err(CudaError::NoMode { mode: "registration", reason });
        }
        let context = &*self.context;
        let _entered = context.enter()?;
        let flags = PORTABLE | DEVICE_MAP | if range.writable { 0 } else { READ_ONLY };
        let base = range.base as *mut c_void;
        claims(id, |claims| {
            let end = range.base + range.bytes;
            if claims.devices > 0 && !(claims.base <= range.base && end <= claims.end) {
                let reason = "another device registered a smaller piece of it".to_owned();
                return Err(CudaError::NoMode { mode: "registration", reason });
            }
            if claims.devices == 0 {
                // SAFETY: the range is mapped: whoever unmaps it takes it out of the table first,
                // and that waits for this call. Where somebody does not keep to that, the driver
                // refuses it.
                let code = unsafe { (context.driver.mem_host_register)(base, range.bytes, flags) };
                context.check("cuMemHostRegister", code)?;
                (claims.base, claims.end) = (range.base, end);
            }
            claims.devices += 1;
            Ok(())
        })?;
        let mut on_device = 0;
        // SAFETY: it was registered with an address on the device; the pointer is to a local.
        let code =
            unsafe { (context.driver.mem_host_get_device_pointer)(&raw mut on_device, base, 0) };
        context.check("cuMemHostGetDevicePointer", code).inspect_err(|_| self.unregister(id))?;
        Ok(on_device)
    }

    /// Takes a mapping out, and unregisters it when nothing copies out of it or into it any more.
    fn forget(&self, id: &MappingId) {
        self.forget_as(id, false);
    }

    /// As [`Table::forget`], for one who holds it, or for all.
    fn forget_as(&self, id: &MappingId, all: bool) {
        if self.context.is_foreign() {
            return;
        }
        let _working = self.work();
        let range = {
            let mut ranges = self.ranges_mut();
            match ranges.get_mut(id) {
                Some(range) if range.holders > 1 && !all => {
                    range.holders -= 1;
                    return;
                }
                _ => ranges.remove(id),
            }
        };
        if let Some(Range { state: State::Pinned { .. }, .. }) = &range {
            // Whatever is put on a stream from now on finds it unregistered.
            let device = self.device.get().and_then(Weak::upgrade);
            // Where nobody knows whether a copy is over it stays registered.
            if device.is_none_or(|device| device.drain()) {
                self.unregister(id);
            }
        }
    }

    fn forget_all(&self) {
        let ids: Vec<MappingId> = self.ranges().keys().cloned().collect();
        for id in ids {
            self.forget_as(&id, true);
        }
    }

    fn unregister(&self, id: &MappingId) {
        claims(id, |claims| {
            let base = claims.base as *mut c_void;
            claims.devices = claims.devices.saturating_sub(1);
            if claims.devices > 0 {
                return;
            }
            if let Some(_entered) = self.context.enter_to_clean_up() {
                // SAFETY: it is registered, and no copy uses it. A refusal changes nothing: a lost
                // context has let go of it by itself.
                let _done = unsafe { (self.context.driver.mem_host_unregister)(base) };
            }
        });
    }
}

/// The thread that registers.
struct Worker {
    table: Arc<Table>,
    kept: Vec<StagingView>,
    /// What could not be registered for a reason that passes.
    again: Vec<MappingId>,
}

impl Worker {
    fn run(mut self, orders: &Receiver<Order>) {
        loop {
            let order = if self.kept.is_empty() && self.again.is_empty() {
                orders.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                orders.recv_timeout(LOOK_AGAIN)
            };
            match order {
                Ok(Order::Register(id)) => self.register(id),
                Ok(Order::Keep(staging)) => self.kept.push(staging),
                Ok(Order::Close) => self.let_go(|_| true),
                Err(RecvTimeoutError::Timeout) => {
                    let again = std::mem::take(&mut self.again);
                    again.into_iter().for_each(|id| self.register(id));
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
            // Other devices keep it as we do: they are no users either.
            self.let_go(|staging| {
                let keepers = claims(&staging.mapping_id(), |claims| claims.keepers);
                staging.users() < keepers
            });
        }
        self.let_go(|_| true);
    }

    fn register(&mut self, id: MappingId) {
        if !self.table.register(&id) {
            self.again.push(id);
        }
    }

    fn let_go(&mut self, which: impl Fn(&StagingView) -> bool) {
        for staging in self.kept.extract_if(.., |staging| which(staging)) {
            let id = staging.mapping_id();
            self.table.forget(&id);
            claims(&id, |claims| claims.keepers = claims.keepers.saturating_sub(1));
        }
    }
}
