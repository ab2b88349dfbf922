//! Blobs where somebody else is in the way: what is under their keys already, who is storing, and
//! who does not answer.

use crate::shelf::{PAGE_BYTES, Shelf};
use crate::world::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use undercroft_client::{
    Client, MissReason, SpaceHandle, StoreOptions, StoreRun, Stored, Wait, wire::PageKey,
};
use undercroft_wire::{
    FetchEnd, FetchOutcome, Mode, OfferId, OfferOutcome, OfferReply, Reply, Request, Stamp,
};

const WAITING: StoreOptions = StoreOptions { deadline: LONG, wait_for_credits: true };
const HEAD: &[u8] = b"ucblob01";

/// Three pages and a bit, all of one byte.
fn long(byte: u8) -> Vec<u8> {
    vec![byte; 3 * PAGE_BYTES as usize + 100]
}

fn load(space: &SpaceHandle, key: PageKey) -> Result<Vec<u8>, MissReason> {
    let blob = space.find_blob(key, LONG)?;
    let mut bytes = vec![0; blob.len() as usize];
    blob.load(&mut bytes, LONG).map(|()| bytes)
}

fn counts(stored: &Stored) -> (u32, u32, Option<MissReason>) {
    (stored.stored, stored.held, stored.why)
}

#[test]
fn a_head_whose_pages_are_gone_is_in_nobodys_way() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 8);
    let _daemon = world.daemon(&shelf);
    let (_client, space) = world.open();
    for round in 1..=4 {
        assert_eq!(counts(&space.store_blob(key(1), &long(round), WAITING)), (4, 0, None));
        assert!(load(&space, key(1)) == Ok(long(round)), "round {round}");
        shelf.lock().unwrap().keep(HEAD);
        assert_eq!(load(&space, key(1)).err(), Some(MissReason::Absent), "round {round}");
    }
    let fifth = space.store_blob(key(1), &long(5), WAITING);
    assert_eq!(counts(&fifth), (0, 0, Some(MissReason::Full)), "there is an end to it");
    assert_eq!(fifth.unsettled, 4);
    let again = space.store_blob(key(1), &long(2), WAITING);
    assert_eq!(counts(&again), (3, 1, None), "the same bytes bring back what is missing");
    assert!(load(&space, key(1)) == Ok(long(2)));
}

#[test]
fn bytes_that_are_not_what_was_stored_are_damaged() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 8);
    let _daemon = world.daemon(&shelf);
    let (_client, space) = world.open();
    assert_eq!(space.store_blob(key(1), &long(3), WAITING).why, None);
    assert!(shelf.lock().unwrap().spoil(&[3, 3]));
    assert_eq!(load(&space, key(1)).err(), Some(MissReason::Damaged));
}

/// Somebody else has been assigned slots for these pages, and does not come to an end.
#[test]
fn what_others_have_promised_is_not_held() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 8);
    let _daemon = world.daemon_with(&shelf, |peer, id, request| {
        let Request::Offer(offer) = request else {
            return false;
        };
        let outcomes = vec![OfferOutcome::Coming.to_byte(); offer.keys.len()];
        let reply = OfferReply { offer: OfferId(1), outcomes, slots: Vec::new() };
        peer.reply(id, &Reply::Offer(reply));
        true
    });
    let (_client, space) = world.open();
    let (device, keys) = (device(3), keys(3));
    let run = StoreRun { parent: None, first: 0, keys: &keys, stamp: Stamp(1) };
    let waiting = StoreOptions { deadline: SHORT, wait_for_credits: true };
    let late = in_time(SHORT, || space.store(run, &device, &blocks(3), waiting));
    assert_eq!((late.coming, counts(&late)), (3, (0, 0, Some(MissReason::Deadline))));
    let options = StoreOptions { deadline: LONG, wait_for_credits: false };
    let passing = in_time(SHORT, || space.store(run, &device, &blocks(3), options));
    assert_eq!((passing.coming, counts(&passing)), (3, (0, 0, None)), "nobody is waited for");
    let blob = in_time(SHORT, || space.store_blob(key(1), &long(1), waiting));
    assert_eq!((blob.coming, counts(&blob)), (4, (0, 0, Some(MissReason::Deadline))));
    let blob = in_time(SHORT, || space.store_blob(key(1), &long(1), options));
    assert_eq!((blob.coming, blob.why), (4, Some(MissReason::Deadline)));
}

/// Two writers found nothing under the key, and the other one's short blob was there first.
#[test]
fn a_head_that_is_held_is_looked_at() {
    for (others, why) in [(Some([2; 9]), MissReason::Taken), (None, MissReason::Damaged)] {
        let world = World::new();
        let shelf = Shelf::new(1, Mode::ZeroCopy, 8);
        let fetches = Arc::new(AtomicUsize::new(usize::MAX));
        let (counted, filled) = (Arc::clone(&fetches), Arc::clone(&shelf));
        let _daemon = world.daemon_with(&shelf, move |peer, id, request| match request {
            Request::Fetch(fetch) if counted.fetch_add(1, Ordering::Relaxed) == 0 => {
                let outcome = FetchOutcome::Missing.to_byte();
                let end = FetchEnd { lease: fetch.lease, ready: 0, ssd: 0, outcome };
                peer.reply(id, &Reply::FetchEnd(end));
                true
            }
            Request::Offer(offer) if others.is_none() => {
                filled.lock().unwrap().put(offer.keys.as_slice()[0], 7);
                false
            }
            _ => false,
        });
        let (_client, space) = world.open();
        if let Some(others) = others {
            assert_eq!(counts(&space.store_blob(key(1), &others, WAITING)), (1, 0, None));
        }
        fetches.store(0, Ordering::Relaxed);
        let stored = space.store_blob(key(1), &[1; 9], WAITING);
        assert_eq!(counts(&stored), (0, 1, Some(why)));
    }
}

/// Where nobody can be asked, a blob costs nothing: it is not even hashed.
#[test]
fn without_a_daemon_nothing_is_hashed() {
    let world = World::new();
    let client = Client::connect(world.options(Wait::Background)).unwrap();
    let space = client.open_space(&crate::world::space(), Duration::ZERO).unwrap();
    let bytes = vec![3; 60_000 * PAGE_BYTES as usize];
    let began = Instant::now();
    std::hint::black_box(blake3::hash(&bytes));
    let hashing = began.elapsed();
    let began = Instant::now();
    let stored = space.store_blob(key(1), &bytes, WAITING);
    assert!(began.elapsed() < hashing / 2, "{:?} against {hashing:?}", began.elapsed());
    assert_eq!((stored.unsettled, stored.why), (60_001, Some(MissReason::Disconnected)));
    let longer = vec![0; 65_536 * PAGE_BYTES as usize];
    let stored = space.store_blob(key(1), &longer, WAITING);
    assert_eq!((stored.unsettled, stored.why), (65_537, Some(MissReason::TooLong)));
}
