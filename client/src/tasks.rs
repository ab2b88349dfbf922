use crate::MissReason;
use crate::bell::from_now;
use std::collections::VecDeque;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::process;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// What a thread does. It does not unwind.
type Work = Box<dyn FnOnce() + Send>;

/// Which threads a task goes to: no load waits behind a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// What a request waits for.
    Loads,
    /// What nobody waits for. One after another: they share their staging.
    Stores,
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended<T> {
    /// It was done, with this.
    Through(T),
    /// Nothing of it was begun.
    GivenUp,
    /// It panicked, which is a bug.
    Panicked,
}

/// Threads on which loads and stores go on while their caller does something else. Those of a lane
/// are made with its first task. They end when the pool is closed or gone, and what it took is
/// through.
pub struct TaskPool {
    /// The process that made it. In a forked child there are no threads, and any lock may be held.
    process: u32,
    /// How many tasks may wait in each lane.
    most: usize,
    /// Kept alive by the threads: in a forked child, where there are none, nothing of it is dropped.
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// There is something to do in a lane, or nothing will come.
    work: [Condvar; 2],
    /// A thread has done something.
    through: Condvar,
}

struct State {
    lanes: [Waiting; 2],
    under_way: usize,
    is_closed: bool,
}

struct Waiting {
    tasks: VecDeque<Work>,
    made: Vec<JoinHandle<()>>,
    /// How many threads there are to be.
    threads: usize,
}

impl Waiting {
    fn new(threads: usize) -> Self {
        Self { tasks: VecDeque::new(), made: Vec::new(), threads }
    }
}

impl TaskPool {
    /// A pool of `threads` threads for loads and one for stores. In each lane `most` tasks may wait
    /// for a thread.
    #[must_use]
    pub fn new(threads: usize, most: usize) -> Self {
        let lanes = [Waiting::new(threads.max(1)), Waiting::new(1)];
        let state = Mutex::new(State { lanes, under_way: 0, is_closed: false });
        let shared = Shared { state, work: Default::default(), through: Condvar::new() };
        Self { process: process::id(), most, shared: Arc::new(shared) }
    }

    fn is_foreign(&self) -> bool {
        self.process != process::id()
    }

    /// Has a thread of the lane do `work` when there is one. It is given what to call when a layer
    /// has come, with how many leading pages have it, layer by layer.
    ///
    /// # Errors
    /// [`MissReason::Busy`] if as many wait as may or no thread can be had,
    /// [`MissReason::Disconnected`] if the pool was closed, [`MissReason::Forked`] in a child.
    pub fn start<T: Send + Sync + 'static>(
        &self,
        lane: Lane,
        work: impl FnOnce(&dyn Fn(u32)) -> T + Send + 'static,
    ) -> Result<Task<T>, MissReason> {
        let task = Task { progress: Arc::new(Progress::new(self.process)) };
        let claim = Claim(Arc::clone(&task.progress));
        self.submit(lane, Box::new(move || claim.run(work)))?;
        Ok(task)
    }

    fn submit(&self, lane: Lane, work: Work) -> Result<(), MissReason> {
        if self.is_foreign() {
            return Err(MissReason::Forked);
        }
        let mut state = self.shared.lock();
        if state.is_closed {
            return Err(MissReason::Disconnected);
        }
        let waiting = &mut state.lanes[lane as usize];
        if waiting.tasks.len() >= self.most {
            return Err(MissReason::Busy);
        }
        while waiting.made.len() < waiting.threads {
            let shared = Arc::clone(&self.shared);
            let name = format!("undercroft-{}{}", lane.name(), waiting.made.len());
            match thread::Builder::new().name(name).spawn(move || shared.run(lane)) {
                Ok(thread) => waiting.made.push(thread),
                // Those that there are do.
                Err(_) if !waiting.made.is_empty() => break,
                Err(_) => return Err(MissReason::Busy),
            }
        }
        waiting.tasks.push_back(work);
        self.shared.work[lane as usize].notify_one();
        Ok(())
    }

    /// Takes nothing more. What it took goes on.
    pub fn close(&self) {
        if !self.is_foreign() {
            self.shared.lock().is_closed = true;
            self.shared.work.iter().for_each(Condvar::notify_all);
        }
    }

    /// Waits until all that it took is through, at most for so long, and says whether it is.
    #[must_use]
    pub fn wait(&self, deadline: Duration) -> bool {
        if self.is_foreign() {
            return true;
        }
        let until = from_now(deadline);
        let is_at_work = |state: &mut State| {
            state.under_way > 0 || state.lanes.iter().any(|lane| !lane.tasks.is_empty())
        };
        let left = until.saturating_duration_since(Instant::now());
        let waited = self.shared.through.wait_timeout_while(self.shared.lock(), left, is_at_work);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Takes nothing more, gives up what waits, waits for what is under way, and for the threads.
    pub fn give_up(&self) {
        if self.is_foreign() {
            return;
        }
        self.close();
        let (mut waiting, mut threads) = (Vec::new(), Vec::new());
        for lane in &mut self.shared.lock().lanes {
            waiting.extend(std::mem::take(&mut lane.tasks));
            threads.append(&mut lane.made);
        }
        self.shared.through.notify_all();
        // Not under the lock: with them go devices and handles of spaces.
        drop(waiting);
        for thread in threads {
            // A task that gives up its own pool would wait for itself.
            if thread.thread().id() != thread::current().id() {
                // Work does not unwind, so that there is no panic to pass on.
                let _joined = thread.join();
            }
        }
    }
}

