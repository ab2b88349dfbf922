//! Holds and leases that change hands.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use undercroft_core::{Config, DomainConfig, DomainLimits, Micros};
use undercroft_wire::{
    DomainId, FetchOutcome, FetchSource, Mode, RefusedReason, SessionId, SpaceId, Stamp, Token,
};
use world::devices::config;
use world::{OTHER, World, chain, opened};

/// A scheduler and a worker, sessions 1 and 2 of two processes, with one space.
fn pair(frames: u64, worker: Mode) -> (World, SpaceId) {
    let (mut world, space) = opened(World::dram(frames), 4);
    world.open(2, 2, worker);
    assert_eq!(world.open_space(2, 1, 4096, 4), space);
    (world, space)
}

#[test]
fn who_takes_a_lease_owns_it() {
    let (mut world, space) = pair(4, Mode::ZeroCopy);
    let keys = chain(1, 3);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 1, space, &keys, Stamp(0), 10);
    world.release(1, 1, 1);
    let token = world.give_lease(1, 1).unwrap();
    world.take_lease((2, 9), token, space, (1, 1)).unwrap();
    assert_eq!(world.lease(2, 9).places.len(), 2, "what was released is not handed over");
    // The giver releases and dies, and the pages stay.
    world.release(1, 1, u32::MAX);
    world.kill(1);
    world.open(3, 3, Mode::ZeroCopy);
    world.open_space(3, 1, 4096, 4);
    assert_eq!(world.store(3, space, &chain(2, 4), 0, Stamp(0)), 2);
    assert_eq!(world.core.session_leases(SessionId(2)).pages, 2);
    world.release(2, 9, u32::MAX);
    assert_eq!(world.store(3, space, &chain(3, 4), 0, Stamp(0)), 4);
}

#[test]
fn who_hands_over_a_lease_may_pin_as_many_pages_again() {
    let limits = DomainLimits { max_session_bytes: 2 * 4096, ..DomainLimits::default() };
    let domains = vec![DomainConfig { limits, ..DomainConfig::default() }];
    let world = World::with_frames(4, Config { domains, ..config(&[]) });
    let (mut world, space) = opened(world, 4);
    world.open(2, 2, Mode::ZeroCopy);
    world.open_space(2, 1, 4096, 4);
    let keys = chain(1, 4);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 1, space, &keys[..2], Stamp(0), 10);
    world.fetch(1, 2, space, &keys[..4], Stamp(0), 10);
    assert_eq!(world.lease(1, 2).places.len(), 0, "it pins as much as it may");
    let token = world.give_lease(1, 1).unwrap();
    world.take_lease((2, 1), token, space, (1, 1)).unwrap();
    world.advance(world.now);
    assert_eq!(world.lease(1, 2).places.len(), 2, "what was handed over is not its any more");
    world.release(1, 2, 2);
    assert_eq!(world.outcome(1, 2), FetchOutcome::Complete);
}

#[test]
fn a_lease_is_copied_to_who_cannot_read_it_in_place() {
    let (mut world, space) = pair(4, Mode::Copy);
    let keys = chain(1, 2);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 1, space, &keys, Stamp(0), 10);
    let token = world.give_lease(1, 1).unwrap();
    world.take_lease((2, 9), token, space, (1, 1)).unwrap();
    world.finish_jobs();
    assert_eq!(world.outcome(2, 9), FetchOutcome::Complete);
    assert_eq!(world.lease(2, 9).places.len(), 2);
    assert!(world.give_lease(2, 9).is_err(), "it lies in its own slots");
}

#[test]
fn who_takes_a_hold_owns_it() {
    let (mut world, space) = pair(3, Mode::ZeroCopy);
    let keys = chain(1, 2);
    world.store(1, space, &keys, 0, Stamp(0));
    let hold = world.lookup_hold(1, &[space], &keys, 1000).hold.unwrap();
    let token = world.give_hold(1, hold).unwrap();
    let taken = world.take_hold(2, token).unwrap();
    assert_eq!((taken.hold, taken.pages), (hold, 2));
    world.close(1);
    world.store(2, space, &chain(2, 3), 0, Stamp(0));
    let source = FetchSource::Hold { hold, first: 0, count: 2 };
    world.fetch_from(2, 1, space, (&keys, source), Stamp(0), 10);
    assert_eq!(world.outcome(2, 1), FetchOutcome::Complete);
}

