//! What the log does with operations: the whole logic between a queue of them and an engine.
//! Knows no thread and no clock: time is an argument, so that tests own it.

mod mending;
mod reading;
mod tending;
mod writing;
mod zeroing;

use crate::depth::Depth;
use crate::engine::{Done, Engine, Io, Kind};
use crate::format::BLOCK;
use crate::scratch::{Blocks, Scratch, ScratchPage};
use crate::segment::Record;
use crate::storage::block_memory;
use crate::watch::Watch;
use crate::writer::{Chore, Writer};
use crate::{AppendOutcome, Completion, LogConfig, LogCounters, Op, ReadOutcome, RelocateOutcome};
use mending::{Mend, Mending};
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::time::Duration;
use undercroft_arena::{ArenaError, Span};
use undercroft_wire::{DeviceId, Extent, JobId, Origin, PageIdentity, frame_bytes};
use writing::{Append, Outgoing};
use zeroing::Zeroing;

/// Blocks for headers and tables in flight. More chores than that wait.
const CHORES_IN_FLIGHT: usize = 4;
/// Transfers in flight beside those of pages: chores, a probe, the zeroing of a segment, and the
/// mending of one.
pub(crate) const OTHERS_IN_FLIGHT: usize = CHORES_IN_FLIGHT + 3;
/// Pages being lifted out of the log, to be relocated or proved, at once.
const LIFTS: usize = 4;
/// And one that is being mended.
const MENDS: usize = 1;
/// The log's own memory has room for as many pages of this size as can be under way, up to a
/// bound: it is pinned whether or not it is used.
const SCRATCH_PAGE_BYTES: u64 = 2 << 20;
/// What a device has under way while it writes as fast as it can: more would not make it faster.
const MAX_SCRATCH_BYTES: u64 = 16 << 20;
/// Bytes checked or encrypted before the engine is looked after again.
const TURN_BYTES: usize = 1 << 20;
/// How often a transfer that was interrupted before it moved a byte is started again.
const MAX_ATTEMPTS: u32 = 8;

/// A transfer's purpose.
#[derive(Debug)]
enum Task {
    /// Writes a page out of its frame, or, encrypted, out of the log's own memory.
    Append {
        append: Append,
        extent: Extent,
        sealed: Option<ScratchPage>,
    },
    Read {
        job: JobId,
        identity: PageIdentity,
        extent: Extent,
        record: Record,
    },
    Fetch {
        lift: Lift,
        record: Record,
        page: ScratchPage,
    },
    Restore {
        lift: Lift,
        extent: Extent,
        page: ScratchPage,
    },
    Chore(Chore),
    Probe(tending::Step),
    Zero(Zeroing),
    Mend(Mend),
}

impl Task {
    fn is_page(&self) -> bool {
        !matches!(self, Self::Chore(_) | Self::Probe(_) | Self::Zero(_) | Self::Mend(_))
    }
}

/// A page that is read into the log's own memory.
#[derive(Debug)]
struct Lift {
    job: JobId,
    identity: PageIdentity,
    extent: Extent,
    errand: Errand,
}

/// What a page is lifted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Errand {
    /// To be appended anew.
    Relocate(Origin),
    /// To prove itself.
    Prove,
}

/// The log between operations and transfers, without a thread and without a clock: what
/// [`crate::PageLog`] runs on its own thread, and simulators step by hand.
///
/// One turn is [`Machine::accept`] as long as it [wants](Machine::wants_ops) operations, then
/// [`Machine::pump`], then what the engine finished by [`Machine::finished`], then
/// [`Machine::work`]; answers are taken with [`Machine::answers`] at any time.
#[derive(Debug)]
pub struct Machine {
    device: DeviceId,
    depth: Depth,
    watch: Watch,
    writer: Writer,
    tasks: Slab<Task>,
    chores: VecDeque<Io>,
    reads: VecDeque<Io>,
    writes: VecDeque<Outgoing>,
    /// Reads whose bytes are there and were not checked yet.
    landed: VecDeque<(usize, Span)>,
    pages_in_flight: usize,
    writes_in_flight: usize,
    /// Appends that found no segment, and since when they wait.
    waiting: VecDeque<(Append, Duration)>,
    /// Pages that wait for memory to be lifted into.
    lifts: VecDeque<Lift>,
    lifted: usize,
    scratch: Scratch,
    blocks: Blocks,
    /// The block that probes are made with; `None` while one is under way.
    probe: Option<Span>,
    /// The next step of the probe under way, to be started.
    next_step: Option<Io>,
    /// What is left of the segment that is being zeroed, and what it is zeroed with.
    zeroing: Option<Zeroing>,
    /// Whether any is.
    zeroes: bool,
    zeros: Option<Span>,
    zeros_in_flight: bool,
    /// The segment that is being mended.
    mending: Option<Mending>,
    closing: bool,
    counters: LogCounters,
    answers: Vec<Completion>,
}

