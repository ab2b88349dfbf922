//! Bytes of any length under one key, through a real daemon: all of them come back or none.

use std::time::Duration;
use undercroft_client::wire::{Dtype, Family, Geometry, PageKey, Rank, Space};
use undercroft_client::{Client, ConnectOptions, MissReason, SpaceHandle, StoreOptions, Stored};
use undercroft_tests::{DaemonOptions, TestDaemon};

const PAGE: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(20);

fn open(daemon: &TestDaemon) -> SpaceHandle {
    let client = Client::connect(ConnectOptions::new(daemon.socket())).expect("it serves");
    let family = Family {
        model: [5; 32],
        adapter: [0; 32],
        dtype: Dtype::F16,
        quantization: "none".into(),
        attention: String::new(),
        layout: "blob".into(),
        layers: 30,
        kv_heads: 3,
        page_tokens: 1,
    };
    let geometry = Geometry::new(1, 1, PAGE as u32).expect("a page");
    let space = Space { family, rank: Rank::Shared, group: 0, geometry };
    client.open_space(&space, PATIENCE).expect("it is opened")
}

fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

fn store(space: &SpaceHandle, key: PageKey, bytes: &[u8]) -> Stored {
    let options = StoreOptions { deadline: PATIENCE, wait_for_credits: true };
    space.store_blob(key, bytes, options)
}

fn load(space: &SpaceHandle, key: PageKey) -> Result<Vec<u8>, MissReason> {
    let blob = space.find_blob(key, PATIENCE)?;
    let mut bytes = vec![0; usize::try_from(blob.len()).expect("it was stored")];
    blob.load(&mut bytes, PATIENCE)?;
    Ok(bytes)
}

#[test]
fn a_blob_outlives_its_engine_and_its_daemon() {
    let options = DaemonOptions { managed: true, ..DaemonOptions::default() };
    let mut daemon = TestDaemon::start(options);
    let (key, state) = (PageKey([1; 32]), bytes(1, 40 * PAGE + 77));
    let space = open(&daemon);
    let stored = store(&space, key, &state);
    assert_eq!((stored.stored, stored.why), (41, None));
    assert!(load(&open(&daemon), key).as_ref() == Ok(&state));
    let again = store(&space, key, &state);
    assert_eq!((again.stored, again.held), (0, 41));
    drop(space);
    daemon.stop();
    daemon.restart();
    assert!(load(&open(&daemon), key).as_ref() == Ok(&state));
}

/// The same bytes under two keys take the room of one.
#[test]
fn equal_bytes_share_their_pages() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    let (space, state) = (open(&daemon), bytes(2, 9 * PAGE));
    let first = store(&space, PageKey([1; 32]), &state);
    let second = store(&space, PageKey([2; 32]), &state);
    assert_eq!((first.stored, second.stored, second.held), (10, 1, 9));
    assert!(load(&space, PageKey([2; 32])) == Ok(state));
}

/// Of a blob that is too long for the arena some pages are missing: so is all of it.
#[test]
fn a_blob_with_a_page_missing_is_a_miss() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    let (space, state) = (open(&daemon), bytes(3, 2 << 20));
    let options = StoreOptions { deadline: Duration::from_secs(3), wait_for_credits: true };
    let stored = space.store_blob(PageKey([1; 32]), &state, options);
    assert!(stored.stored < 513, "{stored:?}");
    let found = load(&space, PageKey([1; 32]));
    assert!(found.is_err(), "{} bytes of an arena of half as many", state.len());
    // What fits is kept beside what is left of it.
    let small = bytes(4, 3 * PAGE);
    assert_eq!(store(&space, PageKey([2; 32]), &small).why, None);
    assert!(load(&space, PageKey([2; 32])) == Ok(small));
}
