//! Loads and stores that go on while the caller does something else.

#![expect(unsafe_code, reason = "exported by name, for C; pointers come from there")]

use crate::grows::Out;
use crate::outcome::{
    Fault, UNDERCROFT_MISS_DEVICE, UNDERCROFT_MISS_FORKED, UNDERCROFT_MISS_RELEASED, UNDERCROFT_OK,
    UNDERCROFT_PENDING, answer, miss, quietly,
};
use crate::space::UndercroftSpace;
use crate::strings::{self, Place, time};
use crate::transfer::{
    LoadPlan, StorePlan, UndercroftLoadRequest, UndercroftLoaded, UndercroftStoreRequest,
    UndercroftStored, told,
};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A started load or store. The blocks are its alone (for a store: must not change) until it is over. Any number of
/// threads may ask it.
pub struct UndercroftTask {
    process: u32,
    progress: Arc<Progress>,
}

struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    stage: Stage,
    /// Of each layer that has come, how many leading pages have it.
    layers: Vec<u32>,
}

enum Stage {
    Waiting(Kind),
    UnderWay,
    Over(End),
}

#[derive(Clone, Copy)]
enum Kind {
    Load,
    Store { pages: u32 },
}

/// How a task ended, with the words for it.
#[derive(Clone)]
enum End {
    Loaded(UndercroftLoaded, Option<String>),
    Stored(UndercroftStored, Option<String>),
    /// The thread that ran it panicked.
    Panicked,
}

impl End {
    /// Nothing of it was begun.
    fn released(kind: Kind) -> Self {
        let (why, words) = (UNDERCROFT_MISS_RELEASED, Some("it was given up".to_owned()));
        match kind {
            Kind::Load => {
                let loaded = UndercroftLoaded {
                    size: 0,
                    pages: 0,
                    ssd_pages: 0,
                    bytes: 0,
                    why,
                    reserved: 0,
                };
                Self::Loaded(loaded, words)
            }
            Kind::Store { pages } => {
                let stored = UndercroftStored {
                    size: 0,
                    stored: 0,
                    held: 0,
                    coming: 0,
                    declined_credits: 0,
                    declined_parent: 0,
                    declined_full: 0,
                    declined_admission: 0,
                    failed: 0,
                    unsettled: pages,
                    why,
                };
                Self::Stored(stored, words)
            }
        }
    }
}

