//! One daemon after another: what was in memory is there again, and what may be in use is given
//! to nobody.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use proptest::prelude::*;
use undercroft_core::{
    Action, Config, Core, Event, Micros, ProcessId, Restored, RestoredFrame, RestoredLease,
    RestoredPage, RestoredSession, RestoredSlab, RestoredSpace,
};
use undercroft_wire::{
    DomainId, FetchOutcome, LeaseId, Mode, PartId, Release, Reply, Request, SessionId, SpaceId,
    Stamp,
};
use world::devices::{FIRST, config};
use world::log::Log;
use world::{OTHER, World, chain, digest, key, opened};

fn crashed(world: &mut World) -> Vec<Log> {
    let logs = std::mem::take(&mut world.logs).into_iter();
    logs.map(|log| log.crash(|_| false)).collect()
}

/// The next daemon, with a session of process `pid` that has the first space open.
fn next(mut world: World, session: u64, pid: u32) -> (World, SpaceId) {
    let logs = crashed(&mut world);
    let mut world = world.succeed(logs, 3);
    world.open(session, pid, Mode::ZeroCopy);
    let space = world.open_space(session, 1, 4096, 4);
    (world, space)
}

#[test]
fn pages_in_memory_are_found_again_in_their_order() {
    let (mut world, space) = opened(World::dram(4), 4);
    let (old, new) = (chain(1, 2), chain(2, 2));
    world.store(1, space, &old, 0, Stamp(0));
    world.store(1, space, &new, 0, Stamp(0));
    world.lookup(1, space, &old);
    world.fetch(1, 1, space, &old, Stamp(0), 10);
    world.release(1, 1, u32::MAX);
    let before = world.config.first_stamp;
    let (mut world, again) = next(world, 2, 2);
    assert_eq!(again, space, "a space keeps its number");
    assert_eq!(world.lookup(2, space, &old).dram, 2);
    assert_eq!(world.lookup(2, space, &new).dram, 2);
    let stamp = world.lookup(2, space, &new).stamp;
    assert!(stamp.0 > before + (1 << 32), "stamps go on behind those of before");
    world.store(2, space, &chain(3, 1), 0, Stamp(0));
    assert_eq!(world.lookup(2, space, &new).dram, 1, "the coldest page went");
    assert_eq!(world.lookup(2, space, &old).dram, 2);
}

#[test]
fn what_was_leased_stays_until_its_process_is_dead() {
    let (mut world, space) = opened(World::dram(2), 4);
    let keys = chain(1, 2);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 7, space, &keys, Stamp(0), 10);
    world.release(1, 7, 1);
    let (mut world, space) = next(world, 2, 2);
    assert!(world.core.session_leases(SessionId(1)).lingering);
    assert_eq!(world.core.session_leases(SessionId(1)).pages, 1);
    assert_eq!(world.store(2, space, &chain(2, 2), 0, Stamp(0)), 1, "one frame is leased");
    let release = Release { session: SessionId(1), lease: LeaseId(7), upto: u32::MAX };
    let refused = world.ask(2, &Request::Release(release));
    assert!(matches!(refused, Some(Reply::Refused(_))), "it is another process's");
    world.kill(1);
    assert_eq!(world.store(2, space, &chain(3, 2), 0, Stamp(0)), 2);
}

#[test]
fn the_process_that_had_a_lease_may_release_it_through_another_session() {
    let (mut world, space) = opened(World::dram(3), 4);
    let keys = chain(1, 3);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 7, space, &keys, Stamp(0), 10);
    world.release(1, 7, 1);
    let (mut world, space) = next(world, 2, 1);
    world.release_from(2, 1, 7, 2);
    assert_eq!(world.core.session_leases(SessionId(1)).pages, 1, "pages keep their index");
    assert_eq!(world.store(2, space, &chain(2, 3), 0, Stamp(0)), 2);
    world.release_from(2, 1, 7, u32::MAX);
    assert_eq!(world.core.session_leases(SessionId(1)).leases, 0);
    assert_eq!(world.store(2, space, &chain(3, 3), 0, Stamp(0)), 3);
}

#[test]
fn a_frame_that_was_being_read_into_is_left_alone_until_the_read_is_over() {
    let (mut world, space) = opened(World::with_ssd(1, 100, 9, 4), 2);
    let keys = chain(1, 2);
    world.store(1, space, &keys, 0, Stamp(0));
    let there = world.lookup(1, space, &keys[..1]).dram as usize;
    world.fetch(1, 1, space, &keys[there..=there], Stamp(0), 1000);
    assert_eq!(world.count_jobs(|job| matches!(job, Action::Read { .. })), 1);
    let (mut world, space) = next(world, 2, 2);
    assert_eq!(world.store(2, space, &chain(2, 1), 0, Stamp(0)), 0, "it may still land");
    world.end_quarantine();
    assert_eq!(world.store(2, space, &chain(2, 1), 0, Stamp(0)), 1);
}