impl Machine {
    /// A machine over `writer`.
    pub(crate) fn new(
        config: &LogConfig,
        writer: Writer,
        counters: LogCounters,
    ) -> Result<Self, ArenaError> {
        let depth = config.queue_depth as usize;
        let sealing = if config.key.is_some() { depth } else { 0 };
        let page_bytes = writer.room_bytes().min(SCRATCH_PAGE_BYTES);
        let scratch_bytes = (sealing + LIFTS + MENDS) as u64 * page_bytes;
        Ok(Self {
            device: config.device,
            depth: Depth::new(depth),
            watch: Watch::new(config.stall),
            writer,
            tasks: Slab::new(),
            chores: VecDeque::new(),
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            landed: VecDeque::new(),
            pages_in_flight: 0,
            writes_in_flight: 0,
            waiting: VecDeque::new(),
            lifts: VecDeque::new(),
            lifted: 0,
            scratch: Scratch::new(scratch_bytes.min(MAX_SCRATCH_BYTES))?,
            blocks: Blocks::new(CHORES_IN_FLIGHT)?,
            probe: Some(block_memory(1)?),
            next_step: None,
            zeroes: config.zero_ahead,
            zeroing: None,
            zeros: None,
            zeros_in_flight: false,
            mending: None,
            closing: false,
            counters,
            answers: Vec::new(),
        })
    }

    /// The log's own memory for pages, to be registered with a ring.
    pub(crate) fn scratch_region(&self) -> &Span {
        self.scratch.region()
    }

    /// What it did so far.
    #[must_use]
    pub fn counters(&self) -> LogCounters {
        LogCounters { queue_depth: self.depth.now() as u32, ..self.counters }
    }

