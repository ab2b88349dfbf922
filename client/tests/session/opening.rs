//! Spaces that a daemon opens late, or not at once: no handle stays without its space for good.

use crate::shelf::{Shelf, refused};
use crate::world::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use undercroft_client::{Client, ConnectOptions, LookupOptions, MissReason, OpenError, Wait};
use undercroft_wire::{Mode, RefusedReason, Request, Space};

fn other(group: u32) -> Space {
    Space { group, ..space() }
}

/// A client that hands out handles whether the daemon answers or not, and has met it.
fn patient(world: &World) -> Client {
    let client = Client::connect(world.options(Wait::Background)).unwrap();
    assert!(client.wait_connected(LONG));
    client
}

#[test]
fn a_space_that_was_wanted_while_the_daemon_hung_is_open_when_it_goes_on() {
    let world = World::new();
    let shelf = Shelf::with_board(1, Mode::ZeroCopy, 4);
    let stopped = Arc::new(AtomicBool::new(false));
    let is_stopped = Arc::clone(&stopped);
    let _daemon = world.daemon_with(&shelf, move |_, _, _| {
        while is_stopped.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    });
    let client = patient(&world);
    let space = client.open_space(&space(), LONG).unwrap();
    stopped.store(true, Ordering::SeqCst);
    let brief = LookupOptions { hold: None, deadline: SHORT, ..LookupOptions::default() };
    assert_eq!(space.lookup(&keys(1), brief).why, Some(MissReason::Deadline));
    let wanted = in_time(SHORT, || client.open_space(&other(1), SHORT)).unwrap();
    assert_eq!(wanted.lookup(&keys(1), PLAIN).why, Some(MissReason::Hung));
    stopped.store(false, Ordering::SeqCst);
    shelf.lock().unwrap().beat();
    soon("the space is open", || wanted.is_open());
}

#[test]
fn a_space_whose_refusal_came_too_late_is_asked_for_again() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let asked = AtomicUsize::new(0);
    let _daemon = world.daemon_with(&shelf, move |peer, id, request| {
        let first =
            matches!(request, Request::OpenSpace(_)) && asked.fetch_add(1, Ordering::SeqCst) == 0;
        if first {
            std::thread::sleep(3 * SHORT);
            peer.reply(id, &refused(RefusedReason::Busy));
        }
        first
    });
    let client = patient(&world);
    let space = in_time(SHORT, || client.open_space(&space(), SHORT)).unwrap();
    soon("the space is open", || space.is_open());
}

#[test]
fn a_refused_handle_leaves_those_that_were_given_out() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let (busy, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (is_busy, times) = (Arc::clone(&busy), Arc::clone(&asked));
    let daemon = world.daemon_with(&shelf, move |peer, id, request| {
        let opening = matches!(request, Request::OpenSpace(_));
        times.fetch_add(usize::from(opening), Ordering::SeqCst);
        let refuse = opening && is_busy.load(Ordering::SeqCst);
        if refuse {
            peer.reply(id, &refused(RefusedReason::Busy));
        }
        refuse
    });
    // Without a daemon the handle is given out, and the daemon refuses the space later.
    let client = Client::connect(ConnectOptions {
        socket: world.directory.path().join("later"),
        ..world.options(Wait::Background)
    });
    let client = client.unwrap();
    let space = client.open_space(&space(), Duration::ZERO).unwrap();
    std::os::unix::fs::symlink(world.socket(), world.directory.path().join("later")).unwrap();
    assert!(client.wait_connected(LONG));
    let again = client.open_space(&crate::world::space(), LONG).unwrap_err();
    assert!(matches!(again, OpenError::Refused { reason: RefusedReason::Busy, .. }), "{again}");
    busy.store(false, Ordering::SeqCst);
    soon("the space is open", || space.is_open());
    // The last handle takes the space along.
    drop(space);
    daemon.cut();
    let before = asked.load(Ordering::SeqCst);
    soon("a new session", || daemon.connections.load(Ordering::SeqCst) == 2);
    assert!(client.wait_connected(LONG));
    client.ping(LONG).unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), before);
}
