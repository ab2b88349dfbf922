//! Devices that stall, fail, fill up and die: what becomes of their pages and of everybody else's.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use undercroft_core::{Action, Config, DeviceConfig, DeviceState, Health, Micros};
use undercroft_wire::{DeviceId, DomainId, FetchOutcome, Mode, Prefetch, Request, Stamp};
use world::devices::{FIRST, SECOND, Size, config, size};
use world::{World, chain, opened};

fn is_append(job: &Action) -> bool {
    matches!(job, Action::Append { .. })
}

fn is_read(job: &Action) -> bool {
    matches!(job, Action::Read { .. })
}

fn appends_to(world: &World, wanted: DeviceId) -> usize {
    world.count_jobs(|job| matches!(job, Action::Append { device, .. } if *device == wanted))
}

#[test]
fn pages_of_a_stalled_device_are_missing_at_once_and_there_again_later() {
    let (mut world, space) = opened(World::with_ssd(2, 100, 9, 4), 2);
    let keys = chain(1, 6);
    world.store(1, space, &keys, 0, Stamp(0));
    assert_eq!(world.lookup(1, space, &keys).pages, 6);
    world.fetch(1, 1, space, &keys[2..], Stamp(0), 1000);
    assert_eq!(world.count_jobs(is_read), 2, "two are being read, two more would be");
    world.set_health(FIRST, Health::Stalled);
    assert_eq!(world.outcome(1, 1), FetchOutcome::Missing);
    assert_eq!(world.core.stats().cut_fetches, 1);
    assert_eq!(world.lookup(1, space, &keys).pages, 0, "DRAM was given to the reads");
    assert_eq!(world.store(1, space, &chain(2, 1), 0, Stamp(0)), 0, "and is busy with them");
    world.set_health(FIRST, Health::Well);
    assert_eq!(world.lookup(1, space, &keys).pages, 6);
    world.finish_jobs();
    assert_eq!(world.lookup(1, space, &keys[2..4]).dram, 2, "what came late is there");
}

#[test]
fn a_page_whose_read_hangs_is_stored_and_read_anew() {
    let (mut world, space) = opened(World::with_ssd(4, 100, 9, 4), 2);
    let keys = chain(1, 3);
    world.store(1, space, &keys, 0, Stamp(0));
    world.store(1, space, &chain(2, 4), 0, Stamp(0));
    world.fetch(1, 1, space, &keys[..2], Stamp(0), 1000);
    assert_eq!(world.count_jobs(is_read), 2);
    world.set_health(FIRST, Health::Out);
    assert_eq!(world.store(1, space, &keys[..1], 0, Stamp(0)), 1, "as good as not there");
    assert_eq!(world.lookup(1, space, &keys).pages, 1);
    world.set_health(FIRST, Health::Well);
    world.fetch(1, 2, space, &keys[1..2], Stamp(0), 1000);
    let hanging =
        |world: &World, job: &Action| is_read(job) && world.jobs.values().next() == Some(job);
    world.end_one(true, hanging);
    world.finish_jobs();
    assert_eq!(world.outcome(1, 2), FetchOutcome::Complete, "the new read is another one");
}

#[test]
fn a_read_that_hung_tells_of_its_record_only_if_the_device_answered() {
    for (damaged, found) in [(false, 3), (true, 0)] {
        let (mut world, space) = opened(World::with_ssd(4, 100, 9, 4), 2);
        let keys = chain(1, 3);
        world.store(1, space, &keys, 0, Stamp(0));
        world.store(1, space, &chain(2, 4), 0, Stamp(0));
        world.fetch(1, 1, space, &keys[..1], Stamp(0), 1000);
        let Some(extent) = world.extent_of_job(0) else { panic!("it is being read") };
        world.set_health(FIRST, Health::Stalled);
        if damaged {
            world.log_mut(FIRST).damage(extent);
        }
        world.end_job(0, !damaged);
        world.set_health(FIRST, Health::Well);
        assert_eq!(world.lookup(1, space, &keys).pages, found);
        let stats = world.core.stats();
        assert_eq!(
            (stats.corrupt_records, stats.read_failures),
            (damaged.into(), (!damaged).into())
        );
    }
}

