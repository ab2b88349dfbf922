//! Starting on devices that hold something already, some of it in segments that were never sealed.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use undercroft_core::{Action, Config, Health, Limits, RecoveredRecord};
use undercroft_wire::{
    DeviceId, DomainId, Extent, FetchOutcome, OfferOutcome, Origin, PageIdentity, PageKey,
    SegmentId, SegmentUse, SpaceId, Stamp,
};
use world::devices::{FIRST, SECOND, Size, config};
use world::{World, chain, digest, opened};

const SIZE: Size = Size { pages: 100, segments: 9, records: 4 };

fn is_proof(job: &Action) -> bool {
    matches!(job, Action::Prove { .. })
}

/// The devices of a daemon that died after it had stored `pages` pages of chain 1 and sent all of
/// them to SSD. The last segment was never sealed, nor was any other if `none_sealed`.
fn crashed(pages: u64, none_sealed: bool) -> World {
    let (mut world, space) = opened(World::with_devices(2, &[SIZE]), 2);
    let keys = chain(1, pages);
    world.store(1, space, &keys, 0, Stamp(0));
    world.store(1, space, &chain(2, 2), 0, Stamp(0));
    assert_eq!(world.lookup(1, space, &keys).ssd as u64, pages);
    let mut log = world.logs.remove(0).crash(|_| false);
    if none_sealed {
        log.unseal();
    }
    World::with_logs(4, config(&[SIZE]), vec![log])
}

/// Records of chain 1 that nobody wrote, `seal` says of which depths in a sealed segment.
fn records(device: DeviceId, keys: &[PageKey], seal: impl Fn(u32) -> bool) -> Vec<RecoveredRecord> {
    let record = |(depth, key): (usize, &PageKey)| {
        let parent = depth.checked_sub(1).map(|above| keys[above]);
        let depth = depth as u32;
        let domain = DomainId::default();
        let identity =
            PageIdentity { domain, space: digest(1), key: *key, parent, depth, page_bytes: 4096 };
        let (segment, segment_use) = (SegmentId(depth / 4), SegmentUse(u64::from(depth / 4) + 1));
        let extent = Extent { device, segment, segment_use, record: depth % 4 };
        RecoveredRecord {
            identity,
            origin: Origin::default(),
            extent,
            payload_crc: 0,
            sealed: seal(depth),
            purged: false,
        }
    };
    keys.iter().enumerate().map(record).collect()
}

fn found(world: &mut World, space: SpaceId, keys: &[PageKey]) -> u32 {
    world.lookup(1, space, keys).pages
}

#[test]
fn a_device_is_read_before_it_has_told_everything_and_written_to_after() {
    let mut world = crashed(8, false);
    let records = world.log(FIRST).recover();
    let (early, late) = records.split_at(records.len() - 4);
    world.recover(FIRST, early, false);
    let (mut world, space) = opened(world, 2);
    let keys = chain(1, 8);
    world.finish_jobs();
    let told = |key: &&PageKey| early.iter().any(|record| record.identity.key == **key);
    let known = keys.iter().take_while(told).count();
    assert!((1..8).contains(&known));
    assert_eq!(found(&mut world, space, &keys) as usize, known);
    world.fetch(1, 1, space, &keys[..known], Stamp(0), 1000);
    world.finish_jobs();
    let arrived = world.lease(1, 1).places.len();
    assert!(arrived > 0, "it is read already");
    world.release(1, 1, u32::MAX);
    // More than DRAM holds: the world allows no write yet.
    for number in 3..13 {
        assert_eq!(world.store(1, space, &chain(number, 1), 0, Stamp(0)), 1);
    }
    assert_eq!(world.core.stats().appended_pages, 0);
    world.recover(FIRST, late, true);
    world.finish_jobs();
    assert_eq!(found(&mut world, space, &keys), 8);
    for number in 13..23 {
        world.store(1, space, &chain(number, 1), 0, Stamp(0));
        assert_eq!(found(&mut world, space, &chain(number, 1)), 1);
    }
    assert!(world.core.stats().appended_pages > 0);
    world.recover(FIRST, early, false);
    assert_eq!(world.core.stats().recovery_ignored, early.len() as u64, "it has said all");
}

