//! A transfer under way on a stream.

use super::budget::Budget;
use super::copies::Copies;
use super::device::Shared;
use super::mode::CopyMode;
use super::stream::{Event, Since, Stream};
use super::{CudaError, CudaStart};
use crate::batch::{Direction, Job};
use crate::{Completion, DeviceError};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use undercroft_arena::Span;

/// For how long a waiter asks without a pause: what is awaited is often that near.
const SPIN: Duration = Duration::from_micros(50);
/// The longest pause between two questions; shorter ones are an eighth of the time waited so far. A
/// page takes a link 40 us, and whoever waits should not wait much longer.
const LONGEST_PAUSE: Duration = Duration::from_micros(50);

/// Copies on a stream, and what they touch: pages, blocks and stream are kept until the last copy
/// is over.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) shared: Arc<Shared>,
    pub(super) direction: Direction,
    pub(super) jobs: Vec<Job>,
    pub(super) start: CudaStart,
    standing: Mutex<Standing>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Standing {
    /// One for each group of layers whose copies are on the stream.
    events: Vec<Arc<Event>>,
    /// How its stream stood when they were put there.
    since: Since,
    /// Something of it may be on its stream.
    begun: bool,
    /// Nothing more of it will be put on its stream.
    put: bool,
    /// Why nothing more of it is to be.
    stop: Option<CudaError>,
    /// Groups that are copied.
    groups_done: usize,
    /// Why it failed. Then nothing is under way any more.
    failed: Option<CudaError>,
}

/// What came of waiting for an event to be recorded.
enum Recorded {
    Event(Arc<Event>, Since),
    Late,
}

/// A kernel reaches registered pages alone, and so does a batch of copies without the processor's
/// help: where some are not registered, yet or at all, the copy engine takes all of them one by one.
fn effective(mode: CopyMode, seen: &[(&Job, Option<u64>)]) -> CopyMode {
    if seen.iter().all(|(_, on_device)| on_device.is_some()) { mode } else { CopyMode::Pitched }
}

impl Flight {
    pub(super) fn new(
        shared: Arc<Shared>,
        direction: Direction,
        jobs: Vec<Job>,
        start: CudaStart,
    ) -> Self {
        shared.in_flight.fetch_add(1, Ordering::Relaxed);
        let (standing, changed) = (Mutex::default(), Condvar::new());
        Self { shared, direction, jobs, start, standing, changed }
    }

    fn stream(&self) -> &Stream {
        &self.shared.lane(self.direction).stream
    }

    /// About how many calls it takes to put it on its stream.
    pub(super) fn calls(&self) -> usize {
        let groups = self.shared.groups(self.start.mode, self.start.by_layer);
        let strips: usize = groups.iter().map(|group| group.strips.len()).sum();
        let pins = &self.shared.pins;
        let pinned = self.jobs.iter().all(|job| pins.on_device(&job.page).is_some());
        match if pinned { self.start.mode } else { CopyMode::Pitched } {
            CopyMode::Pitched => strips * self.jobs.len(),
            CopyMode::Batched | CopyMode::Kernel => groups.len() * self.jobs.len().div_ceil(16),
        }
    }

    /// Puts all of it on its stream, as fast as the device's pace allows. Where it fails what was
    /// put there is over when this returns.
    pub(super) fn put(&self) -> Result<(), CudaError> {
        let put = self.try_put();
        let begun = {
            let mut standing = self.lock();
            standing.put = true;
            standing.begun
        };
        match &put {
            Err(error) if begun => self.fail(error.clone()),
            // Nothing of it is on the stream, which may be one that the engine is capturing.
            Err(error) => self.has_failed(error.clone()),
            Ok(()) => {}
        }
        put
    }

    fn has_failed(&self, error: CudaError) {
        self.lock().failed.get_or_insert(error);
        self.changed.notify_all();
    }

