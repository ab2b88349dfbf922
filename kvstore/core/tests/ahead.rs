//! Prefetches: what nobody waits for yet stands back, and is counted.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use undercroft_core::{Action, Config, Limits};
use undercroft_wire::{Mode, PageKey, Prefetch, Reply, Request, SpaceId, Stamp};
use world::devices::{config, size};
use world::{World, chain};

/// DRAM of 16 pages, and an SSD on which these prefixes of 6 pages lie.
fn world<const N: usize>(max_ahead_pages: u64) -> (World, SpaceId, [Vec<PageKey>; N]) {
    let sizes = [size(100, 9, 16)];
    let max_ahead_bytes = max_ahead_pages * 4096;
    let limits = Limits { max_ahead_bytes, max_lane_bytes: 1 << 20, ..config(&sizes).limits };
    let settings = Config { fetch_window: 4, limits, ..config(&sizes) };
    let mut world = World::with_devices_in(settings, 16, &sizes);
    world.open(1, 1, Mode::ZeroCopy);
    let space = world.open_space(1, 1, 4096, 16);
    let prefixes = std::array::from_fn(|number| chain(number as u64, 6));
    for prefix in &prefixes {
        world.store(1, space, prefix, 0, Stamp(0));
    }
    fill(&mut world, space, 1000);
    for prefix in &prefixes {
        assert_eq!(world.lookup(1, space, prefix).ssd, 6);
    }
    (world, space, prefixes)
}

/// Drives everything else out of DRAM.
fn fill(world: &mut World, space: SpaceId, name: u64) {
    world.store(1, space, &chain(name, 16), 0, Stamp(0));
    world.finish_jobs();
}

fn prefetch(world: &mut World, space: SpaceId, keys: &[PageKey]) {
    let wish = Prefetch { space, keys: keys.into(), ttl_ms: 10_000 };
    assert!(matches!(world.ask(1, &Request::Prefetch(wish)), Some(Reply::Prefetch(_))));
}

fn is_read(job: &Action) -> bool {
    matches!(job, Action::Read { .. })
}

fn is_read_of(job: &Action, keys: &[PageKey]) -> bool {
    matches!(job, Action::Read { identity, .. } if keys.contains(&identity.key))
}

/// The device does what it was given first; how many pages of `keys` it reads until the fetch ends.
fn read_before_end(world: &mut World, keys: &[PageKey]) -> usize {
    let mut read = 0;
    while world.leases.values().any(|lease| lease.ended.is_none()) {
        let next = world.jobs.values().find(|job| is_read(job)).cloned().unwrap();
        read += usize::from(is_read_of(&next, keys));
        assert!(world.end_one(false, |_, job| is_read(job)));
    }
    read
}

#[test]
fn who_waits_overtakes_who_does_not() {
    for most in [1, 3] {
        let (mut world, space, [one, two, wanted]) = world(most);
        prefetch(&mut world, space, &one);
        prefetch(&mut world, space, &two);
        let ahead = world.count_jobs(is_read);
        assert_eq!(ahead as u64, most, "no more than may be ahead");
        world.fetch(1, 1, space, &wanted, Stamp(0), 10_000);
        let others: Vec<PageKey> = one.iter().chain(&two).copied().collect();
        let read = read_before_end(&mut world, &others);
        assert!(read <= ahead, "{read} pages that nobody waited for were read first");
        world.release(1, 1, u32::MAX);
        world.finish_jobs();
        let found = world.lookup(1, space, &one).dram + world.lookup(1, space, &two).dram;
        assert!(found >= 10, "then they are read: {found}");
    }
}

#[test]
fn a_prefetch_goes_on_when_somebody_else_is_done() {
    let (mut world, space, [ahead, wanted]) = world(1);
    world.fetch(1, 1, space, &wanted, Stamp(0), 10_000);
    prefetch(&mut world, space, &ahead);
    assert_eq!(world.count_jobs(|job| is_read_of(job, &ahead)), 0, "the device is busy");
    assert_eq!(read_before_end(&mut world, &ahead), 0);
    world.finish_jobs();
    assert_eq!(world.lookup(1, space, &ahead).dram, 6);
}

#[test]
fn who_waits_for_a_frame_stands_before_prefetches() {
    let (mut world, space, [ahead, wanted]) = world(100);
    // All frames are leased: whoever wants one waits.
    let leased = chain(1000, 16);
    world.fetch(1, 1, space, &leased, Stamp(0), 10_000);
    prefetch(&mut world, space, &ahead);
    world.fetch(1, 2, space, &wanted, Stamp(0), 10_000);
    assert_eq!(world.count_jobs(is_read), 0);
    world.release(1, 1, 2);
    assert_eq!(world.count_jobs(|job| is_read_of(job, &wanted)), 2, "two frames are free");
    assert_eq!(world.count_jobs(|job| is_read_of(job, &ahead)), 0);
}

#[test]
fn what_was_prefetched_is_used_or_wasted() {
    let (mut world, space, [used, wasted]) = world(100);
    prefetch(&mut world, space, &used);
    prefetch(&mut world, space, &wasted);
    world.finish_jobs();
    assert_eq!(world.core.stats().asked.pages, 12);
    world.fetch(1, 1, space, &used, Stamp(0), 10_000);
    world.release(1, 1, u32::MAX);
    assert_eq!(world.core.stats().asked.used_pages, 6);
    fill(&mut world, space, 1001);
    fill(&mut world, space, 1002);
    let stats = world.core.stats().asked;
    assert_eq!((stats.used_pages, stats.wasted_pages), (6, 6));
    assert_eq!(stats.wasted_bytes, 6 * 4096);
}

#[test]
fn a_prefetch_that_somebody_joins_is_used() {
    let (mut world, space, [keys]) = world(100);
    prefetch(&mut world, space, &keys);
    assert!(world.count_jobs(is_read) > 0);
    world.fetch(1, 1, space, &keys, Stamp(0), 10_000);
    world.finish_jobs();
    let stats = world.core.stats().asked;
    assert!(stats.pages > 0 && stats.wasted_pages == 0, "{stats:?}");
    assert_eq!(stats.used_pages, stats.pages);
}
