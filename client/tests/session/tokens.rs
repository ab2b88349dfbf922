//! Holds and leases that are handed over: who has them, and who ends them.

use crate::shelf::Shelf;
use crate::world::*;
use undercroft_client::{FetchFrom, Hold, MissReason, StoreOptions, StoreRun, Token};
use undercroft_wire::{Mode, RefusedReason, Request, Space, Stamp};

const UNKNOWN: MissReason = MissReason::Refused(RefusedReason::Unknown);
const INVALID: MissReason = MissReason::Refused(RefusedReason::Invalid);

/// The shards of one model, as their workers open them.
fn shard(group: u32) -> Space {
    Space { group, ..space() }
}

#[test]
fn a_hold_that_was_taken_is_the_takers_alone() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 2);
    (0..4).for_each(|at| shelf.lock().unwrap().put(key(at), at as u8));
    let _daemon = world.daemon(&shelf);
    let (_scheduler, looked_up) = world.open();
    let (worker, loaded) = world.open();
    let given = looked_up.lookup(&keys(4), HELD).hold.unwrap();
    let token = given.give(LONG).unwrap();
    let held = worker.take_hold(token, LONG).unwrap();
    assert_eq!(held.pages(), 4);
    assert_eq!(worker.take_hold(token, LONG).unwrap_err(), UNKNOWN, "a token is good once");
    assert_eq!(given.give(LONG).unwrap_err(), UNKNOWN);
    let gone = looked_up.fetch(FetchFrom::Hold(&given, 0, 4), Stamp(1), LONG).outcome();
    assert_ne!((gone.pages, gone.why), (4, None), "the giver has it no more");
    // The giver's end of it comes after it was taken, and ends nothing.
    drop(given);
    soon("it is told", || shelf.lock().unwrap().dropped.len() == 1);
    assert_eq!(shelf.lock().unwrap().promises().0, 1);
    let mut fetch = loaded.fetch(FetchFrom::Hold(&held, 1, 3), Stamp(1), LONG);
    let run = fetch.next_ready().unwrap();
    run.pages[0].read(|bytes| assert_eq!(bytes[0], 1));
    assert_eq!(fetch.outcome().pages, 3);
    drop(held);
    soon("the taker ends it", || shelf.lock().unwrap().promises().0 == 0);
}

#[test]
fn a_hold_that_nobody_takes_stays_the_givers() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 2);
    shelf.lock().unwrap().put(key(0), 1);
    let _daemon = world.daemon(&shelf);
    let (scheduler, looked_up) = world.open();
    let (worker, loaded) = world.open();
    let given = looked_up.lookup(&keys(1), HELD).hold.unwrap();
    let token = given.give(LONG).unwrap();
    let report = looked_up.fetch(FetchFrom::Hold(&given, 0, 1), Stamp(1), LONG).outcome();
    assert_eq!((report.pages, report.why), (1, None));
    assert_eq!(loaded.take_lease(token, LONG).outcome().why, Some(INVALID), "it is no lease");
    drop(given);
    scheduler.ping(LONG).unwrap();
    assert!(worker.take_hold(token, LONG).is_err(), "with its giver's end it is over");
    assert_eq!(shelf.lock().unwrap().promises().0, 0);
}

/// What several workers in one process do: each fetches its own space under the same hold.
#[test]
fn every_worker_fetches_its_space_under_one_taken_hold() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 2);
    (0..8).for_each(|at| shelf.lock().unwrap().put(key(at), at as u8));
    let _daemon = world.daemon(&shelf);
    let (_scheduler, looked_up) = world.open();
    let hold = looked_up.lookup(&keys(8), HELD).hold.unwrap();
    let workers = world.client();
    let spaces: Vec<_> =
        (0..4).map(|group| workers.open_space(&shard(group), LONG).unwrap()).collect();
    let held: Hold = workers.take_hold(hold.give(LONG).unwrap(), LONG).unwrap();
    drop(hold);
    std::thread::scope(|scope| {
        for space in &spaces {
            let held = &held;
            scope.spawn(move || {
                let device = device(8);
                let from = FetchFrom::Hold(held, 0, 8);
                let loaded = space.fetch_into(&device, from, &blocks(8), Stamp(1), LONG);
                assert_eq!((loaded.pages, loaded.why), (8, None), "{loaded:?}");
            });
        }
    });
}

