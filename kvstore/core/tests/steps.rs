//! One small request may concern as much as there is. No step does all of it: what is done of it in
//! one is bounded, the rest goes on between other requests, and in the end it is as if it had been
//! done at once.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use undercroft_core::{Config, Event};
use undercroft_wire::{
    Hint, HintKind, LeaseId, Lookup, Mode, PageKey, Refused, RefusedReason, Release, Reply,
    Request, SessionId, SpaceId, Stamp,
};
use world::{World, key};

const STEP: u32 = 16;
const LONG: u64 = 1000;

/// A world with room for `frames` pages whose steps do no more than [`STEP`] pages.
fn world(frames: u64) -> (World, SpaceId) {
    let config = Config { slab_bytes: 64 * 4096, step_pages: STEP, ..Config::default() };
    let mut world = World::with_frames(frames, config);
    world.audits = false;
    world.open(1, 1, Mode::ZeroCopy);
    let space = world.open_space(1, 1, 4096, 64);
    (world, space)
}

fn chain(number: u64, length: u64) -> Vec<PageKey> {
    (0..length).map(|depth| key(number, depth)).collect()
}

fn hint(world: &mut World, space: SpaceId, leaf: PageKey, kind: HintKind) {
    let keys = std::slice::from_ref(&leaf);
    world.ask(1, &Request::Hint(Hint { space, keys: keys.into(), kind }));
}

/// Lets the core do all that it has put off.
fn rest(world: &mut World) {
    world.advance(world.now);
    world.core.audit();
    world.state.check(&world.core);
}

#[test]
fn a_hint_on_a_long_chain_is_passed_on_a_few_pages_a_step() {
    let (mut world, space) = world(2 * LONG);
    let (old, new) = (chain(1, LONG), chain(2, LONG));
    for keys in [&old, &new] {
        assert_eq!(world.store(1, space, keys, 0, Stamp(0)), keys.len());
    }
    rest(&mut world);
    world.most_notes = 0;
    for _ in 0..3 {
        hint(&mut world, space, old[LONG as usize - 1], HintKind::Active);
        world.core.audit();
    }
    assert!(world.core.next_timer().is_some(), "there is more to pass on");
    rest(&mut world);
    let most = 2 * STEP as usize + 1;
    assert!(world.most_notes <= most, "{} pages in one step", world.most_notes);
    // The chain that was used last stays, and all of it.
    assert_eq!(world.store(1, space, &chain(3, LONG), 0, Stamp(0)), LONG as usize);
    assert_eq!(world.lookup(1, space, &old).pages, LONG as u32);
    assert_eq!(world.lookup(1, space, &new).pages, 0);
}

#[test]
fn a_chain_that_has_ended_is_cooled_a_few_pages_a_step() {
    let (mut world, space) = world(2 * LONG);
    let (old, new) = (chain(1, LONG), chain(2, LONG));
    for keys in [&old, &new] {
        assert_eq!(world.store(1, space, keys, 0, Stamp(0)), keys.len());
    }
    rest(&mut world);
    world.most_notes = 0;
    hint(&mut world, space, new[LONG as usize - 1], HintKind::Ended);
    assert!(world.core.next_timer().is_some(), "there is more to cool");
    rest(&mut world);
    let most = 2 * STEP as usize + 1;
    assert!(world.most_notes <= most, "{} pages in one step", world.most_notes);
    assert_eq!(world.store(1, space, &chain(3, LONG), 0, Stamp(0)), LONG as usize);
    assert_eq!(world.lookup(1, space, &old).pages, LONG as u32);
    assert_eq!(world.lookup(1, space, &new).pages, 0);
}

/// Stores one chain and leases all of it; returns its keys.
fn leased(world: &mut World, space: SpaceId, number: u64) -> Vec<PageKey> {
    let keys = chain(number, LONG);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), keys.len());
    world.fetch(1, number, space, &keys, Stamp(0), 1000);
    rest(world);
    assert_eq!(world.lease(1, number).places.len(), keys.len());
    keys
}

#[test]
fn a_lease_is_given_back_a_few_pages_a_step_and_answered_when_all_is_free() {
    let (mut world, space) = world(LONG);
    leased(&mut world, space, 1);
    let lease = LeaseId(1);
    let release = Request::Release(Release { session: SessionId(1), lease, upto: u32::MAX });
    let (session, request) = (SessionId(1), world.request_id());
    world.leases.clear();
    world.step(Event::Request { session, request, body: &release });
    let answered = |world: &World| world.replies.contains(&(session, request, Reply::Done));
    let mut steps = 0;
    while !answered(&world) {
        assert!(world.core.is_session_busy(session), "the session waits for its answer");
        world.core.audit();
        world.step(Event::Tick);
        steps += 1;
    }
    assert!(!world.core.is_session_busy(session));
    assert!(steps >= LONG as u32 / STEP - 1, "{steps} steps for {LONG} pages");
    assert_eq!(world.store(1, space, &chain(2, LONG), 0, Stamp(0)), LONG as usize);
}

#[test]
fn a_process_that_dies_gives_back_its_frames_a_few_a_step() {
    let (mut world, space) = world(LONG);
    leased(&mut world, space, 1);
    let dead = SessionId(1);
    world.kill(1);
    assert!(world.state.leases.is_empty(), "nobody leases anything any more");
    let mut steps = 0;
    while world.core.next_timer().is_some() {
        assert!(world.core.is_session_busy(dead));
        world.core.audit();
        world.step(Event::Tick);
        steps += 1;
    }
    assert!(steps >= LONG as u32 / STEP - 1, "{steps} steps for {LONG} pages");
    rest(&mut world);
    world.open(2, 2, Mode::ZeroCopy);
    let space = world.open_space(2, 1, 4096, 64);
    assert_eq!(world.store(2, space, &chain(2, LONG), 0, Stamp(0)), LONG as usize);
}

#[test]
fn a_lookup_names_each_space_once() {
    let (mut world, space) = world(4);
    let spaces = vec![space, space];
    let keys = chain(1, 1);
    let lookup = Lookup { spaces, keys: keys.as_slice().into(), hold_ms: 0 };
    let reply = world.ask(1, &Request::Lookup(lookup));
    let reason = match &reply {
        Some(Reply::Refused(Refused { reason, .. })) => Some(*reason),
        _ => None,
    };
    assert_eq!(reason, Some(RefusedReason::Invalid), "{reply:?}");
}
