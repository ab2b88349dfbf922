//! Pages that are forgotten because somebody says so.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use undercroft_core::{Action, Config, Event};
use undercroft_wire::{
    CommitOutcome, DomainId, Fetch, FetchOutcome, FetchSource, LeaseId, Mode, OfferOutcome,
    PurgeScope, Request, SessionId, SpaceId, Stamp,
};
use world::devices::FIRST;
use world::{HeldLease, OTHER, World, chain, digest, opened, user_of};

const OWN: DomainId = DomainId([0; 16]);

fn purge(world: &mut World, scope: PurgeScope) -> u64 {
    world.purge(scope)
}

fn of(domain: DomainId) -> PurgeScope {
    PurgeScope { domain: Some(domain), ..PurgeScope::default() }
}

fn in_space(domain: DomainId, space: u8) -> PurgeScope {
    PurgeScope { space: Some(digest(space)), ..of(domain) }
}

/// A session of its own with a space of each of two tenants, and a second one of the first.
fn spaces(world: &mut World) -> [SpaceId; 3] {
    world.add_part(OTHER, 4);
    for (session, domain) in [(1, OWN), (2, OTHER)] {
        world.open_in(domain, session, session as u32, Mode::ZeroCopy);
    }
    [(1, 1), (1, 2), (2, 1)].map(|(session, space)| world.open_space(session, space, 4096, 4))
}

#[test]
fn a_scope_is_forgotten_in_both_tiers_and_nothing_else() {
    let mut world = World::with_ssd(4, 100, 20, 4);
    let [first, second, other] = spaces(&mut world);
    let keys = chain(1, 6);
    let find = |world: &mut World| {
        [(1, first), (1, second), (2, other)]
            .map(|(at, space)| world.lookup(at, space, &keys).pages)
    };
    for (session, space) in [(1, first), (1, second), (2, other)] {
        assert_eq!(world.store(session, space, &keys, 0, Stamp(0)), 6);
    }
    assert_eq!(purge(&mut world, in_space(OWN, 2)), 6);
    assert_eq!(find(&mut world), [6, 0, 6]);
    assert_eq!(purge(&mut world, of(OWN)), 6);
    assert_eq!(find(&mut world), [0, 0, 6]);
    assert_eq!(purge(&mut world, of(DomainId([9; 16]))), 0);
    assert_eq!(world.store(1, first, &keys, 0, Stamp(0)), 6, "it may be stored again");
    world.finish_jobs();
    assert_eq!(find(&mut world), [6, 0, 6]);
}

#[test]
fn a_leased_page_is_not_found_and_keeps_its_frame() {
    let (mut world, space) = opened(World::dram(2), 4);
    let keys = chain(1, 2);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 1, space, &keys[..1], Stamp(0), 10);
    assert_eq!(purge(&mut world, of(OWN)), 2);
    assert_eq!(world.lookup(1, space, &keys).pages, 0);
    let offer = world.offer(1, space, None, 0, &keys, Stamp(0)).unwrap();
    assert_eq!(offer.outcomes[0], OfferOutcome::NotAdmitted.to_byte(), "its key is taken");
    assert_eq!(world.store(1, space, &chain(2, 2), 0, Stamp(0)), 1, "one frame is leased");
    assert_eq!(purge(&mut world, of(OWN)), 1, "it counts once");
    world.release(1, 1, u32::MAX);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), 2);
}

#[test]
fn what_is_held_or_on_its_way_ends_as_a_miss() {
    for scope in [of(OWN), by(user_of(1))] {
        let (mut world, space) = opened(World::with_ssd(2, 100, 20, 4), 4);
        let keys = chain(1, 6);
        world.store(1, space, &keys, 0, Stamp(0));
        let hold = world.lookup_hold(1, &[space], &keys, 1000).hold.unwrap();
        let missing = (0..6).find(|at| world.lookup(1, space, &keys[*at..=*at]).dram == 0).unwrap();
        world.store(1, space, &chain(2, 2), 0, Stamp(0));
        world.fetch(1, 1, space, &keys[missing..=missing], Stamp(0), 1000);
        while world.end_one(false, |_, job| matches!(job, Action::Append { .. })) {}
        purge(&mut world, scope);
        assert_eq!(world.outcome(1, 1), FetchOutcome::Missing);
        let taken = world.give_hold(1, hold);
        assert!(taken.is_err(), "the hold is over");
        world.finish_all_jobs();
        assert_eq!(world.lookup(1, space, &keys).pages, 0);
        assert_eq!(world.core.dram().used_bytes, 0, "the read's frame is free");
        assert_eq!(world.store(1, space, &chain(3, 2), 0, Stamp(0)), 2);
    }
}

