use crate::fake_daemon::FakeDaemon;
use crate::shelf::Shelf;
use crate::world::*;
use std::sync::Barrier;
use std::time::Duration;
use undercroft_client::{FetchFrom, LookupOptions, MissReason, StoreOptions, StoreRun};
use undercroft_wire::{LookupReply, Mode, Reply, Request, RequestId, Stamp};

const THREADS: usize = 8;

/// Answers lookups only when one of every thread is there, the last one first. Each answer names
/// its question: as many pages as keys were asked about.
#[test]
fn answers_out_of_order_find_their_callers() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 2);
    let memory = shelf.clone();
    let _daemon = FakeDaemon::start(&world.socket(), move |mut peer| {
        let mut waiting: Vec<(RequestId, u32)> = Vec::new();
        while let Some(frame) = peer.next() {
            let (id, request) = frame.decode();
            let Request::Lookup(lookup) = request else {
                memory.lock().unwrap().answer(&mut peer, id, &request);
                continue;
            };
            waiting.push((id, lookup.keys.len() as u32));
            if waiting.len() == THREADS {
                for (id, pages) in waiting.drain(..).rev() {
                    let (dram, present, worth) = (pages, pages, pages);
                    let stamp = Stamp(pages.into());
                    let found = LookupReply::default();
                    let reply = LookupReply { pages, dram, present, worth, stamp, ..found };
                    peer.reply(id, &Reply::Lookup(reply));
                }
            }
        }
    });
    let (_client, space) = world.open();
    let together = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (space, together) = (&space, &together);
            scope.spawn(move || {
                for round in 0..100 {
                    let count = (thread * 100 + round + 1) as u32;
                    let found = space.lookup(&keys(count), PLAIN);
                    assert_eq!((found.pages, found.why), (count, None));
                    together.wait();
                }
            });
        }
    });
}

/// One caller gives up early while it reads for the others: the others must still be served.
#[test]
fn a_reader_that_leaves_hands_its_role_on() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 2);
    let _daemon = world.daemon_with(&shelf, |_, _, request| {
        if matches!(request, Request::Lookup(_)) {
            return true;
        }
        if matches!(request, Request::Ping) {
            std::thread::sleep(3 * SHORT);
        }
        false
    });
    let (client, space) = world.open();
    std::thread::scope(|scope| {
        let unanswered = scope.spawn(|| {
            let options = LookupOptions { hold: None, deadline: SHORT, ..LookupOptions::default() };
            in_time(SHORT, || space.lookup(&keys(1), options)).why
        });
        std::thread::sleep(SHORT / 4);
        let pings: Vec<_> = (0..4).map(|_| scope.spawn(|| client.ping(LONG))).collect();
        assert_eq!(unanswered.join().unwrap(), Some(MissReason::Deadline));
        for ping in pings {
            assert!(ping.join().unwrap().unwrap() < Duration::from_secs(10));
        }
    });
}

#[test]
fn threads_share_staging_and_arena() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let _daemon = world.daemon(&shelf);
    let (_client, space) = world.open();
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let space = &space;
            scope.spawn(move || {
                let device = device(24);
                let keys: Vec<_> = (0..12).map(|at| key(1000 * thread + at)).collect();
                let run = StoreRun { parent: None, first: 0, keys: &keys, stamp: Stamp(1) };
                let options = StoreOptions { deadline: LONG, wait_for_credits: true };
                let stored = space.store(run, &device, &blocks(12), options);
                assert_eq!((stored.stored, stored.why), (12, None), "{stored:?}");
                let to = &blocks(24)[12..];
                let loaded = space.fetch_into(&device, FetchFrom::Keys(&keys), to, Stamp(1), LONG);
                assert_eq!((loaded.pages, loaded.why), (12, None), "{loaded:?}");
                assert!((0..12).all(|block| is_copy(&device, block + 12, block)));
            });
        }
    });
}

#[test]
fn handles_go_to_any_thread() {
    fn shareable<T: Send + Sync + 'static>() {}
    shareable::<undercroft_client::Client>();
    shareable::<undercroft_client::SpaceHandle>();
    shareable::<undercroft_client::Hold>();
    shareable::<undercroft_client::Fetch>();
}
