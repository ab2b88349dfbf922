//! One small request may concern as much as there is. No step does all of it: what is done of it in
//! one is bounded, the rest goes on between other requests, and in the end it is as if it had been
//! done at once.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use undercroft_core::{Config, DomainConfig, DomainLimits, Event, Limits, Micros};
use undercroft_wire::{
    Fetch, FetchOutcome, FetchSource, Hint, HintKind, LeaseId, Lookup, Mode, Offer, PageKey,
    Prefetch, PrefetchReply, PurgeScope, Refused, RefusedReason, Release, Reply, Request, Rival,
    SessionId, SpaceId, Stamp,
};
use world::{HeldLease, World, key, user_of};

const STEP: u32 = 16;
const LONG: u64 = 1000;

/// A world with room for `frames` pages whose steps do no more than [`STEP`] pages.
fn world(frames: u64) -> (World, SpaceId) {
    world_of(frames, Config { slab_bytes: 64 * 4096, step_pages: STEP, ..Config::default() })
}

fn world_of(frames: u64, config: Config) -> (World, SpaceId) {
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
fn a_long_run_is_fetched_a_few_pages_a_step_whatever_its_deadline() {
    let (mut world, space) = world(LONG);
    let keys = chain(1, LONG);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), keys.len());
    rest(&mut world);
    world.most_notes = 0;
    world.fetch(1, 1, space, &keys, Stamp(0), 0);
    rest(&mut world);
    assert_eq!(world.outcome(1, 1), FetchOutcome::Complete);
    // Used, passed on to the one before, and leased.
    let most = 4 * STEP as usize;
    assert!(world.most_notes <= most, "{} notes in one step", world.most_notes);
}

#[test]
fn a_prefetch_of_a_long_run_is_answered_when_all_of_it_was_looked_at() {
    let (mut world, space) = world(LONG);
    let keys = chain(1, LONG);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), keys.len());
    rest(&mut world);
    let (session, request) = (SessionId(1), world.request_id());
    let body = Request::Prefetch(Prefetch { space, keys: keys.as_slice().into(), ttl_ms: 0 });
    world.step(Event::Request { session, request, body: &body });
    assert!(world.core.is_session_busy(session));
    world.core.audit();
    rest(&mut world);
    let reply = Reply::Prefetch(PrefetchReply { resident: LONG as u32, started: 0 });
    assert!(world.replies.contains(&(session, request, reply)));
}

#[test]
fn a_hold_does_not_end_under_a_fetch_that_has_begun_to_take_from_it() {
    let (mut world, space) = world(LONG);
    let keys = chain(1, LONG);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), keys.len());
    let found = world.lookup_hold(1, &[space], &keys, 5);
    rest(&mut world);
    let source = FetchSource::Hold { hold: found.hold.unwrap(), first: 0, count: LONG as u32 };
    let lease = LeaseId(1);
    let fetch =
        Fetch { space, lease, source, stamp: found.stamp, deadline_ms: 1000, recompute_ns: 0 };
    let (session, request) = (SessionId(1), world.request_id());
    let held = HeldLease { space, keys, places: Vec::new(), released: 0, ended: None };
    world.leases.insert((session, lease), held);
    world.step(Event::Request { session, request, body: &Request::Fetch(fetch) });
    assert!(world.core.is_session_busy(session));
    world.advance(Micros(world.now.0 + 500_000));
    rest(&mut world);
    assert_eq!(world.outcome(1, 1), FetchOutcome::Complete);
    world.release(1, 1, u32::MAX);
    world.advance(Micros(world.now.0 + 10_000));
    rest(&mut world);
    assert_eq!(world.store(1, space, &chain(2, LONG), 0, Stamp(0)), LONG as usize);
}