#[test]
fn a_prefetch_does_not_wait_for_a_stalled_device() {
    let (mut world, space) = opened(World::with_ssd(2, 100, 9, 4), 2);
    let keys = chain(1, 6);
    world.store(1, space, &keys, 0, Stamp(0));
    let wish = Prefetch { space, keys: keys.as_slice().into(), ttl_ms: 1000 };
    world.ask(1, &Request::Prefetch(wish));
    assert!(world.core.next_timer().is_some(), "it is under way");
    world.set_health(FIRST, Health::Stalled);
    world.advance(world.now);
    assert_eq!(world.core.next_timer(), None, "it is over");
}

#[test]
fn what_is_in_dram_is_delivered_up_to_the_first_page_out_of_reach() {
    let (mut world, space) = opened(World::with_ssd(4, 100, 9, 4), 2);
    let keys = chain(1, 8);
    let stamp = world.lookup(1, space, &keys).stamp;
    world.store(1, space, &keys, 0, stamp);
    world.fetch(1, 1, space, &keys, Stamp(0), 1000);
    world.set_health(FIRST, Health::Stalled);
    assert_eq!(world.outcome(1, 1), FetchOutcome::Missing);
    assert_eq!(world.lease(1, 1).places.len(), 2);
    assert_eq!(world.lookup(1, space, &keys).pages, 2);
}

#[test]
fn what_is_held_stays_in_dram_while_its_device_stalls() {
    let (mut world, space) = opened(World::with_ssd(2, 100, 9, 4), 2);
    let keys = chain(1, 1);
    world.store(1, space, &keys, 0, Stamp(0));
    world.store(1, space, &chain(2, 3), 0, Stamp(0));
    let hold = world.lookup_hold(1, &[space], &keys, 1000);
    assert_eq!((hold.ssd, hold.hold.is_some()), (1, true));
    world.fetch(1, 1, space, &keys, Stamp(0), 1000);
    world.finish_jobs();
    world.release(1, 1, u32::MAX);
    world.set_health(FIRST, Health::Stalled);
    for number in 3..9 {
        assert_eq!(world.store(1, space, &chain(number, 1), 0, Stamp(0)), 1);
    }
    assert_eq!(world.lookup(1, space, &keys).dram, 1, "it is held, and nowhere else");
    world.set_health(FIRST, Health::Well);
    world.store(1, space, &chain(9, 2), 0, Stamp(0));
    assert_eq!(world.lookup(1, space, &keys).ssd, 1, "its record will do again");
}

#[test]
fn what_was_copied_into_a_slot_needs_neither_page_nor_device() {
    let size = size(100, 9, 4);
    let logs = World::with_devices(1, &[size]).logs;
    let mut world = World::with_logs(2, config(&[size]), logs);
    world.open(1, 1, Mode::Copy);
    let space = world.open_space(1, 1, 4096, 3);
    let keys = chain(1, 2);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 1, space, &keys, Stamp(0), 1000);
    // The second page is copied first, and makes room for another before the first one is.
    world.end_job(1, false);
    let offer = world.offer(1, space, None, 0, &chain(2, 1), Stamp(0)).unwrap();
    world.commit(1, space, offer.offer, &offer.slots, &[]);
    world.end_one(false, |_, job| matches!(job, Action::CopyIn { .. }));
    assert_eq!(world.lookup(1, space, &keys).pages, 1);
    world.set_health(FIRST, Health::Stalled);
    world.finish_jobs();
    assert_eq!(world.outcome(1, 1), FetchOutcome::Complete);
}

