use crate::engine::{Done, Doorbell, Engine};
use crate::entropy;
use crate::lacks::Lacks;
use crate::look::look;
use crate::machine::{Machine, OTHERS_IN_FLIGHT};
use crate::pool::Pool;
use crate::recovery::THREADS;
use crate::ring::{self, Ring};
use crate::storage::LockedFile;
use crate::store::{self, Head};
use crate::{
    Completion, EngineChoice, Health, KeptPurges, LogConfig, LogCounters, LogFacts, Op, OpenError,
    PurgeList, Recovery,
};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use undercroft_arena::{Part, Span};
use undercroft_wire::DeviceId;

/// Page transfers in flight that can be configured.
const QUEUE_DEPTH: std::ops::RangeInclusive<u32> = 1..=1024;

const RUNNING: u8 = 0;
const CLOSING: u8 = 1;
const ABANDONED: u8 = 2;

/// Where completions go. Called on the log's thread, so it must be quick.
pub type Sink = Box<dyn Fn(Completion) + Send>;

/// A page log on one file: appends pages, reads them back, and gives whole segments up when told
/// to. One thread of its own does the work; completions arrive through the sink.
///
/// Dropping a log without closing it is like killing the process: transfers in flight are waited
/// for, what was written and is in no table yet is lost, and operations are left unanswered.
pub struct PageLog {
    ops: Sender<Op>,
    bell: Arc<Doorbell>,
    state: Arc<AtomicU8>,
    counters: Arc<Mutex<LogCounters>>,
    facts: LogFacts,
    memory: Arc<NewMemory>,
    thread: Option<JoinHandle<()>>,
}

/// A log whose file is open, locked, and in order: what can be wrong with a configuration is
/// found by now. Its records are not known yet.
#[derive(Debug)]
pub struct PreparedLog {
    config: LogConfig,
    file: LockedFile,
    head: Head,
    purges: KeptPurges,
}

impl PreparedLog {
    /// The purges that its records must be held against, as the file beside it has them.
    #[must_use]
    pub fn purges(&self) -> &KeptPurges {
        &self.purges
    }

    /// Finds the records and starts the log's thread. Takes as long as reading all tables takes,
    /// so that an owner with something else to do calls it on a thread of its own. `memory` is
    /// registered with the ring where that is allowed; spans from elsewhere work too.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn start(
        self,
        memory: Vec<Arc<Part>>,
        sink: Sink,
    ) -> Result<(PageLog, Recovery), OpenError> {
        self.start_through(memory, sink, |engine| engine)
    }

    /// As [`PreparedLog::start`], with something put between the log and its engine.
    pub(crate) fn start_through(
        self,
        memory: Vec<Arc<Part>>,
        sink: Sink,
        wrap: impl FnOnce(Box<dyn Engine>) -> Box<dyn Engine> + Send + 'static,
    ) -> Result<(PageLog, Recovery), OpenError> {
        let Self { config, file, head, .. } = self;
        let refused = file.refused();
        let layout = head.superblock.layout;
        let set_aside = head.set_aside.clone();
        let entropy = entropy::system().map_err(|source| OpenError::Entropy { source })?;
        let (machine, recovery) = store::recover(&file, &config, head, entropy, THREADS)?;
        let depth = config.queue_depth as usize;
        let (ops, queue) = bounded(4 * depth);
        let state = Arc::new(AtomicU8::new(RUNNING));
        let counters = Arc::new(Mutex::new(machine.counters()));
        let new_memory = Arc::new(NewMemory::default());
        let setup = Setup {
            choice: config.engine,
            file: Arc::new(file),
            memory,
            scratch: machine.scratch_region().clone(),
            lacks: Lacks { refused, fallbacks: Vec::new() },
            depth,
        };
        let worker = Worker {
            machine,
            queue,
            sink,
            device: config.device,
            state: Arc::clone(&state),
            counters: Arc::clone(&counters),
            memory: Arc::clone(&new_memory),
        };
        let (thread, started) = start_thread(config.device, setup, worker, wrap)?;
        let Ready { engine, registered_buffers, lacks, bell } = started;
        let facts = LogFacts {
            engine,
            registered_buffers,
            refused: lacks.refused,
            fallbacks: lacks.fallbacks,
            encrypted: config.key.is_some(),
            set_aside,
            segment_bytes: layout.segment_bytes,
            segments: layout.segments,
        };
        let thread = Some(thread);
        let log = PageLog { ops, bell, state, counters, facts, memory: new_memory, thread };
        Ok((log, recovery))
    }
}

fn check(config: &LogConfig) -> Result<(), OpenError> {
    if !QUEUE_DEPTH.contains(&config.queue_depth) {
        let found = u64::from(config.queue_depth);
        return Err(OpenError::Config { field: "queue_depth", found, allowed: "1..=1024" });
    }
    if config.engine == EngineChoice::Uring {
        ring::probe().map_err(|source| OpenError::Engine { source })?;
    }
    Ok(())
}