/// What a quota has had forgotten is on its SSD as before, and comes back with a restart.
#[test]
fn a_domain_beyond_its_quota_keeps_its_newest_pages_over_a_restart() {
    const SIZE: Size = Size { pages: 100, segments: 30, records: 4 };
    let (mut world, space) = opened(World::with_devices(2, &[SIZE]), 2);
    let chains: Vec<_> = (1..=12).map(|number| chain(number, 4)).collect();
    for keys in &chains {
        assert_eq!(world.store(1, space, keys, 0, Stamp(0)), 4);
        world.finish_jobs();
    }
    let mut log = world.logs.remove(0).crash(|_| false);
    for _ in 0..3 {
        let mut settings = config(&[SIZE]);
        settings.domains[0].limits.ssd_bytes = 16 * 4096;
        world = World::with_logs(2, settings, vec![log]);
        let mut records = world.log(FIRST).recover();
        // Segments are told of in whatever order.
        records.sort_by_key(|record| record.extent.segment.0.wrapping_mul(0x9e37_79b9));
        for piece in records.chunks(3) {
            world.recover(FIRST, piece, false);
            world.finish_jobs();
        }
        world.recover(FIRST, &[], true);
        let (mut again, space) = opened(world, 2);
        again.finish_jobs();
        while again.core.next_timer().is_some_and(|due| due <= again.now) {
            again.advance(again.now);
            again.finish_jobs();
        }
        let found: Vec<_> = chains.iter().map(|keys| found(&mut again, space, keys)).collect();
        let (old, new) = found.split_at(chains.len() - 4);
        assert!(old.iter().all(|pages| *pages == 0), "the oldest go: {found:?}");
        assert!(new[1..].iter().all(|pages| *pages == 4), "the newest stay: {found:?}");
        log = again.logs.remove(0).crash(|_| false);
    }
}

#[test]
fn a_page_stored_while_its_record_is_on_its_way_need_not_be_written_again() {
    let world = crashed(2, false);
    let records = world.log(FIRST).recover();
    let (mut world, space) = opened(world, 2);
    let keys = chain(1, 2);
    let offer = world.offer(1, space, None, 0, &keys, Stamp(0)).unwrap();
    world.recover(FIRST, &records[..1], false);
    world.commit(1, space, offer.offer, &offer.slots, &[]);
    world.recover(FIRST, &records[1..2], false);
    world.finish_copies();
    assert_eq!(world.lookup(1, space, &keys).dram, 2);
    world.recover(FIRST, &records[2..], true);
    world.finish_jobs();
    for number in 3..13 {
        world.store(1, space, &chain(number, 1), 0, Stamp(0));
    }
    assert_eq!(world.lookup(1, space, &keys).ssd, 2);
    let mine = |record: &&RecoveredRecord| keys.contains(&record.identity.key);
    assert_eq!(world.log(FIRST).recover().iter().filter(mine).count(), 2, "one record each");
}

#[test]
fn unproved_records_count_in_no_lookup_until_they_were_read() {
    let mut world = crashed(8, true);
    let records = world.log(FIRST).recover();
    world.recover(FIRST, &records, true);
    let (mut world, space) = opened(world, 2);
    let keys = chain(1, 8);
    assert_eq!(found(&mut world, space, &keys), 0);
    let total = records.len() as u64;
    assert_eq!(world.report(FIRST).unproved_records, total);
    assert_eq!(world.core.unreachable_pages(), 0, "they are in a tier all the same");
    for number in 0..total {
        assert_eq!(world.count_jobs(is_proof) as u64, 4.min(total - number), "four at a time");
        let next = world.jobs.values().find(|job| is_proof(job));
        let Some(Action::Prove { extent, .. }) = next else { panic!("proofs are under way") };
        assert_eq!(*extent, records[number as usize].extent, "in the order of recovery");
        world.end_one(false, |_, job| is_proof(job));
    }
    assert_eq!(found(&mut world, space, &keys), 8);
    let stats = world.core.stats();
    assert_eq!((stats.unproved_records, stats.proved_records), (0, total));
    assert_eq!(stats.disproved_records, 0);
}

