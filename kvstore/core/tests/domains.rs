//! Several tenants: each has frames, sessions, leases and holds of its own.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use std::collections::BTreeMap;
use undercroft_core::{
    Action, Config, DomainConfig, DomainLimits, DomainReport, Event, Health, ProcessId,
};
use undercroft_wire::{
    DomainId, DropHold, Fetch, FetchOutcome, FetchSource, LeaseId, Mode, OfferOutcome, PageKey,
    PartId, Prefetch, RefusedReason, Release, Reply, Request, RequestId, SessionId, SpaceId, Stamp,
};
use world::devices::{FIRST, Size, config, size};
use world::{MANY, OTHER, World, chain, digest};

/// Two tenants with a part, a session and a space each; sessions 1 and 2.
fn tenants(frames: [u64; 2], limits: DomainLimits) -> (World, [SpaceId; 2]) {
    let own = DomainId::default();
    let domain = |id| DomainConfig { id, limits, max_age_s: 0 };
    let domains = vec![domain(own), domain(OTHER)];
    let mut world = World::new(Config { domains, ..config(&[]) });
    let mut spaces = [SpaceId(0); 2];
    for (at, id) in [own, OTHER].into_iter().enumerate() {
        let session = at as u64 + 1;
        world.add_part(id, frames[at]);
        world.open_in(id, session, session as u32, Mode::ZeroCopy);
        spaces[at] = world.open_space(session, 1, 4096, 4);
    }
    (world, spaces)
}

fn report(world: &World, domain: DomainId) -> DomainReport {
    world.core.domains().find(|report| report.domain == domain).unwrap()
}

#[test]
fn a_flood_in_one_domain_evicts_nothing_of_another() {
    let (mut world, [mine, theirs]) = tenants([4, 4], DomainLimits::default());
    let keys = chain(1, 4);
    assert_ne!(mine, theirs, "the same space in two domains is two spaces");
    assert_eq!(world.store(1, mine, &keys, 0, Stamp(0)), 4);
    for number in 1..9 {
        world.store(2, theirs, &chain(number, 4), 0, Stamp(0));
    }
    assert_eq!(world.lookup(1, mine, &keys).pages, 4);
    assert_eq!(world.lookup(2, theirs, &chain(8, 4)).pages, 4);
    let (one, two) = (report(&world, DomainId::default()).dram, report(&world, OTHER).dram);
    assert_eq!((one.pages, one.used_bytes, one.capacity_bytes), (4, 16384, 16384));
    assert_eq!((two.pages, world.core.dram().pages), (4, 8));
}

#[test]
fn an_arena_grows_when_a_part_is_added() {
    let (mut world, [space, _]) = tenants([0, 0], DomainLimits::default());
    let keys = chain(1, 4);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), 0, "there is no memory yet");
    world.add_part(OTHER, 4);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), 0, "that is another's");
    world.add_part(DomainId::default(), 2);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), 2);
    world.add_part(DomainId::default(), 2);
    assert_eq!(world.store(1, space, &keys, 2, Stamp(0)), 2);
    assert_eq!(world.lookup(1, space, &keys).dram, 4);
}

#[test]
fn a_read_that_waits_for_a_frame_gets_one_of_a_new_part() {
    let mut world = World::with_ssd(1, 100, 9, 4);
    world.open(1, 1, Mode::ZeroCopy);
    let space = world.open_space(1, 1, 4096, 2);
    let keys = chain(1, 3);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 1, space, &keys, Stamp(0), 1000);
    world.finish_jobs();
    assert_eq!(world.lease(1, 1).places.len(), 1, "the only frame is leased");
    world.add_part(DomainId::default(), 2);
    world.finish_jobs();
    assert_eq!(world.lease(1, 1).places.len(), 3);
}

#[test]
fn odd_parts_are_ignored() {
    let (mut world, _) = tenants([1, 1], DomainLimits::default());
    let added = |part, domain, bytes| Event::PartAdded { part: PartId(part), domain, bytes };
    world.step(added(0, OTHER, 1 << 30));
    world.step(added(8, DomainId([9; 16]), 4096));
    world.step(added(9, OTHER, u64::MAX));
    assert!(!world.core.has_part(PartId(8)) && !world.core.has_part(PartId(9)));
    world.step(added(10, OTHER, 4095));
    assert!(world.core.has_part(PartId(10)), "too small for a frame, and there");
    assert_eq!(world.core.dram().capacity_bytes, 8192);
}

