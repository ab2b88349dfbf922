use crate::domains::DomainAt;
use crate::fetches::{FetchId, Reader};
use crate::gathering::{Rest, Source as Run};
use crate::letting::Grip;
use crate::page::{LAST_ASIDE, OnSsd, PageId};
use crate::spaces::ClassId;
use crate::stats::Source;
use crate::timers::Timer;
use crate::waves::Chill;
use crate::{Action, Core, Micros};
use hashbrown::HashMap;
use std::collections::{BTreeMap, VecDeque};
use undercroft_wire::{FetchOutcome, PageKey, RequestId, SessionId, SpaceId};

/// Of a domain's DRAM, what waits there for turns is at most one part of so many.
const SHARE: u64 = 2;
/// What is expected later than this is not told apart from it, milliseconds.
const MOST_TOLD_MS: u32 = 24 * 3_600_000;
/// What is brought less long before its turn is not brought twice, microseconds.
const LEAST_PUT_OFF_US: u64 = 10_000;
/// Who asks for what is brought for turns that nobody has asked for.
const NOBODY: (SessionId, RequestId) = (SessionId(u64::MAX), RequestId(0));

/// Numbers expectations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ExpectedId(u64);

/// Turns of conversations that are expected.
///
/// What only such a conversation has leaves DRAM first where it would have left before its turn
/// anyway, and is back, and stays, shortly before that. Everything is bounded: how many turns are
/// expected ([`crate::Limits::max_expected`]), how much of DRAM waits for them, and for how long.
/// Whoever finds nothing else to displace displaces what waits for the last of them.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    list: BTreeMap<ExpectedId, Expectation>,
    by_page: HashMap<(SpaceId, PageKey), ExpectedId>,
    by_fetch: HashMap<FetchId, ExpectedId>,
    /// Those whose pages are being named.
    climbing: VecDeque<ExpectedId>,
    /// Fetches for turns that are not expected any more.
    over: Vec<FetchId>,
    last: u64,
}

#[derive(Debug)]
struct Expectation {
    domain: DomainAt,
    class: ClassId,
    space: SpaceId,
    /// The last page of the conversation.
    key: PageKey,
    source: Source,
    /// Uses by newer requests are the turn.
    stamp: u64,
    /// Whether a turn ends it.
    ends: bool,
    due: Micros,
    /// How long what was brought stays.
    until: Micros,
    /// When something is to be done about it.
    next: Micros,
    state: State,
    /// What is pinned for it.
    held: Vec<PageId>,
    /// Pages being read for it that there is room for.
    promised: u64,
}

#[derive(Debug)]
enum State {
    Waits,
    /// Its pages are being named, from the last on.
    Climbs(Vec<PageKey>),
    Brings(FetchId),
    Brought,
}

/// When a turn is expected, how long before its pages are to be there, and how long after that they
/// stay, microseconds.
#[derive(Debug, Clone, Copy)]
struct Times {
    due: u64,
    lead: u64,
    slack: u64,
}

impl Core {
    /// The conversation that ends with this page is told to go on after so many milliseconds. What
    /// is told is taken to be off by some of it, either way.
    pub(crate) fn expect_turn(&mut self, page: PageId, told_ms: u32, source: Source) {
        let told = u64::from(told_ms.min(MOST_TOLD_MS)) * 1000;
        let off = (u64::from(self.config.limits.max_hold_ms) * 1000).min(told / 2);
        let times = Times { due: told, lead: off + self.reading_us(page), slack: off };
        self.expect(page, times, (source, true));
        let domain = self.domain_of_space(self.index[page].space);
        let stays = self.domains.get(domain).turnover.takes_us(self.now);
        if stays.is_some_and(|stays| stays < told) && self.is_safe_aside(page) {
            let place = u32::from(LAST_ASIDE).saturating_sub(told_ms.max(1).ilog2()).max(1);
            self.chill(page, Chill::Aside(place as u8));
        }
    }