#[test]
fn how_many_records_are_proved_at_once_is_a_limit() {
    let limits = Limits { max_proofs_per_device: 1, ..Limits::default() };
    let settings = Config { limits, ..config(&[SIZE]) };
    let mut world = World::with_logs(4, settings, crashed(8, true).logs);
    let records = world.log(FIRST).recover();
    world.recover(FIRST, &records, true);
    assert_eq!(world.count_jobs(is_proof), 1);
    let limits = Limits { max_proofs_per_device: 0, ..Limits::default() };
    assert!(Config { limits, ..config(&[SIZE]) }.validate().is_err());
}

#[test]
fn what_does_not_prove_itself_is_forgotten_and_hides_what_is_behind_it() {
    let mut world = crashed(8, true);
    let records = world.log(FIRST).recover();
    let keys = chain(1, 8);
    let at = |depth: usize| records.iter().find(|r| r.identity.key == keys[depth]).unwrap().extent;
    let (torn, failing) = (at(5), at(3));
    world.log_mut(FIRST).damage(torn);
    world.recover(FIRST, &records, true);
    let (mut world, space) = opened(world, 2);
    let fails = |job: &Action| matches!(job, Action::Prove { extent, .. } if *extent == failing);
    while world.count_jobs(is_proof) > 0 {
        let first_fails = world.jobs.values().find(|job| is_proof(job)).is_some_and(fails);
        world.end_one(first_fails, |_, job| is_proof(job));
    }
    assert_eq!(found(&mut world, space, &keys), 3);
    assert_eq!(
        found(&mut world, space, &keys[4..5]),
        1,
        "lookups stop at the first that is missing"
    );
    let stats = *world.core.stats();
    assert_eq!((stats.disproved_records, stats.read_failures), (2, 1));
    assert_eq!(stats.corrupt_records, 0, "a torn end is no corruption");
    assert_eq!(world.core.unreachable_pages(), 3, "one behind the first, two behind both");
}

#[test]
fn an_unproved_page_is_wanted_again_and_its_record_still_used() {
    let mut world = crashed(2, true);
    let records = world.log(FIRST).recover();
    world.set_health(FIRST, Health::Stalled);
    world.recover(FIRST, &records, true);
    assert_eq!(world.count_jobs(is_proof), 0, "nothing is asked of it");
    let (mut world, space) = opened(world, 2);
    let keys = chain(1, 2);
    let offer = world.offer(1, space, None, 0, &keys, Stamp(0)).unwrap();
    assert_eq!(offer.outcomes, [OfferOutcome::Wanted.to_byte(); 2]);
    world.set_health(FIRST, Health::Well);
    world.finish_jobs();
    assert_eq!(world.core.stats().proved_records, records.len() as u64);
    assert_eq!(found(&mut world, space, &keys), 0, "a slot is being filled with it");
    world.commit(1, space, offer.offer, &offer.slots[..1], &offer.slots[1..]);
    world.finish_jobs();
    let reply = world.lookup(1, space, &keys);
    assert_eq!((reply.dram, reply.ssd), (1, 1), "what did not come is on SSD after all");
}