impl Progress {
    fn new(kind: Kind) -> Arc<Self> {
        let state = State { stage: Stage::Waiting(kind), layers: Vec::new() };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether it may begin: nobody has given it up.
    fn begin(&self) -> bool {
        let mut state = self.lock();
        let may = matches!(state.stage, Stage::Waiting(_));
        if may {
            state.stage = Stage::UnderWay;
        }
        may
    }

    fn arrived(&self, pages: u32) {
        self.lock().layers.push(pages);
        self.changed.notify_all();
    }

    fn end(&self, end: End) {
        self.lock().stage = Stage::Over(end);
        self.changed.notify_all();
    }

    /// Gives it up if it has not begun. Says whether it is over now.
    fn give_up(&self) -> bool {
        let mut state = self.lock();
        if let Stage::Waiting(kind) = state.stage {
            state.stage = Stage::Over(End::released(kind));
            self.changed.notify_all();
        }
        matches!(state.stage, Stage::Over(_))
    }

    /// Waits until `ready` says something, at most for so long.
    fn wait<R>(&self, most: Duration, ready: impl Fn(&State) -> Option<R>) -> Option<R> {
        // A time beyond all clocks is for ever.
        let until = Instant::now().checked_add(most);
        let mut state = self.lock();
        loop {
            if let Some(result) = ready(&state) {
                return Some(result);
            }
            let Some(until) = until else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
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
struct Claim(Arc<Progress>);

impl Claim {
    fn run(self, work: impl FnOnce(&Progress) -> End) {
        if self.0.begin() {
            // A panic here is our bug. It must not become a task that nobody ends.
            let end = panic::catch_unwind(AssertUnwindSafe(|| work(&self.0)));
            self.0.end(end.unwrap_or(End::Panicked));
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // The client ended before a thread came to it.
        let _over = self.0.give_up();
    }
}

/// Starts a load and returns; a thread of the client's does it. The task goes to `task`; free it with
/// `undercroft_task_free`. Its deadline counts from now on. `UNDERCROFT_MISS_BUSY` if too many wait for a thread:
/// then there is no task.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_load_start(
    space: *const UndercroftSpace,
    request: *const UndercroftLoadRequest,
    task: *mut *mut UndercroftTask,
) -> i32 {
    answer("undercroft_load_start", || {
        // SAFETY: the caller's, as the header says.
        let (plan, place) = unsafe { (LoadPlan::new(space, request)?, Place::new("task", task)?) };
        // SAFETY: as above.
        let space = unsafe { strings::handle("space", space) }?;
        start(space, place, Kind::Load, move |progress| {
            let (loaded, words) = match plan.by_layer {
                true => plan.run_by_layer(|pages| progress.arrived(pages)),
                false => plan.run(),
            };
            End::Loaded(loaded, words)
        })
    })
}

/// Starts a store and returns; a thread of the client's does it. As `undercroft_load_start`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_store_start(
    space: *const UndercroftSpace,
    request: *const UndercroftStoreRequest,
    task: *mut *mut UndercroftTask,
) -> i32 {
    answer("undercroft_store_start", || {
        // SAFETY: the caller's, as the header says.
        let (plan, place) = unsafe { (StorePlan::new(space, request)?, Place::new("task", task)?) };
        // SAFETY: as above.
        let space = unsafe { strings::handle("space", space) }?;
        start(space, place, Kind::Store { pages: plan.pages() }, move |_| {
            let (stored, words) = plan.run();
            End::Stored(stored, words)
        })
    })
}

fn start(
    space: &UndercroftSpace,
    place: Place<*mut UndercroftTask>,
    kind: Kind,
    work: impl FnOnce(&Progress) -> End + Send + 'static,
) -> Result<i32, Fault> {
    let progress = Progress::new(kind);
    let claim = Claim(Arc::clone(&progress));
    if let Err(why) = space.pool.submit(Box::new(move || claim.run(work))) {
        return Ok(miss(Some(why)));
    }
    let task = UndercroftTask { process: std::process::id(), progress };
    place.put(Box::into_raw(Box::new(task)));
    Ok(UNDERCROFT_OK)
}

/// # Safety
/// As [`strings::handle`].
unsafe fn progress<'a>(task: *const UndercroftTask) -> Result<Option<&'a Progress>, Fault> {
    // SAFETY: the caller's.
    let task = unsafe { strings::handle("task", task) }?;
    // In a forked child its lock may be held by a thread that is not there.
    Ok((task.process == std::process::id()).then_some(&*task.progress))
}

/// Waits until the task is over, at most until the deadline; 0 looks only. `UNDERCROFT_OK` if it is over, else
/// `UNDERCROFT_PENDING`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_task_wait(
    task: *const UndercroftTask,
    deadline_us: u64,
) -> i32 {
    answer("undercroft_task_wait", || {
        // SAFETY: the caller's, as the header says.
        let Some(progress) = unsafe { progress(task) }? else {
            return Ok(UNDERCROFT_MISS_FORKED);
        };
        let is_over = |state: &State| matches!(state.stage, Stage::Over(_)).then_some(());
        let over = progress.wait(time(deadline_us), is_over);
        Ok(over.map_or(UNDERCROFT_PENDING, |()| UNDERCROFT_OK))
    })
}

/// Waits until layer `layer` and all before it lie in their blocks, of a load that was started with `by_layer`. Of
/// how many leading pages goes to `pages`: of fewer than were asked for if the rest is a miss, and of a later layer
/// possibly of fewer than of an earlier one. `UNDERCROFT_PENDING` if that takes longer than the deadline.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_task_wait_layer(
    task: *const UndercroftTask,
    layer: u32,
    deadline_us: u64,
    pages: *mut u32,
) -> i32 {
    answer("undercroft_task_wait_layer", || {
        // SAFETY: the caller's, as the header says.
        let (asked, place) = unsafe { (progress(task)?, Place::new("pages", pages)?) };
        let Some(progress) = asked else {
            return Ok(UNDERCROFT_MISS_FORKED);
        };
        let arrived = progress.wait(time(deadline_us), |state| {
            match (state.layers.get(layer as usize), &state.stage) {
                (Some(pages), _) => Some((*pages, UNDERCROFT_OK)),
                // Nothing more will come: what is there has all of its layers.
                (None, Stage::Over(End::Loaded(loaded, _))) => Some((loaded.pages, loaded.why)),
                (None, Stage::Over(_)) => Some((0, UNDERCROFT_MISS_DEVICE)),
                (None, _) => None,
            }
        });
        let (pages, outcome) = arrived.unwrap_or((0, UNDERCROFT_PENDING));
        place.put(pages);
        Ok(outcome)
    })
}

/// The end of a started load, as `undercroft_load` would have returned it. `UNDERCROFT_PENDING`, and `loaded` as it
/// was, if it is not over.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_task_loaded(
    task: *const UndercroftTask,
    loaded: *mut UndercroftLoaded,
) -> i32 {
    answer("undercroft_task_loaded", || {
        // SAFETY: the caller's, as the header says.
        let (asked, out) = unsafe { (progress(task)?, Out::new(loaded)?) };
        match asked.map(end_of) {
            None => Ok(UNDERCROFT_MISS_FORKED),
            Some(None) => Ok(UNDERCROFT_PENDING),
            Some(Some(End::Loaded(loaded, words))) => {
                Ok(told(out, loaded, loaded.why, words.as_deref()))
            }
            Some(Some(End::Stored(..))) => Err(Fault::argument("the task is a store")),
            Some(Some(End::Panicked)) => Err(Fault::Internal("a load panicked")),
        }
    })
}