    /// The conversation that ends with this page is to be in DRAM for so long.
    pub(crate) fn keep_in_dram(&mut self, page: PageId, ms: u32) {
        let slack = u64::from(ms.min(self.config.limits.max_hold_ms)) * 1000;
        self.expect(page, Times { due: 0, lead: 0, slack }, (Source::Hinted, false));
    }

    /// What only the conversation has that ends with this page is the first to leave DRAM.
    pub(crate) fn lay_aside(&mut self, page: PageId) {
        self.expect_no_more(page);
        if self.is_safe_aside(page) {
            self.chill(page, Chill::Aside(1));
        }
    }

    /// Whether the page is not lost when it leaves DRAM.
    fn is_safe_aside(&self, page: PageId) -> bool {
        let entry = &self.index[page];
        let there = entry.on_ssd() == OnSsd::Writing || self.counts_on_ssd(entry);
        there || self.is_demotable(page) && self.is_admitted(page)
    }

    /// About how long all that leads to a page takes to be read, where others read too.
    fn reading_us(&self, page: PageId) -> u64 {
        let pages = u64::from(self.index[page].depth) + 1;
        let bytes = pages.saturating_mul(self.frame_bytes(self.class_of(page)));
        let rates = self.config.devices.iter().map(|device| device.read_bytes_per_s.max(1));
        let rate = rates.min().unwrap_or(u64::MAX);
        (u128::from(bytes) * 2_000_000 / u128::from(rate)).try_into().unwrap_or(u64::MAX)
    }

    fn expect(&mut self, page: PageId, times: Times, (source, ends): (Source, bool)) {
        self.expect_no_more(page);
        let (space, key) = (self.index[page].space, self.index[page].key);
        let class = self.class_of(page);
        let domain = self.frames.class(class).domain;
        let due = Micros(self.now.0.saturating_add(times.due));
        if !self.has_room_for_one_due(domain, due) {
            return;
        }
        self.expected.last += 1;
        let id = ExpectedId(self.expected.last);
        let next = Micros(due.0.saturating_sub(times.lead).max(self.now.0));
        let until = Micros(due.0.saturating_add(times.slack).max(next.0 + 1));
        let stamp = self.domains.get(domain).last_stamp;
        let (state, held, promised) = (State::Waits, Vec::new(), 0);
        let expectation = Expectation {
            domain,
            class,
            space,
            key,
            source,
            stamp,
            ends,
            due,
            until,
            next,
            state,
            held,
            promised,
        };
        self.timers.insert((next, Timer::Expected(id)));
        self.expected.list.insert(id, expectation);
        self.expected.by_page.insert((space, key), id);
        self.domains.get_mut(domain).expected += 1;
        self.index[page].set_awaited(true);
    }

    /// Whether one more turn of the domain may be expected; for it the last of all makes room.
    fn has_room_for_one_due(&mut self, domain: DomainAt, due: Micros) -> bool {
        if self.domains.get(domain).expected < self.config.limits.max_expected {
            return true;
        }
        let own = self.expected.list.iter().filter(|(_, one)| one.domain == domain);
        let last = own.map(|(id, one)| (one.due, *id)).max();
        let Some((_, last)) = last.filter(|(last, _)| *last > due) else {
            return false;
        };
        self.end_expected(last);
        true
    }

    /// No turn is expected any more that goes on from this page.
    pub(crate) fn expect_no_more(&mut self, page: PageId) {
        let (space, key) = (self.index[page].space, self.index[page].key);
        if let Some(id) = self.expected.by_page.get(&(space, key)) {
            self.end_expected(*id);
        }
    }

    /// A request uses a page that a turn is expected to go on from.
    pub(crate) fn turn_came(&mut self, page: PageId, stamp: u64) {
        let (space, key) = (self.index[page].space, self.index[page].key);
        let id = self.expected.by_page.get(&(space, key)).copied();
        if let Some(id) = id
            && let Some(one) = self.expected.list.get(&id)
            && one.ends
            && one.stamp < stamp
        {
            self.end_expected(id);
        }
    }

