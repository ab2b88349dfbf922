//! The DRAM tier against independent models of its eviction policies, counted as the policy study
//! counts: hits are the leading resident pages; then every page of the request is touched or
//! inserted, tail first; only then is the tier cut back, page by page.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use proptest::prelude::*;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use undercroft_core::{Config, Policy};
use undercroft_wire::{Hint, HintKind, Mode, PageKey, Prefetch, Request, Stamp};
use world::devices::{config, size};
use world::{World, key};

/// A reference.
trait Naive {
    /// Plays a request that came at `stamp` and returns its hits; `None` where the policy does not say
    /// which of two pages goes first.
    fn request(&mut self, ids: &[u64], stamp: u64) -> Option<usize>;

    fn has(&self, id: u64) -> bool;

    fn len(&self) -> usize;
}

/// A list of page ids, most recent first.
struct NaiveLru {
    capacity: usize,
    pages: Vec<u64>,
}

impl Naive for NaiveLru {
    fn request(&mut self, ids: &[u64], _: u64) -> Option<usize> {
        let hits = ids.iter().take_while(|id| self.has(**id)).count();
        for id in ids.iter().rev() {
            self.pages.retain(|page| page != id);
            self.pages.insert(0, *id);
        }
        self.pages.truncate(self.capacity);
        Some(hits)
    }

    fn has(&self, id: u64) -> bool {
        self.pages.contains(&id)
    }

    fn len(&self) -> usize {
        self.pages.len()
    }
}

/// By page: how many lie before it, when it was last used, what it was granted for that.
struct NaiveDepth {
    capacity: usize,
    pages: BTreeMap<u64, (usize, u64, u64)>,
}

impl Naive for NaiveDepth {
    fn request(&mut self, ids: &[u64], stamp: u64) -> Option<usize> {
        let hits = ids.iter().take_while(|id| self.has(**id)).count();
        let half = self.capacity as u64 / 2;
        for (depth, id) in ids.iter().enumerate() {
            let granted = self.pages.get(id).map_or(0, |(.., granted)| half.max(*granted));
            self.pages.insert(*id, (depth, stamp, granted));
        }
        while self.pages.len() > self.capacity {
            let rank = |(depth, stamp, granted): (usize, u64, u64)| {
                ((stamp + granted) as i64 - 16 * depth as i64, Reverse(depth))
            };
            let mut ranked: Vec<_> =
                self.pages.iter().map(|(id, page)| (rank(*page), *id)).collect();
            ranked.sort_unstable();
            if ranked.get(1).is_some_and(|second| second.0 == ranked[0].0) {
                return None;
            }
            self.pages.remove(&ranked[0].1);
        }
        Some(hits)
    }

    fn has(&self, id: u64) -> bool {
        self.pages.contains_key(&id)
    }

    fn len(&self) -> usize {
        self.pages.len()
    }
}

/// Requests as walks down a tree: every id has one parent, as in a real trace.
fn requests() -> impl Strategy<Value = Vec<Vec<u64>>> {
    let walk = prop::collection::vec(0..2_u64, 1..14);
    let turn = |branches: Vec<u64>| {
        let mut id = 1_u64;
        let step = move |branch: u64| {
            id = id * 2 + branch;
            id
        };
        branches.into_iter().map(step).collect::<Vec<_>>()
    };
    prop::collection::vec(walk.prop_map(turn), 1..60)
}

