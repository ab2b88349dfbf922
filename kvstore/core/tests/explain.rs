//! Why lookups miss: each cause, told as what it is.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use undercroft_core::{
    Action, Admission, Config, Core, DomainConfig, DomainLimits, Event, Health, Micros, ProcessId,
    WriteBudget,
};
use undercroft_wire::{
    DomainId, Finding, Looked, Lookup, Miss, MissCause, Missed, Mode, OfferReply, PageKey,
    PurgeScope, Request, RequestId, Rival, SessionId, SpaceId, Stamp,
};
use world::devices::{FIRST, config, size};
use world::{EXPLAINED, OTHER, World, chain, digest, opened};

const OWN: DomainId = DomainId([0; 16]);
const SECOND: u64 = 1_000_000;

fn last(world: &World) -> Looked {
    match world.core.explanations().next_back().unwrap().finding {
        Finding::Looked(looked) => looked,
        other => panic!("{other:?}"),
    }
}

/// Looks up and says what is told of the first page that was not found.
fn miss(world: &mut World, space: SpaceId, keys: &[PageKey]) -> Option<Miss> {
    let before = world.core.stats().misses;
    let found = world.lookup(1, space, keys);
    let looked = last(world);
    assert_eq!((looked.keys as usize, looked.spaces), (keys.len(), 1));
    assert_eq!((looked.dram, looked.ssd), (found.dram, found.ssd));
    assert_eq!(looked.miss.is_none(), found.pages as usize == keys.len());
    if let Some(miss) = looked.miss {
        assert_eq!(miss.key, keys[found.pages as usize].0[..8], "the first that is missing");
        let counted = world.core.stats().misses;
        let more = MissCause::ALL.into_iter().zip(before.iter().zip(counted));
        for (cause, (before, counted)) in more {
            assert_eq!(counted - before, u64::from(cause == miss.cause), "{cause:?} is counted");
        }
    }
    looked.miss
}

fn cause(world: &mut World, space: SpaceId, keys: &[PageKey]) -> MissCause {
    miss(world, space, keys).expect("a page is missing").cause
}

/// Offers without bringing anything.
fn offer(world: &mut World, space: SpaceId, keys: &[PageKey]) -> OfferReply {
    world.offer(1, space, None, 0, keys, Stamp(0)).unwrap()
}

fn is_append(job: &Action) -> bool {
    matches!(job, Action::Append { .. })
}

/// A world with pages of chain 1 on its SSD, and nothing of them in DRAM.
fn on_ssd(pages: u64) -> (World, SpaceId, Vec<PageKey>) {
    let (mut world, space) = opened(World::with_ssd(2, 100, 20, 4), 2);
    let keys = chain(1, pages);
    world.store(1, space, &keys, 0, Stamp(0));
    world.store(1, space, &chain(2, 2), 0, Stamp(0));
    assert_eq!(world.lookup(1, space, &keys).ssd as u64, pages);
    (world, space, keys)
}

#[test]
fn what_nobody_stored_was_never_stored() {
    let (mut world, space) = opened(World::dram(4), 4);
    let keys = chain(1, 4);
    assert_eq!(cause(&mut world, space, &keys), MissCause::NeverStored);
    world.store(1, space, &keys[..2], 0, Stamp(0));
    let told = miss(&mut world, space, &keys).unwrap();
    assert_eq!((told.cause, told.left_unix_s, told.held_in), (MissCause::NeverStored, None, None));
    assert_eq!(last(&world).dram, 2);
    assert_eq!(miss(&mut world, space, &keys[..2]), None);
    assert_eq!(last(&world).space, digest(1));
}

