//! Loading against computing: what a lookup finds worth loading, and what becomes of fetches that
//! fall behind.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use proptest::prelude::*;
use std::collections::VecDeque;
use undercroft_core::{Action, Config, Limits, LoadPolicy, Micros};
use undercroft_wire::{
    FetchOutcome, KeyRun, Lookup, LookupReply, MissCause, PageKey, Reply, Request, Rival, SpaceId,
    Stamp,
};
use world::devices::{config, size};
use world::{World, chain, opened};

const PAGES: u64 = 40;
const FRAMES: u64 = 64;
const LATENCY_US: u64 = 100;

/// A world with a chain of 40 pages on an SSD that is assumed to read a page in `page_us`.
fn world(load: LoadPolicy, page_us: u64) -> (World, SpaceId) {
    let sizes = [size(4_000, 1_010, 4)];
    let mut config = Config { load, fetch_window: 8, step_pages: 256, ..config(&sizes) };
    config.limits = Limits { max_lane_bytes: 1 << 20, ..config.limits };
    config.devices[0].read_bytes_per_s = 4096 * 1_000_000 / page_us;
    config.devices[0].read_latency_us = LATENCY_US;
    let world = World::with_devices_in(config, FRAMES, &sizes);
    let (mut world, space) = opened(world, 16);
    world.audits = false;
    assert_eq!(world.store(1, space, &chain(1, PAGES), 0, Stamp(0)), PAGES as usize);
    displace(&mut world, space, 2);
    assert_eq!(world.lookup(1, space, &chain(1, PAGES)).ssd, PAGES as u32);
    world.audits = true;
    (world, space)
}

/// Fills DRAM with other pages.
fn displace(world: &mut World, space: SpaceId, number: u64) {
    let audits = std::mem::take(&mut world.audits);
    assert_eq!(world.store(1, space, &chain(number, FRAMES), 0, Stamp(0)), FRAMES as usize);
    world.audits = audits;
}

fn look(world: &mut World, space: SpaceId, rival: Rival, hold_ms: u32) -> LookupReply {
    let keys = chain(1, PAGES);
    let lookup = Lookup { spaces: vec![space], keys: KeyRun::from(&keys[..]), hold_ms, rival };
    match world.ask(1, &Request::Lookup(lookup)) {
        Some(Reply::Lookup(reply)) => reply,
        other => panic!("a lookup is answered at once, not with {other:?}"),
    }
}

fn rival(recompute_us: u64) -> Rival {
    Rival { recompute_ns: recompute_us * 1000, ..Rival::default() }
}

/// Lets the device do its reads one after another, each in the time that comes next, until the
/// fetch has ended; says when that was.
fn serve(world: &mut World, lease: u64, mut times_us: impl Iterator<Item = u64>) -> Micros {
    let mut waiting: VecDeque<_> = VecDeque::new();
    let (mut known, mut done) = (0, None);
    while world.lease(1, lease).ended.is_none() {
        for (job, action) in &world.jobs {
            if matches!(action, Action::Read { .. }) && job.0 > known {
                waiting.push_back(*job);
                known = job.0;
            }
        }
        let other = |action: &Action| !matches!(action, Action::Read { .. });
        if let Some(at) = world.jobs.values().position(other) {
            world.end_job(at, false);
            continue;
        }
        if done.is_none() && !waiting.is_empty() {
            done = times_us.next().map(|us| Micros(world.now.0 + us));
        }
        let timer = world.core.next_timer().expect("what nobody reads ends by itself");
        match done {
            Some(due) if due <= timer => {
                world.advance(due);
                let job = waiting.pop_front().unwrap();
                let at = world.jobs.keys().position(|other| *other == job).unwrap();
                world.end_job(at, false);
                done = None;
            }
            _ => world.advance(timer.max(world.now)),
        }
    }
    world.now
}

fn fetch(world: &mut World, lease: u64, space: SpaceId, keys: &[PageKey]) {
    world.fetch(1, lease, space, keys, Stamp(0), 600_000);
}