fn replay(policy: Policy, requests: &[Vec<u64>], capacity: u64, slots: u32, batch: usize) {
    let config = Config { slab_bytes: 2 * 4096, policy, ..Config::default() };
    let mut world = World::with_frames(capacity, config);
    world.open(1, 1, Mode::ZeroCopy);
    let space = world.open_space(1, 1, 4096, slots);
    let capacity = capacity as usize;
    let mut naive: Box<dyn Naive> = match policy {
        Policy::Depth => Box::new(NaiveDepth { capacity, pages: BTreeMap::new() }),
        _ => Box::new(NaiveLru { capacity, pages: Vec::new() }),
    };
    for (number, ids) in requests.iter().enumerate() {
        let keys: Vec<PageKey> = ids.iter().map(|id| key(*id, 0)).collect();
        let found = world.lookup(1, space, &keys);
        let Some(hits) = naive.request(ids, found.stamp.0) else {
            return;
        };
        assert_eq!(found.pages as usize, hits, "request {number}: hits");
        let lease = number as u64;
        world.fetch(1, lease, space, &keys[..hits], found.stamp, 1000);
        assert_eq!(world.lease(1, lease).places.len(), hits, "DRAM pages are ready at once");
        world.release(1, lease, u32::MAX);
        for end in (hits..keys.len()).step_by(batch).map(|at| (at + batch).min(keys.len())) {
            world.store(1, space, &keys[..end], hits.max(end.saturating_sub(batch)), found.stamp);
        }
        check_residents(&mut world, requests, naive.as_ref(), space);
    }
}