impl PageLog {
    /// Opens the file, creating it if there is none, locks it, reserves its space and puts its
    /// head in order.
    ///
    /// # Errors
    /// See [`OpenError`]. Nothing is ever formatted that is not empty; a page log that this build
    /// cannot read is moved aside.
    pub fn prepare(config: LogConfig) -> Result<PreparedLog, OpenError> {
        check(&config)?;
        let (file, head) = store::open(&config)?;
        // Under the lock: whoever had the log before writes no more of them.
        let directory = config.path.parent().unwrap_or(Path::new("."));
        let purges = PurgeList::load(directory, config.key.as_ref())?;
        Ok(PreparedLog { config, file, head, purges })
    }

    /// Says what [`PageLog::prepare`] would refuse, but for a lock, and changes nothing: while another
    /// process has the log and is about to hand it over.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn look(config: &LogConfig) -> Result<(), OpenError> {
        check(config)?;
        look(config)
    }

    /// [`PageLog::prepare`] and [`PreparedLog::start`] in one.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        config: LogConfig,
        memory: Vec<Arc<Part>>,
        sink: Sink,
    ) -> Result<(Self, Recovery), OpenError> {
        Self::prepare(config)?.start(memory, sink)
    }

    /// Hands an operation over. Never waits.
    ///
    /// # Errors
    /// The operation, if the queue is full or the log is lost.
    #[expect(clippy::result_large_err, reason = "a refused operation goes back with its memory")]
    pub fn submit(&self, op: Op) -> Result<(), Op> {
        match self.ops.try_send(op) {
            Ok(()) => {
                self.bell.ring();
                Ok(())
            }
            Err(TrySendError::Full(op) | TrySendError::Disconnected(op)) => Err(op),
        }
    }

    /// The arena has these parts now: they are registered with the ring where that is allowed, and
    /// others no longer, so that their memory can be given back. Never waits.
    pub fn set_memory(&self, parts: Vec<Arc<Part>>) {
        self.memory.put(parts);
        self.bell.ring();
    }

    /// What the machine granted and what the file looks like.
    #[must_use]
    pub fn facts(&self) -> &LogFacts {
        &self.facts
    }

    /// What the log did so far.
    #[must_use]
    pub fn counters(&self) -> LogCounters {
        *self.counters.lock().expect("the log's thread does not panic while it counts")
    }

    /// Answers what was submitted, writes the tables, seals the open segment, flushes, and ends
    /// the thread. Appends that still wait for a segment are answered with no space.
    pub fn close(mut self) {
        self.stop(CLOSING);
    }

    fn stop(&mut self, how: u8) {
        if let Some(thread) = self.thread.take() {
            self.state.store(how, Ordering::SeqCst);
            self.bell.ring();
            // A panic was reported by its own hook and as a lost device.
            let _panicked = thread.join();
        }
    }
}

impl Drop for PageLog {
    fn drop(&mut self) {
        self.stop(ABANDONED);
    }
}

/// What the log's thread makes its engine of.
struct Setup {
    choice: EngineChoice,
    file: Arc<LockedFile>,
    memory: Vec<Arc<Part>>,
    /// The log's own memory for pages.
    scratch: Span,
    lacks: Lacks,
    depth: usize,
}

/// What the log's thread says when it is ready.
struct Ready {
    engine: &'static str,
    registered_buffers: bool,
    lacks: Lacks,
    bell: Arc<Doorbell>,
}

fn start_thread(
    device: DeviceId,
    mut setup: Setup,
    worker: Worker,
    wrap: impl FnOnce(Box<dyn Engine>) -> Box<dyn Engine> + Send + 'static,
) -> Result<(JoinHandle<()>, Ready), OpenError> {
    let (ready, started) = bounded(1);
    let body = move || {
        // The opener waits for one of these messages or for the channel's end.
        match setup.start_engine() {
            Ok((engine, bell)) => {
                let engine = wrap(engine);
                let facts = Ready {
                    engine: engine.name(),
                    registered_buffers: engine.registered_buffers(),
                    lacks: setup.lacks,
                    bell: Arc::clone(&bell),
                };
                if ready.send(Ok(facts)).is_ok() {
                    worker.run(engine, &bell);
                }
            }
            Err(e) => drop(ready.send(Err(e))),
        }
    };
    let name = format!("ucft-log-{device}");
    let thread = thread::Builder::new().name(name).spawn(body);
    let thread = thread.map_err(|source| OpenError::Thread { source })?;
    let gone = |_| OpenError::Thread { source: io::Error::other("it ended at once") };
    Ok((thread, started.recv().map_err(gone)??))
}