#[test]
fn a_page_in_dram_with_an_unproved_record_is_written_anew_if_it_must_go_first() {
    let sizes = [SIZE, SIZE];
    let mut logs = crashed(2, true).logs;
    logs.push(World::with_devices(1, &sizes).logs.remove(1));
    let mut world = World::with_logs(1, config(&sizes), logs);
    world.recover(SECOND, &[], true);
    let records = world.log(FIRST).recover();
    world.set_health(FIRST, Health::Stalled);
    world.recover(FIRST, &records, true);
    let (mut world, space) = opened(world, 1);
    let keys = chain(1, 1);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), 1);
    assert_eq!(world.store(1, space, &chain(5, 1), 0, Stamp(0)), 1);
    assert_eq!(world.lookup(1, space, &keys).ssd, 1, "it lies on the other device");
    assert_eq!(world.core.stats().ssd_forgotten_copies, 1);
    world.set_health(FIRST, Health::Well);
    world.finish_jobs();
    assert_eq!(world.core.stats().proved_records, records.len() as u64 - 1);
}

#[test]
fn a_proof_that_a_stalled_device_could_not_give_is_asked_for_again() {
    let mut world = crashed(8, true);
    let records = world.log(FIRST).recover();
    world.recover(FIRST, &records, true);
    world.set_health(FIRST, Health::Stalled);
    while world.end_one(true, |_, job| is_proof(job)) {}
    assert_eq!(world.core.stats().disproved_records, 0);
    world.set_health(FIRST, Health::Well);
    world.finish_jobs();
    let (mut world, space) = opened(world, 2);
    assert_eq!(found(&mut world, space, &chain(1, 8)), 8);
}

#[test]
fn of_two_records_the_one_that_is_proved_is_believed() {
    let keys = chain(1, 1);
    let at = |record: &RecoveredRecord, segment: u32| place(record, FIRST, segment, 0);
    let sealed = records(FIRST, &keys, |_| true)[0];
    let open = records(FIRST, &keys, |_| false)[0];
    let elsewhere = records(SECOND, &keys, |_| true)[0];
    let states = |pieces: &[RecoveredRecord]| {
        let logs = World::with_devices(1, &[SIZE, SIZE]).logs;
        let mut world = World::with_logs(2, config(&[SIZE, SIZE]), logs);
        for record in pieces {
            world.recover(record.extent.device, &[*record], false);
        }
        let stats = world.core.stats();
        let pages = [FIRST, SECOND].map(|device| world.report(device).fill.pages);
        (pages, stats.unproved_records, stats.recovery_duplicates)
    };
    assert_eq!(states(&[sealed, at(&open, 1)]), ([1, 0], 0, 1), "the later is not proved");
    assert_eq!(states(&[open, at(&sealed, 1)]), ([1, 0], 0, 0), "the later is");
    assert_eq!(states(&[open, at(&open, 1)]), ([1, 0], 1, 0), "neither: the later");
    assert_eq!(states(&[sealed, elsewhere]), ([1, 0], 0, 1), "both: the one that is known");
    assert_eq!(states(&[open, elsewhere]), ([0, 1], 0, 0), "the other device's");
}

#[test]
fn records_that_make_no_sense_are_ignored() {
    let keys = chain(1, 2);
    let mut world = World::with_logs(2, config(&[SIZE]), World::with_devices(1, &[SIZE]).logs);
    let good = records(FIRST, &keys, |_| true);
    let other_device = records(SECOND, &keys, |_| true)[0];
    let mut own_parent = good[1];
    own_parent.identity.parent = Some(own_parent.identity.key);
    let mut elsewhere = good[1];
    elsewhere.identity.depth = 5;
    let mut other_size = good[1];
    other_size.identity.page_bytes = 8192;
    let pieces = [good[0], other_device, own_parent, elsewhere, other_size];
    world.recover(FIRST, &pieces, true);
    let stats = world.core.stats();
    assert_eq!((stats.recovered_records, stats.recovery_ignored), (1, 4));
}