#[test]
fn what_is_read_slower_than_computed_is_not_found() {
    for (load, pages) in [(LoadPolicy::Enforced, 0), (LoadPolicy::Advisory, PAGES as u32)] {
        let (mut world, space) = world(load, 10_000);
        let found = look(&mut world, space, rival(1_000), 1_000);
        assert_eq!((found.pages, found.worth, found.present), (pages, 0, PAGES as u32));
        assert_eq!(found.hold.is_some(), pages > 0);
        let told = look(&mut world, space, Rival::default(), 0);
        assert_eq!((told.pages, told.worth), (PAGES as u32, PAGES as u32), "nothing is weighed");
        let stats = world.core.stats();
        assert_eq!((stats.cost.trimmed_lookups, stats.cost.trimmed_pages), (1, PAGES));
        let missed = stats.misses[MissCause::Slower as usize];
        assert_eq!(missed, u64::from(pages == 0), "and why can be told");
    }
}

#[test]
fn what_is_read_faster_than_computed_is_found_whole() {
    for load in LoadPolicy::ALL {
        let (mut world, space) = world(load, 100);
        let found = look(&mut world, space, rival(1_000), 0);
        assert_eq!((found.pages, found.worth), (PAGES as u32, PAGES as u32), "{load}");
        assert_eq!(found.estimate_us, LATENCY_US + PAGES * 100);
        assert!(found.copy_us > 0, "{found:?}");
        assert_eq!(world.core.stats().cost.trimmed_lookups, 0);
    }
}

#[test]
fn a_policy_that_is_off_weighs_nothing() {
    let (mut world, space) = world(LoadPolicy::Off, 10_000);
    let found = look(&mut world, space, Rival { due_ms: 1, ..rival(1) }, 0);
    assert_eq!((found.pages, found.worth, found.present), (40, 40, 40));
    world.recompute_ns = 1_000;
    fetch(&mut world, 1, space, &chain(1, PAGES));
    serve(&mut world, 1, std::iter::repeat(10_000));
    assert_eq!(world.outcome(1, 1), FetchOutcome::Complete);
    assert_eq!(world.core.stats().cost, undercroft_core::CostStats::default());
}

#[test]
fn the_beginning_that_lies_in_dram_is_worth_loading_from_there() {
    let (mut world, space) = world(LoadPolicy::Enforced, 10_000);
    fetch(&mut world, 1, space, &chain(1, 10));
    serve(&mut world, 1, std::iter::repeat(10_000));
    world.release(1, 1, u32::MAX);
    let found = look(&mut world, space, rival(1_000), 1_000);
    assert_eq!((found.pages, found.dram, found.ssd, found.present), (10, 10, 0, 40));
    assert_eq!(found.estimate_us, 0, "nothing of it is read");
    assert!(found.hold.is_some(), "and that much is held");
}

#[test]
fn only_what_comes_in_time_is_found() {
    let (mut world, space) = world(LoadPolicy::Enforced, 1_000);
    for (due_ms, pages) in [(0, 40), (20, 19), (1_000, 40)] {
        let found = look(&mut world, space, Rival { due_ms, ..Rival::default() }, 0);
        assert_eq!(found.pages, pages, "{due_ms} ms");
    }
}

#[test]
fn what_the_engine_has_itself_is_not_weighed() {
    let (mut world, space) = world(LoadPolicy::Enforced, 10_000);
    let found = look(&mut world, space, Rival { have: 30, ..rival(1_000) }, 0);
    assert_eq!((found.pages, found.present), (30, 40), "there is nothing to load");
    let found = look(&mut world, space, Rival { have: 30, ..rival(20_000) }, 0);
    assert_eq!(found.pages, 40);
}

