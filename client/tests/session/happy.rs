use crate::shelf::{PAGE_BYTES, Shelf, refused};
use crate::world::*;
use std::time::Duration;
use undercroft_client::{
    ClientState, FetchFrom, FetchReport, LookupOptions, MissReason, Prefetched, StoreOptions,
    StoreRun,
};
use undercroft_gpu_shim::BlockId;
use undercroft_wire::{
    Epoch, Geometry, HintKind, Mode, RefusedReason, Request, SessionId, Space, Stamp,
};

const STAMP: Stamp = Stamp(77);

fn patient() -> StoreOptions {
    StoreOptions { deadline: LONG, wait_for_credits: true }
}

#[test]
fn what_is_stored_comes_back_bit_by_bit() {
    for mode in [Mode::ZeroCopy, Mode::Copy] {
        let world = World::new();
        let shelf = Shelf::new(1, mode, 8);
        let _daemon = world.daemon(&shelf);
        let (client, space) = world.open();
        let expected = ClientState::Connected { session: SessionId(41), epoch: Epoch(1), mode };
        assert_eq!(client.state(), expected);
        let (device, keys) = (device(10), keys(5));
        let nothing = space.lookup(&keys, PLAIN);
        assert_eq!((nothing.pages, nothing.why), (0, Some(MissReason::Absent)));
        let run = StoreRun { parent: None, first: 0, keys: &keys, stamp: nothing.stamp };
        let stored = space.store(run, &device, &blocks(5), patient());
        assert_eq!((stored.stored, stored.why), (5, None), "{stored:?}");

        let found = space.lookup(&keys, PLAIN);
        assert_eq!((found.pages, found.dram, found.ssd, found.why), (5, 5, 0, None));
        assert_eq!((found.stamp, found.estimate), (STAMP, Duration::from_micros(5)));
        let targets = &blocks(10)[5..];
        let loaded = space.fetch_into(&device, FetchFrom::Keys(&keys), targets, found.stamp, LONG);
        assert_eq!((loaded.pages, loaded.why), (5, None), "{loaded:?}");
        assert_eq!(loaded.bytes, 5 * u64::from(PAGE_BYTES));
        assert!((0..5).all(|block| is_copy(&device, block + 5, block)), "{mode:?}");
    }
}

#[test]
fn a_partial_hit_says_why_it_is_not_more() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 2);
    (0..3).for_each(|at| shelf.lock().unwrap().put(key(at), 9));
    let _daemon = world.daemon(&shelf);
    let (client, space) = world.open();
    let found = client.lookup_family(&[&space, &space], &keys(6), PLAIN);
    assert_eq!((found.pages, found.why), (3, Some(MissReason::Absent)));
    let mut fetch = space.fetch(FetchFrom::Keys(&keys(6)), STAMP, LONG);
    let mut firsts = Vec::new();
    while let Some(run) = fetch.next_ready() {
        firsts.push((run.first, run.pages.len()));
        assert!(run.pages.iter().all(|page| page.read(|bytes| bytes.iter().all(|b| *b == 9))));
    }
    assert_eq!(firsts, [(0, 2), (2, 1)]);
    let report = FetchReport { pages: 3, ssd_pages: 0, why: Some(MissReason::Absent) };
    assert_eq!(fetch.report(), report);
}

#[test]
fn a_run_longer_than_staging_is_offered_in_order_under_one_stamp() {
    for slots in [1, 2, 3] {
        let world = World::new();
        let shelf = Shelf::new(1, Mode::ZeroCopy, slots);
        let _daemon = world.daemon(&shelf);
        let (_client, space) = world.open();
        let (device, keys) = (device(30), keys(30));
        let run = StoreRun { parent: None, first: 0, keys: &keys, stamp: STAMP };
        let stored = space.store(run, &device, &blocks(30), patient());
        assert_eq!((stored.stored, stored.why), (30, None), "{stored:?}");
        let shelf = shelf.lock().unwrap();
        let mut reached = 0;
        for offer in &shelf.offers {
            assert_eq!(offer.stamp, STAMP);
            assert!(offer.first <= reached, "a gap before {}", offer.first);
            let parent = offer.first.checked_sub(1).map(key);
            assert_eq!(offer.parent, parent);
            let expected = &keys[offer.first as usize..][..offer.keys.len()];
            assert_eq!(offer.keys, expected);
            reached = reached.max(offer.first + offer.keys.len() as u32);
        }
        assert_eq!(reached, 30);
    }
}

