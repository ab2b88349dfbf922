//! What the log does with operations: the whole logic between a queue of them and an engine.
//! Knows no thread and no clock: time is an argument, so that tests own it.

mod reading;

use crate::engine::{Done, Engine, Io, Kind};
use crate::format::BLOCK;
use crate::scratch::{Blocks, Scratch, ScratchPage};
use crate::segment::Record;
use crate::writer::{Chore, Placement, Purpose, Writer};
use crate::{AppendOutcome, Completion, LogCounters, Op, RelocateOutcome};
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::time::Duration;
use undercroft_arena::{ArenaError, Span};
use undercroft_wire::{DeviceId, Extent, JobId, PageIdentity, frame_bytes};

/// Blocks for headers and tables in flight. More chores than that wait.
pub(crate) const CHORES_IN_FLIGHT: usize = 4;
/// Pages being relocated at once.
const RELOCATIONS: usize = 4;
/// How long an append may wait for a segment to become free.
const APPEND_WAIT: Duration = Duration::from_secs(2);
/// Appends that may wait for one. Their frames wait with them, and nothing else does.
const MAX_WAITING_APPENDS: usize = 4096;
/// How often a transfer that was interrupted before it moved a byte is started again.
const MAX_ATTEMPTS: u32 = 8;

/// A transfer's purpose.
#[derive(Debug)]
enum Task {
    Append { job: JobId, identity: PageIdentity, extent: Extent },
    Read { job: JobId, identity: PageIdentity, extent: Extent, record: Record },
    Fetch { relocation: Relocation, record: Record, page: ScratchPage },
    Restore { relocation: Relocation, extent: Extent, page: ScratchPage },
    Chore(Chore),
}

#[derive(Debug)]
struct Relocation {
    job: JobId,
    identity: PageIdentity,
    extent: Extent,
}

#[derive(Debug)]
struct Append {
    job: JobId,
    identity: PageIdentity,
    payload: Span,
    payload_crc: u64,
}

/// The log between operations and transfers.
pub(crate) struct Machine {
    device: DeviceId,
    depth: usize,
    writer: Writer,
    tasks: Slab<Task>,
    chores: VecDeque<Io>,
    reads: VecDeque<Io>,
    writes: VecDeque<Io>,
    /// Reads whose bytes are there and were not checked yet.
    landed: VecDeque<(usize, Span)>,
    pages_in_flight: usize,
    writes_in_flight: usize,
    /// Appends that found no segment, and since when they wait.
    waiting: VecDeque<(Append, Duration)>,
    /// Relocations that wait for memory.
    relocations: VecDeque<Relocation>,
    scratch: Scratch,
    blocks: Blocks,
    closing: bool,
    /// What it did.
    pub(crate) counters: LogCounters,
    /// Answers, for the owner to take.
    pub(crate) answers: Vec<Completion>,
}

impl Machine {
    /// A machine over `writer` that keeps up to `depth` page transfers in flight.
    pub(crate) fn new(
        device: DeviceId,
        depth: usize,
        writer: Writer,
        counters: LogCounters,
    ) -> Result<Self, ArenaError> {
        Ok(Self {
            device,
            depth,
            writer,
            tasks: Slab::new(),
            chores: VecDeque::new(),
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            landed: VecDeque::new(),
            pages_in_flight: 0,
            writes_in_flight: 0,
            waiting: VecDeque::new(),
            relocations: VecDeque::new(),
            scratch: Scratch::new(RELOCATIONS),
            blocks: Blocks::new(CHORES_IN_FLIGHT)?,
            closing: false,
            counters,
            answers: Vec::new(),
        })
    }

    /// Whether it takes another operation. Appends that wait for a segment are few by their own
    /// limit, so that the operation which frees one always gets in.
    pub(crate) fn wants_ops(&self) -> bool {
        let queued = self.reads.len() + self.writes.len() + self.relocations.len();
        let queued = queued + self.landed.len();
        queued < 2 * self.depth
    }

    /// Takes an operation.
    pub(crate) fn accept(&mut self, op: Op, now: Duration) {
        match op {
            Op::Append { job, identity, payload, payload_crc } => {
                let append = Append { job, identity, payload, payload_crc };
                if !is_frame(&append.payload, &identity) {
                    self.counters.invalid_ops += 1;
                    self.appended(append.job, append.payload, AppendOutcome::Failed);
                } else if self.waiting.is_empty() {
                    self.try_append(append, now);
                } else {
                    self.wait_for_segment(append, now);
                }
            }
            Op::Read { job, identity, extent, into } => self.read(job, identity, extent, into),
            Op::Relocate { job, identity, extent } => {
                self.relocations.push_back(Relocation { job, identity, extent });
            }
            Op::FreeSegment { segment, segment_use } => {
                self.writer.free_segment(segment, segment_use, now);
            }
        }
    }

    fn try_append(&mut self, append: Append, now: Duration) {
        let purpose = Purpose::Append;
        match self.writer.place(&append.identity, append.payload_crc, purpose) {
            Placement::At(extent, offset) => {
                let Append { job, identity, payload, .. } = append;
                self.page_io(Kind::Write, offset, payload, Task::Append { job, identity, extent });
            }
            Placement::NoSegment => self.wait_for_segment(append, now),
            Placement::TooLarge => {
                self.counters.invalid_ops += 1;
                self.appended(append.job, append.payload, AppendOutcome::Failed);
            }
        }
    }

    fn wait_for_segment(&mut self, append: Append, now: Duration) {
        if self.closing || self.waiting.len() >= MAX_WAITING_APPENDS {
            self.no_space(append);
        } else {
            self.waiting.push_back((append, now));
        }
    }

