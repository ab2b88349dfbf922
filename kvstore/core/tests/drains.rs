//! Parts that retire, and slabs that change hands between page sizes.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use undercroft_core::{Action, Config, Event, Micros};
use undercroft_wire::{DomainId, FetchOutcome, Mode, PartId, SpaceId, Stamp};
use world::{World, chain, opened};

const OWN: DomainId = DomainId([0; 16]);
const FIRST: PartId = PartId(0);

fn is_there(world: &World, part: PartId) -> bool {
    assert_eq!(world.core.has_part(part), world.memory.parts.contains_key(&part));
    world.core.has_part(part)
}

/// Sends the ticks that are due now.
fn settle(world: &mut World) {
    world.advance(world.now);
}

#[test]
fn a_part_that_retires_is_empty_once_its_pages_have_left() {
    let (mut world, space) = opened(World::dram(4), 4);
    world.add_part(OWN, 4);
    let keys = chain(1, 8);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), 8);
    world.retire(FIRST);
    settle(&mut world);
    assert!(!is_there(&world, FIRST));
    assert_eq!(world.core.dram().pages, 4);
    assert_eq!(world.core.dram().capacity_bytes, 4 * 4096);
    world.store(1, space, &chain(2, 8), 0, Stamp(0));
    assert_eq!(world.core.dram().pages, 4, "there is no more room than that");
}

#[test]
fn the_oldest_part_is_filled_first_and_each_says_how_full_it_is() {
    // A part has no room for a whole slab.
    let config = Config { slab_bytes: 8 * 4096, ..Config::default() };
    let (mut world, space) = opened(World::with_frames(4, config), 4);
    world.add_part(OWN, 4);
    world.add_part(OWN, 4);
    let used =
        |world: &World| [0, 1, 2].map(|part| world.core.part_used_bytes(PartId(part)) / 4096);
    assert_eq!(used(&world), [0; 3]);
    for (number, pages, used_by_then) in [(1, 3, [3, 0, 0]), (2, 4, [4, 3, 0]), (3, 3, [4, 4, 2])] {
        assert_eq!(world.store(1, space, &chain(number, pages), 0, Stamp(0)), pages as usize);
        assert_eq!(used(&world), used_by_then);
    }
    assert_eq!(world.core.part_used_bytes(PartId(9)), 0);
}

#[test]
fn an_unused_part_is_empty_at_once_and_odd_ones_are_ignored() {
    let (mut world, _) = opened(World::dram(4), 4);
    world.step(Event::RetirePart { part: PartId(77) });
    world.retire(FIRST);
    assert!(!is_there(&world, FIRST));
    world.step(Event::RetirePart { part: FIRST });
    world.add_part(OWN, 2);
    assert!(is_there(&world, PartId(1)));
}

#[test]
fn a_leased_page_keeps_its_part_until_it_is_released() {
    let (mut world, space) = opened(World::dram(2), 4);
    let keys = chain(1, 2);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 1, space, &keys[..1], Stamp(0), 10);
    let hold = world.lookup_hold(1, &[space], &keys, 1000).hold.unwrap();
    world.retire(FIRST);
    world.step(Event::RetirePart { part: FIRST });
    settle(&mut world);
    assert_eq!(world.lookup(1, space, &keys).pages, 2, "what is held stays");
    world.release(1, 1, u32::MAX);
    assert!(is_there(&world, FIRST), "{hold:?} is not over");
    world.advance(Micros(1_000_000));
    assert!(!is_there(&world, FIRST));
    assert_eq!(world.lookup(1, space, &keys).pages, 0);
}

#[test]
fn pages_of_a_part_that_retires_are_written_first() {
    let (mut world, space) = opened(World::with_ssd(4, 100, 20, 4), 4);
    world.add_part(OWN, 1);
    let keys = chain(1, 4);
    world.store(1, space, &keys, 0, Stamp(0));
    world.retire(FIRST);
    let writes = |world: &World| world.count_jobs(|job| matches!(job, Action::Append { .. }));
    assert_eq!(writes(&world), 2, "a few at a time");
    assert!(is_there(&world, FIRST), "they are being written");
    world.finish_jobs();
    settle(&mut world);
    world.finish_jobs();
    assert!(!is_there(&world, FIRST));
    assert_eq!(world.lookup(1, space, &keys).pages, 4);
    world.fetch(1, 1, space, &keys[2..3], Stamp(0), 1000);
    world.finish_jobs();
    assert_eq!(world.outcome(1, 1), FetchOutcome::Complete, "it is read into another part");
}

#[test]
fn what_is_filled_when_its_part_retires_leaves_afterwards() {
    let (mut world, space) = opened(World::dram(2), 4);
    let keys = chain(1, 2);
    let offer = world.offer(1, space, None, 0, &keys, Stamp(0)).unwrap();
    world.commit(1, space, offer.offer, &offer.slots, &[]);
    world.retire(FIRST);
    assert!(is_there(&world, FIRST), "copies are under way");
    world.finish_jobs();
    settle(&mut world);
    assert!(!is_there(&world, FIRST));
}

/// Two spaces whose pages have one and two units.
fn two_sizes(frames: u64) -> (World, SpaceId, SpaceId) {
    let mut world = World::dram(frames);
    world.open(1, 1, Mode::ZeroCopy);
    let small = world.open_space(1, 1, 4096, 4);
    let large = world.open_space(1, 2, 8192, 4);
    (world, small, large)
}

#[test]
fn cold_pages_of_one_size_make_room_for_another() {
    let (mut world, small, large) = two_sizes(8);
    assert_eq!(world.store(1, small, &chain(1, 8), 0, Stamp(0)), 8, "the whole arena");
    let keys = chain(2, 4);
    for _ in 0..keys.len() {
        // What is offered is turned away, and room is made for the next.
        let at = world.lookup(1, large, &keys).pages as usize;
        world.store(1, large, &keys, at, Stamp(0));
        settle(&mut world);
    }
    assert_eq!(world.lookup(1, large, &keys).pages, 4, "the other size has the arena now");
    assert_eq!(world.core.stats().drained_slabs, 4);
    assert_eq!(world.lookup(1, small, &chain(1, 8)).pages, 0);
}

#[test]
fn pages_in_use_are_not_driven_out_by_another_size() {
    let (mut world, small, large) = two_sizes(8);
    world.store(1, large, &chain(2, 2), 0, Stamp(0));
    let busy = chain(1, 4);
    world.store(1, small, &busy, 0, Stamp(0));
    for number in 3..9 {
        let stamp = world.lookup(1, small, &busy).stamp;
        world.fetch(1, number, small, &busy, stamp, 10);
        world.release(1, number, u32::MAX);
        world.store(1, large, &chain(number, 2), 0, Stamp(0));
        settle(&mut world);
        assert_eq!(world.lookup(1, small, &busy).pages, 4, "they are used again and again");
    }
    assert_eq!(world.core.stats().drained_slabs, 0);
}

#[test]
fn a_leased_slab_changes_hands_when_it_is_released() {
    let (mut world, small, large) = two_sizes(2);
    let keys = chain(1, 2);
    world.store(1, small, &keys, 0, Stamp(0));
    world.fetch(1, 1, small, &keys[..1], Stamp(0), 10);
    let tail = chain(2, 1);
    for _ in 0..3 {
        assert_eq!(world.store(1, large, &tail, 0, Stamp(0)), 0);
        settle(&mut world);
    }
    world.release(1, 1, u32::MAX);
    settle(&mut world);
    assert_eq!(world.store(1, large, &tail, 0, Stamp(0)), 1);
}