impl Setup {
    /// Called on the thread that will use the engine: a ring belongs to the thread that made it.
    fn start_engine(&mut self) -> Result<(Box<dyn Engine>, Arc<Doorbell>), OpenError> {
        let capacity = self.depth + OTHERS_IN_FLIGHT;
        let file = Arc::clone(&self.file);
        if self.choice != EngineChoice::Threads {
            let memory = std::mem::take(&mut self.memory);
            let scratch = self.scratch.clone();
            match Ring::new(file.raw_fd(), capacity, (memory, scratch), &mut self.lacks) {
                Ok((ring, bell)) => {
                    return Ok((Box::new(FileRing { ring, _file: file }), bell));
                }
                Err(source) if self.choice == EngineChoice::Uring => {
                    return Err(OpenError::Engine { source });
                }
                Err(e) => self.lacks.no_ring(&e),
            }
        }
        let pool = Pool::new(file, capacity);
        let (pool, bell) = pool.map_err(|source| OpenError::Thread { source })?;
        Ok((Box::new(pool), bell))
    }
}

/// A ring and the file it works on; the ring goes first.
struct FileRing {
    ring: Ring,
    _file: Arc<LockedFile>,
}

impl Engine for FileRing {
    fn name(&self) -> &'static str {
        self.ring.name()
    }

    fn registered_buffers(&self) -> bool {
        self.ring.registered_buffers()
    }

    fn set_memory(&mut self, parts: &[Arc<Part>]) {
        self.ring.set_memory(parts);
    }

    fn start(&mut self, io: crate::engine::Io) {
        self.ring.start(io);
    }

    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Done>) -> io::Result<()> {
        self.ring.wait(timeout, done)
    }
}

/// What the log's thread works with.
struct Worker {
    machine: Machine,
    queue: Receiver<Op>,
    sink: Sink,
    device: DeviceId,
    state: Arc<AtomicU8>,
    counters: Arc<Mutex<LogCounters>>,
    memory: Arc<NewMemory>,
}

/// The parts the arena has now, until the log's thread has seen them.
#[derive(Debug, Default)]
struct NewMemory(Mutex<Option<Vec<Arc<Part>>>>);

impl NewMemory {
    fn put(&self, parts: Vec<Arc<Part>>) {
        *self.0.lock().expect("no holder of the list panics") = Some(parts);
    }

    fn take(&self) -> Option<Vec<Arc<Part>>> {
        self.0.lock().expect("no holder of the list panics").take()
    }
}

impl Worker {
    fn run(mut self, engine: Box<dyn Engine>, bell: &Doorbell) {
        let work = AssertUnwindSafe(|| self.work(engine, bell));
        // Whatever ends the work, the owner hears of it and waits for no answer in vain.
        let outcome = catch_unwind(work);
        if !matches!(outcome, Ok(Ok(()))) {
            (self.sink)(Completion::DeviceLost { device: self.device });
        }
    }

    fn work(&mut self, mut engine: Box<dyn Engine>, bell: &Doorbell) -> io::Result<()> {
        let start = Instant::now();
        let mut done = Vec::new();
        let mut closing = false;
        loop {
            let now = start.elapsed();
            if let Some(parts) = self.memory.take() {
                engine.set_memory(&parts);
            }
            self.take_ops(now);
            let state = self.state.load(Ordering::SeqCst);
            if state == ABANDONED {
                return Ok(());
            }
            if state == CLOSING && !closing && self.queue.is_empty() {
                closing = true;
                self.machine.begin_close(now);
            }
            self.machine.pump(&mut *engine, now);
            self.publish();
            // A device that is not well may never be quiet; its tables stay as they are.
            let over = self.machine.is_quiet() || self.machine.health() != Health::Well;
            if closing && over {
                return Ok(());
            }
            bell.going_to_sleep();
            let timeout = self.timeout(state, start.elapsed());
            let work = self.machine.has_work();
            let waited = engine.wait(timeout, &mut done);
            bell.awake();
            let now = start.elapsed();
            for done in done.drain(..) {
                self.machine.finished(done, now);
            }
            if work {
                self.machine.work();
            }
            self.publish();
            waited?;
        }
    }

    fn take_ops(&mut self, now: Duration) {
        while self.machine.wants_ops()
            && let Ok(op) = self.queue.try_recv()
        {
            self.machine.accept(op, now);
        }
    }

    /// How long to sleep. Called after the bell was told so: what came before that is seen here,
    /// what comes after rings.
    fn timeout(&self, seen: u8, now: Duration) -> Option<Duration> {
        let more = self.machine.wants_ops() && !self.queue.is_empty();
        if more || self.machine.has_work() || self.state.load(Ordering::SeqCst) != seen {
            return Some(Duration::ZERO);
        }
        self.machine.next_due().map(|due| due.saturating_sub(now))
    }

    fn publish(&mut self) {
        let counters = self.machine.counters();
        *self.counters.lock().expect("no holder of the counters panics") = counters;
        for completion in self.machine.answers() {
            (self.sink)(completion);
        }
    }
}