#[test]
fn what_was_written_to_ssd_and_what_was_not_join_again() {
    let (mut world, space) = opened(World::with_ssd(3, 100, 9, 4), 2);
    let keys = chain(1, 8);
    world.store(1, space, &keys, 0, Stamp(0));
    let before = world.lookup(1, space, &keys);
    assert_eq!(before.pages, 8);
    let (mut world, space) = next(world, 2, 2);
    let found = world.lookup(2, space, &keys);
    assert_eq!((found.ssd, found.pages < 8), (0, true), "the SSD has told nothing yet");
    let records = world.log(FIRST).recover();
    world.recover(FIRST, &records, true);
    world.finish_jobs();
    let after = world.lookup(2, space, &keys);
    assert_eq!((after.pages, after.dram), (8, before.dram));
    world.fetch(2, 1, space, &keys[..3], Stamp(0), 1000);
    world.finish_jobs();
    assert_eq!(world.outcome(2, 1), FetchOutcome::Complete);
}

#[test]
fn a_second_daemon_after_the_first_finds_it_all_too() {
    let (mut world, space) = opened(World::dram(4), 4);
    let keys = chain(1, 3);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 1, space, &keys[..1], Stamp(0), 10);
    let (mut world, space) = next(world, 2, 2);
    world.fetch(2, 1, space, &keys[..2], Stamp(0), 10);
    let (mut world, space) = next(world, 3, 3);
    assert_eq!(world.lookup(3, space, &keys).dram, 3);
    assert_eq!(world.store(3, space, &chain(2, 4), 0, Stamp(0)), 2, "two frames are leased");
    world.kill(1);
    assert_eq!(world.store(3, space, &chain(3, 4), 0, Stamp(0)), 2, "the second has both");
    world.kill(2);
    assert_eq!(world.store(3, space, &chain(4, 4), 0, Stamp(0)), 4);
}

#[test]
fn limits_that_shrank_end_no_lease() {
    let (mut world, space) = opened(World::dram(2), 4);
    let keys = chain(1, 2);
    world.store(1, space, &keys, 0, Stamp(0));
    world.fetch(1, 1, space, &keys, Stamp(0), 10);
    for domain in &mut world.config.domains {
        domain.limits.max_leased_pages = 1;
        domain.limits.max_sessions = 1;
    }
    let logs = crashed(&mut world);
    let mut world = world.succeed(logs, 1);
    assert_eq!(world.core.session_leases(SessionId(1)).pages, 2);
    assert!(!world.core.has_session_room_in(DomainId::default()));
    world.kill(1);
    assert!(world.core.has_session_room_in(DomainId::default()));
}

#[test]
fn a_leased_frame_is_given_to_nobody_although_its_page_finds_no_room() {
    let mut settings = Config { notes: true, ..config(&[]) };
    settings.limits.max_pages = 2;
    let mut core = Core::new(settings).unwrap();
    let (part, domain) = (PartId(0), DomainId::default());
    step(&mut core, Event::PartAdded { part, domain, bytes: 3 * 4096 });
    let (space, session) = (SpaceId(0), SessionId(1));
    let row = |name, frame: u64| RestoredPage {
        part,
        offset: frame * 4096,
        space,
        key: key(name, 0),
        parent: None,
        depth: 0,
        crc: 0,
        heat: 0,
        writer: 0,
        born: 0,
        purged: false,
    };
    let lease = |index, frame: u64| {
        let (lease, offset) = (LeaseId(7), frame * 4096);
        RestoredLease { session, lease, index, part, offset }
    };
    let process = ProcessId { pid: 1, start: 1 };
    step(
        &mut core,
        Event::Restored(Restored {
            spaces: &[RestoredSpace {
                space,
                domain,
                digest: digest(0),
                page_bytes: 4096,
                probe: None,
            }],
            slabs: &[RestoredSlab { part, offset: 0, bytes: 3 * 4096, frame_bytes: 4096 }],
            pages: &[row(1, 0), row(2, 1), row(3, 2)],
            ..Restored::default()
        }),
    );
    step(
        &mut core,
        Event::Restored(Restored {
            sessions: &[RestoredSession { session, process, domain }],
            leases: &[lease(0, 1), lease(1, 2)],
            last: true,
            ..Restored::default()
        }),
    );
    let left = core.session_leases(session);
    assert_eq!((left.pages, left.withheld, left.lingering), (1, 1, true));
    let used = |core: &Core| core.domains().next().unwrap().dram.used_bytes;
    assert_eq!(used(&core), 3 * 4096, "the third is still being read");
    step(&mut core, Event::ProcessGone { session });
    assert_eq!(used(&core), 2 * 4096);
}

/// Rows that anybody may have written.
#[derive(Debug, Default)]
struct Odd {
    spaces: Vec<RestoredSpace>,
    slabs: Vec<RestoredSlab>,
    pages: Vec<RestoredPage>,
    quarantined: Vec<RestoredFrame>,
    sessions: Vec<RestoredSession>,
    leases: Vec<RestoredLease>,
}