#[test]
fn reclaim_drops_what_is_not_proved_and_waits_for_the_proof() {
    let mut settings = config(&[SIZE]);
    settings.devices[0].low_water_segments = SIZE.segments;
    let mut world = World::with_logs(2, settings, World::with_devices(1, &[SIZE]).logs);
    let records = records(FIRST, &chain(1, 8), |_| false);
    world.log_mut(FIRST).believe(&records);
    world.log_mut(FIRST).unseal();
    world.recover(FIRST, &records, false);
    let oldest = records[0].extent.segment_use;
    let of_oldest =
        |job: &Action| matches!(job, Action::Prove { extent, .. } if extent.segment_use == oldest);
    let proofs = world.count_jobs(of_oldest);
    assert!(proofs > 1);
    world.recover(FIRST, &[], true);
    assert!(world.log(FIRST).to_free.is_empty(), "its proofs are under way");
    let stats = *world.core.stats();
    let of_segment = records.iter().filter(|record| record.extent.segment_use == oldest).count();
    assert_eq!(stats.ssd_dropped_pages, of_segment as u64, "nobody moves what is not proved");
    for left in (0..proofs).rev() {
        assert!(world.log(FIRST).to_free.is_empty(), "it is freed after its last proof");
        assert!(world.end_one(false, |_, job| of_oldest(job)));
        assert_eq!(world.count_jobs(of_oldest), left);
    }
    assert_eq!(world.log(FIRST).to_free.len(), 1);
    world.finish_jobs();
    let proved = world.core.stats().proved_records;
    assert_eq!(proved, (records.len() - of_segment) as u64, "what was dropped counts for nothing");
}

#[test]
fn segments_of_which_nothing_is_of_use_are_freed_at_once() {
    let keys = chain(1, 8);
    let sealed = records(FIRST, &keys, |_| true);
    let again = |seal: bool, device, segment: u32| -> Vec<_> {
        let copies = records(device, &keys[..4], |_| seal);
        copies.iter().zip(0..).map(|(copy, slot)| place(copy, device, segment, slot)).collect()
    };
    let freed = |limits: Limits, told: &[Vec<RecoveredRecord>], damaged: bool| {
        let sizes = [SIZE, SIZE];
        let settings = Config { limits, ..config(&sizes) };
        let mut world = World::with_logs(2, settings, World::with_devices(1, &sizes).logs);
        for records in told {
            world.log_mut(records[0].extent.device).believe(records);
        }
        for log in &mut world.logs {
            let device = log.device;
            let unproved = told.iter().flatten().filter(|record| !record.sealed);
            log.doubt(unproved.map(|record| record.extent).filter(|e| e.device == device));
        }
        for record in told.iter().flatten().filter(|record| damaged && !record.sealed) {
            world.log_mut(record.extent.device).damage(record.extent);
        }
        for device in [FIRST, SECOND] {
            let records: Vec<_> = told.iter().flatten().copied().collect();
            let mine: Vec<_> = records.into_iter().filter(|r| r.extent.device == device).collect();
            world.recover(device, &mine, true);
        }
        world.finish_jobs();
        assert_eq!(world.core.stats().ssd_dropped_pages, 0, "what is of use stays");
        [FIRST, SECOND].map(|device| {
            let report = world.report(device);
            (report.fill.pages, report.stats.freed_segments, report.free_segments)
        })
    };
    let (plain, told) = (Limits::default(), vec![sealed.clone()]);
    assert_eq!(freed(plain, &told, false), [(8, 0, 7), (0, 0, 9)]);
    let told = vec![sealed.clone(), records(SECOND, &keys, |_| true)];
    assert_eq!(freed(plain, &told, false), [(8, 0, 7), (0, 2, 9)], "two stores of the same pages");
    let few = Limits { max_pages: 4, ..plain };
    assert_eq!(freed(few, &told[..1], false), [(4, 1, 8), (0, 0, 9)], "no room for what it says");
    let told = vec![sealed.clone(), again(false, FIRST, 2)];
    assert_eq!(freed(plain, &told, false), [(8, 1, 7), (0, 0, 9)], "the newest has copies only");
    let told = vec![sealed[..4].to_vec(), again(true, FIRST, 1)];
    assert_eq!(freed(plain, &told, false), [(4, 1, 8), (0, 0, 9)], "the oldest was superseded");
    let told = vec![records(FIRST, &keys, |depth| depth < 4)];
    assert_eq!(freed(plain, &told, true), [(4, 1, 8), (0, 0, 9)], "none has proved itself");
}