#[test]
fn a_long_lookup_takes_several_steps_and_finds_and_holds_what_one_would() {
    let (mut world, space) = world(LONG);
    let (keys, missing) = (chain(1, LONG), chain(2, LONG));
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), keys.len());
    rest(&mut world);
    for hold_ms in [0, 5] {
        let (session, request) = (SessionId(1), world.request_id());
        let spaces = vec![space];
        let wished: Vec<PageKey> = keys.iter().chain(&missing).copied().collect();
        let body = Request::Lookup(Lookup {
            spaces,
            keys: wished.as_slice().into(),
            hold_ms,
            rival: Rival::default(),
        });
        world.step(Event::Request { session, request, body: &body });
        let mut steps = 0;
        while world.core.is_session_busy(session) {
            world.core.audit();
            world.step(Event::Tick);
            steps += 1;
        }
        assert!(steps >= 3, "{steps} steps for {LONG} pages");
        let (_, _, reply) = world.replies.last().unwrap();
        let Reply::Lookup(found) = reply else { panic!("a lookup is answered, not {reply:?}") };
        assert_eq!((found.pages, found.dram, found.ssd), (LONG as u32, LONG as u32, 0));
        assert_eq!(found.hold.is_some(), hold_ms > 0);
    }
    // What is held stays, and no longer than it is.
    assert_eq!(world.store(1, space, &missing, 0, Stamp(0)), 0);
    world.advance(Micros(world.now.0 + 6_000));
    rest(&mut world);
    assert_eq!(world.store(1, space, &missing, 0, Stamp(0)), LONG as usize);
}

#[test]
fn a_session_that_ends_in_the_middle_of_its_request_leaves_nothing_behind() {
    let (mut world, space) = world(LONG);
    let keys = chain(1, LONG);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), keys.len());
    rest(&mut world);
    let lookup = Lookup {
        spaces: vec![space],
        keys: keys.as_slice().into(),
        hold_ms: 1000,
        rival: Rival::default(),
    };
    let (session, request) = (SessionId(1), world.request_id());
    world.step(Event::Request { session, request, body: &Request::Lookup(lookup) });
    assert!(world.core.is_session_busy(session));
    world.step(Event::ProcessGone { session });
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
    let lookup =
        Lookup { spaces, keys: keys.as_slice().into(), hold_ms: 0, rival: Rival::default() };
    let reply = world.ask(1, &Request::Lookup(lookup));
    let invalid =
        matches!(reply, Some(Reply::Refused(Refused { reason: RefusedReason::Invalid, .. })));
    assert!(invalid, "{reply:?}");
}

/// One whose session pins as much as it may, with `leases` fetches stopped for that.
fn stopped(leases: u64) -> (World, SpaceId) {
    let limits = DomainLimits { max_session_bytes: 4 * 4096, ..DomainLimits::default() };
    let domains = vec![DomainConfig { limits, ..DomainConfig::default() }];
    let limits = Limits { max_leases_per_session: leases as u32 + 1, ..Limits::default() };
    let config =
        Config { domains, limits, slab_bytes: 64 * 4096, step_pages: STEP, ..Config::default() };
    let (mut world, space) = world_of(8, config);
    let keys = chain(1, 4);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), keys.len());
    world.fetch(1, 0, space, &keys, Stamp(0), 1000);
    for lease in 1..=leases {
        world.fetch(1, lease, space, &keys[..1], Stamp(0), 1000);
    }
    assert_eq!(world.core.stats().stopped_fetches, leases);
    (world, space)
}

fn ended(world: &World, leases: u64) -> Vec<u64> {
    (1..=leases).filter(|lease| world.lease(1, *lease).ended.is_some()).collect()
}

#[test]
fn of_many_fetches_that_stopped_only_those_go_on_that_there_is_room_for() {
    let leases = LONG;
    let (mut world, _) = stopped(leases);
    for upto in [0, 0, 2, 2, 0] {
        world.release(1, 0, upto);
        world.release(1, leases, 0);
    }
    world.core.audit();
    assert_eq!(ended(&world, leases), [1, 2], "the oldest, and no more than there is room for");
    world.release(1, 1, u32::MAX);
    world.release(1, leases, u32::MAX);
    rest(&mut world);
    assert!(world.lease(1, 3).ended.is_some());
    assert!(world.lease(1, 4).ended.is_none());
    // None was looked at in vain.
    assert_eq!(world.core.stats().stopped_fetches, leases);
}

#[test]
fn a_session_whose_fetches_have_stopped_ends_without_their_going_on() {
    // As many as to find out if each that ends sets all others going.
    let leases = 3 * LONG / 2;
    let (mut world, _) = stopped(leases);
    let before = world.core.stats().delivered_dram_pages;
    world.close(1);
    rest(&mut world);
    assert_eq!(world.core.session_leases(SessionId(1)).leases, 1, "what it was given stays");
    assert_eq!(world.core.stats().delivered_dram_pages, before);
    world.kill(1);
    rest(&mut world);
    assert_eq!(world.core.session_leases(SessionId(1)).leases, 0);
}

