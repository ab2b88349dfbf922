//! Bytes of any length under one key, through a real daemon: all of them come back or none.

use std::time::Duration;
use undercroft_client::wire::{Dtype, Family, Geometry, PageKey, Rank, Space, Stamp};
use undercroft_client::{
    Client, ConnectOptions, FetchFrom, MissReason, SpaceHandle, StoreOptions, StoreRun, Stored,
};
use undercroft_gpu_shim::{BlockId, HostDevice, HostOptions};
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

/// The bytes of one prompt are not the same whenever they are computed. Who has others stores
/// nothing, and is told so: what is kept stays.
#[test]
fn other_bytes_under_a_kept_key_are_not_stored() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    let space = open(&daemon);
    for (number, length) in [(1, 9 * PAGE + 5), (2, 100), (3, 0)] {
        let (key, first) = (PageKey([number; 32]), bytes(u64::from(number), length));
        assert_eq!(store(&space, key, &first).why, None);
        let mut others = vec![bytes(77, length + 1), bytes(78, 3 * PAGE)];
        if length > 0 {
            others.push(bytes(79, length));
        }
        for other in others {
            let kept = store(&space, key, &other);
            let counts = (kept.stored, kept.held, kept.declined.total(), kept.why);
            assert_eq!(counts, (0, 0, 0, Some(MissReason::Taken)), "{length} bytes");
            assert!(kept.unsettled > 0, "the counts add up");
            assert!(load(&space, key).as_ref() == Ok(&first), "{length} bytes");
        }
        assert_eq!(store(&space, key, &first).stored, 0);
    }
}

/// An engine that keeps both in one space may have one key for both.
#[test]
fn a_blob_and_a_page_have_no_key_in_common() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    let (space, state) = (open(&daemon), bytes(1, 5 * PAGE));
    let key = PageKey([1; 32]);
    let geometry = space.space().geometry;
    let device = HostDevice::new(geometry, 2, HostOptions::default()).expect("two blocks");
    device.write_block(BlockId(0), |_, bytes| bytes.fill(7)).expect("a block");
    assert_eq!(store(&space, key, &state).why, None);
    let page = |block| {
        let (keys, blocks) = ([key], [BlockId(block)]);
        space.fetch_into(&device, FetchFrom::Keys(&keys), &blocks, Stamp(0), PATIENCE)
    };
    let loaded = page(1);
    assert_eq!((loaded.pages, loaded.why), (0, Some(MissReason::Absent)), "a head is no page");
    let run = StoreRun { parent: None, first: 0, keys: &[key], stamp: Stamp(0) };
    let options = StoreOptions { deadline: PATIENCE, wait_for_credits: true };
    assert_eq!(space.store(run, &device, &[BlockId(0)], options).stored, 1);
    assert_eq!(page(1).pages, 1);
    let mut same = true;
    device.read_block(BlockId(1), |_, bytes| same &= bytes.iter().all(|b| *b == 7)).expect("one");
    assert!(same);
    assert!(load(&space, key) == Ok(state), "both are kept");
    let other = PageKey([2; 32]);
    let run = StoreRun { keys: &[other], ..run };
    assert_eq!(space.store(run, &device, &[BlockId(0)], options).stored, 1);
    assert_eq!(load(&space, other), Err(MissReason::Absent), "a page is no head");
}