#[test]
fn a_device_that_has_run_out_of_segments_is_not_preferred_for_its_few_bytes() {
    let sizes = [Size { segments: 3, ..SIZE }, SIZE];
    let mut settings = config(&sizes);
    settings.limits.max_lane_bytes = u64::MAX;
    let mut world = World::with_logs(4, settings, World::with_devices(1, &sizes).logs);
    let leaf = |number| records(FIRST, &chain(number, 1), |_| true)[0];
    let scattered = [0, 1].map(|at| place(&leaf(10 + u64::from(at)), FIRST, at, 0));
    let many = records(SECOND, &chain(1, 8), |_| true);
    for (device, records) in [(FIRST, &scattered[..]), (SECOND, &many)] {
        world.log_mut(device).believe(records);
        world.recover(device, records, true);
    }
    assert_eq!(world.report(FIRST).free_segments, 1);
    let (mut world, space) = opened(world, 4);
    for number in 2..=3 {
        let offer = world.offer(1, space, None, 0, &chain(number, 4), Stamp(0)).unwrap();
        world.commit(1, space, offer.offer, &offer.slots, &[]);
        world.finish_copies();
    }
    let to = |wanted| {
        world.count_jobs(|job| matches!(job, Action::Append { device, .. } if *device == wanted))
    };
    assert_eq!([to(FIRST), to(SECOND)], [0, 4]);
}

/// A record moved to another place.
fn place(record: &RecoveredRecord, device: DeviceId, segment: u32, slot: u32) -> RecoveredRecord {
    let (segment, segment_use) = (SegmentId(segment), SegmentUse(u64::from(segment) + 1));
    RecoveredRecord { extent: Extent { device, segment, segment_use, record: slot }, ..*record }
}

#[test]
fn a_segment_is_moved_a_few_records_at_a_time() {
    let size = Size { pages: 200, segments: 9, records: 40 };
    // Ten heads whose tails lie in the next segment, and as many pages that nobody needs.
    let run = |number| records(FIRST, &chain(number, 2), |_| true);
    let head = |at: u32| place(&run(u64::from(at))[0], FIRST, 0, at);
    let tail = |at: u32| place(&run(u64::from(at))[1], FIRST, 1, at);
    let all: Vec<_> = (0..20).map(head).chain((0..10).map(tail)).collect();
    let keys = chain(9, 1);
    let mut settings = config(&[size]);
    settings.devices[0].low_water_segments = size.segments;
    settings.limits.max_relocations_per_device = 3;
    let mut world = World::with_logs(2, settings, World::with_devices(1, &[size]).logs);
    world.log_mut(FIRST).believe(&all);
    world.recover(FIRST, &all, false);
    let (mut world, space) = opened(world, 2);
    world.recover(FIRST, &[], true);
    let mut moved = 0;
    while moves(&world) > 0 {
        assert!(moves(&world) <= 3, "reads would wait behind more");
        assert!(world.log(FIRST).to_free.is_empty(), "some have yet to be moved");
        if moved == 3 {
            // One is read before its turn comes: it is looked at again afterwards.
            world.fetch(1, 1, space, &keys, Stamp(0), 1000);
        }
        world.end_one(false, |_, job| matches!(job, Action::Relocate { .. }));
        moved += 1;
    }
    assert_eq!(moved, 9);
    assert!(world.log(FIRST).to_free.is_empty(), "one is being read");
    world.finish_jobs();
    assert_eq!(world.lease(1, 1).places.len(), 1);
    assert!(world.core.stats().freed_segments > 0);
    let limits = Limits { max_relocations_per_device: 0, ..Limits::default() };
    assert!(Config { limits, ..config(&[SIZE]) }.validate().is_err());
}

fn moves(world: &World) -> usize {
    world.count_jobs(|job| matches!(job, Action::Relocate { .. }))
}

