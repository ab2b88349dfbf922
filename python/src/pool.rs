use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::process;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

type Job = Box<dyn FnOnce() + Send>;

/// Which threads a task goes to: no load waits behind a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Loads,
    Stores,
}

/// Why a task was not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// As many wait as may, or there are no threads to be had.
    Busy,
    /// The pool was closed.
    Closed,
    /// This process was forked from the one whose threads these are.
    Forked,
}

/// The threads on which started loads and stores go on. They are made at the first task, and end
/// when the pool is closed or gone and the tasks are through.
pub(crate) struct Pool {
    threads: usize,
    most: usize,
    pid: u32,
    state: Mutex<State>,
    unfinished: Arc<Unfinished>,
}

/// How many tasks are taken and not through.
#[derive(Default)]
struct Unfinished {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Unfinished {
    fn add(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    fn remove(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.changed.notify_all();
    }

    fn wait(&self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(count, left);
            count = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

enum State {
    Idle,
    Running { loads: Sender<Job>, stores: Sender<Job> },
    Closed,
}

impl Pool {
    pub(crate) fn new(threads: usize, most: usize) -> Self {
        let (state, unfinished) = (Mutex::new(State::Idle), Arc::default());
        Self { threads, most, pid: process::id(), state, unfinished }
    }

    /// The process that made it, which alone has its threads.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn submit(&self, lane: Lane, job: Job) -> Result<(), Refused> {
        if process::id() != self.pid {
            return Err(Refused::Forked);
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Idle) {
            let loads = start("undercroft-load", self.threads, self.most)?;
            let stores = start("undercroft-store", 1, self.most)?;
            *state = State::Running { loads, stores };
        }
        let State::Running { loads, stores } = &*state else {
            return Err(Refused::Closed);
        };
        let lane = if lane == Lane::Loads { loads } else { stores };
        let unfinished = Arc::clone(&self.unfinished);
        let counted: Job = Box::new(move || {
            job();
            unfinished.remove();
        });
        self.unfinished.add();
        lane.try_send(counted).map_err(|error| {
            self.unfinished.remove();
            match error {
                TrySendError::Full(_) => Refused::Busy,
                TrySendError::Disconnected(_) => Refused::Closed,
            }
        })
    }

    /// Takes no more tasks.
    pub(crate) fn close(&self) {
        if process::id() == self.pid {
            *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::Closed;
        }
    }

    /// Waits until those that were taken are through, and says whether they are.
    pub(crate) fn wait(&self, deadline: Duration) -> bool {
        process::id() != self.pid || self.unfinished.wait(deadline)
    }
}

fn start(name: &str, threads: usize, most: usize) -> Result<Sender<Job>, Refused> {
    let (sender, receiver) = bounded::<Job>(most);
    for index in 0..threads {
        let receiver: Receiver<Job> = receiver.clone();
        // Those that were made end with the sender.
        thread::Builder::new()
            .name(format!("{name}-{index}"))
            .spawn(move || receiver.iter().for_each(|job| job()))
            .map_err(|_| Refused::Busy)?;
    }
    Ok(sender)
}
