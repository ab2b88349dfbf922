//! Loads and stores that go on while the caller does something else.

#![expect(unsafe_code, reason = "exported by name, for C; pointers come from there")]

use crate::grows::Out;
use crate::outcome::{Fault, UNDERCROFT_OK, UNDERCROFT_PENDING, answer, miss, quietly, remember};
use crate::space::UndercroftSpace;
use crate::strings::{self, Place, time};
use crate::transfer::{
    LoadPlan, StorePlan, UndercroftLoadRequest, UndercroftLoaded, UndercroftStoreRequest,
    UndercroftStored, outcome_of_load, outcome_of_store, told,
};
use std::time::Duration;
use undercroft_client::{Ended, Lane, Loaded, MissReason, Stored, Task};

/// A started load or store. The blocks are its alone (for a store: must not change) until it is over. Any number of
/// threads may ask it.
pub struct UndercroftTask {
    of: Of,
}

/// How a load or a store ended, with the words for it.
type Told<T> = (T, Option<String>);

enum Of {
    Load { task: Task<Told<UndercroftLoaded>>, layers: u32 },
    Store { task: Task<Told<UndercroftStored>>, pages: u32 },
}

impl Of {
    fn is_foreign(&self) -> bool {
        match self {
            Self::Load { task, .. } => task.is_foreign(),
            Self::Store { task, .. } => task.is_foreign(),
        }
    }

    fn is_over(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Says whether it is over by then.
    fn wait(&self, most: Duration) -> bool {
        match self {
            Self::Load { task, .. } => task.wait(Some(most)).is_some(),
            Self::Store { task, .. } => task.wait(Some(most)).is_some(),
        }
    }

    fn give_up(&self) {
        match self {
            Self::Load { task, .. } => drop(task.give_up()),
            Self::Store { task, .. } => drop(task.give_up()),
        }
    }
}

fn end_of_load(end: &Ended<Told<UndercroftLoaded>>) -> Result<Told<UndercroftLoaded>, Fault> {
    match end {
        Ended::Through(told) => Ok(told.clone()),
        Ended::GivenUp => {
            let (told, _) = outcome_of_load(Loaded { why: RELEASED, ..Loaded::default() });
            Ok((told, Some(GIVEN_UP.to_owned())))
        }
        Ended::Panicked => Err(Fault::Internal("a load panicked")),
    }
}

fn end_of_store(
    end: &Ended<Told<UndercroftStored>>,
    pages: u32,
) -> Result<Told<UndercroftStored>, Fault> {
    match end {
        Ended::Through(told) => Ok(told.clone()),
        Ended::GivenUp => {
            let given_up = Stored { unsettled: pages, why: RELEASED, ..Stored::default() };
            Ok((outcome_of_store(given_up).0, Some(GIVEN_UP.to_owned())))
        }
        Ended::Panicked => Err(Fault::Internal("a store panicked")),
    }
}

const RELEASED: Option<MissReason> = Some(MissReason::Released);
const GIVEN_UP: &str = "the task was given up before it began";

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
        unsafe { strings::clear(task) };
        // SAFETY: as above.
        let (plan, place) = unsafe { (LoadPlan::new(space, request)?, Place::new("task", task)?) };
        // SAFETY: as above.
        let space = unsafe { strings::handle("space", space) }?;
        let layers = plan.layers();
        let started = space.pool.start(Lane::Loads, move |arrived| match plan.by_layer {
            true => plan.run_by_layer(arrived),
            false => plan.run(),
        });
        Ok(handed_out(place, started.map(|task| Of::Load { task, layers })))
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
        unsafe { strings::clear(task) };
        // SAFETY: as above.
        let (plan, place) = unsafe { (StorePlan::new(space, request)?, Place::new("task", task)?) };
        // SAFETY: as above.
        let space = unsafe { strings::handle("space", space) }?;
        let pages = plan.pages();
        let started = space.pool.start(Lane::Stores, move |_| plan.run());
        Ok(handed_out(place, started.map(|task| Of::Store { task, pages })))
    })
}