#[test]
fn commits_never_wait_for_a_device_that_does_not_answer() {
    let (mut world, space) = opened(World::with_ssd(3, 100, 9, 4), 2);
    let keys = chain(1, 3);
    for at in 0..3_usize {
        let above = at.checked_sub(1).map(|above| keys[above]);
        let run = &keys[at..=at];
        let offer = world.offer(1, space, above, at as u32, run, Stamp(0)).unwrap();
        world.commit(1, space, offer.offer, &offer.slots, &[]);
        world.finish_copies();
    }
    let appends = world.count_jobs(is_append);
    assert!((1..3).contains(&appends), "the coldest pages are being written");
    let more = chain(2, 1);
    let offer = world.offer(1, space, None, 0, &more, Stamp(0)).unwrap();
    world.commit(1, space, offer.offer, &offer.slots, &[]);
    world.finish_copies();
    assert_eq!(world.lookup(1, space, &more).pages, 0, "it waits for the page to be written");
    world.set_health(FIRST, Health::Stalled);
    world.finish_copies();
    assert_eq!(world.lookup(1, space, &more).pages, 1, "another page made room");
    for number in 3..9 {
        assert_eq!(world.store(1, space, &chain(number, 1), 0, Stamp(0)), 1, "and others do");
    }
    assert!(world.core.stats().lost_pages >= 6);
    assert_eq!(world.count_jobs(is_append), appends, "nothing more is asked of it");
    world.finish_all_jobs();
    world.set_health(FIRST, Health::Well);
    assert_eq!(world.lookup(1, space, &keys).pages, 0, "what came before it is gone");
    world.store(1, space, &chain(4, 6), 0, Stamp(0));
    assert_eq!(world.lookup(1, space, &chain(4, 6)).pages, 6, "it is written to again");
}

#[test]
fn while_one_device_stalls_another_takes_the_pages() {
    let sizes = [size(100, 9, 4), size(100, 9, 4)];
    let (mut world, space) = opened(World::with_devices(2, &sizes), 2);
    let first = chain(1, 1);
    world.set_health(SECOND, Health::Stalled);
    world.store(1, space, &first, 0, Stamp(0));
    world.store(1, space, &chain(2, 4), 0, Stamp(0));
    assert!(world.report(FIRST).fill.pages > 0 && world.report(SECOND).fill.pages == 0);
    // In DRAM again, with a record on a device that does not answer: that is worth nothing.
    world.fetch(1, 1, space, &first, Stamp(0), 1000);
    world.finish_jobs();
    world.release(1, 1, u32::MAX);
    world.set_health(FIRST, Health::Stalled);
    world.set_health(SECOND, Health::Well);
    let forgotten = world.core.stats().ssd_forgotten_copies;
    assert_eq!(world.lookup(1, space, &first).dram, 1);
    world.store(1, space, &chain(3, 8), 0, Stamp(0));
    assert_eq!(world.lookup(1, space, &first).ssd, 1, "it was written to the other");
    assert_eq!(world.core.stats().ssd_forgotten_copies, forgotten + 1);
    assert_eq!(world.lookup(1, space, &chain(3, 8)).pages, 8);
}

#[test]
fn a_read_only_device_is_read_and_nothing_else() {
    let (mut world, space) = opened(World::with_ssd(2, 12, 8, 2), 2);
    let keys = chain(1, 6);
    world.store(1, space, &keys, 0, Stamp(0));
    assert_eq!(world.lookup(1, space, &keys).pages, 6);
    let before = *world.core.stats();
    world.set_health(FIRST, Health::ReadOnly);
    assert_eq!(world.lookup(1, space, &keys).pages, 6);
    world.fetch(1, 1, space, &keys[2..4], Stamp(0), 1000);
    world.finish_jobs();
    assert_eq!(world.outcome(1, 1), FetchOutcome::Complete);
    world.release(1, 1, u32::MAX);
    for number in 2..10 {
        assert_eq!(world.store(1, space, &chain(number, 1), 0, Stamp(0)), 1);
    }
    assert_eq!(world.lookup(1, space, &chain(7, 1)).pages, 0, "DRAM holds two");
    let stats = world.core.stats();
    let written = (stats.appended_pages, stats.relocated_pages, stats.freed_segments);
    let was = (before.appended_pages, before.relocated_pages, before.freed_segments);
    assert_eq!(written, was, "the world allows no write either");
    world.set_health(FIRST, Health::Well);
    for number in 10..30 {
        assert_eq!(world.store(1, space, &chain(number, 1), 0, Stamp(0)), 1);
    }
    assert!(world.core.stats().freed_segments > before.freed_segments);
}