#[test]
fn a_run_that_two_have_stored_is_delivered_up_to_what_is_purged() {
    for mode in [Mode::ZeroCopy, Mode::Copy] {
        for ssd in [false, true] {
            let (mut world, space) = opened(World::with_ssd(8, 100, 20, 4), 4);
            for (session, mode) in [(2, Mode::ZeroCopy), (3, mode)] {
                world.open(session, 2, mode);
                world.open_space(session, 1, 4096, 1);
            }
            let keys = chain(1, 6);
            assert_eq!(world.store(2, space, &keys[..4], 0, Stamp(0)), 4);
            assert_eq!(world.store(1, space, &keys, 4, Stamp(0)), 2);
            world.finish_jobs();
            if ssd {
                assert_eq!(world.store(1, space, &chain(2, 8), 0, Stamp(0)), 8);
                world.finish_jobs();
            }
            let hold = world.lookup_hold(3, &[space], &keys, 1000);
            assert_eq!((hold.pages, hold.dram == 0), (6, ssd));
            let others = world.lookup_hold(3, &[space], &keys[..4], 1000);
            let (session, lease, stamp) = (SessionId(3), LeaseId(1), Stamp(0));
            let lent = HeldLease {
                space,
                keys: keys.clone(),
                places: Vec::new(),
                released: 0,
                ended: None,
            };
            world.leases.insert((session, lease), lent);
            let source = FetchSource::Keys { keys: keys.as_slice().into() };
            let body = Request::Fetch(Fetch {
                space,
                lease,
                source,
                stamp,
                deadline_ms: 1000,
                recompute_ns: 0,
            });
            let request = world.request_id();
            world.step(Event::Request { session, request, body: &body });
            let pinned = mode == Mode::ZeroCopy && !ssd;
            while pinned && world.lease(3, 1).places.is_empty() {
                // A few pages a step: when the first are delivered, all are its.
                world.step(Event::Tick);
            }
            assert_eq!(world.lease(3, 1).ended, None, "it has only begun");
            world.purge(by(user_of(1)));
            let held = [hold, others].map(|found| world.give_hold(3, found.hold.unwrap()).is_ok());
            assert_eq!(held, [false, true], "a hold on none of its pages goes on");
            for upto in 1..=6 {
                world.finish_all_jobs();
                world.release(3, 1, upto);
            }
            assert_eq!(world.outcome(3, 1), FetchOutcome::Missing);
            let delivered = world.lease(3, 1).places.len();
            assert_eq!((delivered, world.lookup(1, space, &keys).pages), (4, 4));
        }
    }
}

#[test]
fn a_copy_under_way_is_not_stored() {
    let (mut world, space) = opened(World::dram(4), 4);
    let keys = chain(1, 2);
    let offer = world.offer(1, space, None, 0, &keys, Stamp(0)).unwrap();
    let request = world.commit(1, space, offer.offer, &offer.slots, &[]);
    purge(&mut world, of(OWN));
    world.finish_jobs();
    let commit = &world.commits[&(SessionId(1), request)];
    assert_eq!(commit.answered, Some(vec![CommitOutcome::Invalid.to_byte(); 2]));
    assert_eq!(world.lookup(1, space, &keys).pages, 0);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), 2);
}

#[test]
fn what_is_being_written_is_forgotten_when_that_is_over() {
    let (mut world, space) = opened(World::with_ssd(2, 100, 20, 4), 4);
    let keys = chain(1, 2);
    let offer = world.offer(1, space, None, 0, &keys, Stamp(0)).unwrap();
    world.commit(1, space, offer.offer, &offer.slots, &[]);
    world.finish_copies();
    let writes = |job: &Action| matches!(job, Action::Append { .. });
    assert!(world.count_jobs(writes) > 0, "the coldest are written ahead");
    purge(&mut world, of(OWN));
    assert_eq!(world.lookup(1, space, &keys).pages, 0);
    world.finish_jobs();
    assert_eq!(world.lookup(1, space, &keys).pages, 0);
    assert_eq!(world.core.dram().used_bytes, 0);
}

fn by(writer: u32) -> PurgeScope {
    PurgeScope { writer: Some(writer), ..of(OWN) }
}