    fn end_expected(&mut self, id: ExpectedId) {
        let one = self.expected.list.remove(&id).expect("who is ended is expected");
        self.timers.remove(&(one.next, Timer::Expected(id)));
        self.expected.by_page.remove(&(one.space, one.key));
        if let Some(page) = self.index.find(one.space, &one.key) {
            self.index[page].set_awaited(false);
        }
        match one.state {
            State::Waits | State::Brought => {}
            State::Climbs(_) => self.expected.climbing.retain(|other| *other != id),
            State::Brings(fetch) => {
                self.expected.by_fetch.remove(&fetch);
                self.expected.over.push(fetch);
            }
        }
        let bytes = one.pages() * self.frame_bytes(one.class);
        let domain = self.domains.get_mut(one.domain);
        domain.expected -= 1;
        domain.expected_bytes -= bytes;
        self.let_go(None, one.held.into_iter().map(Grip::Pin));
    }

    /// It is time to bring what a turn needs, or to wait for it no longer.
    pub(crate) fn expected_due(&mut self, id: ExpectedId) {
        let one = self.expected.list.get_mut(&id).expect("only what is expected has a timer");
        if !matches!(one.state, State::Waits) || one.until <= self.now {
            return self.end_expected(id);
        }
        self.timers.remove(&(one.next, Timer::Expected(id)));
        one.next = one.until;
        one.state = State::Climbs(Vec::new());
        self.timers.insert((one.next, Timer::Expected(id)));
        self.expected.climbing.push_back(id);
    }

    /// Whether pages of conversations are to be named that are expected.
    pub(crate) fn is_climbing(&self) -> bool {
        let may = |id| self.domains.get(self.expected.list[id].domain).may_prefetch();
        self.expected.climbing.iter().any(may)
    }

    /// Names the pages of conversations that are expected, as far as the step may, and has them
    /// brought.
    pub(crate) fn bring_on(&mut self, actions: &mut Vec<Action>) {
        for fetch in std::mem::take(&mut self.expected.over) {
            self.stop_fetch(fetch, FetchOutcome::Released, actions);
        }
        for _ in 0..self.expected.climbing.len() {
            if self.gathering.left == 0 {
                return;
            }
            let Some(id) = self.expected.climbing.pop_front() else {
                return;
            };
            let domain = self.expected.list[&id].domain;
            if !self.domains.get(domain).may_prefetch() {
                self.expected.climbing.push_back(id);
                continue;
            }
            match self.climb(id) {
                Climbed::All(keys) => self.bring(id, keys, actions),
                Climbed::Part => return self.expected.climbing.push_front(id),
                Climbed::Gone => self.end_expected(id),
            }
        }
    }

    /// Goes from the pages named so far to those before them.
    fn climb(&mut self, id: ExpectedId) -> Climbed {
        let one = self.expected.list.get_mut(&id).expect("who climbs is expected");
        let State::Climbs(keys) = &mut one.state else {
            unreachable!("who climbs says so");
        };
        let mut keys = std::mem::take(keys);
        let (space, key, domain) = (one.space, one.key, one.domain);
        let start = self.index.find(space, keys.last().unwrap_or(&key));
        // The space's number may be another's by now.
        let Some(mut at) = start.filter(|_| self.domain_of_space(space) == domain) else {
            return Climbed::Gone;
        };
        if keys.is_empty() {
            keys.push(key);
        }
        loop {
            match self.index[at].parent {
                Some(parent) if self.gathering.left > 0 => at = parent,
                Some(_) => {
                    let one = self.expected.list.get_mut(&id).expect("found above");
                    one.state = State::Climbs(keys);
                    return Climbed::Part;
                }
                None if self.index[at].depth == 0 => break,
                None => return Climbed::Gone,
            }
            self.gathering.left -= 1;
            keys.push(self.index[at].key);
        }
        keys.reverse();
        Climbed::All(keys)
    }

