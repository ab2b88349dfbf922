use crate::fake_daemon::{FakeDaemon, encoded, reply_with_many};
use crate::shelf::Shelf;
use crate::world::*;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use undercroft_client::{
    Client, ClientState, ConnectError, FetchFrom, LookupOptions, MissReason, OpenError,
    StoreOptions, StoreRun, Wait,
};
use undercroft_wire::{
    FetchEnd, FetchReady, Lookup, LookupReply, MAX_KEYS, Mode, PageKey, PagePlace, PartId, Reply,
    Request, RequestId, SpaceOpened, Stamp,
};

const BRIEF: LookupOptions = LookupOptions { hold: None, deadline: SHORT, due: None, have: 0 };

#[test]
fn a_silent_daemon_costs_no_call_more_than_its_deadline() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let silent = Arc::new(AtomicBool::new(false));
    let is_silent = Arc::clone(&silent);
    let _daemon = world.daemon_with(&shelf, move |_, _, _| is_silent.load(Ordering::SeqCst));
    let (client, space) = world.open();
    silent.store(true, Ordering::SeqCst);
    let late = Some(MissReason::Deadline);
    let (device, keys) = (device(4), keys(4));
    assert_eq!(in_time(SHORT, || space.lookup(&keys, BRIEF)).why, late);
    assert_eq!(in_time(SHORT, || client.ping(SHORT)).err(), late);
    assert_eq!(in_time(SHORT, || client.status(SHORT)).err(), late);
    assert_eq!(in_time(SHORT, || space.prefetch(&keys, LONG, SHORT)).err(), late);
    let fetch = || space.fetch(FetchFrom::Keys(&keys), Stamp(1), SHORT).outcome();
    assert_eq!(in_time(SHORT, fetch).why, late);
    let run = StoreRun { parent: None, first: 0, keys: &keys, stamp: Stamp(1) };
    let options = StoreOptions { deadline: SHORT, wait_for_credits: true };
    let stored = in_time(SHORT, || space.store(run, &device, &blocks(4), options));
    assert_eq!((stored.why, stored.unsettled), (late, 4));
    let mut other = self::space();
    other.group = 1;
    let opened = in_time(SHORT, || client.open_space(&other, SHORT));
    assert!(matches!(opened, Err(OpenError::Unanswered(MissReason::Deadline))), "{opened:?}");
    // A daemon that was only slow is still the same session.
    silent.store(false, Ordering::SeqCst);
    assert_eq!(space.lookup(&keys, PLAIN).why, Some(MissReason::Absent));
}

#[test]
fn a_daemon_that_does_not_read_blocks_nobody_and_frames_stay_whole() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let _daemon = world.daemon_with(&shelf, move |_, _, request| {
        // Stops reading at the first hint, until told to go on.
        if matches!(request, Request::Hint(_)) {
            let _go = wait.lock().unwrap().recv();
        }
        false
    });
    let (client, space) = world.open();
    let keys: Vec<PageKey> = (0..MAX_KEYS as u32).map(key).collect();
    let hint = undercroft_wire::HintKind::Active;
    assert_eq!(space.hint(&keys[..1], hint, SHORT), Err(MissReason::Deadline));
    for _ in 0..3 {
        let found = in_time(SHORT, || space.lookup(&keys, BRIEF));
        assert_eq!((found.pages, found.why), (0, Some(MissReason::Deadline)));
    }
    assert_eq!(in_time(SHORT, || client.ping(SHORT)), Err(MissReason::Deadline));
    go.send(()).unwrap();
    // Had a frame been cut, the daemon would not understand what follows.
    client.ping(LONG).unwrap();
    assert_eq!(space.lookup(&keys, PLAIN).why, Some(MissReason::Absent));
    let longer: Vec<PageKey> = keys.iter().copied().chain([key(9)]).collect();
    shelf.lock().unwrap().put(key(0), 0);
    assert_eq!(space.lookup(&longer, PLAIN).pages, 1);
}

#[test]
fn replies_that_trickle_in_byte_by_byte_are_understood() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let _daemon = world.daemon_with(&shelf, |peer, id, request| {
        if !matches!(request, Request::Ping) {
            return false;
        }
        for byte in encoded(id, &Reply::Done) {
            peer.raw(&[byte]);
            std::thread::sleep(Duration::from_micros(300));
        }
        true
    });
    let (client, _space) = world.open();
    for _ in 0..3 {
        client.ping(LONG).unwrap();
    }
}