fn check_residents(
    world: &mut World,
    requests: &[Vec<u64>],
    naive: &dyn Naive,
    space: undercroft_wire::SpaceId,
) {
    assert_eq!(world.core.dram().pages as usize, naive.len(), "as many pages");
    for ids in requests.iter().take(8) {
        let keys: Vec<PageKey> = ids.iter().map(|id| key(*id, 0)).collect();
        let wanted = ids.iter().take_while(|id| naive.has(**id)).count();
        assert_eq!(world.lookup(1, space, &keys).pages as usize, wanted, "the same pages");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equals_its_model(
        policy in prop::sample::select(vec![Policy::Lru, Policy::Depth]),
        requests in requests(),
        capacity in 1..20_u64,
        slots in 1..5_u32,
        batch in 1..9_usize,
    ) {
        replay(policy, &requests, capacity, slots, batch);
    }
}

#[test]
fn a_request_longer_than_the_tier_leaves_its_head() {
    let ids: Vec<u64> = (1..=9).collect();
    for slots in 1..=10 {
        replay(Policy::Lru, &[ids.clone(), ids.clone()], 4, slots, 100);
        replay(Policy::Depth, &[ids.clone(), ids.clone()], 4, slots, 100);
    }
}

/// Plays chains in turn and returns the hits of the last `counted` requests.
fn hits_in_turns(policy: Policy, frames: u64, requests: &[Vec<PageKey>], counted: usize) -> usize {
    let config = Config { slab_bytes: 2 * 4096, policy, ..Config::default() };
    let mut world = World::with_frames(frames, config);
    world.open(1, 1, Mode::ZeroCopy);
    let space = world.open_space(1, 1, 4096, 4);
    let mut hits = 0;
    for (number, keys) in requests.iter().enumerate() {
        let lease = number as u64;
        let found = world.lookup(1, space, keys);
        let pages = found.pages as usize;
        hits += if number + counted >= requests.len() { pages } else { 0 };
        world.fetch(1, lease, space, &keys[..pages], found.stamp, 1000);
        world.release(1, lease, u32::MAX);
        world.store(1, space, keys, pages, found.stamp);
    }
    hits
}

fn chain(name: u64, pages: u64) -> Vec<PageKey> {
    (0..pages).map(|depth| key(name * 1000 + depth, 0)).collect()
}

/// Two conversations of six pages take turns in room for nine: who comes next finds three left by
/// least recently used, which has kept all of the one before, and more by depth.
#[test]
fn where_not_all_conversations_fit_some_stay_by_depth() {
    let turns: Vec<_> = (0..20).map(|turn| chain(1 + turn % 2, 6)).collect();
    let hits = |policy| hits_in_turns(policy, 9, &turns, 20);
    let (lru, depth) = (hits(Policy::Lru), hits(Policy::Depth));
    assert!(depth >= 18 * 4 && lru <= depth - 18, "{depth} by depth, {lru} by use");
}

/// Ten conversations of twenty pages take turns in room for half of that: least recently used has
/// none of who comes next, and by density some stay as a whole.
#[test]
fn where_not_all_conversations_fit_some_stay_by_density() {
    let turns: Vec<_> = (0..600).map(|turn| chain(1 + turn % 10, 20)).collect();
    let hits = |policy| hits_in_turns(policy, 100, &turns, 300);
    let (lru, density) = (hits(Policy::Lru), hits(Policy::Density));
    assert!(lru == 0 && density >= 300 * 20 / 4, "{density} by density, {lru} by use");
}

/// A conversation goes on between prompts that come once, more of which than DRAM has room for
/// lie between two of its turns.
#[test]
fn what_comes_once_does_not_displace_what_comes_again_by_density() {
    let turn = |turn: u64| if turn.is_multiple_of(8) { chain(1, 20) } else { chain(10 + turn, 20) };
    let turns: Vec<_> = (0..800).map(turn).collect();
    let hits = |policy| hits_in_turns(policy, 100, &turns, 400);
    let (lru, density) = (hits(Policy::Lru), hits(Policy::Density));
    assert!(lru == 0 && density >= 50 * 20 * 9 / 10, "{density} by density, {lru} by use");
}

/// Of each page in DRAM: where it stands by density, and how deep it lies.
fn standing(world: &World) -> BTreeMap<PageKey, (u64, Reverse<u32>)> {
    let rank = |heat: u64| {
        let (stamp, code) = (heat & ((1 << 48) - 1), heat >> 48);
        stamp + ((code & ((1 << 11) - 1)) << (code >> 11))
    };
    let rows = world.state.frames.values().flatten();
    rows.map(|row| (row.key, (rank(row.heat), Reverse(row.depth)))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None, cases: 24, ..ProptestConfig::default()
    })]

    /// How long pages are kept is learnt; that it is kept to, and who goes first, is not.
    #[test]
    fn by_density_nothing_that_was_promised_is_taken(
        requests in prop::collection::vec(requests(), 2..4),
        capacity in 4..20_u64,
        slots in 1..9_u32,
    ) {
        let config = Config {
            slab_bytes: 2 * 4096, policy: Policy::Density, notes: true, ..Config::default()
        };
        let mut world = World::with_frames(capacity, config);
        world.open(1, 1, Mode::ZeroCopy);
        let space = world.open_space(1, 1, 4096, slots);
        let requests: Vec<_> = requests.into_iter().flatten().collect();
        for (number, ids) in requests.iter().enumerate() {
            let keys: Vec<PageKey> = ids.iter().map(|id| key(*id, 0)).collect();
            let found = world.lookup(1, space, &keys);
            let (hits, lease) = (found.pages as usize, number as u64);
            world.fetch(1, lease, space, &keys[..hits], found.stamp, 1000);
            world.release(1, lease, u32::MAX);
            for start in (hits..keys.len()).step_by(slots as usize) {
                let end = keys.len().min(start + slots as usize);
                // By now something was learnt: as many pages as there is room for were used.
                let has_learnt = world.core.newest_stamp().0 > capacity + 3;
                let before = standing(&world);
                world.store(1, space, &keys[..end], start, found.stamp);
                let (after, clock) = (standing(&world), world.core.newest_stamp().0);
                // What the new pages hang from is kept for as long as they are.
                let stayed = before.iter().filter(|(key, _)| {
                    after.contains_key(*key) && !keys[..end].contains(key)
                });
                let coldest = stayed.map(|(_, stands)| *stands).min();
                for (_, gone) in before.iter().filter(|(key, _)| !after.contains_key(*key)) {
                    prop_assert!(coldest.is_none_or(|coldest| *gone <= coldest), "the coldest goes");
                    prop_assert!(!has_learnt || gone.0 <= clock, "and no promise is broken");
                    prop_assert_eq!(after.len() as u64, capacity, "and only where there is no room");
                }
                prop_assert!(after.len() >= before.len());
            }
        }
    }
}

/// The clock of the stamps, and what each page of the space was granted, by depth.
fn heats(world: &World) -> Vec<(u64, u64)> {
    let rows = world.state.frames.values().flatten();
    let mut rows: Vec<_> = rows.map(|row| (row.depth, row.heat)).collect();
    rows.sort_unstable();
    rows.into_iter().map(|(_, heat)| (heat & ((1 << 48) - 1), heat >> 48)).collect()
}