#[test]
fn sessions_are_counted_for_each_domain() {
    let limits = DomainLimits { max_sessions: 1, ..DomainLimits::default() };
    let (mut world, _) = tenants([1, 1], limits);
    for (session, domain) in [(3, OTHER), (4, DomainId([9; 16]))] {
        assert!(!world.core.has_session_room_in(domain));
        let (session, process) = (SessionId(session), ProcessId { pid: 9, start: 1 });
        world.step(Event::SessionOpened { session, domain, process, user: 0, mode: Mode::Copy });
        world.kill_quietly(session);
    }
    world.kill(1);
    assert!(world.core.has_session_room_in(DomainId::default()));
    assert_eq!(report(&world, OTHER).sessions, 1);
}

#[test]
fn a_session_opens_spaces_of_its_own_domain_only() {
    let (mut world, _) = tenants([1, 1], DomainLimits::default());
    let before = world.replies.len();
    let (session, request) = (SessionId(1), RequestId(99));
    let (digest, page_bytes, slots) = (digest(1), 4096, 1);
    let domain = OTHER;
    world.step(Event::SpaceOpened { session, request, domain, digest, page_bytes, slots });
    assert!(matches!(world.replies[before].2, Reply::Refused(_)));
    let unknown = world.core.intern_space(DomainId([9; 16]), digest, page_bytes).unwrap_err();
    assert_eq!(unknown.reason, RefusedReason::Unknown);
}

#[test]
fn one_domain_cannot_use_up_the_leases_or_holds_of_another() {
    let limits = DomainLimits {
        max_leased_pages: 2,
        max_holds: 2,
        max_held_pages: 3,
        ..DomainLimits::default()
    };
    let (mut world, spaces) = tenants([4, 4], limits);
    let keys = chain(1, 3);
    for (session, space) in [1, 2].into_iter().zip(spaces) {
        world.store(session, space, &keys, 0, Stamp(0));
        world.fetch(session, 1, space, &keys[..2], Stamp(0), 10);
        let source = FetchSource::Keys { keys: keys[2..].into() };
        let (lease, stamp) = (LeaseId(2), Stamp(0));
        let fetch = Fetch { space, lease, source, stamp, deadline_ms: 10, recompute_ns: 0 };
        let reply = world.ask(session, &Request::Fetch(fetch));
        let Some(Reply::Refused(refused)) = reply else { panic!("two pages are the limit") };
        assert_eq!(refused.reason, RefusedReason::Busy);
        let holds = |world: &mut World, count: usize| {
            world.lookup_hold(session, &[space], &keys[..count], 1000).hold.is_some()
        };
        assert!(holds(&mut world, 2) && !holds(&mut world, 2), "three held pages are the limit");
        assert!(holds(&mut world, 1) && !holds(&mut world, 1), "two holds are the limit");
    }
    for domain in [DomainId::default(), OTHER] {
        let report = report(&world, domain);
        assert_eq!((report.leased_pages, report.holds, report.held_pages), (2, 2, 3));
    }
}

#[test]
fn one_domain_cannot_use_up_the_prefetches_of_another() {
    let sizes = [size(100, 9, 4)];
    let limits = DomainLimits { max_prefetches: 1, ..DomainLimits::default() };
    let mut settings = config(&sizes);
    for domain in &mut settings.domains {
        domain.limits = limits;
    }
    let mut world = World::with_logs(2, settings, World::with_devices(1, &sizes).logs);
    world.recover(world::devices::FIRST, &[], true);
    world.add_part(OTHER, 2);
    for (session, domain) in [(1, DomainId::default()), (2, OTHER)] {
        world.open_in(domain, session, session as u32, Mode::ZeroCopy);
        let space = world.open_space(session, 1, 4096, 2);
        let runs = [chain(1, 4), chain(2, 4)];
        for keys in &runs {
            world.store(session, space, keys, 0, Stamp(0));
        }
        let started = runs.map(|keys| {
            let wish = Prefetch { space, keys: keys[2..].into(), ttl_ms: 1000 };
            match world.ask(session, &Request::Prefetch(wish)) {
                Some(Reply::Prefetch(reply)) => reply.started,
                other => panic!("a prefetch is answered at once, not with {other:?}"),
            }
        });
        assert!(started[0] > 0 && started[1] == 0, "one is the limit: {started:?}");
        assert_eq!(report(&world, domain).prefetches, 1);
    }
}