    fn bring(&mut self, id: ExpectedId, keys: Vec<PageKey>, actions: &mut Vec<Action>) {
        let one = &self.expected.list[&id];
        let fetch = self.new_fetch(Reader::Prefetch, one.space, one.until);
        self.domains.get_mut(one.domain).prefetches += 1;
        // Nobody uses them: no request has the stamp 0.
        let fetch = self.begin_fetch(fetch, Rest::new(Run::Keys(keys), NOBODY, 0));
        self.expected.by_fetch.insert(fetch, id);
        let one = self.expected.list.get_mut(&id).expect("found above");
        one.state = State::Brings(fetch);
        self.gather(fetch, u32::MAX, actions);
    }

    /// Whether a prefetch is for a turn that is expected.
    pub(crate) fn is_for_turn(&self, fetch: FetchId) -> bool {
        self.expected.by_fetch.contains_key(&fetch)
    }

    /// What a prefetch is for.
    pub(crate) fn source_of(&self, fetch: FetchId) -> Source {
        let id = self.expected.by_fetch.get(&fetch);
        id.map_or(Source::Asked, |id| self.expected.list[id].source)
    }

    /// A prefetch has ended: what it brought stays for the turn.
    pub(crate) fn has_brought(&mut self, fetch: FetchId) {
        if let Some(id) = self.expected.by_fetch.remove(&fetch) {
            let one = self.expected.list.get_mut(&id).expect("it is for who is expected");
            one.state = State::Brought;
            let (class, domain) = (one.class, one.domain);
            let unread = std::mem::take(&mut one.promised);
            let bytes = unread * self.frame_bytes(class);
            self.domains.get_mut(domain).expected_bytes -= bytes;
        }
    }

    /// Whether one more page may wait in DRAM for turns, if it is for any.
    pub(crate) fn may_bring(&self, fetch: FetchId) -> bool {
        let Some(id) = self.expected.by_fetch.get(&fetch) else {
            return true;
        };
        let one = &self.expected.list[id];
        let domain = self.domains.get(one.domain);
        let bytes = domain.expected_bytes + self.frame_bytes(one.class);
        bytes <= domain.arena_bytes / SHARE
    }

    /// Whether one more page may wait in DRAM for turns, if it is for any. What waits for later turns
    /// goes, and is brought nearer to their time.
    pub(crate) fn make_room_for_turn(&mut self, fetch: FetchId) -> bool {
        while !self.may_bring(fetch) {
            let own = &self.expected.list[&self.expected.by_fetch[&fetch]];
            let (domain, due) = (own.domain, own.due);
            let others = self.expected.list.iter();
            let others = others.filter(|(_, one)| one.domain == domain && one.pages() > 0);
            let last = others.map(|(id, one)| (one.due, *id)).max();
            let Some((_, last)) = last.filter(|(last, _)| *last > due.max(self.now)) else {
                return false;
            };
            self.put_off(last);
        }
        true
    }

    /// What was brought for a turn goes; half of the time that is left is to pass before it is
    /// brought again.
    fn put_off(&mut self, id: ExpectedId) {
        let one = self.expected.list.get_mut(&id).expect("who is put off is expected");
        let left = one.due.0.saturating_sub(self.now.0);
        if !one.ends || left < LEAST_PUT_OFF_US {
            return self.end_expected(id);
        }
        self.timers.remove(&(one.next, Timer::Expected(id)));
        one.next = Micros(self.now.0 + left / 2);
        self.timers.insert((one.next, Timer::Expected(id)));
        if let State::Brings(fetch) = std::mem::replace(&mut one.state, State::Waits) {
            self.expected.by_fetch.remove(&fetch);
            self.expected.over.push(fetch);
        }
        let (class, domain, pages) = (one.class, one.domain, one.pages());
        one.promised = 0;
        let held = std::mem::take(&mut one.held);
        let bytes = pages * self.frame_bytes(class);
        self.domains.get_mut(domain).expected_bytes -= bytes;
        self.let_go(None, held.into_iter().map(Grip::Pin));
    }