#[test]
fn reclaim_moves_nothing_that_no_lookup_can_reach() {
    let run = records(FIRST, &chain(1, 3), |_| true);
    let leaf = |number| records(FIRST, &chain(number, 1), |_| true)[0];
    // The run's head is in the oldest segment, beside pages that nobody used; its tail is not.
    let all = [(run[0], 0, 0), (run[1], 0, 1), (leaf(2), 0, 2), (leaf(3), 0, 3), (run[2], 1, 0)];
    let all = all.map(|(record, segment, slot)| place(&record, FIRST, segment, slot));
    let moved = |with_head: bool, all_told: bool| {
        let sizes = [SIZE, SIZE];
        let mut settings = config(&sizes);
        settings.devices[0].low_water_segments = SIZE.segments;
        let mut world = World::with_logs(2, settings, World::with_devices(1, &sizes).logs);
        world.recover(SECOND, &[], all_told);
        world.recover(FIRST, &all[usize::from(!with_head)..], true);
        moves(&world)
    };
    assert_eq!(moved(true, true), 2, "what leads to other pages");
    assert_eq!(moved(false, true), 0, "nothing that hangs from a missing page");
    assert_eq!(moved(false, false), 1, "unless that may still turn up elsewhere");
}

/// Two devices, of which the first empties its oldest segment as soon as it has told everything.
fn eager(size: Size) -> World {
    let sizes = [size, size];
    let mut settings = config(&sizes);
    settings.devices[0].low_water_segments = size.segments;
    World::with_logs(2, settings, World::with_devices(1, &sizes).logs)
}

#[test]
fn what_is_cold_goes_with_all_that_hangs_from_it() {
    let mut world = eager(Size { pages: 200, segments: 9, records: 40 });
    let run = records(FIRST, &chain(1, 3), |_| true);
    let leaf = |number| records(FIRST, &chain(number, 1), |_| true)[0];
    let used = |slot: u32| place(&leaf(100 + u64::from(slot)), FIRST, 0, slot);
    let newest = place(&leaf(2), FIRST, 1, 0);
    let on_first: Vec<_> =
        [place(&run[0], FIRST, 0, 0), newest].into_iter().chain((1..=12).map(used)).collect();
    let on_second = [place(&run[1], SECOND, 0, 0), place(&run[2], SECOND, 0, 1)];
    for (device, records) in [(SECOND, &on_second[..]), (FIRST, &on_first)] {
        world.log_mut(device).believe(records);
        world.recover(device, records, device == SECOND);
    }
    let (mut world, space) = opened(world, 4);
    for number in 101..=112 {
        world.fetch(1, number, space, &chain(number, 1), Stamp(0), 1000);
        world.finish_jobs();
        world.release(1, number, u32::MAX);
    }
    assert_eq!(found(&mut world, space, &chain(1, 3)), 3);
    world.recover(FIRST, &[], true);
    world.finish_jobs();
    assert_eq!(found(&mut world, space, &chain(1, 3)), 0, "nobody has used it");
    let dropped = world.report(SECOND).stats.dropped_pages;
    assert_eq!(dropped, 2, "what nobody can find takes no room");
    let moved_or_in_dram = (101..=112).map(|number| found(&mut world, space, &chain(number, 1)));
    assert_eq!(moved_or_in_dram.sum::<u32>(), 12, "the others were used");
}

#[test]
fn of_a_segment_that_is_used_an_eighth_goes() {
    let mut world = eager(Size { pages: 200, segments: 9, records: 40 });
    let run = |number| records(FIRST, &chain(number, 2), |_| true);
    // Each leads to a page that lies in the next segment.
    let head = |slot: u32| place(&run(u64::from(slot))[0], FIRST, 0, slot);
    let tail = |slot: u32| place(&run(u64::from(slot))[1], FIRST, 1, slot);
    let all: Vec<_> = (0..16).map(head).chain((0..16).map(tail)).collect();
    world.recover(SECOND, &[], true);
    world.log_mut(FIRST).believe(&all);
    world.recover(FIRST, &all, true);
    world.finish_jobs();
    assert_eq!(world.core.stats().relocated_pages, 14);
}

