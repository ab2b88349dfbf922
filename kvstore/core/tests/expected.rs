//! Turns that are expected: out of the way of others until then, in DRAM when they come.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use undercroft_core::{Action, Config, Limits, Micros, Policy};
use undercroft_wire::{
    FetchOutcome, Hint, HintKind, Mode, PageKey, Prefetch, Reply, Request, SpaceId, Stamp,
};
use world::devices::{config, size};
use world::{World, chain};

const MS: u64 = 1000;

/// DRAM of 16 pages that turns over in no time, and an SSD on which these prefixes of so many pages
/// lie.
fn world<const N: usize>(policy: Policy, pages: u64) -> (World, SpaceId, [Vec<PageKey>; N]) {
    let sizes = [size(200, 15, 16)];
    let limits = Limits {
        max_ahead_bytes: 64 * 4096,
        max_lane_bytes: 1 << 20,
        max_expected: 4,
        ..Limits::default()
    };
    let settings = Config { fetch_window: 4, policy, limits, ..config(&sizes) };
    let mut world = World::with_devices_in(settings, 16, &sizes);
    world.open(1, 1, Mode::ZeroCopy);
    let space = world.open_space(1, 1, 4096, 16);
    let prefixes = std::array::from_fn(|number| chain(number as u64, pages));
    for prefix in &prefixes {
        world.store(1, space, prefix, 0, Stamp(0));
    }
    // Used, so that no policy turns them away.
    for name in [1000, 1001] {
        fill(&mut world, space, name, 16);
    }
    for prefix in &prefixes {
        assert_eq!(world.lookup(1, space, prefix).ssd, pages as u32);
    }
    (world, space, prefixes)
}

fn fill(world: &mut World, space: SpaceId, name: u64, pages: u64) {
    world.store(1, space, &chain(name, pages), 0, Stamp(0));
    world.finish_jobs();
}

fn turn(world: &mut World, space: SpaceId, keys: &[PageKey]) {
    let (lease, stamp) = (world.next_lease(), world.lookup(1, space, keys).stamp);
    world.fetch(1, lease, space, keys, stamp, 1000);
    world.finish_jobs();
    assert_eq!(world.outcome(1, lease), FetchOutcome::Complete);
    world.release(1, lease, u32::MAX);
}

fn hint(world: &mut World, space: SpaceId, keys: &[PageKey], kind: HintKind) {
    let hint = Request::Hint(Hint { space, keys: keys.into(), kind });
    assert_eq!(world.ask(1, &hint), Some(Reply::Done));
}

fn pass(world: &mut World, ms: u64) {
    world.advance(Micros(world.now.0 + ms * MS));
    world.finish_jobs();
}

fn in_dram(world: &mut World, space: SpaceId, keys: &[PageKey]) -> u32 {
    world.lookup(1, space, keys).dram
}

#[test]
fn what_is_expected_later_makes_room_and_is_back_in_time() {
    for policy in Policy::ALL {
        let (mut world, space, [other, told]) = world(policy, 6);
        turn(&mut world, space, &other);
        turn(&mut world, space, &told);
        hint(&mut world, space, &told, HintKind::ExpectedInMs(10_000));
        fill(&mut world, space, 1002, 10);
        assert_eq!(in_dram(&mut world, space, &told), 0, "{policy:?}: nobody misses it");
        if policy == Policy::Lru {
            assert_eq!(in_dram(&mut world, space, &other), 6, "others stay for it");
        }
        pass(&mut world, 4_900);
        assert_eq!(in_dram(&mut world, space, &told), 0, "{policy:?}: it is too early");
        pass(&mut world, 200);
        assert_eq!(in_dram(&mut world, space, &told), 6, "{policy:?}: what is told may be off");
        fill(&mut world, space, 1003, 16);
        fill(&mut world, space, 1004, 16);
        assert_eq!(in_dram(&mut world, space, &told), 6, "{policy:?}: it stays for the turn");
        pass(&mut world, 4_000);
        turn(&mut world, space, &told);
        let stats = world.core.stats().hinted;
        assert_eq!((stats.pages, stats.used_pages, stats.wasted_pages), (6, 6, 0));
        for name in 1005..1015 {
            // Where depth or density keeps what was used again, others must be, too.
            fill(&mut world, space, name, 16);
            fill(&mut world, space, name, 16);
        }
        if policy == Policy::Lru {
            assert_eq!(in_dram(&mut world, space, &told), 0, "nothing holds it after the turn");
        }
    }
}