    /// Takes the answers that are ready.
    pub fn answers(&mut self) -> std::vec::Drain<'_, Completion> {
        self.answers.drain(..)
    }

    /// Whether it takes another operation. Appends that wait for a segment are few by their own
    /// limit, so that the operation which frees one always gets in.
    #[must_use]
    pub fn wants_ops(&self) -> bool {
        let queued = self.reads.len() + self.writes.len() + self.lifts.len();
        let queued = queued + self.landed.len();
        queued < 2 * self.depth.now()
    }

    /// Takes an operation.
    pub fn accept(&mut self, op: Op, now: Duration) {
        match op {
            Op::Append { job, payload, .. } if !self.watch.takes_writes() => {
                self.appended(job, payload, AppendOutcome::Failed);
            }
            Op::Append { job, identity, origin, payload, payload_crc } => {
                self.append(Append { job, identity, origin, payload, payload_crc }, now);
            }
            Op::Read { job, into, .. } if !self.watch.takes_reads() => {
                self.answers.push(Completion::Read { job, into, outcome: ReadOutcome::Failed });
            }
            Op::Read { job, identity, extent, into } => self.read(job, identity, extent, into),
            Op::Relocate { job, identity, origin, extent } => {
                self.lift(Lift { job, identity, extent, errand: Errand::Relocate(origin) });
            }
            Op::Prove { job, identity, extent } => {
                self.lift(Lift { job, identity, extent, errand: Errand::Prove });
            }
            Op::FreeSegment { segment, segment_use } => {
                self.writer.free_segment(segment, segment_use, now);
            }
        }
    }

    fn relocated(&mut self, job: JobId, outcome: RelocateOutcome) {
        let free_segments = self.writer.free_segments();
        self.answers.push(Completion::Relocated { job, outcome, free_segments });
    }

    /// Starts what can be started.
    pub fn pump(&mut self, engine: &mut dyn Engine, now: Duration) {
        self.tend(engine, now);
        self.start_lifts();
        if self.watch.takes_writes() {
            self.retry_waiting(now);
            self.start_chores(now);
            while let Some(io) = self.chores.pop_front() {
                self.launch(io, engine, now);
            }
        } else {
            self.writer.end_uses_unsaid(now);
        }
        self.mend(engine, now);
        self.report_freed();
        let mut turn = TURN_BYTES;
        while self.pages_in_flight < self.depth.now() {
            let Some(io) = self.next_page_io(&mut turn, now) else {
                return self.zero_ahead(engine, now);
            };
            self.pages_in_flight += 1;
            self.writes_in_flight += usize::from(io.kind == Kind::Write);
            self.launch(io, engine, now);
        }
        self.depth.was_reached();
    }

    fn launch(&mut self, mut io: Io, engine: &mut dyn Engine, now: Duration) {
        io.started = now;
        self.watch.began(&io);
        engine.start(io);
    }

    /// Reads before writes; but an eighth of the depth belongs to writes, or a busy reader would
    /// keep frames from ever being written out.
    fn next_page_io(&mut self, turn: &mut usize, now: Duration) -> Option<Io> {
        let share = (self.depth.now() / 8).max(1);
        if self.writes_in_flight < share
            && self.depth.now() > 1
            && let Some(io) = self.next_write(turn, now)
        {
            return Some(io);
        }
        self.reads.pop_front().or_else(|| self.next_write(turn, now))
    }

    fn start_chores(&mut self, now: Duration) {
        while self.blocks.any_left()
            && let Some(job) = self.writer.next_chore(now)
        {
            let task = self.tasks.insert(Task::Chore(job.chore));
            let (kind, offset, span) = match job.write {
                Some((offset, block)) => {
                    let span = self.blocks.take();
                    span.copy_from_slice(&block);
                    (Kind::Write, offset, Some(span))
                }
                None => (Kind::Flush, 0, None),
            };
            self.chores.push_back(Io::new(task, kind, offset, span));
        }
    }

    fn report_freed(&mut self) {
        let device = self.device;
        let free_segments = self.writer.free_segments();
        for (segment, segment_use) in self.writer.freed.drain(..) {
            self.counters.freed_segments += 1;
            let freed = Completion::SegmentFreed { device, segment, segment_use, free_segments };
            self.answers.push(freed);
        }
    }

    /// A transfer is over, or a part of it.
    pub fn finished(&mut self, done: Done, now: Duration) {
        let Done { mut io, result } = done;
        let page = self.tasks.get(io.task).is_some_and(Task::is_page);
        if page {
            self.pages_in_flight -= 1;
            self.writes_in_flight -= usize::from(io.kind == Kind::Write);
            self.depth.ended(now.saturating_sub(io.started));
        }
        let progress = progress(&mut io, result);
        self.watch.ended(&io, progress == Some(false), now);
        // The rest of a short transfer is not asked of a device that takes none.
        let goes_on = match io.kind {
            Kind::Read => self.watch.takes_reads(),
            Kind::Write | Kind::Flush => self.watch.takes_writes(),
        };
        let loose = page || matches!(self.tasks.get(io.task), Some(Task::Mend(_)));
        match progress {
            Some(ok) => {
                self.counters.io_errors += u64::from(!ok);
                self.over(io, ok, now);
            }
            None if loose && !goes_on => self.over(io, false, now),
            None if page && io.kind == Kind::Read => self.reads.push_front(io),
            None if page => self.writes.push_front(Outgoing::Ready(io)),
            None if matches!(self.tasks.get(io.task), Some(Task::Probe(_))) => {
                self.next_step = Some(io);
            }
            None => self.chores.push_front(io),
        }
    }

    /// A transfer has succeeded or failed as a whole, or will never be started.
    fn over(&mut self, io: Io, ok: bool, now: Duration) {
        let page = self.tasks.get(io.task).is_some_and(Task::is_page) || self.is_to_mend(io.task);
        if ok && page && io.kind == Kind::Read {
            let span = io.span.expect("a page's transfer has memory");
            self.landed.push_back((io.task, span));
            return;
        }
        match self.tasks.remove(io.task) {
            Task::Chore(chore) => self.chore_done(chore, io.span, ok, now),
            Task::Probe(step) => self.probe_over(step, io, ok, now),
            Task::Zero(rest) => self.zeroed(rest, &io, ok),
            Task::Mend(mend) => self.mend_over(mend, ok, now),
            Task::Append { append, extent, sealed } => {
                if let Some(page) = sealed {
                    self.scratch.take_back(page);
                }
                let identity = append.identity;
                self.writer.written(&extent, identity.page_bytes, ok, now);
                let outcome = self.count_write(&identity, extent, ok);
                self.appended(append.job, append.payload, outcome);
            }
            task @ (Task::Read { .. } | Task::Fetch { .. }) => {
                self.judge(task, io.span.expect("a page's transfer has memory"), false);
            }
            Task::Restore { lift, extent, page } => {
                self.put_down(page);
                self.writer.written(&extent, lift.identity.page_bytes, ok, now);
                let outcome = match self.count_write(&lift.identity, extent, ok) {
                    AppendOutcome::Written(extent) => {
                        self.counters.relocated_records += 1;
                        self.counters.relocated_bytes += u64::from(lift.identity.page_bytes);
                        RelocateOutcome::Written(extent)
                    }
                    _ => RelocateOutcome::Failed,
                };
                self.relocated(lift.job, outcome);
            }
        }
    }

    fn chore_done(&mut self, chore: Chore, block: Option<Span>, ok: bool, now: Duration) {
        if let Some(block) = block {
            self.blocks.take_back(block);
            self.counters.table_writes += 1;
        }
        self.counters.sealed_segments += u64::from(ok && matches!(chore, Chore::Seal(_)));
        self.writer.chore_done(chore, ok, now);
    }

    fn count_write(&mut self, identity: &PageIdentity, extent: Extent, ok: bool) -> AppendOutcome {
        if !ok {
            return AppendOutcome::Failed;
        }
        self.counters.written_records += 1;
        self.counters.written_bytes += u64::from(identity.page_bytes);
        AppendOutcome::Written(extent)
    }

    /// When to come back, if nothing happens before.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        let waiting = self.next_refusal();
        // A chore that waits for a block is started when one comes back, not by the clock.
        let chores = self.writer.next_due();
        let chores = chores.filter(|_| self.blocks.any_left() && self.watch.takes_writes());
        let others = [self.next_mending(), self.watch.next_due()].into_iter().flatten();
        waiting.into_iter().chain(chores).chain(others).min()
    }

    /// No more segments are opened, what waits is refused, everything else is finished.
    pub fn begin_close(&mut self, now: Duration) {
        self.closing = true;
        self.writer.begin_close(now);
    }

    /// Whether everything accepted is answered and everything that can be written is written.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.tasks.is_empty()
            && self.waiting.is_empty()
            && self.lifts.is_empty()
            && self.mending.is_none()
            && self.writer.is_quiet()
    }
}