#[test]
fn the_oldest_segment_of_all_full_devices_goes_first() {
    let freed = |first_pages: u64| {
        // The second device has as many pages as it may, one more makes it too many.
        let sizes = [Size { pages: first_pages, ..SIZE }, Size { pages: 2, ..SIZE }];
        let mut world = World::with_logs(2, config(&sizes), World::with_devices(1, &sizes).logs);
        let leaf = |number| records(FIRST, &chain(number, 1), |_| true)[0];
        let on = |device, count: u32| -> Vec<_> {
            let number = |segment| u64::from(segment) + 10 * u64::from(device == FIRST);
            (0..count).map(|segment| place(&leaf(number(segment)), device, segment, 0)).collect()
        };
        // Of four segments the first is older than the first of three.
        world.recover(FIRST, &on(FIRST, 4), true);
        world.recover(SECOND, &on(SECOND, 3), true);
        world.logs.iter().map(|log| log.to_free.len()).collect::<Vec<_>>()
    };
    assert_eq!(freed(4), [1, 0], "room is made where the oldest pages are");
    assert_eq!(freed(100), [0, 1], "but not on a device with room");
}

#[test]
fn a_lost_device_forgets_its_records_a_few_at_a_time() {
    let keys = chain(1, 2000);
    let mut world = World::with_logs(
        2,
        config(&[Size { pages: 4000, segments: 1000, records: 4 }]),
        World::with_devices(1, &[Size { pages: 4000, segments: 1000, records: 4 }]).logs,
    );
    world.recover(FIRST, &records(FIRST, &keys, |_| true), true);
    let (mut world, space) = opened(world, 2);
    world.logs[0].believe(&records(FIRST, &keys, |_| true));
    assert_eq!(found(&mut world, space, &keys), 2000);
    world.fetch(1, 1, space, &keys[..3], Stamp(0), 1000);
    world.lose(FIRST);
    assert_eq!(world.outcome(1, 1), FetchOutcome::Missing);
    assert_eq!(found(&mut world, space, &keys), 0, "none of them counts from here on");
    let mut left = world.report(FIRST).fill.pages;
    assert!(left > 1000, "forgetting all at once would hold everybody up");
    while world.core.next_timer().is_some() {
        world.step(undercroft_core::Event::Tick);
        let now = world.report(FIRST).fill.pages;
        assert!(left - now <= 256);
        left = now;
    }
    assert_eq!(left, 0);
    assert_eq!(world.store(1, space, &keys[..1], 0, Stamp(0)), 0, "the reads keep their frames");
    world.finish_all_jobs();
    assert_eq!(world.store(1, space, &keys[..2], 0, Stamp(0)), 2);
}

#[test]
fn unreachable_pages_are_counted_however_deep_they_hang() {
    let keys = chain(1, 3000);
    let big = Size { pages: 4000, segments: 1000, records: 4 };
    let logs = World::with_devices(1, &[big]).logs;
    let mut world = World::with_logs(2, config(&[big]), logs);
    world.audits = false;
    let all = records(FIRST, &keys, |_| true);
    let tail_first: Vec<_> = all.iter().skip(1).rev().copied().collect();
    world.recover(FIRST, &tail_first, false);
    assert_eq!(world.core.unreachable_pages(), 2999, "their head is missing");
    assert_eq!(world.core.next_timer(), None);
    let mut steps = 0;
    world.recover(FIRST, &all[..1], false);
    let mut count = world.core.unreachable_pages();
    world.core.audit();
    while world.core.next_timer().is_some() {
        steps += 1;
        world.step(undercroft_core::Event::Tick);
        let now = world.core.unreachable_pages();
        assert!(count - now <= 256, "no step holds anybody up");
        count = now;
    }
    assert_eq!(count, 0);
    assert!(steps >= 10, "{steps}");
    world.core.audit();
}