    /// A page has come that was brought by a prefetch. If that is for a turn, it takes the pin over.
    pub(crate) fn hold_for_turn(&mut self, fetch: FetchId, page: PageId) -> bool {
        let Some(id) = self.expected.by_fetch.get(&fetch).copied() else {
            return false;
        };
        // One that was there already was promised no room.
        if self.expected.list[&id].promised == 0 {
            if !self.may_bring(fetch) {
                return false;
            }
            self.promise_turn(fetch);
        }
        let one = self.expected.list.get_mut(&id).expect("it is for who is expected");
        one.promised -= 1;
        one.held.push(page);
        true
    }

    /// One more page is read by a prefetch that may wait in DRAM, if it is for a turn.
    pub(crate) fn promise_turn(&mut self, fetch: FetchId) {
        if let Some(id) = self.expected.by_fetch.get(&fetch)
            && let Some(one) = self.expected.list.get_mut(id)
        {
            one.promised += 1;
            let (class, domain) = (one.class, one.domain);
            let bytes = self.frame_bytes(class);
            self.domains.get_mut(domain).expected_bytes += bytes;
        }
    }

    /// Gives up the last of the turns that pages of the class wait for; whether there was any.
    pub(crate) fn yield_turn(&mut self, class: ClassId) -> bool {
        let own = self.expected.list.iter();
        let own = own.filter(|(_, one)| one.class == class && !one.held.is_empty());
        let Some((_, last)) = own.map(|(id, one)| (one.due, *id)).max() else {
            return false;
        };
        self.end_expected(last);
        true
    }

    /// Whether pages of the class wait for turns.
    pub(crate) fn holds_for_turns(&self, class: ClassId) -> bool {
        self.expected.list.values().any(|one| one.class == class && !one.held.is_empty())
    }
}

impl Expectation {
    /// Pages that wait in DRAM for it, or will.
    fn pages(&self) -> u64 {
        self.held.len() as u64 + self.promised
    }
}

enum Climbed {
    /// The pages from the first on.
    All(Vec<PageKey>),
    Part,
    Gone,
}

impl Expected {
    /// What ends by itself, and when.
    pub(crate) fn timers(&self) -> impl Iterator<Item = (Micros, Timer)> + '_ {
        self.list.iter().map(|(id, one)| (one.next, Timer::Expected(*id)))
    }

    /// Pages that are pinned for turns.
    pub(crate) fn held(&self) -> impl Iterator<Item = PageId> + '_ {
        self.list.values().flat_map(|one| one.held.iter().copied())
    }
}

impl Core {
    pub(crate) fn audit_expected(&self) {
        let Expected { list, by_page, by_fetch, climbing, over, .. } = &self.expected;
        assert!(over.is_empty(), "what is over is stopped before a step ends");
        assert_eq!(by_page.len(), list.len(), "one turn of a conversation is expected");
        let mut climbs = 0;
        let mut brings = 0;
        for (id, one) in list {
            assert_eq!(by_page[&(one.space, one.key)], *id, "a turn is found by its page");
            climbs += usize::from(matches!(one.state, State::Climbs(_)));
            if one.promised > 0 {
                assert!(matches!(one.state, State::Brings(_)), "who reads ends some time");
            }
            if let State::Brings(fetch) = one.state {
                assert_eq!(by_fetch[&fetch], *id, "a prefetch is found by its turn");
                assert_eq!(self.fetches[&fetch].reader, Reader::Prefetch, "nobody leases it");
                brings += 1;
            }
        }
        assert_eq!((climbs, brings), (climbing.len(), by_fetch.len()), "what is brought is known");
        for (at, domain) in self.domains.iter() {
            let own = || list.values().filter(|one| one.domain == at);
            let bytes = |one: &Expectation| one.pages() * self.frame_bytes(one.class);
            assert_eq!(own().count(), domain.expected as usize, "turns are counted");
            assert_eq!(own().map(bytes).sum::<u64>(), domain.expected_bytes, "and what they hold");
            assert!(domain.expected <= self.config.limits.max_expected, "turns are bounded");
            assert!(domain.expected_bytes <= domain.arena_bytes / SHARE, "what they hold is");
        }
        for (_, page) in self.index.iter().filter(|(_, page)| page.is_awaited()) {
            assert!(by_page.contains_key(&(page.space, page.key)), "who is awaited is expected");
        }
    }
}