#[test]
fn what_left_dram_without_an_ssd_was_evicted_and_when() {
    let settings = Config { unix_s: 5_000, slab_bytes: 2 * 4096, ..Config::default() };
    let (mut world, space) = opened(World::with_frames(2, settings), 4);
    let keys = chain(1, 2);
    world.store(1, space, &keys, 0, Stamp(0));
    world.now.0 += 7 * SECOND;
    world.store(1, space, &chain(2, 2), 0, Stamp(0));
    world.now.0 += 7 * SECOND;
    let told = miss(&mut world, space, &keys).unwrap();
    assert_eq!((told.cause, told.left_unix_s), (MissCause::Evicted, Some(5_007)));
    let explanation = world.core.explanations().next_back().unwrap();
    assert_eq!((explanation.unix_ms, explanation.domain), (5_014_000, OWN));
    assert_eq!((explanation.session, explanation.pid), (SessionId(1), 1));
    // Stored anew it is there, and the next time it leaves it leaves anew.
    world.store(1, space, &keys, 0, Stamp(0));
    assert_eq!(miss(&mut world, space, &keys), None);
    world.store(1, space, &chain(2, 2), 0, Stamp(0));
    assert_eq!(miss(&mut world, space, &keys).unwrap().left_unix_s, Some(5_014));
}

#[test]
fn what_leaves_while_no_ssd_takes_pages_was_evicted() {
    let (mut world, space) = opened(World::with_ssd(2, 100, 20, 4), 2);
    let keys = chain(1, 1);
    world.set_health(FIRST, Health::ReadOnly);
    world.store(1, space, &keys, 0, Stamp(0));
    for number in 2..5 {
        let stamp = world.lookup(1, space, &chain(number, 1)).stamp;
        world.store(1, space, &chain(number, 1), 0, stamp);
    }
    assert_eq!(cause(&mut world, space, &keys), MissCause::Evicted);
}

#[test]
fn what_was_not_worth_writing_was_not_admitted() {
    let sizes = [size(64, 20, 4)];
    let settings = Config { admission: Admission::Auto(10), ..config(&sizes) };
    let mut world = World::with_devices_in(settings, 8, &sizes);
    world.audits = false;
    world.open(1, 1, Mode::ZeroCopy);
    let space = world.open_space(1, 1, 4096, 8);
    for number in 0..200 {
        let stamp = world.lookup(1, space, &chain(number, 4)).stamp;
        world.store(1, space, &chain(number, 4), 0, stamp);
        world.finish_jobs();
    }
    assert!(world.core.stats().refused_pages > 400);
    assert_eq!(cause(&mut world, space, &chain(180, 4)), MissCause::NotAdmitted);
}

#[test]
fn what_the_write_budget_did_not_pay_for_is_told_so() {
    let sizes = [size(100, 30, 4)];
    let write_budget = WriteBudget { bytes_per_s: Some(4096), ..WriteBudget::default() };
    let settings = Config { write_budget, ..config(&sizes) };
    let (mut world, space) = opened(World::with_devices_in(settings, 2, &sizes), 2);
    for number in 1..40 {
        let stamp = world.lookup(1, space, &chain(number, 2)).stamp;
        world.store(1, space, &chain(number, 2), 0, stamp);
        world.finish_jobs();
    }
    assert!(world.core.stats().over_budget_pages > 0);
    assert_eq!(cause(&mut world, space, &chain(38, 2)), MissCause::OverBudget);
}

#[test]
fn what_no_ssd_would_take_was_not_written() {
    let (mut world, space) = opened(World::with_ssd(2, 100, 20, 4), 2);
    let keys = chain(1, 2);
    let begin = |world: &mut World, keys: &[PageKey]| {
        let told = offer(world, space, keys);
        world.commit(1, space, told.offer, &told.slots, &[]);
        world.finish_copies();
        while world.end_one(true, |_, job| is_append(job)) {
            world.finish_copies();
        }
    };
    begin(&mut world, &keys);
    begin(&mut world, &chain(2, 2));
    assert!(world.core.stats().append_failures > 0);
    assert_eq!(cause(&mut world, space, &keys), MissCause::NotWritten);
}