#[test]
fn only_who_comes_back_is_granted_anything() {
    let config = Config { slab_bytes: 2 * 4096, notes: true, ..Config::default() };
    let mut world = World::with_frames(16, Config { policy: Policy::Depth, ..config });
    world.open(1, 1, Mode::ZeroCopy);
    let space = world.open_space(1, 1, 4096, 8);
    let keys: Vec<PageKey> = (0..6).map(|depth| key(1, depth)).collect();
    // A prompt that is computed in pieces, by somebody who has not looked it up.
    for end in [2, 4, 6] {
        assert_eq!(world.store(1, space, &keys[..end], end - 2, Stamp(0)), 2);
    }
    let newest = heats(&world)[5].0;
    assert_eq!(heats(&world), vec![(newest, 0); 6]);
    // Each request moves the clock on, and each page that one uses.
    let found = world.lookup(1, space, &keys);
    assert_eq!(found.stamp.0, newest + 3);
    assert_eq!(heats(&world), vec![(newest, 0); 6], "who only asks uses nothing");
    for lease in 0..2 {
        world.fetch(1, lease, space, &keys[..4], found.stamp, 1000);
        world.release(1, lease, u32::MAX);
        let heats = heats(&world);
        assert_eq!(heats[..4], [(found.stamp.0, 8); 4], "half of sixteen");
        assert_eq!(heats[4..], [(newest, 0); 2]);
    }
    assert_eq!(world.lookup(1, space, &keys).stamp.0, found.stamp.0 + 5, "four, once");
    // Offered anew: whoever computed it needs it.
    let found = world.lookup(1, space, &keys);
    assert_eq!(world.store(1, space, &keys, 0, found.stamp), 0);
    assert_eq!(heats(&world), vec![(found.stamp.0, 8); 6]);
}

#[test]
fn what_has_ended_leaves_first_however_deep_others_lie() {
    for policy in Policy::ALL {
        let config = Config { slab_bytes: 2 * 4096, policy, ..Config::default() };
        let mut world = World::with_frames(16, config);
        world.open(1, 1, Mode::ZeroCopy);
        let space = world.open_space(1, 1, 4096, 16);
        let [ended, goes_on, new] = [(1, 2), (2, 14), (3, 2)]
            .map(|(name, pages)| (0..pages).map(|depth| key(name, depth)).collect::<Vec<_>>());
        for chain in [&goes_on, &ended] {
            assert_eq!(world.store(1, space, chain, 0, Stamp(0)), chain.len());
        }
        let (kind, keys) = (HintKind::Ended, ended.as_slice().into());
        world.ask(1, &Request::Hint(Hint { space, keys, kind }));
        assert_eq!(world.store(1, space, &new, 0, Stamp(0)), 2);
        let pages = [&ended, &goes_on, &new].map(|keys| world.lookup(1, space, keys).pages);
        assert_eq!(pages, [0, 14, 2]);
    }
}

#[test]
fn a_prefetch_ends_before_it_displaces_what_it_has_brought() {
    for policy in Policy::ALL {
        let sizes = [size(100, 9, 16)];
        let settings = Config { policy, ..config(&sizes) };
        let mut world = World::with_devices_in(settings, 4, &sizes);
        world.open(1, 1, Mode::ZeroCopy);
        let space = world.open_space(1, 1, 4096, 16);
        let [wanted, other] = [1, 2].map(|name| (0..8).map(|depth| key(name, depth)).collect());
        let chains: [Vec<PageKey>; 2] = [wanted, other];
        for chain in &chains {
            assert_eq!(world.store(1, space, chain, 0, Stamp(0)), 8);
        }
        let wanted = chains[0].as_slice();
        assert_eq!(world.lookup(1, space, &wanted[..4]).dram, 0, "{policy:?}");
        let wish = Prefetch { space, keys: wanted.into(), ttl_ms: 1000 };
        world.ask(1, &Request::Prefetch(wish));
        world.finish_jobs();
        let found = world.lookup(1, space, &wanted[..4]);
        assert_eq!((found.pages, found.dram), (4, 4), "{policy:?}: its beginning is there");
        assert_eq!(world.lookup(1, space, wanted).pages, 8, "{policy:?}: and the rest on SSD");
    }
}