#[test]
fn domains_are_configured_once_each() {
    let domain = DomainConfig::default();
    let error = Config { domains: vec![domain; 2], ..Config::default() }.validate().unwrap_err();
    assert_eq!(error.to_string(), "domains configured twice is 1, allowed 0");
    assert!(Config { domains: Vec::new(), ..Config::default() }.validate().is_err());
}

#[test]
fn records_of_a_domain_that_is_gone_are_ignored() {
    let (sizes, own) = ([size(100, 9, 4)], DomainId::default());
    let mut world = World::with_devices(1, &sizes);
    world.add_part(OTHER, 1);
    world.open_in(OTHER, 1, 1, Mode::ZeroCopy);
    let space = world.open_space(1, 1, 4096, 2);
    world.store(1, space, &chain(1, 6), 0, Stamp(0));
    let log = world.logs.remove(0).crash(|_| false);
    let records = log.recover();
    let domains = vec![DomainConfig { id: own, ..DomainConfig::default() }];
    let mut again = World::with_logs(2, Config { domains, ..config(&sizes) }, vec![log]);
    again.recover(world::devices::FIRST, &records, true);
    let stats = again.core.stats();
    assert_eq!((stats.recovered_records, stats.recovery_ignored), (0, records.len() as u64));
    assert!(!records.is_empty() && !again.log(world::devices::FIRST).to_free.is_empty());
}

#[test]
fn what_a_tenant_is_told_is_the_same_whatever_another_does() {
    fn idle(_: &mut World, _: SpaceId) {}
    fn miss(world: &mut World, space: SpaceId) {
        world.lookup_hold(1, &[space], &chain(3, 2), 10);
        world.offer(1, space, None, 0, &chain(4, 2), Stamp(0));
    }
    fn hit(world: &mut World, space: SpaceId) {
        let keys = chain(1, 2);
        world.store(1, space, &keys, 0, Stamp(0));
        assert!(world.lookup_hold(1, &[space], &keys, 10).hold.is_some());
        let lease = 100 + world.next_lease();
        world.fetch(1, lease, space, &keys, Stamp(0), 10);
        world.release(1, lease, u32::MAX);
    }
    let told = |other: fn(&mut World, SpaceId)| {
        let (mut world, [theirs, own]) = tenants([4, 4], DomainLimits::default());
        let keys = chain(2, 2);
        for round in 0..2 {
            other(&mut world, theirs);
            world.lookup_hold(2, &[own], &keys, 10);
            other(&mut world, theirs);
            world.store(2, own, &keys, 0, Stamp(0));
            other(&mut world, theirs);
            world.lookup_hold(2, &[own], &keys, 10);
            world.fetch(2, round, own, &keys, Stamp(0), 10);
        }
        let own = world.replies.into_iter().filter(|(to, ..)| *to == SessionId(2));
        own.map(|(_, _, reply)| reply)
            .filter(|reply| !matches!(reply, Reply::FetchReady(_)))
            .collect::<Vec<_>>()
    };
    let alone = told(idle);
    assert!(alone.len() > 8, "it was told {} things", alone.len());
    assert_eq!(told(miss), alone);
    assert_eq!(told(hit), alone);
}

/// Two tenants on one SSD, with a space each; sessions 1 and 2.
fn on_one_ssd(frames: [u64; 2], limits: [DomainLimits; 2], ssd: Size) -> (World, [SpaceId; 2]) {
    let own = [DomainId::default(), OTHER];
    let domain = |(id, limits)| DomainConfig { id, limits, max_age_s: 0 };
    let domains = own.into_iter().zip(limits).map(domain).collect();
    let settings = Config { domains, fetch_window: 100, ..config(&[ssd]) };
    let logs = World::with_devices(1, &[ssd]).logs;
    let mut world = World::with_logs(frames[0], settings, logs);
    world.recover(FIRST, &[], true);
    world.add_part(OTHER, frames[1]);
    let spaces = [(1, own[0]), (2, own[1])].map(|(session, id)| {
        world.open_in(id, session, session as u32, Mode::ZeroCopy);
        world.open_space(session, 1, 4096, 8)
    });
    (world, spaces)
}

