use crate::cost::LoadPolicy;
use crate::fetches::{Fetch, FetchId};
use crate::timers::Timer;
use crate::{Action, Core, Micros};
use undercroft_wire::FetchOutcome;

/// The most that a fetch may lose against computing what it was to bring, as a part of that.
const MOST_LOST: f64 = 0.02;
/// What it may lose in any case, microseconds: clocks and threads are no finer.
const GRAIN_US: f64 = 1_000.0;
/// A rest is given up once it is expected to take so many times longer than computing it, so that
/// what is worth about the same is not given up for a small error.
const BEHIND: f64 = 1.25;

/// A fetch against the engine that could compute its pages: how far ahead it is of it, and when
/// it has lost.
#[derive(Debug)]
pub(crate) struct Race {
    began: Micros,
    /// What one page saves: computing it, less copying it out of DRAM.
    page_us: f64,
    /// Pages that were not in DRAM when they were taken in, and have not been delivered.
    pub(crate) to_read: u32,
    /// What it was expected to take until all is delivered.
    expected_us: f64,
    /// When the last pages were delivered, and what was expected then.
    moved: Micros,
    rest: RestUs,
    /// Pages it may have under way.
    pub(crate) window: u32,
    /// When it is looked at next; `None` while there is nothing more to be cut.
    pub(crate) due: Option<Micros>,
    /// Whether it has been found to be behind.
    behind: bool,
}

/// How long a fetch's pages are expected to take that are still to be read, microseconds.
#[derive(Debug, Clone, Copy, Default)]
struct RestUs {
    /// Those that the devices were asked for, and all that they have to do before.
    asked: f64,
    all: f64,
}

/// What the cost model has said and how right it was, since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CostStats {
    /// Lookups of which not all that was there was worth loading.
    pub trimmed_lookups: u64,
    /// Pages that these found and that were not worth loading. Where the model is enforced they were
    /// not loaded.
    pub trimmed_pages: u64,
    /// Fetches that fell behind computing their pages. Where the model is enforced they were cut.
    pub behind_fetches: u64,
    /// Pages of these that were not delivered by then.
    pub behind_pages: u64,
    /// Fetches that were weighed against computing their pages, and have ended.
    pub weighed_fetches: u64,
    /// Of these, fetches that read from SSD and brought all: what follows is of them.
    pub expected_fetches: u64,
    /// Time that they were expected to take, microseconds.
    pub expected_us: u64,
    /// Time that they took, from the request to the last page's delivery, microseconds.
    pub taken_us: u64,
    /// By how much the two differed, fetch by fetch, microseconds.
    pub error_us: u64,
    /// Time that weighed fetches saved against computing what they brought, over those that saved
    /// any, microseconds. What copying out of DRAM takes is taken off, as far as it is known.
    pub saved_us: u64,
    /// Time that they lost, over those that lost any, microseconds.
    pub lost_us: u64,
}

impl Race {
    /// Time saved so far, were the fetch to end now.
    fn ahead_us(&self, now: Micros, delivered: u32) -> f64 {
        f64::from(delivered) * self.page_us - (now.0 - self.began.0) as f64
    }

    /// What may be lost by a fetch of so many pages.
    fn slack_us(&self, pages: usize) -> f64 {
        MOST_LOST * pages as f64 * self.page_us + GRAIN_US
    }

    /// When a fetch has lost that delivers nothing more: once it would lose more than it may; and
    /// before it gives away what it has saved for pages that were asked for and take twice as long as
    /// expected.
    fn lost_at(&self, fetch: &Fetch) -> Micros {
        let slack_us = self.slack_us(fetch.pages.len());
        let all_us = f64::from(fetch.delivered) * self.page_us + slack_us;
        let rest_us = 2.0 * self.rest.asked + slack_us;
        let after = |since: Micros, us: f64| Micros(since.0.saturating_add(us as u64));
        after(self.began, all_us).min(after(self.moved, rest_us))
    }
}

