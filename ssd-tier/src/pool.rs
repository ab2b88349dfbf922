//! The engine for machines that refuse io_uring: threads with positional reads and writes.

use crate::engine::{Done, Doorbell, Engine, Io, Kind};
use crate::storage::Storage;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// More threads than this do not make an SSD faster.
const MAX_THREADS: usize = 16;

enum Message {
    Done(Done),
    Wake,
}

/// A pool of threads.
pub(crate) struct Pool {
    work: Option<Sender<Io>>,
    done: Receiver<Message>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool for up to `capacity` transfers at once, and the bell that wakes its owner.
    pub(crate) fn new(
        storage: Arc<dyn Storage>,
        capacity: usize,
    ) -> io::Result<(Self, Arc<Doorbell>)> {
        let (work, jobs) = bounded::<Io>(capacity);
        // One place more than there can be transfers: a wake-up is never lost for want of room.
        let (report, done) = bounded::<Message>(capacity + 1);
        let mut pool = Self { work: Some(work), done, threads: Vec::new() };
        for number in 0..capacity.min(MAX_THREADS) {
            let (jobs, report, storage) = (jobs.clone(), report.clone(), Arc::clone(&storage));
            let body = move || {
                while let Ok(io) = jobs.recv() {
                    // A transfer that is never reported would be waited for without end.
                    let attempt = AssertUnwindSafe(|| carry_out(&*storage, &io));
                    let result = catch_unwind(attempt)
                        .unwrap_or_else(|_| Err(io::Error::other("the transfer panicked")));
                    if report.send(Message::Done(Done { io, result })).is_err() {
                        return;
                    }
                }
            };
            let name = format!("ucft-io-{number}");
            pool.threads.push(thread::Builder::new().name(name).spawn(body)?);
        }
        let bell = Doorbell::new(move || {
            // A full channel holds something that wakes the owner anyway.
            let _full = report.try_send(Message::Wake);
        });
        Ok((pool, bell))
    }
}

fn take(message: Message, out: &mut Vec<Done>) {
    if let Message::Done(done) = message {
        out.push(done);
    }
}

fn carry_out(storage: &dyn Storage, io: &Io) -> io::Result<usize> {
    match (io.kind, io.rest()) {
        (Kind::Read, Some((offset, rest))) => storage.read_at(offset, &rest),
        (Kind::Write, Some((offset, rest))) => storage.write_at(offset, &rest),
        _ => storage.flush().map(|()| 0),
    }
}

impl Engine for Pool {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn start(&mut self, io: Io) {
        let work = self.work.as_ref().expect("the pool is open until it is dropped");
        work.try_send(io).expect("the owner keeps to the pool's capacity");
    }

    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Done>) -> io::Result<()> {
        let gone = || io::Error::other("the threads of the pool are gone");
        let first = match timeout {
            None => self.done.recv().map_err(|_| gone())?,
            Some(timeout) => match self.done.recv_timeout(timeout) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(gone()),
            },
        };
        take(first, done);
        loop {
            match self.done.try_recv() {
                Ok(message) => take(message, done),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(gone()),
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.work = None;
        // The reports' channel has room for every transfer in flight, so no thread waits for it.
        for thread in self.threads.drain(..) {
            // A panic in it was reported by its own hook.
            let _panicked = thread.join();
        }
    }
}
