//! The DRAM tier against an independent tail-first LRU, counted as the policy study counts:
//! hits are the leading resident pages; then every page of the request is touched or inserted,
//! tail first; only then is the tier cut back, page by page.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use proptest::prelude::*;
use undercroft_wire::{Mode, PageKey};
use world::{World, key};

/// The reference: a list of page ids, most recent first.
struct NaiveLru {
    capacity: usize,
    pages: Vec<u64>,
}

impl NaiveLru {
    fn request(&mut self, ids: &[u64]) -> usize {
        let hits = ids.iter().take_while(|id| self.pages.contains(id)).count();
        for id in ids.iter().rev() {
            self.pages.retain(|page| page != id);
            self.pages.insert(0, *id);
        }
        self.pages.truncate(self.capacity);
        hits
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

fn replay(requests: &[Vec<u64>], capacity: u64, slots: u32, batch: usize) {
    let mut world = World::dram(capacity);
    world.open(1, 1, Mode::ZeroCopy);
    let space = world.open_space(1, 1, 4096, slots);
    let mut naive = NaiveLru { capacity: capacity as usize, pages: Vec::new() };
    for (number, ids) in requests.iter().enumerate() {
        let keys: Vec<PageKey> = ids.iter().map(|id| key(*id, 0)).collect();
        let found = world.lookup(1, space, &keys);
        assert_eq!(found.pages as usize, naive.request(ids), "request {number}: hits");
        let hits = found.pages as usize;
        let lease = number as u64;
        world.fetch(1, lease, space, &keys[..hits], found.stamp, 1000);
        assert_eq!(world.lease(1, lease).places.len(), hits, "DRAM pages are ready at once");
        world.release(1, lease, u32::MAX);
        for end in (hits..keys.len()).step_by(batch).map(|at| (at + batch).min(keys.len())) {
            world.store(1, space, &keys[..end], hits.max(end.saturating_sub(batch)), found.stamp);
        }
        check_residents(&mut world, requests, &naive, space);
    }
}

fn check_residents(
    world: &mut World,
    requests: &[Vec<u64>],
    naive: &NaiveLru,
    space: undercroft_wire::SpaceId,
) {
    assert_eq!(world.core.dram().pages as usize, naive.pages.len(), "as many pages");
    for ids in requests.iter().take(8) {
        let keys: Vec<PageKey> = ids.iter().map(|id| key(*id, 0)).collect();
        let wanted = ids.iter().take_while(|id| naive.pages.contains(id)).count();
        assert_eq!(world.lookup(1, space, &keys).pages as usize, wanted, "the same pages");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equals_tail_first_lru(
        requests in requests(),
        capacity in 1..20_u64,
        slots in 1..5_u32,
        batch in 1..9_usize,
    ) {
        replay(&requests, capacity, slots, batch);
    }
}

#[test]
fn a_request_longer_than_the_tier_leaves_its_head() {
    let ids: Vec<u64> = (1..=9).collect();
    for slots in 1..=10 {
        replay(&[ids.clone(), ids.clone()], 4, slots, 100);
    }
}