#[test]
fn a_writer_is_who_stored_first_and_nobody_else() {
    let (mut world, space) = opened(World::with_ssd(4, 100, 20, 4), 4);
    world.open(2, 2, Mode::ZeroCopy);
    world.open_space(2, 1, 4096, 4);
    let (own, others) = (chain(1, 4), chain(2, 4));
    world.store(1, space, &own, 0, Stamp(0));
    world.store(2, space, &others, 0, Stamp(0));
    assert_eq!(world.store(2, space, &own, 0, Stamp(0)), 0, "it is there");
    assert_eq!(purge(&mut world, by(user_of(9))), 0);
    assert_eq!(purge(&mut world, by(user_of(1))), 4);
    assert_eq!([&own, &others].map(|keys| world.lookup(1, space, keys).pages), [0, 4]);
    assert_eq!(world.store(2, space, &own, 0, Stamp(0)), 4);
    assert_eq!(purge(&mut world, by(user_of(1))), 0, "it is another's now");
    world.finish_jobs();
    assert_eq!([&own, &others].map(|keys| world.lookup(1, space, keys).pages), [4, 4]);
}

#[test]
fn nobody_finds_what_is_yet_to_be_forgotten() {
    let (mut world, space) = opened(World::with_ssd(4, 100, 20, 4), 4);
    let keys = chain(1, 6);
    world.store(1, space, &keys, 0, Stamp(0));
    assert_eq!(world.lookup(1, space, &keys).pages, 6);
    let id = world.begin_purge(of(OWN));
    assert!(!world.purged.contains_key(&id), "there is more than a step of it");
    assert_eq!(world.core.next_timer(), Some(world.now), "it goes on by itself");
    for at in 0..6 {
        assert_eq!(world.lookup(1, space, &keys[at..=at]).pages, 0, "page {at}");
    }
    while !world.purged.contains_key(&id) {
        world.step(Event::Tick);
    }
    assert_eq!(world.purged[&id], 6);
    world.end_purges();
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), 6);
    assert_eq!(world.lookup(1, space, &keys).pages, 6);
}

/// The world after the daemon was killed and started anew, without its DRAM.
fn killed(mut world: World) -> (World, SpaceId) {
    let logs = std::mem::take(&mut world.logs).into_iter().map(|log| log.crash(|_| false));
    let config = Config { purge: world.over(), ..world.config.clone() };
    let mut next = World::with_logs(4, config, logs.collect());
    let records = next.log(FIRST).recover();
    next.recover(FIRST, &records, true);
    let (mut next, space) = opened(next, 4);
    next.finish_jobs();
    (next, space)
}

#[test]
fn what_was_purged_does_not_come_back_and_what_came_later_does() {
    let (mut world, space) = opened(World::with_ssd(4, 100, 20, 4), 4);
    let (keys, others) = (chain(1, 8), chain(2, 8));
    world.store(1, space, &keys, 0, Stamp(0));
    world.finish_jobs();
    assert!(world.lookup(1, space, &keys).ssd >= 4, "there is something to come back");
    // Some of it is on its way to SSD while it is purged, and arrives there afterwards.
    assert_eq!(world.purge(by(user_of(1))), 8);
    world.store(1, space, &others, 0, Stamp(0));
    world.store(1, space, &chain(3, 4), 0, Stamp(0));
    world.finish_jobs();
    assert!(world.lookup(1, space, &others).ssd >= 4);
    let found = world.lookup(1, space, &others).ssd;
    let (mut world, space) = killed(world);
    assert_eq!(world.lookup(1, space, &keys).pages, 0);
    assert!(world.lookup(1, space, &others).pages >= found);
    assert_eq!(world.core.stats().recovery_gone, 8, "all of it had been written");
}

#[test]
fn without_the_list_it_would_come_back() {
    let (mut world, space) = opened(World::with_ssd(4, 100, 20, 4), 4);
    let keys = chain(1, 8);
    world.store(1, space, &keys, 0, Stamp(0));
    world.finish_jobs();
    world.purge(of(OWN));
    world.logs[0].purges.clear();
    let (mut world, space) = killed(world);
    assert!(world.lookup(1, space, &keys).pages > 0);
}

#[test]
fn a_leased_page_that_was_purged_is_not_found_after_a_restart_and_keeps_its_frame() {
    let (mut world, space) = opened(World::dram(2), 4);
    let keys = chain(1, 2);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 1, space, &keys[..1], Stamp(0), 10);
    world.purge(of(OWN));
    let mut world = world.succeed(Vec::new(), 3);
    world.open(2, 2, Mode::ZeroCopy);
    let space = world.open_space(2, 1, 4096, 4);
    assert_eq!(world.lookup(2, space, &keys).pages, 0);
    assert_eq!(world.store(2, space, &chain(2, 2), 0, Stamp(0)), 1, "one frame is leased");
    world.kill(1);
    assert_eq!(world.store(2, space, &chain(3, 2), 0, Stamp(0)), 2);
}

