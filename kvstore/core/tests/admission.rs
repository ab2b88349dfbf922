//! What of the pages that leave DRAM is written to SSD.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use undercroft_core::{Admission, Config, Stats};
use undercroft_wire::{Mode, PageKey, SpaceId};
use world::devices::{config, size};
use world::{World, chain};

/// DRAM of 8 pages, an SSD of about 64, and two spaces.
fn world(admission: Admission) -> (World, [SpaceId; 2]) {
    let sizes = [size(64, 20, 4)];
    let settings = Config { admission, ..config(&sizes) };
    let mut world = World::with_devices_in(settings, 8, &sizes);
    world.audits = false;
    world.open(1, 1, Mode::ZeroCopy);
    let spaces = [1, 2].map(|space| world.open_space(1, space, 4096, 8));
    (world, spaces)
}

/// Looks up, fetches what is found and stores the rest, as an engine does; returns the hits.
fn request(world: &mut World, space: SpaceId, keys: &[PageKey]) -> usize {
    let found = world.lookup(1, space, keys);
    let hits = found.pages as usize;
    let lease = world.next_lease();
    world.fetch(1, lease, space, &keys[..hits], found.stamp, 1000);
    world.finish_jobs();
    world.release(1, lease, u32::MAX);
    world.store(1, space, keys, hits, found.stamp);
    world.finish_jobs();
    hits
}

fn stats(world: &World) -> Stats {
    *world.core.stats()
}

#[test]
fn through_writes_what_is_stored_at_once() {
    let (mut world, [space, _]) = world(Admission::Through);
    request(&mut world, space, &chain(1, 4));
    assert_eq!((stats(&world).stored, stats(&world).appended_pages), (4, 4));
    assert_eq!(stats(&world).evicted_pages, 0, "they are in DRAM, too");
    let (mut world, [space, _]) = self::world(Admission::Demote);
    request(&mut world, space, &chain(1, 4));
    assert_eq!(stats(&world).appended_pages, 0);
}

#[test]
fn what_comes_once_is_written_while_half_of_the_ssd_is_free() {
    let written = |admission| {
        let (mut world, [space, _]) = world(admission);
        for number in 0..500 {
            request(&mut world, space, &chain(number, 4));
        }
        assert!(stats(&world).stored == 2000 && stats(&world).prefix_pages == 0);
        (stats(&world).appended_pages, stats(&world).refused_pages)
    };
    let (all, refused) = written(Admission::Demote);
    assert!(all > 1900 && refused == 0, "{all} written, {refused} refused");
    let (some, refused) = written(Admission::Auto(10));
    assert!((28..80).contains(&some), "{some} of room for 64");
    assert!(refused > 1800, "{refused}");
}

#[test]
fn a_prompt_that_is_not_written_keeps_as_much_as_finds_room() {
    let (mut world, [space, _]) = world(Admission::Auto(10));
    for number in 0..100 {
        request(&mut world, space, &chain(number, 4));
    }
    let before = stats(&world);
    let long = chain(1000, 16);
    request(&mut world, space, &long);
    let found = world.lookup(1, space, &long).pages;
    assert!(found >= 7, "{found} of room for 8");
    assert_eq!(stats(&world).invalid_commits, before.invalid_commits);
    assert_eq!(stats(&world).appended_pages, before.appended_pages, "it came once");
}

/// Requests of one space that come back as long as an SSD keeps pages, and between them some of another
/// that never do. Returns the hits of the first, and what was written.
fn both(admission: Admission) -> (usize, u64) {
    let (mut world, [goes_on, once]) = world(admission);
    let mut hits = 0;
    for turn in 0..400 {
        hits += request(&mut world, goes_on, &chain(turn % 10, 4));
        for number in 0..3 {
            request(&mut world, once, &chain(1000 + 3 * turn + number, 4));
        }
    }
    (hits, stats(&world).appended_pages)
}

#[test]
fn what_never_comes_back_drives_out_nothing_of_another_space() {
    let (all, all_written) = both(Admission::Demote);
    let (hits, written) = both(Admission::Auto(10));
    assert!(hits > all && hits > 1200, "{hits} hits of 1600, {all} where all is written");
    assert!(written * 10 < all_written, "{written} written instead of {all_written}");
}

#[test]
fn what_was_refused_and_comes_back_in_time_opens_the_door() {
    let (mut world, [space, _]) = world(Admission::Auto(10));
    for number in 0..200 {
        request(&mut world, space, &chain(number, 4));
    }
    let before = stats(&world).appended_pages;
    let mut round = || {
        let hits: usize =
            (1000..1008).map(|number| request(&mut world, space, &chain(number, 4))).sum();
        (hits, stats(&world).appended_pages)
    };
    let (first, written) = round();
    assert!(first == 0 && written == before, "refused at first");
    round();
    let (last, _) = (0..4).map(|_| round()).last().unwrap();
    assert_eq!(last, 32, "all of them once they have come back");
}

#[test]
fn the_price_says_how_many_must_come_back() {
    let written = |price| {
        let (mut world, [space, _]) = world(Admission::Auto(price));
        for turn in 0..600 {
            // One of five comes back.
            let number = if turn % 5 == 4 { turn - 4 } else { turn };
            request(&mut world, space, &chain(number, 4));
        }
        stats(&world).appended_pages
    };
    let (dear, cheap) = (written(2), written(20));
    assert!(dear * 3 < cheap, "{dear} at a price of 2, {cheap} at one of 20");
}