/// The end of a started store, as `undercroft_store` would have returned it. `UNDERCROFT_PENDING`, and `stored` as
/// it was, if it is not over.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_task_stored(
    task: *const UndercroftTask,
    stored: *mut UndercroftStored,
) -> i32 {
    answer("undercroft_task_stored", || {
        // SAFETY: the caller's, as the header says.
        let (asked, out) = unsafe { (progress(task)?, Out::new(stored)?) };
        match asked.map(end_of) {
            None => Ok(UNDERCROFT_MISS_FORKED),
            Some(None) => Ok(UNDERCROFT_PENDING),
            Some(Some(End::Stored(stored, words))) => {
                Ok(told(out, stored, stored.why, words.as_deref()))
            }
            Some(Some(End::Loaded(..))) => Err(Fault::argument("the task is a load")),
            Some(Some(End::Panicked)) => Err(Fault::Internal("a store panicked")),
        }
    })
}

fn end_of(progress: &Progress) -> Option<End> {
    match &progress.lock().stage {
        Stage::Over(end) => Some(end.clone()),
        Stage::Waiting(_) | Stage::UnderWay => None,
    }
}

/// Gives a task up that has not begun: it ends as `UNDERCROFT_MISS_RELEASED`. `UNDERCROFT_OK` if it is over and
/// touches no block any more, `UNDERCROFT_PENDING` if it is under way. Never waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_task_cancel(task: *const UndercroftTask) -> i32 {
    answer("undercroft_task_cancel", || {
        // SAFETY: the caller's, as the header says.
        let Some(progress) = unsafe { progress(task) }? else {
            return Ok(UNDERCROFT_MISS_FORKED);
        };
        Ok(if progress.give_up() { UNDERCROFT_OK } else { UNDERCROFT_PENDING })
    })
}

/// Frees a task. Null is allowed. One that has not begun is given up; one that is under way is waited for, so that no
/// block is touched after this.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_task_free(task: *mut UndercroftTask) {
    quietly("undercroft_task_free", || {
        if task.is_null() {
            return;
        }
        // SAFETY: the caller's, as the header says: it is ours, and is not used again.
        let task = unsafe { Box::from_raw(task) };
        if task.process == std::process::id() && !task.progress.give_up() {
            let is_over = |state: &State| matches!(state.stage, Stage::Over(_)).then_some(());
            let _over = task.progress.wait(Duration::MAX, is_over);
        }
    });
}