#[test]
fn a_token_is_good_once_for_its_kind_and_space_and_in_its_domain() {
    let mut world = World::new(config(&[]));
    world.add_part(DomainId::default(), 4);
    for (session, domain) in [(1, DomainId::default()), (2, DomainId::default()), (3, OTHER)] {
        world.open_in(domain, session, session as u32, Mode::ZeroCopy);
    }
    let space = world.open_space(1, 1, 4096, 4);
    let (second, other) = (world.open_space(2, 2, 4096, 4), world.open_space(3, 1, 4096, 4));
    let keys = chain(1, 2);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 1, space, &keys, Stamp(0), 10);
    let token = world.give_lease(1, 1).unwrap();
    let unknown = Err(RefusedReason::Unknown);
    assert_eq!(world.take_lease((3, 1), token, other, (9, 9)), unknown, "another tenant's");
    assert_eq!(world.take_lease((2, 1), token, second, (9, 9)), unknown, "another space's");
    assert_eq!(world.take_lease((2, 1), token, space, (9, 9)), unknown, "it has not opened it");
    assert_eq!(world.take_lease((2, 1), Token([7; 16]), space, (9, 9)), unknown);
    assert_eq!(world.take_hold(2, token).unwrap_err(), RefusedReason::Invalid, "it is a lease");
    world.open_space(2, 1, 4096, 4);
    world.fetch(2, 1, second, &keys[..0], Stamp(0), 10);
    world.take_lease((2, 5), token, space, (1, 1)).unwrap();
    assert_eq!(world.take_lease((2, 6), token, space, (9, 9)), unknown, "it was taken");
}

#[test]
fn a_token_ends_with_its_time_and_with_what_it_stands_for() {
    let (mut world, space) = pair(4, Mode::ZeroCopy);
    let keys = chain(1, 2);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 1, space, &keys, Stamp(0), 10);
    let first = world.give_lease(1, 1).unwrap();
    let second = world.give_lease(1, 1).unwrap();
    assert_ne!(first, second);
    world.advance(Micros(60_000_000));
    let unknown = Err(RefusedReason::Unknown);
    assert_eq!(world.take_lease((2, 1), first, space, (9, 9)), unknown, "it is too old");
    assert_eq!(world.core.session_leases(SessionId(1)).pages, 2, "the giver has it still");
    let third = world.give_lease(1, 1).unwrap();
    world.release(1, 1, u32::MAX);
    assert_eq!(world.take_lease((2, 1), third, space, (9, 9)), unknown, "it is released");
    let hold = world.lookup_hold(1, &[space], &keys, 1000).hold.unwrap();
    let fourth = world.give_hold(1, hold).unwrap();
    world.close(1);
    assert_eq!(world.take_hold(2, fourth).unwrap_err(), RefusedReason::Unknown);
    assert!(world.give_hold(2, hold).is_err() && world.give_lease(2, 1).is_err());
}

#[test]
fn tokens_are_bounded_and_differ_with_the_seed() {
    let token = |seed| {
        let limits = DomainLimits { max_tokens: 1, ..DomainLimits::default() };
        let domains = vec![DomainConfig { limits, ..DomainConfig::default() }];
        let world = World::with_frames(2, Config { domains, seed, ..config(&[]) });
        let (mut world, space) = opened(world, 4);
        world.store(1, space, &chain(1, 1), 0, Stamp(0));
        world.fetch(1, 1, space, &chain(1, 1), Stamp(0), 10);
        let token = world.give_lease(1, 1).unwrap();
        assert_eq!(world.give_lease(1, 1), Err(RefusedReason::Busy));
        token
    };
    assert_ne!(token(1), token(2));
}