fn handed_out(place: Place<*mut UndercroftTask>, started: Result<Of, MissReason>) -> i32 {
    match started {
        Ok(of) => {
            place.put(Box::into_raw(Box::new(UndercroftTask { of })));
            UNDERCROFT_OK
        }
        Err(why) => miss(Some(why)),
    }
}

/// # Safety
/// As [`strings::handle`].
unsafe fn task_at<'a>(task: *const UndercroftTask) -> Result<&'a Of, Fault> {
    // SAFETY: the caller's.
    unsafe { strings::handle("task", task) }.map(|task| &task.of)
}

/// What is told of a task that is not over: in a forked child it never will be.
fn not_over(task: &Of) -> i32 {
    if task.is_foreign() { miss(Some(MissReason::Forked)) } else { UNDERCROFT_PENDING }
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
        let task = unsafe { task_at(task) }?;
        Ok(if task.wait(time(deadline_us)) { UNDERCROFT_OK } else { not_over(task) })
    })
}

/// Waits until layer `layer` and all before it lie in their blocks, of a load that was started with `by_layer`; of
/// another one, until it is over. Of how many leading pages goes to `pages`: of fewer than were asked for if the rest
/// is a miss, and of a later layer possibly of fewer than of an earlier one. `UNDERCROFT_PENDING` if that takes longer
/// than the deadline.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_task_wait_layer(
    task: *const UndercroftTask,
    layer: u32,
    deadline_us: u64,
    pages: *mut u32,
) -> i32 {
    answer("undercroft_task_wait_layer", || {
        // SAFETY: the caller's, as the header says.
        let (of, place) = unsafe { (task_at(task)?, Place::new("pages", pages)?) };
        let Of::Load { task, layers } = of else {
            return Err(Fault::argument("the task is a store"));
        };
        if layer >= *layers {
            return Err(Fault::argument(format!("layer is {layer}, allowed less than {layers}")));
        }
        let Some(arrived) = task.wait_layer(layer, Some(time(deadline_us))) else {
            place.put(0);
            return Ok(not_over(of));
        };
        let (pages, outcome) = match (arrived.pages, arrived.end) {
            (Some(pages), _) => (pages, UNDERCROFT_OK),
            // Nothing more will come: what is there has all of its layers.
            (None, Some(end)) => {
                let (loaded, words) = end_of_load(end)?;
                if let Some(words) = words {
                    remember(&words);
                }
                (loaded.pages, loaded.why)
            }
            (None, None) => (0, not_over(of)),
        };
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
        let (of, out) = unsafe { (task_at(task)?, Out::new(loaded)?) };
        let Of::Load { task, .. } = of else {
            return Err(Fault::argument("the task is a store"));
        };
        let Some(end) = task.end() else {
            return Ok(not_over(of));
        };
        let (loaded, words) = end_of_load(end)?;
        Ok(told(out, loaded, loaded.why, words.as_deref()))
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
        let (of, out) = unsafe { (task_at(task)?, Out::new(stored)?) };
        let Of::Store { task, pages } = of else {
            return Err(Fault::argument("the task is a load"));
        };
        let Some(end) = task.end() else {
            return Ok(not_over(of));
        };
        let (stored, words) = end_of_store(end, *pages)?;
        Ok(told(out, stored, stored.why, words.as_deref()))
    })
}

/// Gives a task up that has not begun: it ends as `UNDERCROFT_MISS_RELEASED`. `UNDERCROFT_OK` if it is over and
/// touches no block any more, `UNDERCROFT_PENDING` if it is under way. Never waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_task_cancel(task: *const UndercroftTask) -> i32 {
    answer("undercroft_task_cancel", || {
        // SAFETY: the caller's, as the header says.
        let task = unsafe { task_at(task) }?;
        task.give_up();
        Ok(if task.is_over() { UNDERCROFT_OK } else { not_over(task) })
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
        task.of.give_up();
        while !task.of.is_foreign() && !task.of.wait(Duration::MAX) {}
    });
}