#[test]
fn what_is_offered_is_coming_and_what_does_not_come_was_not_taken() {
    let (mut world, space) = opened(World::dram(2), 2);
    let keys = chain(1, 1);
    let told = offer(&mut world, space, &keys);
    assert_eq!(cause(&mut world, space, &keys), MissCause::Coming);
    world.commit(1, space, told.offer, &[], &told.slots);
    assert_eq!(cause(&mut world, space, &keys), MissCause::NotTaken);
    let told = offer(&mut world, space, &keys);
    world.commit(1, space, told.offer, &told.slots, &[]);
    assert_eq!(cause(&mut world, space, &keys), MissCause::Coming, "it is being copied");
    assert!(world.end_one(true, |_, job| matches!(job, Action::CopyIn { .. })));
    assert_eq!(cause(&mut world, space, &keys), MissCause::NotTaken, "the copy has failed");
}

#[test]
fn what_finds_no_room_was_not_taken() {
    let (mut world, space) = opened(World::dram(2), 1);
    let keys = chain(1, 3);
    // All of DRAM is leased.
    world.store(1, space, &keys[..2], 0, Stamp(0));
    world.fetch(1, 1, space, &keys[..2], Stamp(0), 10);
    assert_eq!(world.store(1, space, &keys, 2, Stamp(0)), 0);
    assert_eq!(cause(&mut world, space, &keys), MissCause::NotTaken);
    // The only slot is taken.
    world.release(1, 1, u32::MAX);
    assert_eq!(offer(&mut world, space, &chain(2, 1)).slots.len(), 1);
    assert_eq!(offer(&mut world, space, &chain(3, 1)).slots.len(), 0);
    assert_eq!(cause(&mut world, space, &chain(3, 1)), MissCause::NotTaken);
}

#[test]
fn what_made_room_on_an_ssd_was_reclaimed() {
    let (mut world, space) = opened(World::with_ssd(2, 12, 6, 4), 2);
    let keys = chain(1, 2);
    for number in 1..20 {
        let stamp = world.lookup(1, space, &chain(number, 2)).stamp;
        world.store(1, space, &chain(number, 2), 0, stamp);
        world.finish_jobs();
    }
    assert!(world.core.stats().ssd_dropped_pages > 0);
    assert_eq!(cause(&mut world, space, &keys), MissCause::Reclaimed);
}

#[test]
fn what_went_beyond_a_quota_is_told_so() {
    let limits = DomainLimits { ssd_bytes: 4 * 4096, ..DomainLimits::default() };
    let sizes = [size(100, 20, 4)];
    let domains = vec![DomainConfig { id: OWN, limits, max_age_s: 0 }];
    let settings = Config { domains, ..config(&sizes) };
    let (mut world, space) = opened(World::with_devices_in(settings, 2, &sizes), 2);
    for number in 1..8 {
        let stamp = world.lookup(1, space, &chain(number, 2)).stamp;
        world.store(1, space, &chain(number, 2), 0, stamp);
        world.finish_jobs();
    }
    assert_eq!(cause(&mut world, space, &chain(1, 2)), MissCause::OverQuota);
}

#[test]
fn a_record_that_fails_its_check_and_one_that_cannot_be_read_are_told_apart() {
    for (damaged, wanted) in [(true, MissCause::Damaged), (false, MissCause::Unreadable)] {
        let (mut world, space, keys) = on_ssd(2);
        world.fetch(1, 1, space, &keys[..1], Stamp(0), 1000);
        world.finish_copies();
        let read = |_: &World, job: &Action| matches!(job, Action::Read { .. });
        while world.count_jobs(|job| matches!(job, Action::Read { .. })) == 0 {
            assert!(world.end_one(false, |_, job| is_append(job)), "a frame is made free");
        }
        let Some(Action::Read { extent, .. }) =
            world.jobs.values().find(|job| read(&world, job)).cloned()
        else {
            panic!("it is being read")
        };
        if damaged {
            world.log_mut(FIRST).damage(extent);
        }
        assert!(world.end_one(!damaged, read));
        assert_eq!(cause(&mut world, space, &keys), wanted);
    }
}

