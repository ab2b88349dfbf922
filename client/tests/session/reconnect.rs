use crate::shelf::{Shelf, refused};
use crate::world::*;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;
use undercroft_client::{
    Client, ClientState, ConnectError, ConnectOptions, FetchFrom, MissReason, OpenError, Wait,
};
use undercroft_wire::{Epoch, Mode, PartId, RefusedReason, Release, Request, SessionId, Stamp};

#[test]
fn a_new_daemon_is_met_behind_the_callers_back() {
    let world = World::new();
    let old = Shelf::new(1, Mode::ZeroCopy, 4);
    old.lock().unwrap().put(key(0), 1);
    let daemon = world.daemon(&old);
    let (client, space) = world.open();
    let mut fetch = space.fetch(FetchFrom::Keys(&keys(1)), Stamp(1), LONG);
    let page = fetch.next_ready().unwrap().pages.remove(0);
    drop(daemon);
    let new = Shelf::new(2, Mode::ZeroCopy, 4);
    new.lock().unwrap().put(key(0), 2);
    let _daemon = world.daemon(&new);
    soon("hits again", || space.lookup(&keys(1), PLAIN).pages == 1);
    let ClientState::Connected { epoch, .. } = client.state() else {
        panic!("hits come from a connection");
    };
    assert_eq!(epoch, Epoch(2));
    let mut again = space.fetch(FetchFrom::Keys(&keys(1)), Stamp(1), LONG);
    again.next_ready().unwrap().pages[0].read(|bytes| assert_eq!(bytes[0], 2));
    // The old arena lives as long as somebody looks at it, and its lease is no matter of the new.
    page.read(|bytes| assert_eq!(bytes[0], 1));
    drop((fetch, again));
    soon("the new lease ends", || !new.lock().unwrap().releases.is_empty());
    assert_eq!(new.lock().unwrap().releases.len(), 1);
}

#[test]
fn a_lease_outlives_its_connection_and_is_released_on_the_next() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    (0..4).for_each(|at| shelf.lock().unwrap().put(key(at), at as u8));
    let daemon = world.daemon(&shelf);
    let (client, space) = world.open();
    let mut kept = space.fetch(FetchFrom::Keys(&keys(4)), Stamp(1), LONG);
    let mut orphan = space.fetch(FetchFrom::Keys(&keys(4)), Stamp(1), LONG);
    assert_eq!((kept.outcome().pages, orphan.outcome().pages), (4, 4));
    daemon.cut();
    soon("the loss is noticed", || {
        !matches!(client.state(), ClientState::Connected { session: SessionId(41), .. })
    });
    // One is dropped now, perhaps with no connection, the other one after the reconnection.
    drop(orphan);
    soon("a new session", || {
        matches!(client.state(), ClientState::Connected { session: SessionId(42), .. })
    });
    drop(kept);
    let leases = || {
        let shelf = shelf.lock().unwrap();
        let of_old = |r: &Release| r.session == SessionId(41) && r.upto == u32::MAX;
        assert!(shelf.releases.iter().all(of_old));
        shelf.releases.iter().map(|r| r.lease).collect::<BTreeSet<_>>()
    };
    soon("both leases end", || leases().len() == 2);
}

#[test]
fn releases_that_the_daemon_may_not_have_read_are_told_again() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    shelf.lock().unwrap().put(key(0), 1);
    // The first connection's releases are lost, as if they had lain unread in its socket.
    let daemon = world.daemon_with(&shelf, |peer, _, request| {
        peer.number == 0 && matches!(request, Request::Release(_))
    });
    let (_client, space) = world.open();
    let mut fetch = space.fetch(FetchFrom::Keys(&keys(1)), Stamp(1), LONG);
    assert_eq!(fetch.outcome().pages, 1);
    drop(fetch);
    daemon.cut();
    soon("the lease ends after all", || !shelf.lock().unwrap().releases.is_empty());
    let release = shelf.lock().unwrap().releases[0];
    assert_eq!((release.session, release.upto), (SessionId(41), u32::MAX));
}