    fn try_put(&self) -> Result<(), CudaError> {
        let shared = &*self.shared;
        let _order = shared.lane(self.direction).lock();
        let _entered = shared.context.enter()?;
        let stream = self.stream().raw;
        if !self.stream().is_ours {
            self.stream().check_not_capturing()?;
        }
        {
            let since = self.stream().since();
            let mut standing = self.lock();
            if let Some(error) = &standing.stop {
                return Err(error.clone());
            }
            standing.since = since;
            standing.begun = true;
        }
        if let Some(event) = &self.start.after {
            self.stream().wait_for(event.raw())?;
        }
        let seen: Vec<(&Job, Option<u64>)> =
            self.jobs.iter().map(|job| (job, shared.pins.on_device(&job.page))).collect();
        // The groups are those of the mode it began with, by which its waiters count.
        let mode = effective(self.start.mode, &seen);
        let budget = shared.budget.as_ref().filter(|_| self.start.paced);
        for group in shared.groups(self.start.mode, self.start.by_layer) {
            let piece = budget.map_or(u64::MAX, Budget::piece);
            let pages = usize::try_from(piece / group.bytes.max(1)).unwrap_or(usize::MAX);
            let pages = pages.clamp(1, Copies::most_jobs(mode, group.bytes));
            for jobs in seen.chunks(pages) {
                if let Some(budget) = budget {
                    let bytes = group.bytes * jobs.len() as u64;
                    budget.take(bytes, || self.lock().stop.is_some());
                }
                self.go_on()?;
                // SAFETY: the jobs were checked against the layout; pages and device live as long
                // as this flight, which is not dropped before its copies are over; whoever gave
                // the jobs keeps others away from pages and blocks until then.
                unsafe { shared.copies.put(mode, self.direction, group, jobs, stream)? };
            }
            let event = shared.events.take()?;
            event.record(stream)?;
            self.lock().events.push(Arc::new(event));
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Fails where somebody who waits has heard of a failure meanwhile, or the device is lost.
    fn go_on(&self) -> Result<(), CudaError> {
        self.shared.context.alive()?;
        match &self.lock().stop {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Waits for what is on the stream, and marks the flight as failed. Nothing more of it is put
    /// there.
    pub(super) fn fail(&self, error: CudaError) {
        let (begun, put) = {
            let mut standing = self.lock();
            standing.stop.get_or_insert(error.clone());
            (standing.begun, standing.put)
        };
        if !begun {
            return self.has_failed(error);
        }
        if !put {
            // Whoever puts it is in the middle of it, and finds that it is to stop.
            if let Some(budget) = &self.shared.budget {
                budget.wake();
            }
            drop(self.shared.lane(self.direction).lock());
        }
        if !self.stream().settle(&self.shared.events) {
            // Nobody knows whether copies are still under way: what they touch is kept for good,
            // and nothing is begun any more.
            self.shared.context.lose(error.clone());
            let pages: Vec<Span> = self.jobs.iter().map(|job| job.page.clone()).collect();
            std::mem::forget((pages, Arc::clone(&self.shared)));
        }
        self.has_failed(error);
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all of it is copied.
    pub(super) fn wait(&self) -> Result<(), CudaError> {
        let groups = self.shared.groups(self.start.mode, self.start.by_layer);
        self.wait_group(groups.len() - 1, None).map(|_| ())
    }

    /// How many groups end within the first `layers` layers.
    fn groups_within(&self, layers: u32) -> usize {
        let (mode, by_layer) = (self.start.mode, self.start.by_layer);
        let groups = self.shared.groups(mode, by_layer);
        groups.iter().take_while(|group| group.layers.end <= layers).count()
    }

    /// Waits until the event of a group is on the stream.
    fn recorded(&self, group: usize, deadline: Option<Instant>) -> Result<Recorded, CudaError> {
        let mut standing = self.lock();
        loop {
            if let Some(error) = &standing.failed {
                return Err(error.clone());
            }
            if let Some(event) = standing.events.get(group) {
                return Ok(Recorded::Event(Arc::clone(event), standing.since));
            }
            let left = deadline.map(|until| until.saturating_duration_since(Instant::now()));
            standing = match left {
                Some(Duration::ZERO) => return Ok(Recorded::Late),
                Some(left) => {
                    let woken = self.changed.wait_timeout(standing, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(standing).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Waits until an event has happened. `Ok(false)`: the deadline has passed.
    fn happened(
        &self,
        event: &Event,
        since: Since,
        deadline: Option<Instant>,
    ) -> Result<bool, CudaError> {
        let began = Instant::now();
        let _entered = self.shared.context.enter()?;
        loop {
            if self.stream().has_passed(event, since)? {
                return Ok(true);
            }
            let now = Instant::now();
            let left = deadline.map(|until| until.saturating_duration_since(now));
            if left == Some(Duration::ZERO) {
                return Ok(false);
            }
            let waited = now - began;
            if waited < SPIN {
                std::hint::spin_loop();
                continue;
            }
            let pause = (waited / 8).min(LONGEST_PAUSE);
            std::thread::sleep(left.map_or(pause, |left| left.min(pause)));
        }
    }

    fn wait_group(&self, group: usize, deadline: Option<Instant>) -> Result<bool, CudaError> {
        // Nobody here would ever say that it is done.
        if self.shared.context.is_foreign() {
            return Err(CudaError::Forked);
        }
        let (event, since) = match self.recorded(group, deadline)? {
            Recorded::Event(event, since) => (event, since),
            Recorded::Late => return Ok(false),
        };
        let happened = self.happened(&event, since, deadline).inspect_err(|error| {
            self.fail(error.clone());
        })?;
        if happened {
            let mut standing = self.lock();
            standing.groups_done = standing.groups_done.max(group + 1);
        }
        Ok(happened)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A flight as its transfer sees it.
#[derive(Debug)]
pub(super) struct Landing(pub(super) Arc<Flight>);

impl Completion for Landing {
    fn wait_layers(&self, layers: u32, deadline: Option<Instant>) -> Result<bool, DeviceError> {
        let flight = &*self.0;
        if flight.jobs.is_empty() || layers == 0 {
            return Ok(true);
        }
        // The group that the last of these layers is in.
        let group = flight.groups_within(layers - 1);
        Ok(flight.wait_group(group, deadline)?)
    }

    fn layers_done(&self) -> u32 {
        let flight = &*self.0;
        let groups = flight.shared.groups(flight.start.mode, flight.start.by_layer);
        if flight.jobs.is_empty() {
            return groups.last().map_or(0, |group| group.layers.end);
        }
        let done = flight.lock().groups_done;
        let now = Instant::now();
        // What fails here is told to whoever waits.
        let done = (done..groups.len())
            .take_while(|group| matches!(flight.wait_group(*group, Some(now)), Ok(true)))
            .last()
            .map_or(done, |group| group + 1);
        done.checked_sub(1).map_or(0, |last| groups[last].layers.end)
    }
}