#[test]
fn what_a_device_has_to_do_already_comes_first() {
    let (mut world, space) = world(LoadPolicy::Enforced, 1_000);
    let idle = look(&mut world, space, rival(1_100), 0);
    assert_eq!((idle.pages, idle.estimate_us), (40, LATENCY_US + 40_000));
    fetch(&mut world, 1, space, &chain(2, FRAMES)[..32]);
    assert_eq!(world.count_jobs(|job| matches!(job, Action::Read { .. })), 0, "they are in DRAM");
    displace(&mut world, space, 3);
    world.release(1, 1, u32::MAX);
    displace(&mut world, space, 4);
    fetch(&mut world, 2, space, &chain(2, FRAMES)[..32]);
    assert_eq!(world.count_jobs(|job| matches!(job, Action::Read { .. })), 8);
    let busy = look(&mut world, space, rival(1_100), 0);
    assert_eq!((busy.pages, busy.worth, busy.present), (0, 0, 40), "{busy:?}");
    let busy = look(&mut world, space, rival(1_500), 0);
    assert_eq!((busy.pages, busy.estimate_us), (40, LATENCY_US + 48_000));
}

#[test]
fn a_device_that_has_become_slow_is_known_by_its_reads() {
    let (mut world, space) = world(LoadPolicy::Enforced, 100);
    assert_eq!(look(&mut world, space, rival(1_000), 0).pages, 40);
    for lease in 1..6 {
        fetch(&mut world, lease, space, &chain(2, FRAMES)[..32]);
        serve(&mut world, lease, std::iter::repeat(5_000));
        world.release(1, lease, u32::MAX);
        displace(&mut world, space, 10 + lease);
    }
    let found = look(&mut world, space, rival(1_000), 0);
    assert_eq!((found.pages, found.present), (0, 40), "{found:?}");
    world.advance(Micros(world.now.0 + 120_000_000));
    let later = look(&mut world, space, rival(1_000), 0);
    assert_eq!(later.pages, 40, "it may have become faster, which nobody knows who does not ask");
}

#[test]
fn a_fetch_that_falls_behind_is_cut_at_the_last_good_page() {
    let (mut world, space) = world(LoadPolicy::Enforced, 100);
    world.recompute_ns = 1_000_000;
    fetch(&mut world, 1, space, &chain(1, PAGES));
    let begun = world.now;
    // Ten pages come five times as fast as they are computed, the others ten times as slow.
    let ended = serve(&mut world, 1, [200; 10].into_iter().chain(std::iter::repeat(10_000)));
    assert_eq!(world.outcome(1, 1), FetchOutcome::Slower);
    let brought = world.lease(1, 1).places.len() as u64;
    assert!((10..=12).contains(&brought), "{brought}");
    assert!(ended.0 - begun.0 < brought * 1_000, "time was saved all the same");
    let cost = world.core.stats().cost;
    assert_eq!((cost.behind_fetches, cost.weighed_fetches, cost.lost_us), (1, 1, 0));
    assert_eq!(cost.behind_pages, PAGES - brought);
    assert!(cost.saved_us > 3_000, "{cost:?}");
}

#[test]
fn a_fetch_that_never_gets_going_loses_next_to_nothing() {
    let (mut world, space) = world(LoadPolicy::Enforced, 100);
    world.recompute_ns = 1_000_000;
    fetch(&mut world, 1, space, &chain(1, PAGES));
    let begun = world.now;
    let ended = serve(&mut world, 1, std::iter::repeat(500_000));
    assert_eq!((world.outcome(1, 1), world.lease(1, 1).places.len()), (FetchOutcome::Slower, 0));
    assert!(ended.0 - begun.0 <= 1_000 + PAGES * 1_000 / 50, "{ended}");
    assert_eq!(world.core.stats().cost.lost_us, ended.0 - begun.0);
}

#[test]
fn a_fetch_that_is_not_worth_it_brings_what_lies_in_dram() {
    let (mut world, space) = world(LoadPolicy::Enforced, 10_000);
    fetch(&mut world, 1, space, &chain(1, 10));
    serve(&mut world, 1, std::iter::repeat(10_000));
    world.release(1, 1, u32::MAX);
    world.recompute_ns = 1_000_000;
    fetch(&mut world, 2, space, &chain(1, PAGES));
    assert_eq!((world.outcome(1, 2), world.lease(1, 2).places.len()), (FetchOutcome::Slower, 10));
    assert_eq!(world.count_jobs(|job| matches!(job, Action::Read { .. })), 0, "none was begun");
}