    fn no_space(&mut self, append: Append) {
        self.counters.no_space += 1;
        self.appended(append.job, append.payload, AppendOutcome::NoSpace);
    }

    fn appended(&mut self, job: JobId, payload: Span, outcome: AppendOutcome) {
        let free_segments = self.writer.free_segments();
        self.answers.push(Completion::Appended { job, payload, outcome, free_segments });
    }

    fn relocated(&mut self, job: JobId, outcome: RelocateOutcome) {
        let free_segments = self.writer.free_segments();
        self.answers.push(Completion::Relocated { job, outcome, free_segments });
    }

    fn page_io(&mut self, kind: Kind, offset: u64, span: Span, task: Task) {
        let task = self.tasks.insert(task);
        let io = Io { task, kind, offset, span: Some(span), done: 0, attempts: 0 };
        match kind {
            Kind::Read => self.reads.push_back(io),
            _ => self.writes.push_back(io),
        }
    }

    /// Starts what can be started.
    pub(crate) fn pump(&mut self, engine: &mut dyn Engine, now: Duration) {
        self.retry_waiting(now);
        self.start_relocations();
        self.start_chores(now);
        self.report_freed();
        while let Some(io) = self.chores.pop_front() {
            engine.start(io);
        }
        while self.pages_in_flight < self.depth {
            let Some(io) = self.next_page_io() else { break };
            self.pages_in_flight += 1;
            self.writes_in_flight += usize::from(io.kind == Kind::Write);
            engine.start(io);
        }
    }

    /// Reads before writes; but an eighth of the depth belongs to writes, or a busy reader would
    /// keep frames from ever being written out.
    fn next_page_io(&mut self) -> Option<Io> {
        let share = (self.depth / 8).max(1);
        if self.writes_in_flight < share
            && self.depth > 1
            && let Some(io) = self.writes.pop_front()
        {
            return Some(io);
        }
        self.reads.pop_front().or_else(|| self.writes.pop_front())
    }

    fn retry_waiting(&mut self, now: Duration) {
        let mut rest = std::mem::take(&mut self.waiting);
        while let Some((append, since)) = rest.pop_front() {
            let purpose = Purpose::Append;
            match self.writer.place(&append.identity, append.payload_crc, purpose) {
                Placement::At(extent, offset) => {
                    let Append { job, identity, payload, .. } = append;
                    let task = Task::Append { job, identity, extent };
                    self.page_io(Kind::Write, offset, payload, task);
                }
                _ if self.closing || now >= since + APPEND_WAIT => self.no_space(append),
                _ => {
                    rest.push_front((append, since));
                    break;
                }
            }
        }
        self.waiting = rest;
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
            self.chores.push_back(Io { task, kind, offset, span, done: 0, attempts: 0 });
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
    pub(crate) fn finished(&mut self, done: Done, now: Duration) {
        let Done { mut io, result } = done;
        let chore = matches!(self.tasks.get(io.task), Some(Task::Chore(_)));
        if !chore {
            self.pages_in_flight -= 1;
            self.writes_in_flight -= usize::from(io.kind == Kind::Write);
        }
        let Some(ok) = progress(&mut io, result) else {
            let queue = match io.kind {
                _ if chore => &mut self.chores,
                Kind::Read => &mut self.reads,
                _ => &mut self.writes,
            };
            queue.push_front(io);
            return;
        };
        self.counters.io_errors += u64::from(!ok);
        if ok && io.kind == Kind::Read {
            let span = io.span.expect("a page's transfer has memory");
            self.landed.push_back((io.task, span));
            return;
        }
        match self.tasks.remove(io.task) {
            Task::Chore(chore) => self.chore_done(chore, io.span, ok, now),
            Task::Append { job, identity, extent } => {
                let payload = io.span.expect("a page's transfer has memory");
                self.writer.written(&extent, identity.page_bytes, ok, now);
                let outcome = self.count_write(&identity, extent, ok);
                self.appended(job, payload, outcome);
            }
            task @ (Task::Read { .. } | Task::Fetch { .. }) => {
                self.judge(task, io.span.expect("a page's transfer has memory"), false);
            }
            Task::Restore { relocation, extent, page } => {
                self.scratch.take_back(page);
                let identity = relocation.identity;
                self.writer.written(&extent, identity.page_bytes, ok, now);
                let outcome = match self.count_write(&identity, extent, ok) {
                    AppendOutcome::Written(extent) => {
                        self.counters.relocated_records += 1;
                        self.counters.relocated_bytes += u64::from(identity.page_bytes);
                        RelocateOutcome::Written(extent)
                    }
                    _ => RelocateOutcome::Failed,
                };
                self.relocated(relocation.job, outcome);
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
    pub(crate) fn next_due(&self) -> Option<Duration> {
        let waiting = self.waiting.front().map(|(_, since)| *since + APPEND_WAIT);
        // A chore that waits for a block is started when one comes back, not by the clock.
        let chores = self.writer.next_due().filter(|_| self.blocks.any_left());
        waiting.into_iter().chain(chores).min()
    }

    /// No more segments are opened, what waits is refused, everything else is finished.
    pub(crate) fn begin_close(&mut self, now: Duration) {
        self.closing = true;
        self.writer.begin_close(now);
    }

    /// Whether everything accepted is answered and everything to be written is written.
    pub(crate) fn is_quiet(&self) -> bool {
        self.tasks.is_empty()
            && self.waiting.is_empty()
            && self.relocations.is_empty()
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