#[test]
fn a_lease_that_was_taken_outlives_its_giver() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 2);
    (0..5).for_each(|at| shelf.lock().unwrap().put(key(at), at as u8));
    let _daemon = world.daemon(&shelf);
    let (scheduler, fetched) = world.open();
    let (_worker, loaded) = world.open();
    let mut given = fetched.fetch(FetchFrom::Keys(&keys(5)), Stamp(1), LONG);
    assert_eq!(given.give(LONG).unwrap_err(), MissReason::Invalid, "it is not over");
    assert_eq!(given.outcome().pages, 5);
    let token = given.give(LONG).unwrap();
    let mut taken = loaded.take_lease(token, LONG);
    let mut firsts = Vec::new();
    while let Some(run) = taken.next_ready() {
        firsts.push(run.first);
        for (at, page) in (run.first..).zip(&run.pages) {
            page.read(|bytes| assert!(bytes.iter().all(|byte| u32::from(*byte) == at)));
        }
    }
    assert_eq!((firsts, taken.report().pages, taken.report().why), (vec![0, 2, 4], 5, None));
    assert_eq!(loaded.take_lease(token, LONG).outcome().why, Some(UNKNOWN), "good once");
    drop((given, fetched, scheduler));
    soon("the giver's end is told", || !shelf.lock().unwrap().releases.is_empty());
    assert_eq!(shelf.lock().unwrap().promises().1, 1, "and ends nothing");
    drop(taken);
    soon("the taker ends it", || shelf.lock().unwrap().promises().1 == 0);
}

#[test]
fn a_taken_lease_is_loaded_into_a_device() {
    let (absent, invalid) = (Some(MissReason::Absent), Some(MissReason::Invalid));
    for (count, why) in [(5, None), (7, absent), (3, invalid), (0, invalid)] {
        let world = World::new();
        let shelf = Shelf::new(1, Mode::ZeroCopy, 8);
        let _daemon = world.daemon(&shelf);
        let (_scheduler, stored) = world.open();
        let (_worker, loaded) = world.open();
        let (device, keys) = (device(12), keys(5));
        let run = StoreRun { parent: None, first: 0, keys: &keys, stamp: Stamp(1) };
        let options = StoreOptions { deadline: LONG, wait_for_credits: true };
        assert_eq!(stored.store(run, &device, &blocks(5), options).stored, 5);
        let mut given = stored.fetch(FetchFrom::Keys(&keys), Stamp(1), LONG);
        assert_eq!(given.outcome().pages, 5);
        let token = given.give(LONG).unwrap();
        let to = &blocks(12)[5..][..count];
        let report = loaded.take_into(&device, token, to, LONG);
        let pages = count.min(5) as u32;
        assert_eq!((report.pages, report.why), (pages, why), "{report:?}");
        assert!((0..pages).all(|block| is_copy(&device, block + 5, block)));
        drop(given);
        soon("the lease ends", || shelf.lock().unwrap().promises().1 == 0);
        let gone = loaded.take_into(&device, token, to, LONG);
        assert_eq!((gone.pages, gone.why), (0, Some(UNKNOWN)));
    }
}

/// A giver whose fetch came to an early end may give what it has. Who takes it finds out.
#[test]
fn a_lease_of_fewer_pages_than_blocks_is_a_miss() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 2);
    (0..6).for_each(|at| shelf.lock().unwrap().put(key(at), at as u8));
    let _daemon = world.daemon(&shelf);
    let (_scheduler, fetched) = world.open();
    let (_worker, loaded) = world.open();
    let mut given = fetched.fetch(FetchFrom::Keys(&keys(10)), Stamp(1), LONG);
    assert_eq!((given.outcome().pages, given.report().why), (6, Some(MissReason::Absent)));
    let token = given.give(LONG).unwrap();
    let report = loaded.take_into(&device(10), token, &blocks(10), LONG);
    assert_eq!((report.pages, report.why), (6, Some(MissReason::Absent)), "{report:?}");
}