#[test]
fn pages_older_than_their_domain_keeps_them_are_served_from_no_tier() {
    let mut config = World::with_ssd(4, 100, 20, 4).config;
    (config.domains[0].max_age_s, config.unix_s) = (3600, 1_000_000);
    let log = World::with_ssd(4, 100, 20, 4).logs.remove(0);
    let mut world = World::with_logs(4, config, vec![log]);
    world.recover(FIRST, &[], true);
    let (mut world, space) = opened(world, 4);
    let (keys, younger) = (chain(1, 6), chain(2, 2));
    world.store(1, space, &keys, 0, Stamp(0));
    world.finish_jobs();
    let second = 1_000_000;
    world.now.0 += 1800 * second;
    world.store(1, space, &younger, 0, Stamp(0));
    world.finish_jobs();
    world.now.0 += 1800 * second;
    assert_eq!(world.lookup(1, space, &keys).pages, 6);
    let logs = world.logs[0].recover();
    world.now.0 += 2 * second;
    assert_eq!(world.lookup(1, space, &keys).pages, 0);
    assert_eq!(world.lookup(1, space, &younger).pages, 2);
    // Some time later, what they took is free.
    // A look at all pages that had begun before may have come by the first of them already.
    for _ in 0..2 {
        world.now.0 += 225 * second;
        world.step(Event::Tick);
        while world.core.next_timer() == Some(world.now) {
            world.step(Event::Tick);
        }
    }
    assert_eq!(world.core.stats().expired_pages, 6);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), 6, "it may be stored again");
    let mut config = world.config.clone();
    config.unix_s += 3602;
    let mut next = World::with_logs(4, config, vec![world.logs.remove(0).crash(|_| false)]);
    next.recover(FIRST, &logs, true);
    let (mut next, space) = opened(next, 4);
    next.finish_jobs();
    assert_eq!(next.lookup(1, space, &keys).pages, 0, "nor does a restart bring it back");
}

#[test]
fn what_was_committed_before_and_waits_for_a_frame_is_gone() {
    let (mut world, space) = opened(World::dram(2), 4);
    let (others, keys) = (chain(1, 2), chain(2, 2));
    let offers = [&others, &keys].map(|keys| world.offer(1, space, None, 0, keys, Stamp(0)));
    let [_, request] = offers.map(|offer| {
        let offer = offer.unwrap();
        world.commit(1, space, offer.offer, &offer.slots, &[])
    });
    let copies = |job: &Action| matches!(job, Action::CopyIn { .. });
    assert_eq!(world.count_jobs(copies), 2, "the others wait for a frame");
    assert_eq!(world.purge(by(user_of(1))), 2);
    world.finish_jobs();
    let commit = &world.commits[&(SessionId(1), request)];
    assert_eq!(commit.answered, Some(vec![CommitOutcome::Invalid.to_byte(); 2]));
    assert_eq!([&others, &keys].map(|keys| world.lookup(1, space, keys).pages), [0, 0]);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), 2, "it may be stored again");
}

#[test]
fn what_is_offered_before_and_committed_afterwards_is_a_page_of_afterwards() {
    let (mut world, space) = opened(World::with_ssd(4, 100, 20, 4), 4);
    let keys = chain(1, 2);
    let offer = world.offer(1, space, None, 0, &keys, Stamp(0)).unwrap();
    assert_eq!(world.purge(by(user_of(1))), 0, "nothing of it is there");
    world.commit(1, space, offer.offer, &offer.slots, &[]);
    world.finish_jobs();
    assert_eq!(world.lookup(1, space, &keys).pages, 2);
    world.store(1, space, &chain(2, 8), 0, Stamp(0));
    world.finish_jobs();
    assert_eq!(world.lookup(1, space, &keys).ssd, 2);
    let (mut world, space) = killed(world);
    assert_eq!(world.lookup(1, space, &keys).pages, 2, "its records have seen the purge");
}

/// A world whose own domain keeps pages for an hour, a million seconds after 1970.
fn for_an_hour() -> (World, SpaceId) {
    let mut config = World::with_ssd(4, 100, 20, 4).config;
    (config.domains[0].max_age_s, config.unix_s) = (3600, 1_000_000);
    let log = World::with_ssd(4, 100, 20, 4).logs.remove(0);
    let mut world = World::with_logs(4, config, vec![log]);
    world.recover(FIRST, &[], true);
    opened(world, 4)
}

