//! Pages that are forgotten because somebody says so.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use undercroft_core::{Action, Event, PurgeScope};
use undercroft_wire::{
    CommitOutcome, DomainId, FetchOutcome, Mode, OfferOutcome, SessionId, SpaceId, Stamp,
};
use world::{OTHER, World, chain, digest, opened};

const OWN: DomainId = DomainId([0; 16]);

fn purge(world: &mut World, scope: PurgeScope) -> u64 {
    let before = world.core.stats().purged_pages;
    world.step(Event::Purge(scope));
    world.core.stats().purged_pages - before
}

/// A session of its own with a space of each of two tenants, and a second one of the first.
fn spaces(world: &mut World) -> [SpaceId; 3] {
    world.add_part(OTHER, 4);
    for (session, domain) in [(1, OWN), (2, OTHER)] {
        world.open_in(domain, session, session as u32, Mode::ZeroCopy);
    }
    [(1, 1), (1, 2), (2, 1)].map(|(session, space)| world.open_space(session, space, 4096, 4))
}

#[test]
fn a_scope_is_forgotten_in_both_tiers_and_nothing_else() {
    let mut world = World::with_ssd(4, 100, 20, 4);
    let [first, second, other] = spaces(&mut world);
    let keys = chain(1, 6);
    let find = |world: &mut World| {
        [(1, first), (1, second), (2, other)]
            .map(|(at, space)| world.lookup(at, space, &keys).pages)
    };
    for (session, space) in [(1, first), (1, second), (2, other)] {
        assert_eq!(world.store(session, space, &keys, 0, Stamp(0)), 6);
    }
    assert_eq!(purge(&mut world, PurgeScope::Space(OWN, digest(2))), 6);
    assert_eq!(find(&mut world), [6, 0, 6]);
    assert_eq!(purge(&mut world, PurgeScope::Domain(OWN)), 6);
    assert_eq!(find(&mut world), [0, 0, 6]);
    assert_eq!(purge(&mut world, PurgeScope::Domain(DomainId([9; 16]))), 0);
    assert_eq!(world.store(1, first, &keys, 0, Stamp(0)), 6, "it may be stored again");
    world.finish_jobs();
    assert_eq!(find(&mut world), [6, 0, 6]);
}

#[test]
fn a_leased_page_is_not_found_and_keeps_its_frame() {
    let (mut world, space) = opened(World::dram(2), 4);
    let keys = chain(1, 2);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 1, space, &keys[..1], Stamp(0), 10);
    assert_eq!(purge(&mut world, PurgeScope::Domain(OWN)), 2);
    assert_eq!(world.lookup(1, space, &keys).pages, 0);
    let offer = world.offer(1, space, None, 0, &keys, Stamp(0)).unwrap();
    assert_eq!(offer.outcomes[0], OfferOutcome::NotAdmitted.to_byte(), "its key is taken");
    assert_eq!(world.store(1, space, &chain(2, 2), 0, Stamp(0)), 1, "one frame is leased");
    assert_eq!(purge(&mut world, PurgeScope::Domain(OWN)), 1, "it counts once");
    world.release(1, 1, u32::MAX);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), 2);
}

#[test]
fn what_is_held_or_on_its_way_ends_as_a_miss() {
    let (mut world, space) = opened(World::with_ssd(2, 100, 20, 4), 4);
    let keys = chain(1, 6);
    world.store(1, space, &keys, 0, Stamp(0));
    let hold = world.lookup_hold(1, &[space], &keys, 1000).hold.unwrap();
    let missing = (0..6).find(|at| world.lookup(1, space, &keys[*at..=*at]).dram == 0).unwrap();
    world.store(1, space, &chain(2, 2), 0, Stamp(0));
    world.fetch(1, 1, space, &keys[missing..=missing], Stamp(0), 1000);
    while world.end_one(false, |_, job| matches!(job, Action::Append { .. })) {}
    purge(&mut world, PurgeScope::Domain(OWN));
    assert_eq!(world.outcome(1, 1), FetchOutcome::Missing);
    let taken = world.give_hold(1, hold);
    assert!(taken.is_err(), "the hold is over");
    world.finish_all_jobs();
    assert_eq!(world.lookup(1, space, &keys).pages, 0);
    assert_eq!(world.core.dram().used_bytes, 0, "the read's frame is free");
    assert_eq!(world.store(1, space, &chain(3, 2), 0, Stamp(0)), 2);
}

#[test]
fn a_copy_under_way_is_not_stored() {
    let (mut world, space) = opened(World::dram(4), 4);
    let keys = chain(1, 2);
    let offer = world.offer(1, space, None, 0, &keys, Stamp(0)).unwrap();
    let request = world.commit(1, space, offer.offer, &offer.slots, &[]);
    purge(&mut world, PurgeScope::Domain(OWN));
    world.finish_jobs();
    let commit = &world.commits[&(SessionId(1), request)];
    assert_eq!(commit.answered, Some(vec![CommitOutcome::Invalid.to_byte(); 2]));
    assert_eq!(world.lookup(1, space, &keys).pages, 0);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), 2);
}

#[test]
fn what_is_being_written_is_forgotten_when_that_is_over() {
    let (mut world, space) = opened(World::with_ssd(2, 100, 20, 4), 4);
    let keys = chain(1, 2);
    let offer = world.offer(1, space, None, 0, &keys, Stamp(0)).unwrap();
    world.commit(1, space, offer.offer, &offer.slots, &[]);
    world.finish_copies();
    let writes = |job: &Action| matches!(job, Action::Append { .. });
    assert!(world.count_jobs(writes) > 0, "the coldest are written ahead");
    purge(&mut world, PurgeScope::Domain(OWN));
    assert_eq!(world.lookup(1, space, &keys).pages, 0);
    world.finish_jobs();
    assert_eq!(world.lookup(1, space, &keys).pages, 0);
    assert_eq!(world.core.dram().used_bytes, 0);
}