#[test]
fn a_domain_has_pages_and_spaces_up_to_its_own_limits() {
    let limits = DomainLimits { max_pages: 3, max_spaces: 2, ..DomainLimits::default() };
    let (mut world, [mine, theirs]) = tenants([8, 8], limits);
    assert_eq!(world.store(1, mine, &chain(1, 5), 0, Stamp(0)), 3);
    assert_eq!(world.store(2, theirs, &chain(1, 5), 0, Stamp(0)), 3, "the other has its own");
    let own = DomainId::default();
    assert_eq!((report(&world, own).known_pages, report(&world, own).spaces), (3, 1));
    world.core.intern_space(own, digest(2), 4096).unwrap();
    // A third takes the place of the second, which nobody has open and which has no pages.
    world.core.intern_space(own, digest(3), 4096).unwrap();
    world.open_space(1, 4, 4096, 1);
    let full = world.core.intern_space(own, digest(5), 4096).unwrap_err();
    assert_eq!(full.reason, RefusedReason::Busy);
    world.core.intern_space(OTHER, digest(5), 4096).unwrap();
}

/// Ends all jobs and all work that no step does all of.
fn rest(world: &mut World) {
    world.finish_jobs();
    let mut rounds = 0;
    while world.core.next_timer().is_some_and(|due| due <= world.now) {
        world.advance(world.now);
        world.finish_jobs();
        rounds += 1;
        assert!(rounds < MANY, "what there is to do comes to an end");
    }
}

#[test]
fn a_domain_beyond_its_quota_loses_its_own_oldest_pages() {
    let quota = DomainLimits { ssd_bytes: 8 * 4096, ..DomainLimits::default() };
    let limits = [DomainLimits::default(), quota];
    let (mut world, [mine, theirs]) = on_one_ssd([1, 1], limits, size(100, 30, 4));
    world.store(1, mine, &chain(1, 4), 0, Stamp(0));
    // More than the SSD has room for: it is made of what was forgotten.
    for number in 1..60 {
        world.store(2, theirs, &chain(number, 4), 0, Stamp(0));
        rest(&mut world);
        let ssd = report(&world, OTHER).ssd;
        assert!(ssd.used_bytes <= ssd.capacity_bytes && ssd.capacity_bytes == 8 * 4096, "{ssd:?}");
    }
    assert_eq!(world.lookup(2, theirs, &chain(1, 4)).pages, 0, "the oldest go");
    assert_eq!(world.lookup(2, theirs, &chain(59, 4)).pages, 4, "the newest stay");
    assert!(report(&world, OTHER).forgotten_records > 0);
    assert_eq!(report(&world, DomainId::default()).forgotten_records, 0);
    assert_eq!(world.lookup(1, mine, &chain(1, 4)).pages, 4, "and all of the other's");
}

#[test]
fn what_is_held_stays_beyond_the_quota_and_goes_with_the_hold() {
    let quota = DomainLimits { ssd_bytes: 2 * 4096, ..DomainLimits::default() };
    let limits = [DomainLimits::default(), quota];
    let (mut world, [_, theirs]) = on_one_ssd([1, 1], limits, size(100, 30, 4));
    world.store(2, theirs, &chain(1, 3), 0, Stamp(0));
    let hold = world.lookup_hold(2, &[theirs], &chain(1, 3), 1000).hold.unwrap();
    for number in 2..5 {
        world.store(2, theirs, &chain(number, 3), 0, Stamp(0));
        rest(&mut world);
    }
    assert_eq!(world.lookup(2, theirs, &chain(1, 3)).pages, 3);
    assert!(world.core.next_timer() > Some(world.now), "nothing more can be done about it");
    world.ask(2, &Request::DropHold(DropHold { hold }));
    rest(&mut world);
    assert!(report(&world, OTHER).ssd.used_bytes <= 2 * 4096);
}