impl Drop for TaskPool {
    fn drop(&mut self) {
        self.close();
    }
}

impl Lane {
    fn name(self) -> &'static str {
        match self {
            Self::Loads => "load",
            Self::Stores => "store",
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, lane: Lane) {
        while let Some(work) = self.next(lane) {
            work();
            self.lock().under_way -= 1;
            self.through.notify_all();
        }
    }

    fn next(&self, lane: Lane) -> Option<Work> {
        let lane = lane as usize;
        let is_idle = |state: &mut State| state.lanes[lane].tasks.is_empty() && !state.is_closed;
        let waited = self.work[lane].wait_while(self.lock(), is_idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        let work = state.lanes[lane].tasks.pop_front();
        state.under_way += usize::from(work.is_some());
        work
    }
}

impl fmt::Debug for TaskPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskPool({} may wait)", self.most)
    }
}

/// What was started. Any number of threads may ask it.
pub struct Task<T> {
    progress: Arc<Progress<T>>,
}

/// How far a task has come, as [`Task::wait_layer`] has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Arrived<'a, T> {
    /// How many leading pages have the layer, if it has come.
    pub pages: Option<u32>,
    /// How the task ended, if it has: then no layer comes any more.
    pub end: Option<&'a Ended<T>>,
}

struct Progress<T> {
    process: u32,
    /// Read without a lock, so in a forked child as well. Set under the lock of `state`.
    end: OnceLock<Ended<T>>,
    state: Mutex<Begun>,
    changed: Condvar,
}

#[derive(Default)]
struct Begun {
    is_begun: bool,
    /// Of each layer that has come, how many leading pages have it.
    layers: Vec<u32>,
}

impl<T> Task<T> {
    /// Whether this is another process than the one whose thread runs it: unless it is over, it
    /// never will be here.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.progress.is_foreign()
    }

    /// How it ended, if it has. Never waits.
    #[must_use]
    pub fn end(&self) -> Option<&Ended<T>> {
        self.progress.end.get()
    }

    /// Waits until it is over, at most for so long (`None`: for ever), and says how it ended.
    #[must_use]
    pub fn wait(&self, most: Option<Duration>) -> Option<&Ended<T>> {
        self.progress.wait(most, |_| self.end())
    }

    /// Waits until a layer has come or the task is over, at most for so long (`None`: for ever).
    #[must_use]
    pub fn wait_layer(&self, layer: u32, most: Option<Duration>) -> Option<Arrived<'_, T>> {
        self.progress.wait(most, |layers| {
            let (pages, end) = (layers.get(layer as usize).copied(), self.end());
            (pages.is_some() || end.is_some()).then_some(Arrived { pages, end })
        })
    }

    /// Gives it up if it has not begun. Says whether it was given up, now or before.
    pub fn give_up(&self) -> bool {
        self.progress.give_up()
    }
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Task({})", if self.end().is_some() { "over" } else { "not over" })
    }
}

impl<T> Progress<T> {
    fn new(process: u32) -> Self {
        let (end, state) = (OnceLock::new(), Mutex::default());
        Self { process, end, state, changed: Condvar::new() }
    }

    fn is_foreign(&self) -> bool {
        self.process != process::id()
    }

    fn lock(&self) -> MutexGuard<'_, Begun> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether it may begin: nobody has given it up.
    fn begin(&self) -> bool {
        let mut state = self.lock();
        state.is_begun = self.end.get().is_none();
        state.is_begun
    }

    fn give_up(&self) -> bool {
        if !self.is_foreign() {
            let state = self.lock();
            if !state.is_begun && self.end.set(Ended::GivenUp).is_ok() {
                self.changed.notify_all();
            }
        }
        matches!(self.end.get(), Some(Ended::GivenUp))
    }

    fn end(&self, end: Ended<T>) {
        let state = self.lock();
        let ended = self.end.set(end);
        assert!(ended.is_ok(), "a task that has begun is not given up");
        drop(state);
        self.changed.notify_all();
    }

    fn arrived(&self, pages: u32) {
        self.lock().layers.push(pages);
        self.changed.notify_all();
    }

    /// Waits until `look` sees something, at most for so long.
    fn wait<R>(&self, most: Option<Duration>, look: impl Fn(&[u32]) -> Option<R>) -> Option<R> {
        if self.is_foreign() {
            return look(&[]);
        }
        let until = from_now(most.unwrap_or(Duration::MAX));
        let mut state = self.lock();
        loop {
            if let Some(seen) = look(&state.layers) {
                return Some(seen);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A thread's side of a task: whatever becomes of the work, the task ends.
struct Claim<T>(Arc<Progress<T>>);

impl<T> Claim<T> {
    fn run(self, work: impl FnOnce(&dyn Fn(u32)) -> T) {
        if self.0.begin() {
            let arrived = |pages| self.0.arrived(pages);
            // A panic is our bug. It must not become a task that nobody ends. What the work had
            // with it, devices and handles, is dropped before the end is told.
            let end = panic::catch_unwind(AssertUnwindSafe(|| work(&arrived)));
            self.0.end(end.map_or(Ended::Panicked, Ended::Through));
        }
    }
}

impl<T> Drop for Claim<T> {
    fn drop(&mut self) {
        // The pool ended before a thread came to it.
        let _over = self.0.give_up();
    }
}