#[test]
fn after_a_start_records_are_first_unknown_then_unproved() {
    let (mut world, _, keys) = on_ssd(2);
    let mut log = world.logs.remove(0).crash(|_| false);
    log.unseal();
    let (mut world, space) = opened(World::with_logs(4, config(&[size(100, 20, 4)]), vec![log]), 2);
    assert_eq!(cause(&mut world, space, &keys), MissCause::Recovering);
    let records = world.log(FIRST).recover();
    world.recover(FIRST, &records, true);
    assert_eq!(cause(&mut world, space, &keys), MissCause::Unproved);
    let torn = records.iter().find(|record| record.identity.key == keys[0]).unwrap().extent;
    world.log_mut(FIRST).damage(torn);
    world.finish_jobs();
    assert_eq!(cause(&mut world, space, &keys), MissCause::Damaged);
    assert_eq!(cause(&mut world, space, &chain(7, 1)), MissCause::NeverStored);
}

#[test]
fn an_ssd_that_does_not_answer_and_one_that_is_lost_are_told_apart() {
    let (mut world, space, keys) = on_ssd(3);
    world.set_health(FIRST, Health::Stalled);
    assert_eq!(cause(&mut world, space, &keys), MissCause::Silent);
    world.set_health(FIRST, Health::Well);
    assert_eq!(miss(&mut world, space, &keys), None);
    world.lose(FIRST);
    assert_eq!(cause(&mut world, space, &keys), MissCause::DeviceLost);
    world.advance(world.now);
    assert_eq!(cause(&mut world, space, &keys), MissCause::DeviceLost, "its records forgotten");
}

#[test]
fn what_was_purged_is_told_so_and_what_was_leased_then_too() {
    let (mut world, space) = opened(World::dram(2), 2);
    let keys = chain(1, 2);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 1, space, &keys[..1], Stamp(0), 10);
    let scope = PurgeScope { domain: Some(OWN), ..PurgeScope::default() };
    world.begin_purge(scope);
    assert_eq!(cause(&mut world, space, &keys), MissCause::Purged, "while it goes on");
    assert_eq!(world.purge(scope), 0);
    assert_eq!(cause(&mut world, space, &keys), MissCause::Purged, "somebody reads it");
    assert_eq!(cause(&mut world, space, &keys[1..]), MissCause::Purged);
    world.release(1, 1, u32::MAX);
    assert_eq!(cause(&mut world, space, &keys), MissCause::Purged);
    assert_eq!(world.store(1, space, &keys, 0, Stamp(0)), 2);
    assert_eq!(miss(&mut world, space, &keys), None);
}

#[test]
fn what_is_too_old_has_expired() {
    let domains = vec![DomainConfig { id: OWN, limits: DomainLimits::default(), max_age_s: 100 }];
    let settings = Config { domains, unix_s: 1_000, slab_bytes: 2 * 4096, ..Config::default() };
    let (mut world, space) = opened(World::with_frames(2, settings), 2);
    let keys = chain(1, 2);
    world.store(1, space, &keys, 0, Stamp(0));
    world.now.0 += 101 * SECOND;
    assert_eq!(cause(&mut world, space, &keys), MissCause::Expired, "before it is dropped");
    world.advance(Micros(world.now.0 + 60 * SECOND));
    assert!(world.core.stats().expired_pages > 0);
    assert_eq!(cause(&mut world, space, &keys), MissCause::Expired, "and after");
    assert_eq!(cause(&mut world, space, &chain(2, 1)), MissCause::NeverStored);
}

#[test]
fn a_key_that_another_space_has_is_told_and_never_what_another_tenant_has() {
    let sizes = [size(64, 20, 4)];
    let mut world = World::with_devices_in(config(&sizes), 4, &sizes);
    world.add_part(OTHER, 4);
    world.open(1, 1, Mode::ZeroCopy);
    world.open_in(OTHER, 2, 2, Mode::ZeroCopy);
    let [space, other] = [1, 2].map(|space| world.open_space(1, space, 4096, 4));
    let foreign = world.open_space(2, 2, 4096, 4);
    let keys = chain(1, 1);
    world.store(2, foreign, &keys, 0, Stamp(0));
    let told = miss(&mut world, space, &keys).unwrap();
    assert_eq!((told.cause, told.held_in), (MissCause::NeverStored, None));
    world.store(1, other, &keys, 0, Stamp(0));
    let told = miss(&mut world, space, &keys).unwrap();
    assert_eq!((told.cause, told.held_in), (MissCause::OtherSpace, Some(digest(2))));
}