#[test]
fn a_page_that_a_quota_put_off_its_ssd_is_written_again_only_once_it_is_used() {
    let quota = DomainLimits { ssd_bytes: 4096, ..DomainLimits::default() };
    let limits = [DomainLimits::default(), quota];
    let (mut world, [_, theirs]) = on_one_ssd([1, 32], limits, size(100, 30, 4));
    // The coldest pages of a full tier are written ahead of need: more than the quota has room for.
    for number in 1..=8 {
        assert_eq!(world.store(2, theirs, &chain(number, 4), 0, Stamp(0)), 4);
    }
    let forgotten = |world: &mut World| {
        for _ in 0..100 {
            rest(world);
        }
        report(world, OTHER).forgotten_records
    };
    let first = forgotten(&mut world);
    assert!(first > 0, "one drove out another");
    assert_eq!(forgotten(&mut world), first, "and that was all");
}

#[test]
fn reclaim_leaves_a_domain_its_floor() {
    let found = |floor: u64| {
        let floor = DomainLimits { ssd_floor_bytes: floor * 4096, ..DomainLimits::default() };
        let limits = [floor, DomainLimits::default()];
        let (mut world, [mine, theirs]) = on_one_ssd([1, 2], limits, size(24, 8, 4));
        let keys = chain(1, 4);
        world.store(1, mine, &keys, 0, Stamp(0));
        for number in 1..40 {
            world.store(2, theirs, &chain(number, 4), 0, Stamp(0));
            world.finish_jobs();
        }
        assert_eq!(world.lookup(2, theirs, &chain(39, 4)).pages, 4, "the other goes on");
        world.lookup(1, mine, &keys).pages
    };
    assert_eq!((found(0), found(4)), (0, 4));
}

/// Two tenants: one wants 48 pages from SSD at once, then the other one.
fn flooded(theirs: DomainLimits) -> World {
    let limits = [DomainLimits::default(), theirs];
    let (mut world, [mine, theirs]) = on_one_ssd([1, 48], limits, size(200, 50, 8));
    for number in 1..3 {
        world.store(1, mine, &chain(number, 1), 0, Stamp(0));
    }
    for number in 0..12 {
        world.store(2, theirs, &chain(number, 8), 0, Stamp(0));
    }
    world.finish_jobs();
    for number in 0..6 {
        world.fetch(2, number, theirs, &chain(number, 8), Stamp(0), 1000);
    }
    world.fetch(1, 100, mine, &chain(1, 1), Stamp(0), 1000);
    world
}

fn reads_of(world: &World, domain: DomainId) -> usize {
    world
        .count_jobs(|job| matches!(job, Action::Read { identity, .. } if identity.domain == domain))
}

#[test]
fn nobody_waits_behind_all_that_another_domain_reads() {
    let mut world = flooded(DomainLimits::default());
    assert_eq!(reads_of(&world, OTHER), 2, "the SSD is given two pages at once");
    let mut ended = 0;
    while reads_of(&world, DomainId::default()) == 0 {
        let is_read = |_: &World, job: &Action| matches!(job, Action::Read { .. });
        assert!(world.end_one(false, is_read));
        ended += 1;
    }
    assert!(ended <= 17, "16 pages are a turn, and {ended} reads ended before");
    world.finish_jobs();
    assert_eq!(world.outcome(1, 100), FetchOutcome::Complete);
    for number in 0..6 {
        assert_eq!(world.outcome(2, number), FetchOutcome::Complete);
    }
}

#[test]
fn a_domain_reads_no_more_at_once_than_it_may() {
    let mut world = flooded(DomainLimits { max_reads: 1, ..DomainLimits::default() });
    let (theirs, mine) = (reads_of(&world, OTHER), reads_of(&world, DomainId::default()));
    assert_eq!((theirs, mine), (1, 1), "what one may not have is the other's");
    assert_eq!(report(&world, OTHER).reads, 1);
    world.finish_jobs();
    for number in 0..6 {
        assert_eq!(world.outcome(2, number), FetchOutcome::Complete);
    }
}

#[test]
fn what_waits_for_a_device_that_stops_answering_is_withdrawn() {
    let mut world = flooded(DomainLimits::default());
    world.set_health(FIRST, Health::Stalled);
    assert_eq!(world.outcome(1, 100), FetchOutcome::Missing);
    world.set_health(FIRST, Health::Well);
    world.finish_jobs();
    assert_eq!(reads_of(&world, OTHER), 0, "only what it was given has ended");
}