#[test]
fn a_model_that_only_advises_cuts_nothing_and_counts_all() {
    let (mut world, space) = world(LoadPolicy::Advisory, 100);
    world.recompute_ns = 1_000_000;
    fetch(&mut world, 1, space, &chain(1, PAGES));
    let begun = world.now;
    let ended = serve(&mut world, 1, std::iter::repeat(10_000));
    assert_eq!(world.outcome(1, 1), FetchOutcome::Complete);
    let cost = world.core.stats().cost;
    assert_eq!((cost.behind_fetches, cost.behind_pages), (1, PAGES));
    assert_eq!((cost.expected_fetches, cost.taken_us), (1, ended.0 - begun.0));
    assert_eq!(cost.expected_us, LATENCY_US + PAGES * 100);
    assert_eq!(cost.error_us, cost.taken_us - cost.expected_us);
    let lost = ended.0 - begun.0 - PAGES * 1_000;
    assert!(cost.saved_us == 0 && cost.lost_us.abs_diff(lost) < PAGES * 2, "{cost:?}");
}

#[test]
fn what_a_fast_load_saves_is_counted() {
    let (mut world, space) = world(LoadPolicy::Enforced, 100);
    world.recompute_ns = 1_000_000;
    fetch(&mut world, 1, space, &chain(1, PAGES));
    serve(&mut world, 1, std::iter::repeat(100));
    assert_eq!(world.outcome(1, 1), FetchOutcome::Complete);
    let cost = world.core.stats().cost;
    assert!((cost.saved_us).abs_diff(PAGES * 900) < PAGES * 2 && cost.lost_us == 0, "{cost:?}");
}

#[test]
fn leases_that_engines_keep_do_not_make_dram_slow() {
    let (mut world, space) = world(LoadPolicy::Enforced, 100);
    for lease in 1..20 {
        fetch(&mut world, lease, space, &chain(2, FRAMES)[..32]);
        world.advance(Micros(world.now.0 + 1_000_000));
        world.release(1, lease, u32::MAX);
    }
    let found = world.lookup_hold(1, &[space], &chain(2, FRAMES)[..32], 0);
    // 200 us and 32 pages at 4 GiB/s, and no more than eight times as long.
    let assumed = 200 + 32 * 4096 * 1_000_000 / (4 << 30);
    assert_eq!(found.dram, 32);
    assert!((2 * assumed..=8 * assumed).contains(&found.copy_us), "{found:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_reads_makes_a_fetch_lose_more_than_it_may(
        times_us in prop::collection::vec(
            prop_oneof![0..2_000_u64, 500..1_500_u64, 5_000..50_000_u64], 1..60,
        ),
        recompute_us in 50..5_000_u64,
        assumed_us in prop_oneof![Just(10_u64), Just(1_000), Just(20_000)],
        resident in 0..20_u64,
    ) {
        let (mut world, space) = world(LoadPolicy::Enforced, assumed_us);
        if resident > 0 {
            fetch(&mut world, 1, space, &chain(1, resident));
            serve(&mut world, 1, std::iter::repeat(10));
            world.release(1, 1, u32::MAX);
        }
        world.recompute_ns = recompute_us * 1000;
        let begun = world.now;
        fetch(&mut world, 2, space, &chain(1, PAGES));
        let ended = serve(&mut world, 2, times_us.iter().copied().cycle());
        let brought = world.lease(1, 2).places.len() as u64;
        prop_assert!(brought >= resident, "what lies in DRAM is brought");
        let taken = (ended.0 - begun.0) as f64;
        let lost = taken - (brought * recompute_us) as f64;
        let most = 0.02 * (PAGES * recompute_us) as f64 + 1_000.0;
        prop_assert!(lost <= most, "{lost} us were lost, {most} may be: {brought} pages");
    }
}
