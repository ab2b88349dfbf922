//! Clients that would name one prompt differently are told apart when they open a space.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use undercroft_core::Event;
use undercroft_wire::{
    DomainId, Finding, Mode, PurgeScope, RefusedReason, SessionId, SpaceId, Stamp,
};
use world::{World, chain, digest, key, opened};

const ONE: u64 = 100;
const OTHER: u64 = 200;

/// Whether a session may open the space with such a probe.
fn tells(world: &mut World, session: u64, space: SpaceId, probe: u64) -> bool {
    let told = world.core.probe_space(SessionId(session), space, key(probe, 0));
    if let Err(refused) = &told {
        assert_eq!(refused.reason, RefusedReason::Invalid);
        for named in [ONE, OTHER] {
            let head: String = key(named, 0).head().iter().map(|b| format!("{b:02x}")).collect();
            assert!(refused.detail.contains(&head), "both are named: {}", refused.detail);
        }
    }
    told.is_ok()
}

fn probe(world: &World, space: SpaceId) -> Option<u64> {
    let known = world.core.spaces().find(|known| known.id == space).unwrap().probe;
    known.map(|known| if known == key(ONE, 0) { ONE } else { OTHER })
}

#[test]
fn the_first_that_is_told_counts_and_another_is_refused_and_reported() {
    let (mut world, space) = opened(World::dram(2), 2);
    assert_eq!(probe(&world, space), None);
    assert!(tells(&mut world, 1, space, ONE), "it is open, and nobody has told");
    assert!(tells(&mut world, 1, space, ONE));
    assert!(!tells(&mut world, 1, space, OTHER));
    assert_eq!(probe(&world, space), Some(ONE));
    assert_eq!(world.core.stats().refused_probes, 1);
    let Finding::OtherProbe(other) = world.core.explanations().next_back().unwrap().finding else {
        panic!("it can be explained")
    };
    assert_eq!((other.known, other.told), (key(ONE, 0).head(), key(OTHER, 0).head()));
    assert_eq!(other.space, digest(1));
}

#[test]
fn pages_that_are_left_speak_for_the_probe_and_a_space_without_takes_another() {
    let (mut world, space) = opened(World::dram(2), 2);
    assert!(tells(&mut world, 1, space, ONE));
    world.store(1, space, &chain(1, 2), 0, Stamp(0));
    world.close(1);
    world.open(2, 2, Mode::ZeroCopy);
    assert!(!tells(&mut world, 2, space, OTHER), "nobody has it open, but pages are there");
    world.purge(PurgeScope { domain: Some(DomainId::default()), ..PurgeScope::default() });
    assert!(tells(&mut world, 2, space, OTHER));
    world.open_space(2, 1, 4096, 2);
    assert!(!tells(&mut world, 2, space, ONE), "it is open");
}

#[test]
fn it_is_remembered_over_a_restart() {
    let (mut world, space) = opened(World::dram(2), 2);
    assert!(tells(&mut world, 1, space, ONE));
    world.store(1, space, &chain(1, 2), 0, Stamp(0));
    world.step(Event::Tick);
    let mut world = world.succeed(Vec::new(), 1);
    assert_eq!(probe(&world, space), Some(ONE));
    world.open(3, 3, Mode::ZeroCopy);
    assert!(!tells(&mut world, 3, space, OTHER));
}