#[test]
fn a_lost_device_takes_its_own_pages_only() {
    let sizes = [size(100, 9, 4), size(100, 9, 4)];
    let (mut world, space) = opened(World::with_devices(2, &sizes), 2);
    let (left, right) = (chain(1, 6), chain(2, 6));
    world.set_health(SECOND, Health::Out);
    world.store(1, space, &left, 0, Stamp(0));
    world.store(1, space, &chain(9, 2), 0, Stamp(0));
    world.set_health(SECOND, Health::Well);
    world.set_health(FIRST, Health::ReadOnly);
    world.store(1, space, &right, 0, Stamp(0));
    world.store(1, space, &chain(8, 2), 0, Stamp(0));
    assert_eq!(world.lookup(1, space, &left).pages, 6);
    assert_eq!(world.lookup(1, space, &right).pages, 6);
    world.fetch(1, 1, space, &left, Stamp(0), 1000);
    world.lose(FIRST);
    assert_eq!(world.outcome(1, 1), FetchOutcome::Missing);
    assert_eq!(world.lookup(1, space, &left).pages, 0);
    world.advance(world.now);
    let state = world.report(FIRST);
    assert_eq!((state.state, state.fill.pages), (DeviceState::Lost, 0));
    assert_eq!(world.core.ssd().unwrap().capacity_bytes, 100 * 4096);
    world.set_health(FIRST, Health::Well);
    world.finish_all_jobs();
    assert_eq!(world.store(1, space, &left, 0, Stamp(0)), 6);
    assert_eq!(world.lookup(1, space, &left).pages, 6);
    assert_eq!(world.lookup(1, space, &right).pages, 6);
    world.lose(SECOND);
    world.finish_all_jobs();
    assert_eq!(world.core.ssd(), None);
}

#[test]
fn equal_devices_fill_evenly_and_others_by_their_size() {
    for (sizes, shares) in [
        ([size(100, 30, 4), size(100, 30, 4)], [1, 1]),
        ([size(100, 30, 4), size(300, 90, 4)], [1, 3]),
    ] {
        let (mut world, space) = opened(World::with_devices(2, &sizes), 2);
        world.store(1, space, &chain(1, 66), 0, Stamp(0));
        let [first, second] = [FIRST, SECOND].map(|device| world.report(device).fill.pages);
        assert!(first + second >= 64);
        let skew = (first * shares[1]).abs_diff(second * shares[0]);
        assert!(skew <= 2 * shares[1], "{first} to {second} pages of {shares:?}");
    }
}

#[test]
fn a_busy_device_is_given_less() {
    let sizes = [size(100, 9, 4), size(100, 9, 4)];
    let mut settings = config(&sizes);
    // One page takes 1 ms on the one and 4 ms on the other.
    settings.devices[0].read_bytes_per_s = 4096 * 1000;
    settings.devices[1].read_bytes_per_s = 4096 * 250;
    // Whatever is given away waits there.
    settings.limits.max_lane_bytes = u64::MAX;
    let mut world = World::with_logs(16, settings, World::with_devices(1, &sizes).logs);
    for device in [FIRST, SECOND] {
        world.recover(device, &[], true);
    }
    let (mut world, space) = opened(world, 16);
    // Sixteen pages in DRAM, then sixteen that want their frames: all that wait are written for.
    for number in 1..=2 {
        let keys = chain(number, 16);
        let offer = world.offer(1, space, None, 0, &keys, Stamp(0)).unwrap();
        world.commit(1, space, offer.offer, &offer.slots, &[]);
        world.finish_copies();
    }
    assert_eq!(world.count_jobs(is_append), 16);
    let given = [appends_to(&world, FIRST), appends_to(&world, SECOND)];
    assert_eq!(given, [12, 4]);
    world.finish_jobs();
    assert_eq!(world.lookup(1, space, &chain(1, 16)).pages, 16);
}