impl Core {
    /// What each page of a fetch is weighed against, if it is.
    pub(crate) fn new_race(&self, fetch: &Fetch, recompute_ns: u64) -> Option<Box<Race>> {
        if recompute_ns == 0 || self.config.load == LoadPolicy::Off {
            return None;
        }
        let space = self.spaces.get(fetch.space);
        let copying = space.copying.at(self.now);
        let each_us = f64::from(space.page_bytes) * copying.us_per_byte;
        Some(Box::new(Race {
            began: self.now,
            page_us: (recompute_ns as f64 / 1000.0 - each_us).max(0.0),
            to_read: 0,
            expected_us: 0.0,
            moved: self.now,
            rest: RestUs::default(),
            window: u32::MAX,
            due: None,
            behind: false,
        }))
    }

    /// All pages of a fetch are taken in: from here on it is watched. One of which the rest is not
    /// worth reading brings what lies in DRAM.
    pub(crate) fn start_race(&mut self, id: FetchId, fetch: &mut Fetch) {
        let Some(mut race) = fetch.race.take() else {
            return;
        };
        race.rest = self.rest_us(fetch, race.to_read);
        race.expected_us = race.rest.all;
        // Nothing was asked for yet.
        race.rest.asked = race.rest.all;
        race.window = self.window(fetch, &race);
        if race.to_read > 0 {
            self.watch(id, fetch, &mut race);
        }
        let lost = self.is_behind(&race, fetch.limit - fetch.issued);
        fetch.race = Some(race);
        if lost {
            self.fall_behind(fetch);
            if self.config.load == LoadPolicy::Enforced {
                self.truncate(fetch, fetch.issued, FetchOutcome::Slower);
            }
        }
    }

    /// More of a fetch was delivered: `read_before` pages had been read before. The rest is given up if
    /// it is not worth it any more.
    pub(crate) fn race_on(&mut self, fetch: &mut Fetch, read_before: u32) {
        let Some(mut race) = fetch.race.take() else {
            return;
        };
        let read = fetch.ssd - read_before;
        let rest = fetch.limit - fetch.delivered;
        // What others have lifted meanwhile needs not be read.
        race.to_read = race.to_read.saturating_sub(read).min(rest);
        race.moved = self.now;
        race.rest = self.rest_us(fetch, race.to_read);
        race.window = self.window(fetch, &race);
        let lost = self.is_behind(&race, rest);
        fetch.race = Some(race);
        if lost {
            self.fall_behind(fetch);
            if self.config.load == LoadPolicy::Enforced {
                self.truncate(fetch, fetch.delivered, FetchOutcome::Slower);
            }
        }
    }

    /// Pages that a fetch may have under way: a device that does many side by side brings the first of
    /// them hardly sooner than the last, so that there are no more than are expected to come in half
    /// of the time that is left until it would have lost. One that wins time has more and more.
    fn window(&self, fetch: &Fetch, race: &Race) -> u32 {
        let all = self.config.fetch_window;
        if race.to_read == 0 || self.config.load != LoadPolicy::Enforced {
            return all;
        }
        let left_us = race.ahead_us(self.now, fetch.delivered) + race.slack_us(fetch.pages.len());
        let page_us = self.frame_bytes(fetch.class) as f64 / self.bytes_per_us();
        ((left_us / 2.0 / page_us) as u32).clamp(1, all)
    }

    /// What all devices that answer read together, bytes a microsecond.
    fn bytes_per_us(&self) -> f64 {
        let answering = self.devices.iter().filter(|device| device.answers());
        let rates = answering.map(|device| device.reading.pace(self.now).us_per_byte.recip());
        rates.sum::<f64>().max(1e-9)
    }

    /// Whether the last `pages` are worth computing rather than waiting for.
    fn is_behind(&self, race: &Race, pages: u32) -> bool {
        let saved_us = f64::from(pages) * race.page_us;
        race.to_read > 0 && race.rest.all > BEHIND * saved_us + GRAIN_US
    }

    /// What the pages that are still to be read are expected to take: what was asked for is in the
    /// devices' queues, and the rest is spread over them all.
    fn rest_us(&self, fetch: &Fetch, to_read: u32) -> RestUs {
        if to_read == 0 {
            return RestUs::default();
        }
        let answering = self.devices.iter().filter(|device| device.answers());
        let queues = answering.map(|device| device.reading.queue(self.now));
        let queued_us = queues.map(|queue| queue.us(0)).fold(0.0, f64::max);
        let asked = fetch.reads.iter().filter(|read| **read).count() as u32;
        let more = u64::from(to_read.saturating_sub(asked)) * self.frame_bytes(fetch.class);
        RestUs { asked: queued_us, all: queued_us + more as f64 / self.bytes_per_us() }
    }