/// The world after so many seconds by its own clock, started anew at `unix_s` by the machine's.
fn restarted(mut world: World, unix_s: u32) -> (World, SpaceId) {
    let config = Config { unix_s, ..world.config.clone() };
    let mut next = World::with_logs(4, config, vec![world.logs.remove(0).crash(|_| false)]);
    let records = next.log(FIRST).recover();
    next.recover(FIRST, &records, true);
    let (mut next, space) = opened(next, 4);
    next.finish_jobs();
    (next, space)
}

const SECOND: u64 = 1_000_000;

#[test]
fn a_page_that_is_only_offered_has_no_age() {
    let (mut world, space) = for_an_hour();
    let keys = chain(1, 4);
    let first = world.offer(1, space, None, 0, &keys[..2], Stamp(0)).unwrap();
    let more = world.offer(1, space, Some(keys[1]), 2, &keys[2..], Stamp(0)).unwrap();
    assert_eq!((first.slots.len(), more.slots.len()), (2, 2), "it hangs from what is coming");
    world.open(2, 2, Mode::ZeroCopy);
    world.open_space(2, 1, 4096, 4);
    let others = world.offer(2, space, None, 0, &keys, Stamp(0)).unwrap();
    assert_eq!(others.outcomes, [OfferOutcome::Coming.to_byte(); 4]);
}

#[test]
fn an_age_that_is_made_shorter_counts_at_once_and_a_longer_one_brings_nothing_back() {
    let (mut world, space) = for_an_hour();
    let keys = chain(1, 6);
    world.store(1, space, &keys, 0, Stamp(0));
    world.finish_jobs();
    world.now.0 += 600 * SECOND;
    assert_eq!(world.lookup(1, space, &keys).pages, 6);
    world.step(Event::MaxAge { domain: OWN, max_age_s: 300 });
    assert_eq!(world.lookup(1, space, &keys).pages, 0);
    while world.core.next_timer() == Some(world.now) {
        world.step(Event::Tick);
    }
    assert_eq!(world.core.stats().expired_pages, 6, "nobody had to ask for them");
    world.step(Event::MaxAge { domain: OWN, max_age_s: 0 });
    assert_eq!(world.lookup(1, space, &keys).pages, 0);
    assert_eq!(world.core.next_timer(), None, "there is nothing to look for");
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), 6);
}

#[test]
fn what_is_too_old_goes_although_nobody_asks_and_few_looks_are_taken() {
    let (mut world, space) = for_an_hour();
    let keys = chain(1, 6);
    world.store(1, space, &keys, 0, Stamp(0));
    world.finish_jobs();
    let (end, mut wakes) = (world.now.0 + 2 * 3600 * SECOND, 0);
    while let Some(next) = world.core.next_timer().filter(|next| next.0 < end) {
        world.now.0 = world.now.0.max(next.0);
        world.step(Event::Tick);
        wakes += 1;
    }
    assert_eq!(world.core.stats().expired_pages, 6);
    // A look every 16th of the age, two pages a step here, and no more than that.
    assert!(wakes <= 2 * 16 * 4 + 4, "{wakes} times");
}

#[test]
fn a_clock_that_is_set_back_makes_nothing_old_and_brings_nothing_back() {
    let (mut world, space) = for_an_hour();
    let (old, young) = (chain(1, 4), chain(2, 4));
    world.store(1, space, &old, 0, Stamp(0));
    world.finish_jobs();
    world.now.0 += 3000 * SECOND;
    world.store(1, space, &young, 0, Stamp(0));
    world.now.0 += 1000 * SECOND;
    world.store(1, space, &chain(3, 8), 0, Stamp(0));
    world.finish_jobs();
    assert_eq!(world.lookup(1, space, &old).pages, 0, "it is too old");
    let known = world.lookup(1, space, &young).ssd;
    assert!(known > 0);
    // A day back: to when none of it had been stored.
    let (mut world, space) = restarted(world, 1_000_000 - 86_400);
    assert_eq!(world.core.unix_s(), 1_004_000, "time goes on from the newest page");
    assert_eq!(world.lookup(1, space, &old).pages, 0);
    assert_eq!(world.lookup(1, space, &young).pages, known, "its age is as it was");
    world.now.0 += 2601 * SECOND;
    assert_eq!(world.lookup(1, space, &young).pages, 0, "nor is anything kept longer for it");
}