#[test]
fn what_one_device_refuses_another_takes() {
    // With one segment only, the log keeps it for relocations. The other has one left, too, once it
    // has opened its first, so that neither is preferred for that.
    let sizes = [size(100, 1, 4), size(100, 2, 40)];
    let (mut world, space) = opened(World::with_devices(2, &sizes), 2);
    let keys = chain(1, 12);
    world.store(1, space, &keys, 0, Stamp(0));
    assert_eq!(world.lookup(1, space, &keys).pages, 12);
    assert!(world.core.stats().append_no_space > 0);
    assert_eq!(world.core.stats().lost_pages, 0);
}

#[test]
fn a_failed_append_is_tried_on_every_device_once() {
    let sizes = [size(100, 9, 4), size(100, 9, 4), size(100, 9, 4)];
    let (mut world, space) = opened(World::with_devices(1, &sizes), 1);
    for at in 1..=2 {
        let offer = world.offer(1, space, None, 0, &chain(at, 1), Stamp(0)).unwrap();
        world.commit(1, space, offer.offer, &offer.slots, &[]);
        world.finish_copies();
    }
    for _ in 0..3 {
        assert_eq!(world.count_jobs(is_append), 1);
        world.end_one(true, |_, job| is_append(job));
    }
    let stats = *world.core.stats();
    assert_eq!((stats.append_failures, stats.lost_pages), (3, 1), "then it is given up");
    let failures = world.core.devices().map(|report| report.stats.failures);
    assert_eq!(failures.collect::<Vec<_>>(), [1, 1, 1]);
    world.finish_copies();
    assert_eq!(world.lookup(1, space, &chain(2, 1)).dram, 1, "and makes room");
}

#[test]
fn each_device_reclaims_its_own_oldest_segment() {
    let sizes = [size(6, 5, 2), size(600, 200, 4)];
    let (mut world, space) = opened(World::with_devices(2, &sizes), 2);
    // The large one is kept from evening out.
    for number in 0..10 {
        world.set_health(SECOND, [Health::Out, Health::Well][usize::from(number == 9)]);
        world.store(1, space, &chain(number, 4), 0, Stamp(0));
    }
    let (small, large) = (world.report(FIRST), world.report(SECOND));
    assert!(small.stats.freed_segments > 3 && small.stats.dropped_pages > 6, "{small:?}");
    assert!(small.fill.used_bytes <= small.fill.capacity_bytes + 2 * 4096, "{small:?}");
    assert_eq!((large.stats.freed_segments, large.stats.dropped_pages), (0, 0));
    let stats = world.core.stats();
    let sums = |of: fn(&undercroft_core::DeviceStats) -> u64| {
        world.core.devices().map(|report| of(&report.stats)).sum::<u64>()
    };
    assert_eq!(sums(|stats| stats.appended_bytes), stats.appended_bytes);
    assert_eq!(sums(|stats| stats.relocated_bytes), stats.relocated_bytes);
    assert_eq!(sums(|stats| stats.freed_segments), stats.freed_segments);
    let fills = [small.fill, large.fill];
    let total = world.core.ssd().unwrap();
    assert_eq!(total.pages, fills.iter().map(|fill| fill.pages).sum::<u64>());
    assert_eq!(total.used_bytes, fills.iter().map(|fill| fill.used_bytes).sum::<u64>());
}