#[test]
fn a_lease_of_another_space_is_not_taken() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 2);
    shelf.lock().unwrap().put(key(0), 1);
    let _daemon = world.daemon(&shelf);
    let (_scheduler, fetched) = world.open();
    let worker = world.client();
    let (other, right) = (worker.open_space(&shard(1), LONG), worker.open_space(&shard(0), LONG));
    let mut given = fetched.fetch(FetchFrom::Keys(&keys(1)), Stamp(1), LONG);
    assert_eq!(given.outcome().pages, 1);
    let token = given.give(LONG).unwrap();
    let report = other.unwrap().take_lease(token, LONG).outcome();
    assert_eq!((report.pages, report.why), (0, Some(INVALID)));
    assert_eq!(worker.take_hold(token, LONG).unwrap_err(), INVALID, "it is no hold");
    assert_eq!(right.unwrap().take_lease(token, LONG).outcome().pages, 1, "it is good still");
}

#[test]
fn only_a_whole_lease_of_a_living_session_is_given() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 2);
    (0..2).for_each(|at| shelf.lock().unwrap().put(key(at), at as u8));
    let daemon = world.daemon(&shelf);
    let (_client, space) = world.open();
    let fetch = || {
        let mut fetch = space.fetch(FetchFrom::Keys(&keys(2)), Stamp(1), LONG);
        assert_eq!(fetch.outcome().pages, 2);
        fetch
    };
    let mut partly = fetch();
    partly.release_upto(1);
    assert_eq!(partly.give(LONG).unwrap_err(), MissReason::Invalid);
    let whole = fetch();
    drop(daemon);
    let lost = in_time(SHORT, || whole.give(LONG)).unwrap_err();
    assert_eq!(lost, MissReason::Disconnected);
    let missed = in_time(SHORT, || space.take_lease(Token([1; 16]), SHORT).outcome());
    assert_eq!((missed.pages, missed.why), (0, Some(MissReason::Disconnected)));
}

/// A token that nobody answers for costs the deadline and nothing else; what comes too late is
/// given back, as the daemon thinks it is ours.
#[test]
fn a_hold_taken_too_late_goes_back() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 2);
    shelf.lock().unwrap().put(key(0), 1);
    let slow = 3 * SHORT;
    let _daemon = world.daemon_with(&shelf, move |_, _, request| {
        if matches!(request, Request::Take(_)) {
            std::thread::sleep(slow);
        }
        false
    });
    let (_scheduler, looked_up) = world.open();
    let (worker, _loaded) = world.open();
    let given = looked_up.lookup(&keys(1), HELD).hold.unwrap();
    let token = given.give(LONG).unwrap();
    let late = in_time(SHORT, || worker.take_hold(token, SHORT)).unwrap_err();
    assert_eq!(late, MissReason::Deadline);
    worker.ping(LONG).unwrap();
    soon("the taken hold is dropped", || shelf.lock().unwrap().promises().0 == 0);
}

#[test]
fn a_last_page_without_a_block_is_told() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 2);
    (0..2).for_each(|at| shelf.lock().unwrap().put(key(at), at as u8));
    let _daemon = world.daemon(&shelf);
    let (_scheduler, fetched) = world.open();
    let (_worker, loaded) = world.open();
    let mut given = fetched.fetch(FetchFrom::Keys(&keys(2)), Stamp(1), LONG);
    assert_eq!(given.outcome().pages, 2);
    let token = given.give(LONG).unwrap();
    let report = loaded.take_into(&device(1), token, &blocks(1), LONG);
    assert_eq!((report.pages, report.why), (1, Some(MissReason::Invalid)));
}