#[test]
fn a_flood_has_no_more_of_an_ssd_than_its_weight() {
    const WINDOW: usize = 128;
    for (weight, share) in [(1, 64), (3, 32)] {
        let quiet = DomainLimits { weight, ..DomainLimits::default() };
        let limits = [quiet, DomainLimits::default()];
        let (mut world, spaces) = on_one_ssd([1, 1], limits, size(1000, 125, 8));
        for (session, space) in [1, 2].into_iter().zip(spaces) {
            for number in 0..24 {
                world.store(session, space, &chain(number, 8), 0, Stamp(0));
            }
        }
        world.finish_jobs();
        // Room for all of it: nothing but the SSD is waited for.
        world.add_part(DomainId::default(), 192);
        world.add_part(OTHER, 192);
        // The flood has asked for everything before the other asks for anything.
        for (session, space) in [2, 1].into_iter().zip(spaces.into_iter().rev()) {
            for number in 0..24 {
                world.fetch(session, number, space, &chain(number, 8), Stamp(0), 1000);
            }
        }
        let mut begun: BTreeMap<_, bool> = BTreeMap::new();
        let mut next = |world: &mut World| {
            for (job, action) in &world.jobs {
                if let Action::Read { identity, .. } = action {
                    begun.insert(*job, identity.domain == OTHER);
                }
            }
            assert!(world.end_one(false, |_, job| matches!(job, Action::Read { .. })));
            begun.len()
        };
        while next(&mut world) < WINDOW {}
        let flood = begun.values().filter(|is_flood| **is_flood).count();
        // A turn is 16 pages, and the flood was given two before anybody else was there.
        assert!((share - 16..=share + 18).contains(&flood), "{flood} of {WINDOW} at 1:{weight}");
    }
}

#[test]
fn limits_change_while_pages_are_there() {
    let limits = DomainLimits { max_pages: 16, ..DomainLimits::default() };
    let (mut world, [mine, theirs]) = on_one_ssd([1, 1], [limits; 2], size(100, 30, 4));
    for (session, space) in [(1, mine), (2, theirs)] {
        for number in 0..4 {
            assert_eq!(world.store(session, space, &chain(number, 4), 0, Stamp(0)), 4);
        }
        assert_eq!(world.store(session, space, &chain(9, 4), 0, Stamp(0)), 0, "as many as may be");
    }
    rest(&mut world);
    let (own, before) = (DomainId::default(), report(&world, OTHER).ssd.pages);
    let change = |world: &mut World, limits: DomainLimits| {
        world.step(Event::DomainLimits { domain: own, limits });
        rest(world);
    };
    change(&mut world, DomainLimits { ssd_bytes: 4 * 4096, max_pages: 3, ..limits });
    assert_eq!(report(&world, own).ssd.used_bytes, 4 * 4096, "what is beyond a lower quota goes");
    assert_eq!(report(&world, OTHER).ssd.pages, before, "of nobody else");
    assert_eq!(world.store(1, mine, &chain(9, 4), 0, Stamp(0)), 0);
    change(&mut world, DomainLimits { weight: 0, ..limits });
    assert_eq!(report(&world, own).limits.max_pages, 3, "what makes no sense is ignored");
    change(&mut world, DomainLimits { max_pages: 32, ..limits });
    assert_eq!(world.store(1, mine, &chain(9, 4), 0, Stamp(0)), 4);
    let nobody = DomainId::named("nobody");
    world.step(Event::DomainLimits { domain: nobody, limits });
}

