//! How much is written to SSDs, whatever there would be to write.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use proptest::prelude::*;
use undercroft_core::{Admission, Config, Micros, Stats, WriteBudget};
use undercroft_wire::{DeviceId, Mode, PageKey, SpaceId};
use world::devices::{FIRST, SECOND, config, size};
use world::{World, chain};

const PAGE: u64 = 4096;
const SECOND_US: u64 = 1_000_000;
const MINUTE_US: u64 = 60 * SECOND_US;
const DAY_US: u64 = 24 * 60 * MINUTE_US;

fn a_second(pages: u64) -> WriteBudget {
    WriteBudget { bytes_per_s: Some(pages * PAGE), ..WriteBudget::default() }
}

fn a_day(pages: u64) -> WriteBudget {
    WriteBudget { bytes_per_day: Some(pages * PAGE), ..WriteBudget::default() }
}

/// DRAM of 32 pages, and `devices` SSDs of about 4096.
fn world(write_budget: WriteBudget, admission: Admission, devices: usize) -> (World, SpaceId) {
    let sizes = vec![size(4096, 140, 32); devices];
    let settings = Config { admission, write_budget, ..config(&sizes) };
    let mut world = World::with_devices_in(settings, 32, &sizes);
    world.audits = false;
    world.open(1, 1, Mode::ZeroCopy);
    let space = world.open_space(1, 1, PAGE as u32, 32);
    (world, space)
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

/// One request after the other, evenly over the time given.
fn play<'a>(
    (world, space): &mut (World, SpaceId),
    over_us: u64,
    requests: impl ExactSizeIterator<Item = &'a [PageKey]>,
) {
    let (start, count) = (world.now, requests.len() as u64);
    for (at, keys) in requests.enumerate() {
        world.advance(Micros(start.0 + over_us * at as u64 / count));
        request(world, *space, keys);
    }
    world.advance(Micros(start.0 + over_us));
}

fn stats(world: &World) -> Stats {
    *world.core.stats()
}

/// The most pages that the device was asked to write in any stretch of time so long.
fn most_written(world: &World, device: DeviceId, stretch_us: u64) -> u64 {
    let writes: Vec<u64> =
        world.writes.iter().filter(|(_, of)| *of == device).map(|(at, _)| at.0).collect();
    let in_stretch = |(first, at): (usize, &u64)| {
        writes[first..].iter().take_while(|later| **later - at < stretch_us).count()
    };
    writes.iter().enumerate().map(in_stretch).max().unwrap_or(0) as u64
}

fn chains(count: u64, length: u64) -> Vec<Vec<PageKey>> {
    (0..count).map(|number| chain(number, length)).collect()
}

#[test]
fn no_minute_takes_more_than_its_budget_and_each_takes_nearly_all() {
    // Ten times as much would be written, for ten minutes.
    let mut world = world(a_second(1), Admission::Demote, 1);
    let requests = chains(10 * 60 * 10 / 8, 8);
    play(&mut world, 10 * MINUTE_US, requests.iter().map(Vec::as_slice));
    let world = world.0;
    let most = most_written(&world, FIRST, MINUTE_US);
    assert!(most <= 60, "{most} in one minute");
    let written = stats(&world).appended_pages + stats(&world).relocated_pages;
    assert!(written > 10 * 60 * 8 / 10, "{written} of 600 that may be");
    assert!(stats(&world).over_budget_pages > 4000, "{:?}", stats(&world));
    assert_eq!(stats(&world).over_budget_pages, stats(&world).refused_pages);
}

#[test]
fn a_device_has_a_budget_of_its_own() {
    let mut world = world(a_second(1), Admission::Demote, 2);
    let requests = chains(600, 8);
    play(&mut world, 5 * MINUTE_US, requests.iter().map(Vec::as_slice));
    for device in [FIRST, SECOND] {
        let most = most_written(&world.0, device, MINUTE_US);
        assert!((50..=60).contains(&most), "{most} in one minute to {device}");
    }
}

#[test]
fn no_day_takes_more_than_its_budget() {
    let mut world = world(a_day(500), Admission::Demote, 1);
    let requests = chains(3 * 500, 8);
    play(&mut world, 3 * DAY_US, requests.iter().map(Vec::as_slice));
    let most = most_written(&world.0, FIRST, DAY_US);
    assert!((400..=500).contains(&most), "{most} in one day");
    let told = world.0.report(FIRST).written_in_a_day_bytes / PAGE;
    assert!((300..=most).contains(&told), "{told} in the last day");
}

#[test]
fn what_a_record_takes_beside_its_page_is_counted() {
    let budget = WriteBudget { bytes_per_record: PAGE, ..a_second(1) };
    let mut world = world(budget, Admission::Demote, 1);
    let requests = chains(600, 8);
    play(&mut world, 5 * MINUTE_US, requests.iter().map(Vec::as_slice));
    let most = most_written(&world.0, FIRST, MINUTE_US);
    assert!((20..=30).contains(&most), "{most} in one minute");
}

