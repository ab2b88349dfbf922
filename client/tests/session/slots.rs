//! What the daemon gave to a caller that was gone by then is given back.

use crate::fake_daemon::encoded;
use crate::shelf::Shelf;
use crate::world::*;
use std::sync::{Arc, Mutex};
use undercroft_client::{LookupOptions, MissReason, StoreOptions, StoreRun};
use undercroft_wire::{Mode, Reply, Request, RequestId, Stamp};

/// Makes the answers to some requests late: they are sent with the answer to the next ping.
fn late(
    shelf: &crate::shelf::Shared,
    which: impl Fn(&Request<'_>) -> bool + Send + Sync + 'static,
) -> impl Fn(&mut crate::fake_daemon::Peer, RequestId, &Request<'_>) -> bool + Send + Sync + 'static
{
    let kept = Mutex::new(Vec::new());
    let shelf = Arc::clone(shelf);
    move |peer, id, request| {
        if which(request) {
            let (mut aside, theirs) = socket_pair(peer.number);
            shelf.lock().unwrap().answer(&mut aside, id, request);
            kept.lock().unwrap().push((aside, theirs));
            return true;
        }
        if matches!(request, Request::Ping) {
            for (aside, mut theirs) in kept.lock().unwrap().drain(..) {
                drop(aside);
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut theirs, &mut bytes).unwrap();
                peer.raw(&bytes);
            }
            peer.raw(&encoded(id, &Reply::Done));
            return true;
        }
        false
    }
}

fn socket_pair(number: usize) -> (crate::fake_daemon::Peer, std::os::unix::net::UnixStream) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    (crate::fake_daemon::Peer::over(ours, number), theirs)
}

#[test]
fn slots_assigned_too_late_go_back() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let _daemon =
        world.daemon_with(&shelf, late(&shelf, |request| matches!(request, Request::Offer(_))));
    let (client, space) = world.open();
    let (device, keys) = (device(3), keys(3));
    let run = StoreRun { parent: None, first: 0, keys: &keys, stamp: Stamp(1) };
    let options = StoreOptions { deadline: SHORT, wait_for_credits: true };
    let stored = in_time(SHORT, || space.store(run, &device, &blocks(3), options));
    assert_eq!((stored.why, stored.unsettled), (Some(MissReason::Deadline), 3));
    client.ping(LONG).unwrap();
    soon("all slots are back", || shelf.lock().unwrap().returned.len() == 3);
}

#[test]
fn a_hold_made_too_late_goes_back() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    shelf.lock().unwrap().put(key(0), 1);
    let _daemon =
        world.daemon_with(&shelf, late(&shelf, |request| matches!(request, Request::Lookup(_))));
    let (client, space) = world.open();
    let options = LookupOptions { hold: Some(LONG), deadline: SHORT, ..LookupOptions::default() };
    let found = in_time(SHORT, || space.lookup(&keys(1), options));
    assert_eq!((found.pages, found.why), (0, Some(MissReason::Deadline)));
    client.ping(LONG).unwrap();
    soon("the hold is back", || shelf.lock().unwrap().dropped.len() == 1);
}

#[test]
fn a_deadline_amid_a_store_counts_what_is_not_known() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let _daemon =
        world.daemon_with(&shelf, late(&shelf, |request| matches!(request, Request::Commit(_))));
    let (client, space) = world.open();
    let (device, keys) = (device(9), keys(9));
    let run = StoreRun { parent: None, first: 0, keys: &keys, stamp: Stamp(1) };
    let options = StoreOptions { deadline: SHORT, wait_for_credits: true };
    let stored = in_time(SHORT, || space.store(run, &device, &blocks(9), options));
    assert_eq!(stored.why, Some(MissReason::Deadline));
    assert_eq!(stored.unsettled, 9, "{stored:?}");
    client.ping(LONG).unwrap();
    // What was committed is there: the daemon settles it whether or not anybody listens.
    assert_eq!(space.lookup(&keys, PLAIN).pages, 4);
}
