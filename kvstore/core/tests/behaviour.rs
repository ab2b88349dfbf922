//! One promise at a time, told as a story.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use undercroft_core::{Action, Config, Limits, Micros};
use undercroft_wire::{
    CommitOutcome, Extent, Fetch, FetchOutcome, FetchSource, LeaseId, Missed, Mode, OfferOutcome,
    RefusedReason, Reply, Request, RequestId, SessionId, Stamp,
};
use world::devices::{FIRST, config, size};
use world::{World, chain, opened};

#[test]
fn lookups_that_the_board_answered_count_as_lookups_of_one_key() {
    let (mut world, space) = opened(World::dram(4), 2);
    let keys = chain(1, 3);
    assert_eq!(world.lookup(1, space, &keys).pages, 0);
    let missed = |lookups| Request::Missed(Missed { lookups });
    assert_eq!(world.ask_as(1, RequestId(0), &missed(5)), None, "nobody waits for an answer");
    assert_eq!(world.ask(1, &missed(u32::MAX)), Some(Reply::Done));
    let board = 5 + u64::from(u32::MAX);
    let stats = *world.core.stats();
    let counted = (stats.lookups, stats.board_lookups, stats.lookup_keys, stats.prefix_pages);
    assert_eq!(counted, (1 + board, board, 3 + board, 0));
}

#[test]
fn a_run_larger_than_dram_streams_through_it() {
    let (mut world, space) = opened(World::with_ssd(3, 100, 9, 4), 2);
    let keys = chain(1, 12);
    world.store(1, space, &keys, 0, Stamp(0));
    let found = world.lookup(1, space, &keys);
    assert_eq!((found.pages, found.dram), (12, 3), "what DRAM cannot hold went to SSD");
    world.fetch(1, 1, space, &keys, found.stamp, 10_000);
    for _ in 0..12 {
        world.finish_jobs();
        let arrived = world.lease(1, 1).places.len() as u32;
        world.release(1, 1, arrived);
    }
    assert_eq!(world.outcome(1, 1), FetchOutcome::Complete);
    assert_eq!(world.lease(1, 1).places.len(), 12);
}

#[test]
fn two_fetches_share_one_read() {
    let (mut world, space) = opened(World::with_ssd(2, 100, 9, 4), 2);
    let keys = chain(1, 6);
    world.store(1, space, &keys, 0, Stamp(0));
    let (first, stamp) = (&keys[3..4], Stamp(0));
    world.fetch(1, 1, space, first, stamp, 1000);
    world.fetch(1, 2, space, first, stamp, 1000);
    let reads = world.jobs.values().filter(|job| matches!(job, Action::Read { .. })).count();
    assert_eq!(reads, 1);
    world.finish_jobs();
    assert_eq!(world.outcome(1, 1), FetchOutcome::Complete);
    assert_eq!(world.outcome(1, 2), FetchOutcome::Complete);
    assert_eq!(world.lease(1, 2).ended.unwrap().ssd, 1);
}

#[test]
fn a_damaged_record_ends_every_fetch_before_it() {
    let (mut world, space) = opened(World::with_ssd(2, 100, 9, 4), 2);
    let keys = chain(1, 8);
    world.store(1, space, &keys, 0, Stamp(0));
    let log = world.log_mut(FIRST);
    let is_fourth = |extent: &Extent| log.record(*extent).unwrap().key == keys[4];
    let damaged = log.extents().into_iter().find(is_fourth).unwrap();
    log.damage(damaged);
    world.fetch(1, 1, space, &keys[2..], Stamp(0), 1000);
    for _ in 0..8 {
        world.finish_jobs();
        let arrived = world.lease(1, 1).places.len() as u32;
        world.release(1, 1, arrived);
    }
    assert_eq!(world.outcome(1, 1), FetchOutcome::Damaged);
    assert_eq!(world.lease(1, 1).ended.unwrap().ready, 2);
    assert_eq!(world.lookup(1, space, &keys).pages, 4);
    assert!(world.core.unreachable_pages() > 0, "what lies behind it cannot be reached");
    // Storing it again makes the rest reachable again.
    let stored = world.store(1, space, &keys, 4, Stamp(0));
    assert_eq!(stored, 1);
    assert_eq!(world.lookup(1, space, &keys).pages, 8);
    assert_eq!(world.core.unreachable_pages(), 0);
}