#[test]
fn without_waiting_pages_beyond_the_credits_are_declined() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    shelf.lock().unwrap().put(key(0), 1);
    let _daemon = world.daemon(&shelf);
    let (_client, space) = world.open();
    let (device, keys) = (device(10), keys(10));
    let run = StoreRun { parent: None, first: 0, keys: &keys, stamp: STAMP };
    let options = StoreOptions { deadline: LONG, wait_for_credits: false };
    let stored = space.store(run, &device, &blocks(10), options);
    assert_eq!((stored.held, stored.stored, stored.declined.credits), (1, 4, 5));
    assert_eq!((stored.unsettled, stored.why), (0, None));
    assert_eq!(shelf.lock().unwrap().offers.len(), 1);
}

#[test]
fn lookups_that_were_sent_are_answered_in_any_order_and_once() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 8);
    (0..4).for_each(|at| shelf.lock().unwrap().put(key(at), 9));
    let _daemon = world.daemon(&shelf);
    let (client, space) = world.open();
    let held = LookupOptions { hold: Some(LONG), deadline: SHORT, ..LookupOptions::default() };
    let all = keys(6);
    let lookups: Vec<_> =
        (1..=6).map(|count| client.start_lookup(&[&space], &all[..count], held).unwrap()).collect();
    for (at, lookup) in lookups.iter().enumerate().rev() {
        let (found, count) = (lookup.wait(LONG), at as u32 + 1);
        assert_eq!((found.pages, found.why.is_none()), (count.min(4), count <= 4));
        assert_eq!(found.hold.map(|hold| hold.pages()), Some(count.min(4)));
    }
    assert_eq!(lookups[0].wait(Duration::ZERO).why, Some(MissReason::Deadline), "given out once");
    soon("all holds are dropped", || shelf.lock().unwrap().dropped.len() == 6);
    // One that nobody waits for any more gives its hold back, too, when the answer comes.
    drop(client.start_lookup(&[&space], &all, held).unwrap());
    let _anything = space.lookup(&all, PLAIN);
    soon("its hold is dropped", || shelf.lock().unwrap().dropped.len() == 7);
    assert_eq!(client.start_lookup(&[], &all, held).unwrap_err(), MissReason::Invalid);
}

#[test]
fn a_hold_is_fetched_from_and_given_back() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 2);
    (0..4).for_each(|at| shelf.lock().unwrap().put(key(at), at as u8));
    let _daemon = world.daemon(&shelf);
    let (_client, space) = world.open();
    let found = space.lookup(&keys(4), HELD);
    let hold = found.hold.unwrap();
    assert_eq!(hold.pages(), 4);
    let mut fetch = space.fetch(FetchFrom::Hold(&hold, 1, 2), found.stamp, LONG);
    let run = fetch.next_ready().unwrap();
    assert_eq!((run.first, run.pages.len()), (0, 2));
    run.pages[1].read(|bytes| assert_eq!(bytes[0], 2));
    let report = FetchReport { pages: 2, ssd_pages: 0, why: None };
    assert_eq!(fetch.outcome(), report);
    drop(hold);
    soon("the hold is dropped", || shelf.lock().unwrap().dropped.len() == 1);
}

#[test]
fn a_lease_is_released_in_parts_and_at_last() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 2);
    (0..4).for_each(|at| shelf.lock().unwrap().put(key(at), at as u8));
    let _daemon = world.daemon(&shelf);
    let (_client, space) = world.open();
    let mut fetch = space.fetch(FetchFrom::Keys(&keys(4)), STAMP, LONG);
    fetch.release_upto(4);
    assert_eq!(fetch.next_ready().unwrap().pages.len(), 2);
    fetch.release_upto(4);
    fetch.release_upto(1);
    drop(fetch);
    soon("the lease ends", || shelf.lock().unwrap().releases.len() == 2);
    let releases = shelf.lock().unwrap().releases.clone();
    assert_eq!((releases[0].upto, releases[1].upto), (2, u32::MAX));
    assert!(releases.iter().all(|release| release.session == SessionId(41)));
}

#[test]
fn small_talk() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 2);
    shelf.lock().unwrap().put(key(0), 0);
    let _daemon = world.daemon(&shelf);
    let (client, space) = world.open();
    assert!(client.ping(LONG).unwrap() < LONG);
    assert_eq!(client.status(LONG).unwrap().pid, 4711);
    let set_going = space.prefetch(&keys(3), LONG, LONG).unwrap();
    assert_eq!(set_going, Prefetched { resident: 1, started: 7 });
    space.hint(&keys(3), HintKind::Paused, LONG).unwrap();
    assert!(space.is_open() && client.wait_connected(Duration::ZERO));
    // The same space again is the same staging, not a second one.
    let again = client.open_space(&self::space(), LONG).unwrap();
    assert_eq!(again.space(), space.space());
}