/// However many they are, and however often each lease was let go in part before.
#[test]
fn no_release_is_lost_that_the_daemon_did_not_confirm() {
    const LEASES: usize = 300;
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    (0..4).for_each(|at| shelf.lock().unwrap().put(key(at), at as u8));
    let daemon = world.daemon_with(&shelf, |peer, _, request| {
        peer.number == 0 && matches!(request, Request::Release(_))
    });
    let (client, space) = world.open();
    for _ in 0..LEASES {
        let mut fetch = space.fetch(FetchFrom::Keys(&keys(4)), Stamp(1), LONG);
        assert_eq!(fetch.outcome().pages, 4);
        (1..4).for_each(|upto| fetch.release_upto(upto));
    }
    client.ping(LONG).unwrap();
    daemon.cut();
    let ended = || {
        let shelf = shelf.lock().unwrap();
        let ends = shelf.releases.iter().filter(|release| release.upto == u32::MAX);
        ends.map(|release| release.lease).collect::<BTreeSet<_>>().len()
    };
    soon("all leases end after all", || ended() == LEASES);
    assert_eq!(shelf.lock().unwrap().releases.len(), LEASES, "once each");
    // What was confirmed is not told again.
    client.wait_connected(LONG).then_some(()).unwrap();
    client.ping(LONG).unwrap();
    daemon.cut();
    soon("a third session", || daemon.connections.load(Ordering::SeqCst) == 3);
    client.wait_connected(LONG).then_some(()).unwrap();
    client.ping(LONG).unwrap();
    assert_eq!(shelf.lock().unwrap().releases.len(), LEASES);
}

#[test]
fn a_client_in_the_background_finds_its_daemon_when_it_appears() {
    let world = World::new();
    let client = Client::connect(world.options(Wait::Background)).unwrap();
    let space = in_time(SHORT, || client.open_space(&space(), SHORT)).unwrap();
    assert!(!space.is_open());
    let missed = space.lookup(&keys(1), PLAIN);
    assert_eq!(missed.why, Some(MissReason::Disconnected));
    soon("an attempt fails", || {
        matches!(client.state(), ClientState::Connecting { failure: Some(text) }
            if text.contains("undercroft serve"))
    });
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    shelf.lock().unwrap().put(key(0), 1);
    let _daemon = world.daemon(&shelf);
    assert!(client.wait_connected(LONG));
    assert_eq!(space.lookup(&keys(1), PLAIN).pages, 1);
}

#[test]
fn who_insists_on_a_daemon_is_told_what_is_wrong() {
    let world = World::new();
    let connect = || Client::connect(world.options(Wait::Now(LONG)));
    let error = in_time(Duration::ZERO, connect).unwrap_err();
    assert!(matches!(error, ConnectError::Absent { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("u.sock") && text.contains("undercroft serve"), "{text}");
    // As after `kill -9`: the file is there, nobody listens.
    drop(std::os::unix::net::UnixListener::bind(world.socket()).unwrap());
    let error = in_time(Duration::ZERO, connect).unwrap_err();
    assert!(matches!(error, ConnectError::Absent { .. }), "{error}");
    let long = world.directory.path().join("d".repeat(120));
    let error = Client::connect(ConnectOptions::new(long)).unwrap_err();
    assert!(matches!(error, ConnectError::Path { .. }), "{error}");
}

#[test]
fn a_daemon_that_stops_says_so() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let _daemon = world.daemon_with(&shelf, |peer, id, request| {
        let hello = matches!(request, Request::Hello(_));
        if hello {
            peer.reply(id, &refused(RefusedReason::Stopping));
        }
        hello
    });
    let error = Client::connect(world.options(Wait::Now(LONG))).unwrap_err();
    assert!(error.to_string().contains("as the test wants"), "{error}");
}

#[test]
fn a_space_refused_for_now_is_asked_for_again() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let asked = std::sync::atomic::AtomicU32::new(0);
    let daemon = world.daemon_with(&shelf, move |peer, id, request| {
        let refuse = matches!(request, Request::OpenSpace(_))
            && (1..3).contains(&asked.fetch_add(1, Ordering::SeqCst));
        if refuse {
            peer.reply(id, &refused(RefusedReason::Busy));
        }
        refuse
    });
    let (client, space) = world.open();
    let mut other = self::space();
    other.group = 1;
    let error = client.open_space(&other, LONG).unwrap_err();
    assert!(matches!(error, OpenError::Refused { reason: RefusedReason::Busy, .. }), "{error}");
    drop(daemon);
    let daemon = world.daemon_with(&shelf, {
        let asked = std::sync::atomic::AtomicU32::new(0);
        move |peer, id, request| {
            let refuse = matches!(request, Request::OpenSpace(_))
                && asked.fetch_add(1, Ordering::SeqCst) == 0;
            if refuse {
                peer.reply(id, &refused(RefusedReason::Busy));
            }
            refuse
        }
    });
    let connections = || daemon.connections.load(Ordering::SeqCst);
    soon("a new connection", || connections() == 1);
    soon("the space is open", || space.is_open());
    assert_eq!(connections(), 1, "the refusal did not end the session");
}