#[test]
fn recovery_takes_children_before_parents_and_without() {
    let (mut world, space) = opened(World::with_ssd(2, 100, 9, 4), 2);
    let keys = chain(1, 8);
    world.store(1, space, &keys, 0, Stamp(0));
    let log = world.logs.remove(0).crash(|_| false);
    let mut records = log.recover();
    records.sort_by_key(|record| std::cmp::Reverse(record.identity.depth));
    let orphans = records.iter().filter(|record| record.identity.depth > 5).count() as u64;
    records.retain(|record| record.identity.depth != 5);
    let mut again = World::with_logs(2, config(&[size(100, 9, 4)]), vec![log]);
    again.recover(FIRST, &records, true);
    again.finish_jobs();
    let (mut again, space) = opened(again, 2);
    let known = records.iter().filter(|record| record.identity.depth < 5).count() as u32;
    assert_eq!(again.lookup(1, space, &keys).pages, known);
    assert_eq!(again.core.unreachable_pages(), orphans);
}

#[test]
fn what_is_held_outlasts_a_flood_until_its_time_is_over() {
    let (mut world, space) = opened(World::dram(4), 2);
    let (kept, flood) = (chain(1, 2), chain(2, 8));
    world.store(1, space, &kept, 0, Stamp(0));
    let hold = world.lookup_hold(1, &[space], &kept, 10).hold.unwrap();
    world.store(1, space, &flood, 0, Stamp(0));
    assert_eq!(world.lookup(1, space, &kept).pages, 2);
    let source = FetchSource::Hold { hold, first: 1, count: 1 };
    world.fetch_from(1, 1, space, (&kept[1..], source), Stamp(1), 10);
    assert_eq!(world.outcome(1, 1), FetchOutcome::Complete);
    world.release(1, 1, u32::MAX);
    world.advance(Micros(10_000));
    world.store(1, space, &chain(3, 4), 0, Stamp(0));
    assert_eq!(world.lookup(1, space, &kept).pages, 0);
    let source = FetchSource::Hold { hold, first: 0, count: 1 };
    let lease = LeaseId(2);
    let fetch = Fetch { space, lease, source, stamp: Stamp(0), deadline_ms: 10, recompute_ns: 0 };
    let reply = world.ask(1, &Request::Fetch(fetch));
    let Some(Reply::FetchEnd(end)) = reply else { panic!("an expired hold is refused") };
    assert_eq!(end.outcome, FetchOutcome::Invalid.to_byte());
}

#[test]
fn a_lease_outlives_its_socket_but_not_its_process() {
    let (mut world, space) = opened(World::dram(2), 2);
    world.open(2, 2, Mode::ZeroCopy);
    assert_eq!(world.open_space(2, 1, 4096, 2), space);
    let keys = chain(1, 2);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 1, space, &keys, Stamp(0), 10);
    world.close(1);
    assert!(world.core.session_leases(SessionId(1)).lingering);
    assert_eq!(world.store(2, space, &chain(2, 1), 0, Stamp(0)), 0, "all frames are leased");
    world.kill(1);
    assert_eq!(world.core.session_leases(SessionId(1)).leases, 0);
    assert_eq!(world.store(2, space, &chain(2, 1), 0, Stamp(0)), 1);
}

#[test]
fn a_child_leaves_with_its_parent() {
    let (mut world, space) = opened(World::dram(4), 2);
    let keys = chain(1, 3);
    let offer = world.offer(1, space, None, 0, &keys, Stamp(0)).unwrap();
    let (wanted, credit) = (OfferOutcome::Wanted.to_byte(), OfferOutcome::NoCredit.to_byte());
    assert_eq!(offer.outcomes, [wanted, wanted, credit]);
    let request = world.commit(1, space, offer.offer, &offer.slots[1..], &offer.slots[..1]);
    world.finish_jobs();
    let commit = &world.commits[&(SessionId(1), request)];
    assert_eq!(commit.answered, Some(vec![CommitOutcome::Invalid.to_byte()]));
    assert_eq!(world.lookup(1, space, &keys).pages, 0);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), 3, "both slots are free again");
}

#[test]
fn a_page_is_visible_only_when_its_copy_is_checked() {
    let (mut world, space) = opened(World::dram(4), 2);
    let keys = chain(1, 1);
    let offer = world.offer(1, space, None, 0, &keys, Stamp(0)).unwrap();
    world.commit(1, space, offer.offer, &offer.slots, &[]);
    assert_eq!(world.lookup(1, space, &keys).pages, 0);
    let second = world.offer(1, space, None, 0, &keys, Stamp(0)).unwrap();
    assert_eq!(second.outcomes, [OfferOutcome::Coming.to_byte()]);
    world.finish_jobs();
    assert_eq!(world.lookup(1, space, &keys).pages, 1);
    let third = world.offer(1, space, None, 0, &keys, Stamp(0)).unwrap();
    assert_eq!(third.outcomes, [OfferOutcome::Held.to_byte()]);
}