/// Each of these answers ends the session: the call misses, a new session comes up, and nothing
/// panics.
#[test]
fn a_daemon_that_breaks_the_rules_is_left_and_met_anew() {
    let lookup = |pages, dram| {
        Reply::Lookup(LookupReply {
            pages,
            dram,
            stamp: Stamp(1),
            present: pages,
            ..LookupReply::default()
        })
    };
    let mut too_long = encoded(RequestId(1), &Reply::Done);
    too_long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut unknown_kind = encoded(RequestId(1), &Reply::Done);
    unknown_kind[6..8].copy_from_slice(&999_u16.to_le_bytes());
    type Answer = Box<dyn Fn(RequestId) -> Vec<u8> + Send + Sync>;
    let answers: Vec<(&str, Answer)> = vec![
        ("garbage", Box::new(|_| b"\0\x01 not a frame at all \xff\xff\xff".to_vec())),
        ("a body too long", Box::new(move |_| too_long.clone())),
        ("an unknown kind", Box::new(move |_| unknown_kind.clone())),
        ("the wrong reply", Box::new(|id| encoded(id, &Reply::Done))),
        ("more pages than keys", Box::new(move |id| encoded(id, &lookup(3, 3)))),
        ("counts that differ", Box::new(move |id| encoded(id, &lookup(2, 1)))),
        (
            "a space without its descriptor",
            Box::new(|id| {
                let opened =
                    SpaceOpened { space: undercroft_wire::SpaceId(1), slots: 1, slot_bytes: 8192 };
                encoded(id, &Reply::SpaceOpened(opened))
            }),
        ),
    ];
    for (name, answer) in answers {
        let world = World::new();
        let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
        let daemon = world.daemon_with(&shelf, move |peer, id, request| {
            let bad = peer.number == 0 && matches!(request, Request::Lookup(_));
            if bad {
                peer.raw(&answer(id));
            }
            bad
        });
        let (client, space) = world.open();
        let found = in_time(SHORT, || space.lookup(&keys(2), PLAIN));
        assert_eq!(found.why, Some(MissReason::Disconnected), "{name}");
        soon(name, || space.lookup(&keys(2), PLAIN).why == Some(MissReason::Absent));
        assert!(matches!(client.state(), ClientState::Connected { .. }));
        assert_eq!(daemon.connections.load(Ordering::SeqCst), 2, "{name}");
    }
}

/// One or many: a frame that carries none brings none into the engine's table.
#[test]
fn descriptors_that_no_frame_carries_end_the_session() {
    for count in [1, 64] {
        let world = World::new();
        let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
        let daemon = world.daemon_with(&shelf, move |peer, id, request| {
            let bad = peer.number == 0 && matches!(request, Request::Ping);
            if bad {
                let fd = std::fs::File::open("/dev/null").unwrap();
                reply_with_many(peer, id, &Reply::Done, fd.as_fd(), count);
            }
            bad
        });
        let (client, _space) = world.open();
        let _answered_or_not = client.ping(LONG);
        soon("a new session", || daemon.connections.load(Ordering::SeqCst) == 2);
        client.wait_connected(LONG).then_some(()).unwrap();
        client.ping(LONG).unwrap();
    }
}

#[test]
fn pages_out_of_order_or_outside_of_the_arena_are_never_handed_out() {
    let at = |part, offset| PagePlace { part: PartId(part), offset };
    let cases: Vec<(u32, Vec<PagePlace>)> = vec![
        (1, vec![at(3, 0)]),
        (0, vec![]),
        (0, vec![at(3, 0); 3]),
        (0, vec![at(4, 0)]),
        (0, vec![at(3, u64::MAX)]),
        (0, vec![at(3, 64 * 8192 - 8)]),
        (0, vec![PagePlace { part: PagePlace::STAGING, offset: 3 }]),
        (0, vec![PagePlace { part: PagePlace::STAGING, offset: 4 * 8192 }]),
    ];
    for (first, places) in cases {
        let world = World::new();
        let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
        let case = (first, places.clone());
        let _daemon = world.daemon_with(&shelf, move |peer, id, request| {
            let Request::Fetch(fetch) = request else {
                return false;
            };
            let ready = FetchReady { lease: fetch.lease, first, places: places.clone() };
            peer.reply(id, &Reply::FetchReady(ready));
            true
        });
        let (_client, space) = world.open();
        let mut fetch = space.fetch(FetchFrom::Keys(&keys(2)), Stamp(1), LONG);
        assert!(in_time(SHORT, || fetch.next_ready()).is_none(), "{case:?}");
        assert_eq!(fetch.report().why, Some(MissReason::Disconnected), "{case:?}");
    }
}

#[test]
fn a_fetch_that_claims_more_than_it_gave_is_cut() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let _daemon = world.daemon_with(&shelf, |peer, id, request| {
        let Request::Fetch(fetch) = request else {
            return false;
        };
        let end = FetchEnd { lease: fetch.lease, ready: 2, ssd: 0, outcome: 0 };
        peer.reply(id, &Reply::FetchEnd(end));
        true
    });
    let (_client, space) = world.open();
    let report = space.fetch(FetchFrom::Keys(&keys(2)), Stamp(1), LONG).outcome();
    assert_eq!((report.pages, report.why), (0, Some(MissReason::Disconnected)));
}