#[test]
fn of_several_spaces_the_one_that_lacks_the_page_is_named() {
    let (mut world, first) = opened(World::dram(6), 4);
    let second = world.open_space(1, 2, 4096, 4);
    let keys = chain(1, 2);
    world.store(1, first, &keys, 0, Stamp(0));
    world.store(1, second, &keys[..1], 0, Stamp(0));
    let look = |world: &mut World, spaces: &[SpaceId]| {
        world.lookup_hold(1, spaces, &keys, 0);
        last(world)
    };
    let looked = look(&mut world, &[first, second]);
    assert_eq!((looked.spaces, looked.space, looked.dram), (2, digest(2), 1));
    // The one beside it is asked about as well, and is no other space.
    assert_eq!(looked.miss.unwrap().cause, MissCause::NeverStored);
    world.store(1, second, &keys, 1, Stamp(0));
    let looked = look(&mut world, &[second, first]);
    assert_eq!((looked.space, looked.dram, looked.miss), (digest(2), 2, None));
}

#[test]
fn lookups_that_the_board_answered_are_counted_together() {
    let (mut world, space) = opened(World::dram(2), 2);
    world.open(2, 2, Mode::ZeroCopy);
    let board = |world: &mut World, session, lookups| {
        world.ask(session, &Request::Missed(Missed { lookups }));
    };
    for (session, lookups) in [(1, 3), (1, 4), (2, 5), (1, 0), (1, 1)] {
        board(&mut world, session, lookups);
    }
    world.lookup(1, space, &chain(1, 1));
    board(&mut world, 1, 2);
    board(&mut world, 1, u32::MAX);
    let told = world.core.explanations().map(|told| match told.finding {
        Finding::Board { lookups } => (told.session.0, lookups),
        Finding::Looked(_) => (told.session.0, 0),
        Finding::OtherProbe(_) => panic!("{told:?}"),
    });
    let told: Vec<_> = told.collect();
    assert_eq!(told, [(1, 7), (2, 5), (1, 1), (1, 0), (1, u32::MAX)]);
}

#[test]
fn only_the_newest_lookups_are_remembered() {
    let (mut world, space) = opened(World::dram(2), 2);
    for number in 0..EXPLAINED + 3 {
        world.lookup(1, space, &chain(number.into(), 1));
    }
    let told: Vec<_> = world.core.explanations().map(|told| told.finding).collect();
    assert_eq!(told.len(), EXPLAINED as usize);
    let first = |finding: &Finding| match finding {
        Finding::Looked(looked) => looked.miss.unwrap().key,
        _ => panic!("all were looked for"),
    };
    assert_eq!(first(&told[0]), world::key(3, 0).0[..8], "the oldest that is left");
}

#[test]
fn nothing_is_remembered_where_nobody_asks() {
    let mut core = Core::new(Config::default()).unwrap();
    let (session, request, domain) = (SessionId(1), RequestId(1), OWN);
    let mut step = |event: Event<'_>| core.step(Micros(0), event, &mut Vec::new());
    let process = ProcessId { pid: 1, start: 1 };
    step(Event::SessionOpened { session, domain, process, user: 0, mode: Mode::ZeroCopy });
    let (digest, page_bytes) = (digest(1), 4096);
    step(Event::SpaceOpened { session, request, domain, digest, page_bytes, slots: 1 });
    let keys = chain(1, 1);
    let keys = keys.as_slice().into();
    let lookup = Lookup { spaces: vec![SpaceId(0)], keys, hold_ms: 0, rival: Rival::default() };
    step(Event::Request { session, request, body: &Request::Lookup(lookup) });
    assert_eq!((core.stats().lookups, core.explanations().count()), (1, 0));
    assert!(core.stats().misses.iter().all(|lookups| *lookups == 0));
}