#[test]
fn a_long_offer_takes_several_steps_and_is_answered_as_in_one() {
    let (mut world, space) = world(LONG);
    let (half, all) = (LONG as usize / 2, chain(1, LONG));
    assert_eq!(world.store(1, space, &all[..half], 0, Stamp(0)), half);
    rest(&mut world);
    world.most_notes = 0;
    let body =
        Offer { space, parent: None, first: 0, keys: all.as_slice().into(), stamp: Stamp(0) };
    let (session, request) = (SessionId(1), world.request_id());
    world.step(Event::Request { session, request, body: &Request::Offer(body) });
    let mut steps = 0;
    while world.core.is_session_busy(session) {
        world.core.audit();
        world.step(Event::Tick);
        steps += 1;
    }
    assert!(steps >= LONG as u32 / STEP - 1, "{steps} steps for {LONG} keys");
    let most = 4 * STEP as usize;
    assert!(world.most_notes <= most, "{} notes in one step", world.most_notes);
    let (_, _, reply) = world.replies.last().unwrap();
    let Reply::Offer(reply) = reply.clone() else { panic!("an offer is answered, not {reply:?}") };
    let count = |byte| reply.outcomes.iter().filter(|outcome| **outcome == byte).count();
    // There are 64 slots. They are one offer's, in however many steps they were given.
    assert_eq!((count(1), count(0), count(2)), (half, 64, half - 64));
    assert_eq!(reply.slots.len(), 64);
    let returned = world.commit(1, space, reply.offer, &[], &reply.slots);
    assert!(world.commits[&(session, returned)].answered.is_some());
    rest(&mut world);
    assert_eq!(world.store(1, space, &all, half, Stamp(0)), half);
}

#[test]
fn a_page_that_leaves_in_the_middle_of_an_offer_ends_it_there() {
    let (mut world, space) = world(LONG);
    let held = STEP as usize;
    let keys = chain(1, 2 * held as u64);
    let begin = |world: &mut World| {
        let body = Offer { space, parent: None, first: 0, keys: keys[..].into(), stamp: Stamp(0) };
        let (session, request) = (SessionId(1), world.request_id());
        world.step(Event::Request { session, request, body: &Request::Offer(body) });
        assert!(world.core.is_session_busy(session));
    };
    assert_eq!(world.store(1, space, &keys[..held], 0, Stamp(0)), held);
    rest(&mut world);
    begin(&mut world);
    world.purge(PurgeScope::default());
    rest(&mut world);
    let (_, _, reply) = world.replies.last().unwrap();
    let Reply::Offer(reply) = reply.clone() else { panic!("an offer is answered, not {reply:?}") };
    let found = reply.outcomes.iter().take_while(|outcome| **outcome == 1).count();
    assert_eq!(found, held, "these were there when they were looked at");
    assert!(reply.outcomes[held..].iter().all(|outcome| *outcome == 3), "what is before has left");
    assert!(reply.slots.is_empty());
    // Whoever is gone in the middle of it leaves nothing behind.
    begin(&mut world);
    world.kill(1);
    rest(&mut world);
    world.open(2, 2, Mode::ZeroCopy);
    let space = world.open_space(2, 1, 4096, 64);
    assert_eq!(world.store(2, space, &keys, 0, Stamp(0)), keys.len());
}

#[test]
fn the_purge_of_a_writer_looks_at_holds_a_few_pages_a_step() {
    const HOLDS: u64 = 8;
    let (mut world, space) = world(LONG);
    let keys = chain(1, LONG);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), keys.len());
    rest(&mut world);
    let holds: Vec<_> =
        (0..HOLDS).map(|_| world.lookup_hold(1, &[space], &keys, 60_000).hold.unwrap()).collect();
    let by = |writer| PurgeScope { writer: Some(writer), ..PurgeScope::default() };
    // Another's: all of each hold has to be looked at.
    let mut purge = world.begin_purge(by(user_of(1) + 1));
    let mut steps = 0;
    while !world.purged.contains_key(&purge) {
        world.core.audit();
        world.step(Event::Tick);
        steps += 1;
    }
    assert!(steps >= HOLDS * LONG / u64::from(STEP), "{steps} steps for {HOLDS} holds");
    world.end_purges();
    assert!(holds.iter().all(|hold| world.give_hold(1, *hold).is_ok()), "they are none of its");
    purge = world.begin_purge(by(user_of(1)));
    rest(&mut world);
    world.end_purges();
    assert_eq!(world.purged[&purge], LONG);
    assert!(holds.iter().all(|hold| world.give_hold(1, *hold).is_err()));
    assert_eq!(world.store(1, space, &chain(2, LONG), 0, Stamp(0)), LONG as usize);
}