#[test]
fn a_fetch_that_is_called_complete_and_is_not_is_cut() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let _daemon = world.daemon_with(&shelf, |peer, id, request| {
        let Request::Fetch(fetch) = request else {
            return false;
        };
        let places = vec![PagePlace { part: PartId(3), offset: 0 }];
        peer.reply(id, &Reply::FetchReady(FetchReady { lease: fetch.lease, first: 0, places }));
        let end = FetchEnd { lease: fetch.lease, ready: 1, ssd: 0, outcome: 0 };
        peer.reply(id, &Reply::FetchEnd(end));
        true
    });
    let (_client, space) = world.open();
    let report = space.fetch(FetchFrom::Keys(&keys(2)), Stamp(1), LONG).outcome();
    assert_eq!((report.pages, report.why), (1, Some(MissReason::Disconnected)));
}

#[test]
fn death_amid_a_fetch_leaves_the_delivered_pages_readable() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    shelf.lock().unwrap().put(key(0), 42);
    let daemon = world.daemon_with(&shelf, |peer, id, request| {
        let Request::Fetch(fetch) = request else {
            return false;
        };
        let places = vec![PagePlace { part: PartId(3), offset: 0 }];
        peer.reply(id, &Reply::FetchReady(FetchReady { lease: fetch.lease, first: 0, places }));
        true
    });
    let (client, space) = world.open();
    let mut fetch = space.fetch(FetchFrom::Keys(&keys(2)), Stamp(1), LONG);
    let page = fetch.next_ready().unwrap().pages.remove(0);
    drop(daemon);
    assert!(in_time(SHORT, || fetch.next_ready()).is_none());
    let report = fetch.report();
    assert_eq!((report.pages, report.why), (1, Some(MissReason::Disconnected)));
    soon("the loss is noticed", || matches!(client.state(), ClientState::Connecting { .. }));
    let began = Instant::now();
    for _ in 0..100 {
        assert_eq!(space.lookup(&keys(2), PLAIN).why, Some(MissReason::Disconnected));
    }
    assert!(began.elapsed() < GRACE, "a miss must be instant while nobody is there");
    page.read(|bytes| assert!(bytes.iter().all(|byte| *byte == 42)));
}

#[test]
fn what_the_daemon_said_before_it_died_still_counts() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    (0..4).for_each(|at| shelf.lock().unwrap().put(key(at), at as u8));
    let daemon = world.daemon(&shelf);
    let (_client, space) = world.open();
    let mut fetch = space.fetch(FetchFrom::Keys(&keys(4)), Stamp(1), LONG);
    assert_eq!(fetch.next_ready().unwrap().first, 0);
    // The rest is in the socket or will be; the end of the connection comes after it.
    std::thread::sleep(SHORT);
    drop(daemon);
    assert_eq!(fetch.next_ready().unwrap().first, 2);
    assert_eq!(fetch.outcome().why, None);
}

#[test]
fn a_daemon_that_never_greets_is_named() {
    let world = World::new();
    let _daemon = FakeDaemon::start(&world.socket(), |mut peer| {
        let mut all = Vec::new();
        let _gone = peer.stream.read_to_end(&mut all);
    });
    let connect = || Client::connect(world.options(Wait::Now(SHORT)));
    let error = in_time(SHORT, connect).unwrap_err();
    assert!(matches!(error, ConnectError::Silent { .. }), "{error}");
    assert!(error.to_string().contains("u.sock"), "{error}");
}

#[test]
fn a_lookup_of_another_protocol_is_no_greeting() {
    let world = World::new();
    let _daemon = FakeDaemon::start(&world.socket(), |mut peer| {
        peer.raw(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n");
        let mut all = Vec::new();
        let _gone = peer.stream.read_to_end(&mut all);
    });
    let error = Client::connect(world.options(Wait::Now(LONG))).unwrap_err();
    assert!(matches!(error, ConnectError::Closed { .. }), "{error}");
    assert!(error.to_string().contains("magic"), "{error}");
}

/// The wire's own bound on a lookup is checked on a peer's bytes, not only on ours.
#[test]
fn keys_travel_as_they_are() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let (tell, told) = mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let _daemon = world.daemon_with(&shelf, move |_, _, request| {
        if let Request::Lookup(Lookup { keys, hold_ms, .. }) = request {
            tell.lock().unwrap().send((keys.as_slice().to_vec(), *hold_ms)).unwrap();
        }
        false
    });
    let (_client, space) = world.open();
    let keys = keys(5000);
    let options = LookupOptions {
        hold: Some(Duration::from_micros(1500)),
        deadline: LONG,
        ..LookupOptions::default()
    };
    assert_eq!(space.lookup(&keys, options).pages, 0);
    assert_eq!(told.recv().unwrap(), (keys, 2));
}