#[test]
fn dropping_the_last_handle_ends_the_session_and_its_thread() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let (tell, told) = std::sync::mpsc::channel();
    let memory = shelf.clone();
    let _daemon = crate::fake_daemon::FakeDaemon::start(&world.socket(), move |mut peer| {
        while let Some(frame) = peer.next() {
            let (id, request) = frame.decode();
            memory.lock().unwrap().answer(&mut peer, id, &request);
        }
        let _gone = tell.send(());
    });
    let (client, space) = world.open();
    drop(client);
    assert!(space.is_open(), "a handle keeps its session");
    drop(space);
    told.recv_timeout(LONG).expect("the daemon sees the session end");
}

#[test]
fn a_stranger_on_the_socket_is_told_nothing() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let (tell, told) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let _daemon = world.daemon_with(&shelf, move |_, _, _| {
        tell.lock().unwrap().send(()).unwrap();
        false
    });
    let own = std::fs::metadata("/proc/self").map(|of| std::os::unix::fs::MetadataExt::uid(&of));
    let (own, now) = (own.unwrap(), world.options(Wait::Now(LONG)));
    let other = ConnectOptions { daemon_uid: Some(own + 1), ..now.clone() };
    let error = Client::connect(other).unwrap_err();
    assert!(matches!(error, ConnectError::Stranger { found, .. } if found == own), "{error}");
    assert!(error.to_string().contains("u.sock"), "{error}");
    assert!(told.try_recv().is_err(), "not even a hello");
    Client::connect(ConnectOptions { daemon_uid: Some(own), ..now }).unwrap();
}

#[test]
fn a_client_that_is_closed_ends_at_once_for_every_handle() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    shelf.lock().unwrap().put(key(0), 1);
    let daemon = world.daemon(&shelf);
    let (client, space) = world.open();
    assert!(in_time(SHORT, || client.close(LONG)));
    assert_eq!(space.lookup(&keys(1), PLAIN).why, Some(MissReason::Disconnected));
    assert!(!in_time(SHORT, || client.wait_connected(LONG)));
    assert_eq!(shelf.lock().unwrap().mappings(PartId(3)), 1, "only the shelf maps it");
    assert!(client.close(Duration::ZERO), "it has ended");
    assert_eq!(daemon.connections.load(Ordering::SeqCst), 1, "nobody connects again");
}

#[test]
fn a_client_that_is_closed_does_not_wait_for_a_greeting() {
    let world = World::new();
    let daemon =
        crate::fake_daemon::FakeDaemon::start(
            &world.socket(),
            |mut peer| {
                while peer.next().is_some() {}
            },
        );
    let client = Client::connect(world.options(Wait::Background)).unwrap();
    soon("it connects", || daemon.connections.load(Ordering::SeqCst) == 1);
    assert!(in_time(SHORT, || client.close(LONG)));
}