    fn watch(&mut self, id: FetchId, fetch: &Fetch, race: &mut Race) {
        let due = race.lost_at(fetch);
        race.due = Some(due);
        self.timers.insert((due, Timer::Race(id)));
    }

    /// The fetch is not watched any more.
    pub(crate) fn stop_race(&mut self, fetch: &mut Fetch) {
        if let Some(due) = fetch.race.as_mut().and_then(|race| race.due.take()) {
            self.timers.remove(&(due, Timer::Race(fetch.id)));
        }
    }

    /// A fetch is looked at: what it has delivered since may have won it time.
    pub(crate) fn expire_race(&mut self, id: FetchId, actions: &mut Vec<Action>) {
        let Some(mut fetch) = self.fetches.remove(&id) else {
            unreachable!("who is watched is known")
        };
        self.stop_race(&mut fetch);
        let mut race = fetch.race.take().expect("who is watched races");
        let delivers = fetch.late || self.gathering.delivering.contains(&id);
        let lost = race.lost_at(&fetch);
        if race.to_read > 0 && (delivers || lost > self.now) {
            let due = lost.max(self.now.after_ms(u32::from(delivers)));
            race.due = Some(due);
            self.timers.insert((due, Timer::Race(id)));
        }
        let is_lost = race.to_read > 0 && race.due.is_none();
        fetch.race = Some(race);
        if is_lost {
            self.fall_behind(&mut fetch);
        }
        self.fetches.insert(id, fetch);
        if is_lost && self.config.load == LoadPolicy::Enforced {
            self.stop_fetch(id, FetchOutcome::Slower, actions);
        }
    }

    fn fall_behind(&mut self, fetch: &mut Fetch) {
        let race = fetch.race.as_mut().expect("who is behind races");
        if !std::mem::replace(&mut race.behind, true) {
            self.stats.cost.behind_fetches += 1;
            self.stats.cost.behind_pages += u64::from(fetch.limit - fetch.delivered);
        }
    }

    /// A fetch has ended: what it was worth.
    pub(crate) fn end_race(&mut self, fetch: &mut Fetch, outcome: FetchOutcome) {
        self.stop_race(fetch);
        let Some(race) = &fetch.race else {
            return;
        };
        let cost = &mut self.stats.cost;
        let taken_us = self.now.0 - race.began.0;
        cost.weighed_fetches += 1;
        if fetch.ssd > 0 && outcome == FetchOutcome::Complete {
            cost.expected_fetches += 1;
            cost.expected_us += race.expected_us as u64;
            cost.taken_us += taken_us;
            cost.error_us += (race.expected_us as u64).abs_diff(taken_us);
        }
        let ahead_us = race.ahead_us(self.now, fetch.delivered);
        cost.saved_us += ahead_us.max(0.0) as u64;
        cost.lost_us += (-ahead_us).max(0.0) as u64;
    }

    /// A lease of pages that all were in DRAM is given back: that is how long the engine takes to copy
    /// them. It may have had other things to do meanwhile.
    pub(crate) fn note_copied(&mut self, id: FetchId) {
        let is_all = |fetch: &&Fetch| {
            let complete = !fetch.active && fetch.outcome == FetchOutcome::Complete;
            complete && fetch.ssd == 0
        };
        let fetch = self.fetches.get(&id).filter(is_all);
        let Some((fetch, began)) = fetch.and_then(|fetch| Some((fetch, fetch.began?))) else {
            return;
        };
        let space = self.spaces.get_mut(fetch.space);
        let bytes = u64::from(space.page_bytes) * fetch.pages.len() as u64;
        space.copying.learn_no_slower(self.now, bytes, self.now.0 - began.0, SLOWEST_COPYING);
    }
}

/// Engines keep leases for reasons of their own: copying is never believed to be so many times
/// slower than what is assumed.
const SLOWEST_COPYING: f64 = 8.0;