#[test]
fn a_session_pins_no_more_than_it_may_and_goes_on_as_it_releases() {
    let limits = DomainLimits { max_session_bytes: 3 * 4096, ..DomainLimits::default() };
    let (mut world, [mine, theirs]) = on_one_ssd([16, 1], [limits; 2], size(100, 30, 4));
    // The first lies in DRAM, the second comes from SSD.
    for (session, space, lease) in [(1, mine, 100), (2, theirs, 200)] {
        let keys = chain(1, 8);
        assert_eq!(world.store(session, space, &keys, 0, Stamp(0)), 8);
        world.finish_jobs();
        if session == 2 {
            world.add_part(OTHER, 16);
        }
        world.fetch(session, lease, space, &keys, Stamp(0), 1000);
        world.finish_jobs();
        assert_eq!(world.lease(session, lease).places.len(), 3, "as many as it may");
        // Another lease of the session's has no room, and other sessions have.
        world.fetch(session, lease + 1, space, &keys[..1], Stamp(0), 1000);
        world.finish_jobs();
        assert_eq!(world.lease(session, lease + 1).places.len(), 0);
        let domain = world.domains[&SessionId(session)];
        world.open_in(domain, session + 10, 9, Mode::ZeroCopy);
        world.open_space(session + 10, 1, 4096, 1);
        world.fetch(session + 10, lease, space, &keys[..1], Stamp(0), 1000);
        world.finish_jobs();
        assert_eq!(world.outcome(session + 10, lease), FetchOutcome::Complete);
        for upto in 1..=8 {
            world.release(session, lease, upto);
            world.finish_jobs();
        }
        assert_eq!(world.outcome(session, lease), FetchOutcome::Complete);
        assert_eq!(world.outcome(session, lease + 1), FetchOutcome::Complete);
    }
    // The bound is lifted while a fetch waits.
    let keys = chain(1, 8);
    world.release(1, 101, u32::MAX);
    world.fetch(1, 102, mine, &keys, Stamp(0), 1000);
    world
        .step(Event::DomainLimits { domain: DomainId::default(), limits: DomainLimits::default() });
    // A few pages a step.
    world.advance(world.now);
    world.finish_jobs();
    assert_eq!(world.outcome(1, 102), FetchOutcome::Complete);
}

#[test]
fn a_tenant_is_not_told_what_sessions_others_have() {
    let (mut world, [mine, _]) = tenants([4, 4], DomainLimits::default());
    let keys = chain(1, 2);
    assert_eq!(world.store(1, mine, &keys, 0, Stamp(0)), 2);
    world.fetch(1, 1, mine, &keys, Stamp(0), 10);
    world.open(3, 3, Mode::ZeroCopy);
    let release = |world: &mut World, by: u64, session: u64| {
        let (session, lease) = (SessionId(session), LeaseId(1));
        world.ask(by, &Request::Release(Release { session, lease, upto: u32::MAX }))
    };
    assert_eq!(release(&mut world, 2, 1), Some(Reply::Done), "another tenant's");
    assert_eq!(release(&mut world, 2, 99), Some(Reply::Done), "nobody's");
    let refused = release(&mut world, 3, 1);
    assert!(matches!(refused, Some(Reply::Refused(_))), "another process's of the same tenant");
    assert_eq!(world.core.session_leases(SessionId(1)).pages, 2);
}

#[test]
fn a_tenant_with_more_users_than_can_be_told_apart_declines_what_more_of_them_store() {
    let (mut world, spaces) = tenants([4, 4], DomainLimits::default());
    world.audits = false;
    let key = chain(1, 1);
    let offers = |world: &mut World, domain: DomainId, user: u32, keys: &[PageKey]| {
        let (session, request) = (SessionId(100), world.request_id());
        let (process, mode) = (ProcessId { pid: 9, start: 1 }, Mode::ZeroCopy);
        world.step(Event::SessionOpened { session, domain, process, user, mode });
        let (digest, page_bytes, slots) = (digest(1), 4096, 1);
        world.step(Event::SpaceOpened { session, request, domain, digest, page_bytes, slots });
        let space = spaces[usize::from(domain == OTHER)];
        assert!(world.core.is_open(session, space), "it is no reason to shut anybody out");
        let reply = world.offer(100, space, None, 0, keys, Stamp(0)).unwrap();
        world.step(Event::SessionClosed { session });
        world.replies.clear();
        reply.outcomes.first().copied().and_then(OfferOutcome::from_byte)
    };
    // Who stores nothing needs no number.
    for user in 0..100 {
        assert_eq!(offers(&mut world, OTHER, 100_000 + user, &[]), None);
    }
    let wanted = Some(OfferOutcome::Wanted);
    for user in 0..=u32::from(u16::MAX) {
        assert_eq!(offers(&mut world, OTHER, user, &key), wanted);
    }
    assert_eq!(offers(&mut world, OTHER, 100_000, &key), Some(OfferOutcome::NotAdmitted));
    assert_eq!(offers(&mut world, OTHER, 1, &key), wanted, "it is known");
    let own = DomainId::default();
    assert_eq!(offers(&mut world, own, 100_000, &key), wanted, "a tenant's users are its own");
    world.core.audit();
}