/// Whether a span is the frame of a page: its size, and its place for direct transfers.
fn is_frame(span: &Span, identity: &PageIdentity) -> bool {
    let limits = undercroft_wire::MIN_PAGE_BYTES..=undercroft_wire::MAX_PAGE_BYTES;
    limits.contains(&identity.page_bytes)
        && span.len() == frame_bytes(identity.page_bytes) as usize
        && span.as_ptr().addr().is_multiple_of(BLOCK as usize)
}

/// What an attempt means: the whole transfer succeeded or failed, or (`None`) the rest of it is
/// to be started again. A short transfer is finished or failed, never believed.
fn progress(io: &mut Io, result: io::Result<usize>) -> Option<bool> {
    let Some(span) = &io.span else {
        return Some(result.is_ok());
    };
    match result {
        Ok(moved) => {
            io.done += moved;
            io.attempts = 0;
            if io.done == span.len() {
                return Some(true);
            }
            // Nothing moved, or a part of a block: the end of the file or of the medium's strength.
            let broken = moved == 0 || !moved.is_multiple_of(BLOCK as usize);
            if broken || io.done > span.len() { Some(false) } else { None }
        }
        Err(e) => {
            let again = matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock);
            io.attempts += 1;
            if again && io.attempts < MAX_ATTEMPTS { None } else { Some(false) }
        }
    }
}
