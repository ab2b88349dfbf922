//! Spaces that a daemon opens late, or not at once: no handle stays without its space for good.

use crate::shelf::{Shelf, refused};
use crate::world::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use undercroft_client::{Client, LookupOptions, MissReason, Wait};
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
    let brief = LookupOptions { hold: None, deadline: SHORT };
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