#[test]
fn nothing_is_laid_aside_where_it_would_stay_anyway() {
    let (mut world, space, [other, told]) = world(Policy::Lru, 6);
    turn(&mut world, space, &other);
    turn(&mut world, space, &told);
    // Nothing comes in for longer than is told.
    pass(&mut world, 60_000);
    hint(&mut world, space, &told, HintKind::ExpectedInMs(10_000));
    fill(&mut world, space, 1002, 10);
    assert_eq!(in_dram(&mut world, space, &told), 6);
    assert_eq!(in_dram(&mut world, space, &other), 0);
}

#[test]
fn a_turn_that_does_not_come_is_waited_for_no_longer_than_it_was_told_to_take() {
    let (mut world, space, [other, told]) = world(Policy::Lru, 6);
    turn(&mut world, space, &told);
    hint(&mut world, space, &told, HintKind::ExpectedInMs(10_000));
    fill(&mut world, space, 1002, 16);
    pass(&mut world, 8_000);
    turn(&mut world, space, &other);
    pass(&mut world, 6_900);
    fill(&mut world, space, 1003, 8);
    assert_eq!(in_dram(&mut world, space, &told), 6, "it may come yet");
    pass(&mut world, 200);
    turn(&mut world, space, &other);
    fill(&mut world, space, 1004, 10);
    assert_eq!(in_dram(&mut world, space, &told), 0, "it leaves before all others");
    assert_eq!(in_dram(&mut world, space, &other), 6);
    assert_eq!(world.core.stats().hinted.wasted_pages, 6);
    assert_eq!(world.core.next_timer(), None);
}

#[test]
fn who_comes_early_takes_it_all_and_leaves_nothing_behind() {
    let (mut world, space, [told, _]) = world(Policy::Lru, 6);
    hint(&mut world, space, &told, HintKind::ExpectedInMs(10_000));
    assert!(world.core.next_timer().is_some());
    turn(&mut world, space, &told);
    assert_eq!(world.core.next_timer(), None, "the turn has come");
    hint(&mut world, space, &told, HintKind::ExpectedInMs(10_000));
    fill(&mut world, space, 1002, 16);
    // While its pages are being read.
    world.advance(Micros(8_000 * MS));
    assert!(world.count_jobs(|job| matches!(job, Action::Read { .. })) > 0);
    turn(&mut world, space, &told);
    assert_eq!(world.core.next_timer(), None);
    assert_eq!(in_dram(&mut world, space, &told), 6);
}

#[test]
fn no_more_than_half_of_dram_waits_for_turns() {
    let (mut world, space, [one, two]) = world(Policy::Lru, 6);
    hint(&mut world, space, &one, HintKind::ExpectedInMs(1_000));
    hint(&mut world, space, &two, HintKind::ExpectedInMs(1_100));
    pass(&mut world, 510);
    pass(&mut world, 90);
    assert_eq!(in_dram(&mut world, space, &one), 6);
    assert_eq!(in_dram(&mut world, space, &two), 2, "the later turn takes what is left");
    fill(&mut world, space, 1002, 16);
    assert_eq!(in_dram(&mut world, space, &one), 6);
    assert_eq!(in_dram(&mut world, space, &two), 2);
}

#[test]
fn sooner_turns_take_the_room_of_later_ones_until_their_time_is_near() {
    let (mut world, space, [later, sooner]) = world(Policy::Lru, 6);
    hint(&mut world, space, &later, HintKind::ExpectedInMs(2_000));
    pass(&mut world, 1_010);
    assert_eq!(in_dram(&mut world, space, &later), 6);
    hint(&mut world, space, &sooner, HintKind::ExpectedInMs(400));
    pass(&mut world, 210);
    fill(&mut world, space, 1002, 16);
    assert_eq!(in_dram(&mut world, space, &sooner), 6);
    assert_eq!(in_dram(&mut world, space, &later), 0, "it is not its time yet");
    turn(&mut world, space, &sooner);
    pass(&mut world, 500);
    assert_eq!(in_dram(&mut world, space, &later), 6, "it is brought again");
}

#[test]
fn who_waits_displaces_what_nobody_waits_for_yet() {
    let (mut world, space, [told, later, _]) = world(Policy::Lru, 3);
    hint(&mut world, space, &told, HintKind::ExpectedInMs(10));
    hint(&mut world, space, &later, HintKind::ExpectedInMs(11));
    pass(&mut world, 10);
    let all = chain(1000, 13);
    world.fetch(1, 77, space, &all, Stamp(0), 1000);
    world.finish_jobs();
    assert_eq!(world.outcome(1, 77), FetchOutcome::Complete);
    assert_eq!(in_dram(&mut world, space, &told), 3, "the last of them makes room");
    assert_eq!(in_dram(&mut world, space, &later), 0);
    let (above, more) = (&all[12], chain(2000, 1));
    let stored = world.offer(1, space, Some(*above), 13, &more, Stamp(0)).unwrap();
    assert_eq!(stored.outcomes, [0], "what is stored finds room, too");
    world.commit(1, space, stored.offer, &stored.slots, &[]);
    world.finish_jobs();
    assert_eq!(in_dram(&mut world, space, &told), 2);
}

