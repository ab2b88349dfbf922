//! Streams: queues of operations, each with a thread that works them off in order.
#![expect(unsafe_code, reason = "operations move bytes by address")]

use crate::handles::Handle;
use crate::operation::{Operation, Point, Touch, Work};
use crate::rows::Rows;
use crate::settings::Setting;
use crate::state::{Held, State};
use crate::{Code, kernel};
use std::collections::VecDeque;
use std::time::Duration;

/// An operation that failed and left the context alive.
#[derive(Debug, Clone, Copy)]
struct Failure {
    /// It is among the first so many operations.
    count: u64,
    code: Code,
    /// How many operations there were when somebody learned of it: what came later is not to
    /// blame. None: nobody has yet.
    told: Option<u64>,
}

/// A queue of operations.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) context: Handle,
    /// The context's own, which needs no creation.
    pub(crate) is_default: bool,
    /// Waits for the default stream, and it for this one.
    pub(crate) blocking: bool,
    pub(crate) destroyed: bool,
    queue: VecDeque<Operation>,
    running: Option<Vec<Touch>>,
    submitted: u64,
    completed: u64,
    failures: Vec<Failure>,
}

impl Stream {
    pub(crate) fn new(context: Handle, is_default: bool, blocking: bool) -> Self {
        Self {
            context,
            is_default,
            blocking,
            destroyed: false,
            queue: VecDeque::new(),
            running: None,
            submitted: 0,
            completed: 0,
            failures: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, operation: Operation) -> u64 {
        self.queue.push_back(operation);
        self.submitted += 1;
        self.submitted
    }

    /// Operations so far.
    pub(crate) fn submitted(&self) -> u64 {
        self.submitted
    }

    pub(crate) fn pending(&self) -> u64 {
        self.submitted - self.completed
    }

    pub(crate) fn has_reached(&self, count: u64) -> bool {
        self.completed >= count
    }

    /// Drops what has not started.
    pub(crate) fn abandon(&mut self) {
        self.completed += self.queue.len() as u64;
        self.queue.clear();
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether what runs touches these bytes.
    pub(crate) fn is_running_on(&self, start: u64, end: u64) -> bool {
        self.running.iter().flatten().any(|touch| touch.overlaps(start, end))
    }

    /// Whether what runs or waits touches these bytes.
    pub(crate) fn will_touch(&self, start: u64, end: u64) -> bool {
        self.is_running_on(start, end) || self.queue.iter().any(|next| next.touches(start, end))
    }

    /// Whether what runs or waits writes any of these bytes.
    pub(crate) fn will_write(&self, start: u64, end: u64) -> bool {
        let running = self.running.iter().flatten();
        running.into_iter().any(|touch| touch.writes && touch.overlaps(start, end))
            || self.queue.iter().any(|next| next.writes(start, end))
    }

    /// Whether an operation waits that `is` the one.
    pub(crate) fn has_queued(&self, is: impl Fn(&Operation) -> bool) -> bool {
        self.queue.iter().any(is)
    }

    /// The failure that whoever waits for the first `count` operations has to learn of. An
    /// operation that failed is told to all that was on the stream when it was first told.
    pub(crate) fn tell_failure(&mut self, count: u64) -> Option<Code> {
        let submitted = self.submitted;
        let failure = self.failures.iter_mut().find(|failure| {
            failure.count <= count && failure.told.is_none_or(|told| count <= told)
        })?;
        failure.told.get_or_insert(submitted);
        Some(failure.code)
    }
}

/// Starts the thread of a stream. It ends when the stream is destroyed and empty, or forgotten.
pub(crate) fn start(stream: Handle) -> Result<(), Code> {
    let thread = std::thread::Builder::new().name("stand-in stream".to_owned());
    thread.spawn(move || work(stream)).map_err(|_| Code::OUT_OF_MEMORY)?;
    Ok(())
}

fn work(id: Handle) {
    let mut held = Held::lock();
    loop {
        let state = &*held;
        let Some(stream) = state.streams.get(id) else {
            return;
        };
        let Some(next) = stream.queue.front() else {
            if stream.destroyed {
                return;
            }
            held.wait();
            continue;
        };
        let is_ready = next.after.iter().all(|point| state.has_reached(*point));
        if !is_ready || state.settings.is_on(Setting::Hold) {
            held.wait();
            continue;
        }
        let delay = Duration::from_micros(state.settings.get(Setting::DelayUs));
        if !(next.delayed || delay.is_zero() || matches!(next.work, Work::Nothing)) {
            drop(held);
            std::thread::sleep(delay);
            held = Held::lock();
            if let Some(next) = held.streams.get_mut(id).and_then(|it| it.queue.front_mut()) {
                next.delayed = true;
            }
            continue;
        }
        run_next(&mut held, id);
    }
}

fn run_next(held: &mut Held, id: Handle) {
    let Some((context, operation)) = held.streams.get_mut(id).and_then(|stream| {
        let operation = stream.queue.pop_front()?;
        Some((stream.context, operation))
    }) else {
        return;
    };
    match execute(held, id, context, operation) {
        Ok(()) => {}
        Err(Fate { code, sticky: true }) => held.kill(context, code),
        Err(Fate { code, sticky: false }) => {
            if let Some(stream) = held.streams.get_mut(id) {
                let count = stream.completed + 1;
                stream.failures.push(Failure { count, code, told: None });
            }
        }
    }
    if let Some(stream) = held.streams.get_mut(id) {
        stream.running = None;
        stream.completed += 1;
    }
    held.changed();
}

/// How an operation fails.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fate {
    pub(crate) code: Code,
    /// The context dies of it.
    pub(crate) sticky: bool,
}

/// The lock is let go while bytes move.
fn execute(held: &mut Held, id: Handle, context: Handle, operation: Operation) -> Result<(), Fate> {
    if matches!(operation.work, Work::Nothing) {
        return Ok(());
    }
    let illegal = Fate { code: Code::ILLEGAL_ADDRESS, sticky: true };
    if !operation.touches.iter().all(|touch| touch.holds(&held.memory)) {
        return Err(illegal);
    }
    let (rows, touches) = match operation.work {
        Work::Copies(rows) => (rows, operation.touches),
        Work::Kernel(launch) => {
            kernel::plan(held, context, &launch).map_err(|code| Fate { code, sticky: true })?
        }
        Work::Nothing => return Ok(()),
    };
    let fate = held.failures.next_operation();
    if let Some(Fate { sticky: true, .. }) = fate {
        return fate.map_or(Ok(()), Err);
    }
    if let Some(stream) = held.streams.get_mut(id) {
        stream.running = Some(touches);
    }
    let failed = fate.is_some();
    held.unlocked(|| move_bytes(&rows, failed));
    fate.map_or(Ok(()), Err)
}

fn move_bytes(rows: &[Rows], failed: bool) {
    for rows in rows {
        // SAFETY: every span lies in memory that was there and writable when the operation began,
        // which stays until `running` is empty if it is the driver's own; for the engine's own it
        // answers, as with the real driver.
        unsafe { if failed { rows.scribble() } else { rows.copy() } };
    }
}

impl State {
    /// Whether all before that point is over.
    pub(crate) fn has_reached(&self, point: Point) -> bool {
        self.streams.get(point.stream).is_none_or(|stream| stream.has_reached(point.count))
    }
}