fn place() -> impl Strategy<Value = (PartId, u64)> {
    let offset = prop_oneof![9 => (0..12_u64).prop_map(|at| at * 4096), 1 => any::<u64>()];
    ((0..3_u32).prop_map(PartId), offset)
}

fn odd() -> impl Strategy<Value = Odd> {
    let domain = prop_oneof![8 => Just(DomainId::default()), 2 => Just(OTHER), 1 => any::<[u8; 16]>().prop_map(DomainId)];
    let size =
        prop_oneof![6 => Just(4096_u32), 2 => Just(5000), 2 => Just(8192), 1 => any::<u32>()];
    let sizes = prop_oneof![4 => (1..6_u64).prop_map(|n| n * 4096), 1 => any::<u64>()];
    let space = (0..4_u32, domain.clone(), 0..3_u8, size.clone()).prop_map(
        |(space, domain, of, page_bytes)| RestoredSpace {
            space: SpaceId(space),
            domain,
            digest: digest(of),
            page_bytes,
            probe: None,
        },
    );
    let slab = (place(), sizes, size).prop_map(|((part, offset), bytes, frame_bytes)| {
        RestoredSlab { part, offset, bytes, frame_bytes }
    });
    let link = prop_oneof![3 => (0..3_u64, Just(None), Just(0)), 5 => (0..3_u64, (0..3_u64).prop_map(Some), 0..3_u32)];
    let page = (place(), 0..4_u32, link, any::<u64>()).prop_map(
        |((part, offset), space, (name, parent, depth), stamp)| RestoredPage {
            part,
            offset,
            space: SpaceId(space),
            key: key(name, depth.into()),
            parent: parent.map(|name| key(name, u64::from(depth).wrapping_sub(1))),
            depth,
            crc: stamp,
            heat: stamp,
            writer: depth,
            born: 0,
            purged: name == 2,
        },
    );
    let frame = place().prop_map(|(part, offset)| RestoredFrame { part, offset });
    let session = (0..3_u64, domain).prop_map(|(session, domain)| RestoredSession {
        session: SessionId(session),
        process: ProcessId { pid: session as u32, start: 1 },
        domain,
    });
    let index = prop_oneof![9 => 0..5_u32, 1 => any::<u32>()];
    let lease =
        (0..3_u64, 0..2_u64, index, place()).prop_map(|(session, lease, index, (part, offset))| {
            RestoredLease {
                session: SessionId(session),
                lease: LeaseId(lease),
                index,
                part,
                offset,
            }
        });
    let few = 0..8_usize;
    (
        prop::collection::vec(space, few.clone()),
        prop::collection::vec(slab, few.clone()),
        prop::collection::vec(page, 0..20),
        prop::collection::vec(frame, 0..3),
        prop::collection::vec(session, few),
        prop::collection::vec(lease, 0..12),
    )
        .prop_map(|(spaces, slabs, pages, quarantined, sessions, leases)| Odd {
            spaces,
            slabs,
            pages,
            quarantined,
            sessions,
            leases,
        })
}

fn step(core: &mut Core, event: Event<'_>) {
    core.step(Micros(0), event, &mut Vec::new());
    core.audit();
    core.drain_notes().for_each(drop);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_is_told_breaks_anything(told in prop::collection::vec(odd(), 1..4), split: bool) {
        let settings = Config { notes: true, first_stamp: 100, ..config(&[]) };
        let mut core = Core::new(settings).unwrap();
        for (part, domain, frames) in [(0, DomainId::default(), 9), (1, OTHER, 5)] {
            step(&mut core, Event::PartAdded { part: PartId(part), domain, bytes: frames * 4096 });
        }
        let (mut rows, mut ignored) = (0, 0);
        for odd in &told {
            let piece = Restored {
                spaces: &odd.spaces,
                slabs: &odd.slabs,
                pages: &odd.pages,
                quarantined: &odd.quarantined,
                sessions: &odd.sessions,
                leases: &odd.leases,
                last: split,
            };
            step(&mut core, Event::Restored(piece));
            let of = odd.spaces.len() + odd.slabs.len() + odd.pages.len() + odd.leases.len();
            rows += of + odd.quarantined.len() + odd.sessions.len();
            prop_assert!(core.stats().restore_ignored >= ignored);
            ignored = core.stats().restore_ignored;
        }
        prop_assert!(ignored <= rows as u64);
        step(&mut core, Event::Restored(Restored { last: true, ..Restored::default() }));
        let domain = DomainId::default();
        let (session, process) = (SessionId(9), ProcessId { pid: 1, start: 1 });
        step(&mut core, Event::SessionOpened { session, domain, process, user: 0, mode: Mode::ZeroCopy });
        step(&mut core, Event::QuarantineOver);
        for session in (0..3).map(SessionId) {
            step(&mut core, Event::ProcessGone { session });
        }
        let left: u32 = core.domains().map(|domain| domain.leased_pages).sum();
        prop_assert_eq!(left, 0, "dead processes lease nothing");
    }
}