#[test]
fn what_is_pinned_stays_for_as_long_whoever_uses_it() {
    let (mut world, space, [pinned, _]) = world(Policy::Lru, 6);
    hint(&mut world, space, &pinned, HintKind::PinMs(10_000));
    pass(&mut world, 0);
    assert_eq!(in_dram(&mut world, space, &pinned), 6, "it is brought at once");
    turn(&mut world, space, &pinned);
    fill(&mut world, space, 1002, 16);
    assert_eq!(in_dram(&mut world, space, &pinned), 6);
    pass(&mut world, 10_001);
    fill(&mut world, space, 1003, 16);
    assert_eq!(in_dram(&mut world, space, &pinned), 0);
}

#[test]
fn what_is_demoted_leaves_dram_first_and_a_use_takes_that_back() {
    let (mut world, space, [other, told]) = world(Policy::Lru, 6);
    turn(&mut world, space, &other);
    turn(&mut world, space, &told);
    hint(&mut world, space, &told, HintKind::Demote);
    turn(&mut world, space, &told);
    fill(&mut world, space, 1002, 10);
    assert_eq!(in_dram(&mut world, space, &told), 6, "it was used since");
    turn(&mut world, space, &other);
    hint(&mut world, space, &other, HintKind::Demote);
    fill(&mut world, space, 1003, 6);
    assert_eq!(in_dram(&mut world, space, &other), 0);
}

#[test]
fn what_goes_on_is_not_aside_any_more_up_to_its_beginning() {
    let (mut world, space, [other, told]) = world(Policy::Lru, 6);
    turn(&mut world, space, &other);
    turn(&mut world, space, &told);
    hint(&mut world, space, &told, HintKind::ExpectedInMs(10_000));
    let longer: Vec<PageKey> = told.iter().chain(&chain(3000, 1)).copied().collect();
    world.store(1, space, &longer, 6, Stamp(0));
    assert_eq!(world.core.next_timer(), None, "that was the turn");
    fill(&mut world, space, 1002, 9);
    assert_eq!(in_dram(&mut world, space, &longer), 7);
    assert_eq!(in_dram(&mut world, space, &other), 0);
}

#[test]
fn expected_turns_are_few_and_the_last_of_them_makes_room() {
    let (mut world, space, prefixes) = world::<6>(Policy::Lru, 1);
    for (at, keys) in prefixes.iter().enumerate().take(4) {
        hint(&mut world, space, keys, HintKind::ExpectedInMs(1_000 * (at as u32 + 1)));
    }
    hint(&mut world, space, &prefixes[4], HintKind::ExpectedInMs(9_000));
    hint(&mut world, space, &prefixes[5], HintKind::ExpectedInMs(1_500));
    for _ in 0..20 {
        pass(&mut world, 1_000);
    }
    let brought = world.core.stats().hinted.pages;
    assert_eq!(brought, 4);
    let found: Vec<u32> = prefixes.iter().map(|keys| world.lookup(1, space, keys).dram).collect();
    // What was not waited for any more may have left again since, before others.
    assert_eq!(found[2..], [1, 0, 0, 1]);
}

#[test]
fn what_has_ended_is_not_expected_any_more() {
    for end in [HintKind::Ended, HintKind::Demote, HintKind::Active] {
        let (mut world, space, [told, _]) = world(Policy::Lru, 6);
        hint(&mut world, space, &told, HintKind::ExpectedInMs(10));
        hint(&mut world, space, &told, end);
        pass(&mut world, 100);
        assert_eq!(in_dram(&mut world, space, &told), 0);
        assert_eq!(world.core.next_timer(), None);
    }
}

#[test]
fn a_waiting_queue_may_ask_for_what_is_expected() {
    let (mut world, space, [told, _]) = world(Policy::Lru, 6);
    hint(&mut world, space, &told, HintKind::ExpectedInMs(10_000));
    let wish = Prefetch { space, keys: told.as_slice().into(), ttl_ms: 1000 };
    assert!(matches!(world.ask(1, &Request::Prefetch(wish)), Some(Reply::Prefetch(_))));
    world.finish_jobs();
    assert_eq!(in_dram(&mut world, space, &told), 6);
    let stats = world.core.stats();
    assert_eq!((stats.asked.pages, stats.hinted.pages), (6, 0));
}