#[test]
fn a_move_that_a_stalling_device_fails_loses_nothing() {
    let (mut world, space) = opened(World::with_ssd(1, 6, 5, 2), 1);
    let keys = chain(1, 3);
    world.store(1, space, &keys, 0, Stamp(0));
    // Used since it was written, so that reclaim would rather move it.
    world.fetch(1, 1, space, &keys, Stamp(0), 1000);
    let moves = |job: &Action| matches!(job, Action::Relocate { .. });
    let mut number = 2;
    while world.count_jobs(moves) == 0 {
        let more = chain(number, 1);
        number += 1;
        assert!(number < 100, "reclaim begins");
        let offer = world.offer(1, space, None, 0, &more, Stamp(0)).unwrap();
        world.commit(1, space, offer.offer, &offer.slots, &[]);
        world.release(1, 1, u32::MAX);
        while world.end_one(false, |_, job| !moves(job)) {}
        world.free_segments();
    }
    let found = world.lookup(1, space, &keys).pages;
    assert!(found > 0, "the head is used, and was kept");
    world.set_health(FIRST, Health::Stalled);
    while world.end_one(true, |_, job| moves(job)) {}
    world.set_health(FIRST, Health::Well);
    assert_eq!(world.lookup(1, space, &keys).pages, found);
    assert!(world.core.stats().relocate_failures > 0);
    let freed = world.core.stats().freed_segments;
    world.finish_jobs();
    assert!(world.core.stats().freed_segments > freed, "reclaim goes on");
    assert_eq!(world.lookup(1, space, &keys).pages, found);
}

#[test]
fn a_page_is_moved_on_one_device_while_its_move_hangs_on_another() {
    let (mut world, space) = opened(World::with_devices(1, &[size(6, 5, 2); 2]), 1);
    let head = chain(1, 1);
    let moved_on = |world: &World, wanted: DeviceId| {
        let of = |job: &Action| match job {
            Action::Relocate { extent, identity, .. } => {
                extent.device == wanted && identity.key == head[0]
            }
            _ => false,
        };
        world.jobs.values().any(of)
    };
    // Fills a device until reclaim moves the page, which is used all the time.
    let mut number = 2;
    let mut move_on = |world: &mut World, device: DeviceId, other: DeviceId| {
        world.set_health(other, Health::Stalled);
        world.store(1, space, &head, 0, Stamp(0));
        while !moved_on(world, device) {
            assert!(number < 200, "reclaim moves the page");
            let end_others = |world: &mut World| {
                while world.end_one(false, |_, job| !matches!(job, Action::Relocate { .. })) {}
                world.free_segments();
            };
            let more = chain(number, 1);
            number += 1;
            if let Some(offer) = world.offer(1, space, None, 0, &more, Stamp(0)) {
                world.commit(1, space, offer.offer, &offer.slots, &[]);
            }
            end_others(world);
            let lease = world.next_lease();
            world.fetch(1, lease, space, &head, Stamp(0), 1000);
            end_others(world);
            world.release(1, lease, u32::MAX);
        }
    };
    move_on(&mut world, FIRST, SECOND);
    world.set_health(SECOND, Health::Well);
    move_on(&mut world, SECOND, FIRST);
    assert!(moved_on(&world, FIRST) && moved_on(&world, SECOND), "both are under way");
    world.set_health(FIRST, Health::Well);
    world.finish_all_jobs();
    assert_eq!(world.lookup(1, space, &head).pages, 1);
}