#[test]
fn nothing_of_a_budget_is_saved_up_before_the_start_or_after_a_pause() {
    let mut world = world(a_second(1), Admission::Demote, 1);
    let requests = chains(200, 8);
    let (first, second) = requests.split_at(100);
    play(&mut world, 10 * SECOND_US, first.iter().map(Vec::as_slice));
    let written = world.0.writes.len();
    assert!(written <= 10, "{written} in the first ten seconds");
    world.0.advance(Micros(DAY_US));
    play(&mut world, 10 * SECOND_US, second.iter().map(Vec::as_slice));
    let most = most_written(&world.0, FIRST, MINUTE_US);
    assert!((40..=60).contains(&most), "{most}: a minute's worth at once, and no more");
}

#[test]
fn what_is_written_can_be_found_again() {
    let mut world = world(a_second(2), Admission::Demote, 1);
    let requests = chains(1000, 8);
    play(&mut world, 10 * MINUTE_US, requests.iter().map(Vec::as_slice));
    let (mut world, space) = world;
    let unreachable = world.core.unreachable_pages();
    let on_ssd = world.core.ssd().unwrap().pages;
    assert!(unreachable * 50 <= on_ssd, "{unreachable} of {on_ssd} pages");
    let found: u32 = requests.iter().map(|keys| world.lookup(1, space, keys).pages).sum();
    assert!(u64::from(found) + unreachable >= on_ssd, "{found} of {on_ssd} are found");
    assert!(on_ssd > 600, "{on_ssd} of 1200 that may be");
}

#[test]
fn what_was_used_again_is_written_before_what_was_not() {
    let mut world = world(a_second(1), Admission::Demote, 1);
    // One in four requests comes twice, so a quarter of all could be paid for.
    let mut requests = Vec::new();
    for number in 0..600 {
        requests.push(chain(number, 4));
        if number % 4 == 0 {
            requests.push(chain(number, 4));
        }
    }
    play(&mut world, 10 * MINUTE_US, requests.iter().map(Vec::as_slice));
    let (mut world, space) = world;
    let mut found = |twice: bool| -> u32 {
        let numbers = (0..560).filter(|number| (number % 4 == 0) == twice);
        numbers.map(|number| world.lookup(1, space, &chain(number, 4)).pages).sum()
    };
    let (twice, once) = (found(true), found(false));
    assert!(twice > 5 * once, "{twice} pages that were used twice, {once} used once");
    assert!(twice > 560 * 7 / 10, "{twice} of 560");
}

#[test]
fn what_is_held_stays_in_dram_where_it_cannot_be_paid_for() {
    let (mut world, space) = world(a_day(64), Admission::Demote, 2);
    world.advance(Micros(DAY_US));
    let held = chain(1, 24);
    request(&mut world, space, &held);
    let mut number = 2;
    while stats(&world).over_budget_pages == 0 {
        request(&mut world, space, &chain(number, 8));
        number += 1;
    }
    let answer = world.lookup_hold(1, &[space], &held, 60_000);
    assert_eq!((answer.pages, answer.dram), (24, 0), "held on SSD, not in DRAM");
    assert_eq!(request(&mut world, space, &held), 24);
    world.lose(FIRST);
    for later in number..number + 20 {
        request(&mut world, space, &chain(later, 8));
    }
    let answer = world.lookup(1, space, &held);
    assert_eq!(answer.pages, 24, "{:?}", stats(&world));
    assert!(answer.dram > 0, "{answer:?}: all could be written again");
}

#[test]
fn reclaim_moves_no_more_than_may_be_written() {
    // All that is on SSD is asked for again and again, so all would be moved when room is wanted.
    let sizes = vec![size(256, 20, 16)];
    let settings = Config { write_budget: a_second(1), ..config(&sizes) };
    let mut world = World::with_devices_in(settings, 32, &sizes);
    world.audits = false;
    world.open(1, 1, Mode::ZeroCopy);
    let space = world.open_space(1, 1, PAGE as u32, 32);
    let mut world = (world, space);
    let requests: Vec<_> = (0..1800).map(|turn| chain(turn % 60, 8)).collect();
    play(&mut world, 30 * MINUTE_US, requests.iter().map(Vec::as_slice));
    let most = most_written(&world.0, FIRST, MINUTE_US);
    assert!(most <= 60, "{most} in one minute");
    assert!(stats(&world.0).relocated_pages > 0, "{:?}", stats(&world.0));
    assert!(stats(&world.0).delivered_ssd_pages > 0, "{:?}", stats(&world.0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_traffic_writes_more_in_a_minute_than_may_be(
        pages in 1_u64..4,
        admission in prop::sample::select(vec![
            Admission::Through, Admission::Demote, Admission::Auto(4),
        ]),
        requests in prop::collection::vec((0_u64..40, 1_u64..12, 0_u64..30), 1..300),
    ) {
        let (mut world, space) = world(a_second(pages), admission, 1);
        for (number, length, wait_s) in requests {
            world.advance(Micros(world.now.0 + wait_s * SECOND_US / 4));
            request(&mut world, space, &chain(number, length));
        }
        world.core.audit();
        let most = most_written(&world, FIRST, MINUTE_US);
        prop_assert!(most <= 60 * pages, "{most} of {}", 60 * pages);
    }
}
