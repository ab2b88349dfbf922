use crate::shelf::Shelf;
use crate::world::*;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use undercroft_client::{FetchFrom, FetchReport, LookupOptions, MissReason};
use undercroft_wire::{FetchEnd, FetchOutcome, LookupReply, Mode, Reply, Request, Rival, Stamp};

/// What computing costs goes with every lookup and fetch from when it was said, over lost
/// connections too, and what the daemon makes of it is told.
#[test]
fn what_computing_costs_travels_and_comes_back_as_a_reason() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    let _daemon = world.daemon_with(&shelf, move |peer, id, request| {
        match request {
            Request::Lookup(lookup) => {
                hears.lock().unwrap().push(lookup.rival);
                let found = LookupReply { pages: 2, dram: 2, ..LookupReply::default() };
                let (present, worth) = (5, 2);
                peer.reply(id, &Reply::Lookup(LookupReply { present, worth, ..found }));
            }
            Request::Fetch(fetch) => {
                let recompute_ns = fetch.recompute_ns;
                hears.lock().unwrap().push(Rival { recompute_ns, ..Rival::default() });
                let outcome = FetchOutcome::Slower.to_byte();
                let end = FetchEnd { lease: fetch.lease, ready: 0, ssd: 0, outcome };
                peer.reply(id, &Reply::FetchEnd(end));
            }
            _ => return false,
        }
        true
    });
    let (_client, space) = world.open();
    let due = Some(Duration::from_millis(40));
    let options = LookupOptions { deadline: LONG, due, have: 1, ..LookupOptions::default() };
    let found = space.lookup(&keys(6), options);
    assert_eq!((found.pages, found.present, found.worth), (2, 5, 2));
    assert_eq!(found.why, Some(MissReason::Slower));
    space.clone().set_recompute(Duration::from_micros(1_600));
    let _found = space.lookup(&keys(6), PLAIN);
    let report = space.fetch(FetchFrom::Keys(&keys(2)), Stamp(0), LONG).outcome();
    let slower = FetchReport { pages: 0, ssd_pages: 0, why: Some(MissReason::Slower) };
    assert_eq!(report, slower);
    let said = Rival { recompute_ns: 1_600_000, ..Rival::default() };
    let first = Rival { due_ms: 40, have: 1, ..Rival::default() };
    assert_eq!(*heard.lock().unwrap(), [first, said, said]);
}