#[test]
fn a_page_that_its_first_offerer_gives_up_is_wanted_of_the_second() {
    let (mut world, space) = opened(World::dram(4), 2);
    world.open(2, 2, Mode::ZeroCopy);
    assert_eq!(world.open_space(2, 1, 4096, 2), space);
    let keys = chain(1, 1);
    let first = world.offer(1, space, None, 0, &keys, Stamp(0)).unwrap();
    let coming = world.offer(2, space, None, 0, &keys, Stamp(0)).unwrap();
    assert_eq!(coming.outcomes, [OfferOutcome::Coming.to_byte()]);
    world.commit(1, space, first.offer, &[], &first.slots);
    let wanted = world.offer(2, space, None, 0, &keys, Stamp(0)).unwrap();
    assert_eq!(wanted.outcomes, [OfferOutcome::Wanted.to_byte()]);
}

#[test]
fn copy_mode_delivers_through_its_slots() {
    let mut world = World::dram(8);
    world.open(1, 1, Mode::Copy);
    let space = world.open_space(1, 1, 4096, 2);
    let keys = chain(1, 5);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 1, space, &keys, Stamp(0), 1000);
    world.finish_jobs();
    assert_eq!(world.lease(1, 1).places.len(), 2, "as many as there are slots");
    for upto in 1..=5 {
        world.release(1, 1, upto);
        world.finish_jobs();
    }
    assert_eq!(world.outcome(1, 1), FetchOutcome::Complete);
}

#[test]
fn a_limit_reached_is_a_refusal() {
    let limits = Limits { max_leases_per_session: 1, max_pages: 2, ..Limits::default() };
    let config = Config { limits, ..Config::default() };
    let (mut world, space) = opened(World::with_frames(8, config), 4);
    let keys = chain(1, 4);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), 2, "the index holds two pages");
    world.fetch(1, 1, space, &keys[..1], Stamp(0), 10);
    let source = FetchSource::Keys { keys: keys[..1].into() };
    let (lease, stamp) = (LeaseId(2), Stamp(0));
    let fetch = Fetch { space, lease, source, stamp, deadline_ms: 10, recompute_ns: 0 };
    let reply = world.ask(1, &Request::Fetch(fetch));
    let Some(Reply::Refused(refused)) = reply else { panic!("one lease is the limit") };
    assert_eq!(refused.reason, RefusedReason::Busy);
}

#[test]
fn an_offer_that_is_never_committed_keeps_no_page_from_others() {
    let limits = Limits { max_offer_ms: 50, ..Limits::default() };
    let config = Config { limits, ..Config::default() };
    let (mut world, space) = opened(World::with_frames(8, config), 2);
    world.open(2, 2, Mode::ZeroCopy);
    world.open_space(2, 1, 4096, 2);
    let keys = chain(1, 2);
    let late = world.offer(1, space, None, 0, &keys, Stamp(0)).unwrap();
    let outcomes =
        |world: &mut World| world.offer(2, space, None, 0, &keys, Stamp(0)).unwrap().outcomes;
    assert_eq!(outcomes(&mut world), [OfferOutcome::Coming.to_byte(); 2]);
    assert_eq!(world.core.next_timer(), Some(world.now.after_ms(50)));
    world.advance(world.now.after_ms(50));
    assert_eq!(world.core.stats().overdue_slots, 2);
    assert_eq!(outcomes(&mut world), [OfferOutcome::Wanted.to_byte(); 2]);
    // The one who is late may still be writing: its slots are its own until it says so.
    let other = chain(2, 2);
    let refused = world.offer(1, space, None, 0, &other, Stamp(0)).unwrap();
    assert!(refused.slots.is_empty());
    world.commit(1, space, late.offer, &late.slots[..1], &late.slots[1..]);
    assert_eq!(world.core.stats().stored, 0, "nobody waits for what it brings");
    let wanted = world.offer(1, space, None, 0, &other, Stamp(0)).unwrap();
    assert_eq!(wanted.slots.len(), 2);
}

#[test]
fn a_fetch_without_a_frame_ends_with_its_deadline() {
    let (mut world, space) = opened(World::with_ssd(1, 100, 9, 4), 1);
    let keys = chain(1, 3);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 1, space, &keys, Stamp(0), 50);
    world.finish_jobs();
    assert_eq!(world.lease(1, 1).places.len(), 1, "the only frame is leased");
    assert_eq!(world.core.next_timer(), Some(Micros(50_000)));
    world.advance(Micros(50_000));
    assert_eq!(world.outcome(1, 1), FetchOutcome::Deadline);
    world.release(1, 1, u32::MAX);
    assert_eq!(world.core.session_leases(SessionId(1)).leases, 0);
}