#[test]
fn arguments_that_contradict_each_other_are_refused_before_they_travel() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 2);
    let _daemon = world.daemon(&shelf);
    let (client, space) = world.open();
    let (device, keys) = (device(4), keys(4));
    let invalid = Some(MissReason::Invalid);
    let nowhere = StoreRun { parent: None, first: 3, keys: &keys, stamp: STAMP };
    assert_eq!(space.store(nowhere, &device, &blocks(4), patient()).why, invalid);
    let run = StoreRun { parent: None, first: 0, keys: &keys, stamp: STAMP };
    let stored = space.store(run, &device, &blocks(3), patient());
    assert_eq!((stored.why, stored.unsettled), (invalid, 4));
    let loaded = space.fetch_into(&device, FetchFrom::Keys(&keys), &blocks(3), STAMP, LONG);
    assert_eq!(loaded.why, invalid);
    assert_eq!(client.lookup_family(&[], &keys, PLAIN).why, invalid);
    let other = Space { geometry: Geometry::new(1, 1, PAGE_BYTES).unwrap(), ..self::space() };
    let other = client.open_space(&other, LONG).unwrap();
    assert_eq!(other.store(run, &device, &blocks(4), patient()).why, invalid);
}

#[test]
fn a_block_the_device_lacks_is_a_fault_and_its_slots_come_back() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let _daemon = world.daemon(&shelf);
    let (_client, space) = world.open();
    let (device, keys) = (device(1), keys(4));
    let run = StoreRun { parent: None, first: 0, keys: &keys, stamp: STAMP };
    let stored = space.store(run, &device, &blocks(4), patient());
    assert_eq!(stored.why, Some(MissReason::Device));
    assert!(stored.fault.is_some() && stored.stored == 0);
    soon("all slots are back", || shelf.lock().unwrap().returned.len() == 4);
}

#[test]
fn a_refusal_is_a_reason() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 2);
    let _daemon = world.daemon_with(&shelf, |peer, id, request| {
        let refuse = matches!(request, Request::Lookup(_) | Request::Fetch(_) | Request::Offer(_));
        if refuse {
            peer.reply(id, &refused(RefusedReason::Busy));
        }
        refuse
    });
    let (_client, space) = world.open();
    let busy = Some(MissReason::Refused(RefusedReason::Busy));
    let options = LookupOptions { deadline: LONG, ..LookupOptions::default() };
    assert_eq!(space.lookup(&keys(2), options).why, busy);
    assert_eq!(space.fetch(FetchFrom::Keys(&keys(2)), STAMP, LONG).outcome().why, busy);
    let (device, keys) = (device(2), keys(2));
    let run = StoreRun { parent: None, first: 0, keys: &keys, stamp: STAMP };
    assert_eq!(space.store(run, &device, &blocks(2), patient()).why, busy);
    assert!(shelf.lock().unwrap().releases.is_empty(), "there was no lease to release");
}

/// Far enough apart to be handed to the device in different pieces.
#[test]
fn a_block_that_is_named_twice_is_refused_before_anything_is_loaded() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    (0..3).for_each(|at| shelf.lock().unwrap().put(key(at), at as u8));
    let _daemon = world.daemon(&shelf);
    let (_client, space) = world.open();
    let device = device(3);
    let twice = [BlockId(0), BlockId(1), BlockId(0)];
    let loaded = space.fetch_into(&device, FetchFrom::Keys(&keys(3)), &twice, Stamp(1), LONG);
    assert_eq!((loaded.pages, loaded.why), (0, Some(MissReason::Invalid)));
    assert!(is_copy(&device, 0, 0) && is_copy(&device, 1, 1));
}

#[test]
fn a_lease_lasts_as_long_as_a_run_of_it() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    (0..3).for_each(|at| shelf.lock().unwrap().put(key(at), at as u8));
    let _daemon = world.daemon(&shelf);
    let (client, space) = world.open();
    let mut fetch = space.fetch(FetchFrom::Keys(&keys(3)), Stamp(1), LONG);
    let runs: Vec<_> = std::iter::from_fn(|| fetch.next_ready()).collect();
    assert_eq!(runs.len(), 2);
    drop(fetch);
    client.ping(LONG).unwrap();
    assert_eq!(shelf.lock().unwrap().releases, []);
    drop(runs);
    soon("the lease ends", || shelf.lock().unwrap().releases.len() == 1);
}
