//! The engine on io_uring: one ring, owned by the log's thread.
#![expect(
    unsafe_code,
    reason = "the kernel is handed addresses, and the ring must keep them alive"
)]

mod buffers;

use crate::engine::{Done, Doorbell, Engine, Io, Kind};
use crate::lacks::Lacks;
use buffers::Buffers;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use slab::Slab;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use undercroft_arena::{Part, Span};

/// Marks the read of the doorbell among completions.
const BELL: u64 = u64::MAX;
/// How long a ring waits at its end for transfers that the device does not finish.
const DRAIN_WAIT: Duration = Duration::from_secs(3);
/// The log's file among the registered ones.
const FILE: types::Fixed = types::Fixed(0);

/// io_uring.
pub(crate) struct Ring {
    ring: IoUring,
    /// Transfers the kernel has, by their number in the ring.
    flying: Slab<Io>,
    buffers: Buffers,
    bell: Arc<OwnedFd>,
    /// Where the kernel puts the doorbell's count.
    bell_count: Box<u64>,
    bell_armed: bool,
    broken: bool,
}

impl Ring {
    /// A ring for up to `capacity` transfers at once on the file `fd`, and the bell that wakes
    /// its owner. The arena's parts and the log's own memory are registered with it. What can be
    /// done without is added to `lacks`. To be called on the thread that will use it.
    pub(crate) fn new(
        fd: RawFd,
        capacity: usize,
        memory: (Vec<Arc<Part>>, Span),
        lacks: &mut Lacks,
    ) -> io::Result<(Self, Arc<Doorbell>)> {
        let (ring, deferred) = build(capacity as u32 + 1)?;
        if !deferred {
            lacks.no_deferred_work();
        }
        ring.submitter().register_files(&[fd])?;
        let buffers = Buffers::register(&ring, memory, lacks);
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let sender = Arc::clone(&bell);
        let doorbell = Doorbell::new(move || {
            // A full counter means that the bell has rung already.
            let _already = rustix::io::write(&*sender, &1_u64.to_ne_bytes());
        });
        let ring = Self {
            ring,
            flying: Slab::with_capacity(capacity),
            buffers,
            bell,
            bell_count: Box::new(0),
            bell_armed: false,
            broken: false,
        };
        Ok((ring, doorbell))
    }

    fn entry(&self, io: &Io) -> squeue::Entry {
        let Some((offset, rest)) = io.rest() else {
            return opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build();
        };
        let len = rest.len() as u32;
        match (io.kind, self.buffers.of(&rest)) {
            (Kind::Read, Some(buffer)) => {
                opcode::ReadFixed::new(FILE, rest.as_mut_ptr(), len, buffer).offset(offset).build()
            }
            (Kind::Read, None) => {
                opcode::Read::new(FILE, rest.as_mut_ptr(), len).offset(offset).build()
            }
            (_, Some(buffer)) => {
                opcode::WriteFixed::new(FILE, rest.as_ptr(), len, buffer).offset(offset).build()
            }
            (_, None) => opcode::Write::new(FILE, rest.as_ptr(), len).offset(offset).build(),
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: every entry points into a span that `flying` keeps until its completion was
        // reaped, or at `bell_count`, which lives as long as the ring; `drop` waits for both.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("the queue has room for the capacity and the doorbell");
    }

    fn arm_bell(&mut self) {
        if self.bell_armed {
            return;
        }
        self.bell_armed = true;
        let fd = types::Fd(self.bell.as_raw_fd());
        let count: *mut u64 = &mut *self.bell_count;
        let entry = opcode::Read::new(fd, count.cast(), 8).build().user_data(BELL);
        self.push(&entry);
    }

    fn submit(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        let timespec = timeout.map(types::Timespec::from);
        let mut args = types::SubmitArgs::new();
        if let Some(timespec) = &timespec {
            args = args.timespec(timespec);
        }
        match self.ring.submitter().submit_with_args(want, &args) {
            Ok(_) => Ok(()),
            Err(e) => match Errno::from_io_error(&e) {
                // Time passed, a signal came, or completions must be reaped first: all of them
                // are reasons to look at the completions.
                Some(Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN) => Ok(()),
                _ => Err(e),
            },
        }
    }

    fn reap(&mut self, out: &mut Vec<Done>) {
        let completions: Vec<cqueue::Entry> = self.ring.completion().collect();
        for completion in completions {
            if completion.user_data() == BELL {
                self.bell_armed = false;
                continue;
            }
            let io = self.flying.remove(completion.user_data() as usize);
            let result = match completion.result() {
                moved @ 0.. => Ok(moved as usize),
                error => Err(io::Error::from_raw_os_error(-error)),
            };
            out.push(Done { io, result });
        }
    }

    /// Waits until the kernel has given back all memory, or for as long as is reasonable.
    fn drain(&mut self) -> io::Result<()> {
        let mut lost = Vec::new();
        if self.bell_armed {
            rustix::io::write(&*self.bell, &1_u64.to_ne_bytes())?;
        }
        let since = Instant::now();
        while self.bell_armed || !self.flying.is_empty() {
            let left = DRAIN_WAIT.saturating_sub(since.elapsed());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.submit(1, Some(left))?;
            self.reap(&mut lost);
        }
        Ok(())
    }
}

/// The best ring the kernel gives, and whether it does its work when this thread asks for it. Each
/// step needs a newer kernel than the one below it.
fn build(entries: u32) -> io::Result<(IoUring, bool)> {
    let completions = entries * 2;
    let mut best = IoUring::builder();
    best.setup_single_issuer().setup_defer_taskrun().setup_cqsize(completions).dontfork();
    let mut plain = IoUring::builder();
    plain.setup_cqsize(completions).dontfork();
    let (ring, deferred) = match best.build(entries) {
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => (plain.build(entries)?, false),
        result => (result?, true),
    };
    if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel is too old"));
    }
    Ok((ring, deferred))
}

/// Whether the kernel gives rings at all.
pub(crate) fn probe() -> io::Result<()> {
    build(1).map(drop)
}

impl Engine for Ring {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn registered_buffers(&self) -> bool {
        self.buffers.are_registered()
    }

    fn set_memory(&mut self, parts: &[Arc<Part>]) {
        self.buffers.set_parts(&self.ring, parts);
    }

    fn start(&mut self, io: Io) {
        let entry = self.entry(&io);
        let number = self.flying.insert(io);
        self.push(&entry.user_data(number as u64));
    }

    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Done>) -> io::Result<()> {
        self.arm_bell();
        let want = usize::from(timeout != Some(Duration::ZERO));
        let waited = self.submit(want, timeout);
        self.broken |= waited.is_err();
        self.reap(done);
        waited
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.broken || self.drain().is_err() {
            // The kernel may still write into this memory, so it must never be used again.
            std::mem::forget(std::mem::take(&mut self.flying));
            std::mem::forget(std::mem::take(&mut self.bell_count));
            self.buffers.leak();
        }
        // The kernel takes a ring apart some time after it is closed; the file's lock should not
        // wait for that. Where it is refused, the next opener waits a little.
        let _later = self.ring.submitter().unregister_files();
    }
}