#[test]
fn an_estimate_is_that_of_the_slowest_device() {
    let sizes = [size(100, 9, 4), size(100, 9, 4)];
    let mut settings = config(&sizes);
    settings.devices[0].read_bytes_per_s = 4096;
    settings.devices[0].read_latency_us = 7;
    settings.devices[1].read_bytes_per_s = 4096 * 1000;
    settings.devices[1].read_latency_us = 11;
    let mut world = World::with_logs(1, settings, World::with_devices(1, &sizes).logs);
    for device in [FIRST, SECOND] {
        world.recover(device, &[], true);
    }
    let (mut world, space) = opened(world, 1);
    let keys = chain(1, 6);
    world.set_health(FIRST, Health::Out);
    world.store(1, space, &keys[..4], 0, Stamp(0));
    world.store(1, space, &chain(2, 1), 0, Stamp(0));
    world.set_health(FIRST, Health::Well);
    world.set_health(SECOND, Health::ReadOnly);
    world.store(1, space, &keys, 4, Stamp(0));
    world.store(1, space, &chain(3, 1), 0, Stamp(0));
    let found = world.lookup(1, space, &keys);
    assert_eq!((found.ssd, found.estimate_us), (6, 7 + 2_000_000));
    assert_eq!(world.lookup(1, space, &keys[..4]).estimate_us, 11 + 4_000);
    assert_eq!(world.lookup(1, space, &chain(3, 1)).estimate_us, 0, "it is in DRAM");
}

#[test]
fn a_core_knows_64_devices_and_no_more() {
    let device = DeviceConfig {
        capacity_bytes: 4096,
        low_water_segments: 1,
        read_bytes_per_s: 1,
        read_latency_us: 1,
    };
    let with = |count| Config { devices: vec![device; count], ..Config::default() };
    assert!(with(64).validate().is_ok());
    let error = with(65).validate().unwrap_err();
    assert_eq!(error.to_string(), "devices is 65, allowed 64 or fewer");
    let mut world = World::new(with(64));
    assert_eq!(world.core.devices().count(), 64);
    for number in [64, 255] {
        let (device, health) = (DeviceId(number), Health::Out);
        world.step(undercroft_core::Event::DeviceHealth { device, health });
        world.step(undercroft_core::Event::DeviceLost { device });
    }
    assert_eq!(world.core.next_timer(), None::<Micros>, "numbers that nobody has change nothing");
}

#[test]
fn runs_spread_over_devices_are_reclaimed_like_runs_on_one() {
    let cycle = |sizes: &[Size]| {
        let (mut world, space) = opened(World::with_devices(24, sizes), 16);
        world.audits = false;
        for number in 0..120 {
            let keys = chain(number, 16);
            let stamp = world.lookup(1, space, &keys).stamp;
            assert_eq!(world.store(1, space, &keys, 0, stamp), 16);
        }
        world.core.audit();
        let whole = |number: u64| {
            let found = world.core.stats().prefix_pages;
            world.lookup(1, space, &chain(number, 16));
            world.core.stats().prefix_pages - found == 16
        };
        let whole = (0..120).rev().map(whole).take_while(|whole| *whole).count();
        let stats = world.core.stats();
        (whole, stats.relocated_pages, world.core.unreachable_pages())
    };
    let one = cycle(&[size(512, 132, 4)]);
    let two = cycle(&[size(256, 67, 4), size(256, 67, 4)]);
    let uneven = cycle(&[size(384, 100, 4), size(128, 34, 4)]);
    assert_eq!(one, (33, 0, 0), "32 runs on SSD, one in DRAM, nothing moved, nothing lost");
    assert_eq!(two, one);
    assert_eq!(uneven, one);
}

#[test]
fn what_somebody_holds_of_the_oldest_segments_does_not_end_reclaim() {
    let (mut world, space) = opened(World::with_ssd(4, 60, 20, 4), 4);
    let held = chain(1, 48);
    assert_eq!(world.store(1, space, &held, 0, Stamp(0)), 48);
    world.finish_jobs();
    assert!(world.lookup_hold(1, &[space], &held, 60_000).hold.is_some());
    // What is held in DRAM keeps its frames.
    world.add_part(DomainId::default(), 4);
    for number in 2..20 {
        assert_eq!(world.store(1, space, &chain(number, 4), 0, Stamp(0)), 4);
        world.finish_jobs();
    }
    assert!(world.core.stats().freed_segments > 1, "{:?}", world.core.stats());
    assert_eq!(world.lookup(1, space, &held).pages, 48);
    assert_eq!(world.lookup(1, space, &chain(18, 4)).pages, 4, "what is new finds room");
}
