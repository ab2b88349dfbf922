//! What every test starts with: a socket, a space, keys, a device.

use crate::fake_daemon::{FakeDaemon, Peer};
use crate::shelf::{PAGE_BYTES, Shared};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use undercroft_client::{Client, ConnectOptions, LookupOptions, SpaceHandle, Wait};
use undercroft_gpu_shim::{BlockId, HostDevice, HostOptions};
use undercroft_wire::{Dtype, Family, Geometry, PageKey, Rank, Request, RequestId, Space};

/// Ample: a test that needs it has failed.
pub(crate) const LONG: Duration = Duration::from_secs(20);
/// A deadline that a test waits for.
pub(crate) const SHORT: Duration = Duration::from_millis(40);
/// How late a call may come back on a busy machine.
pub(crate) const GRACE: Duration = Duration::from_millis(400);

pub(crate) const HELD: LookupOptions =
    LookupOptions { hold: Some(LONG), deadline: LONG, due: None, have: 0 };
pub(crate) const PLAIN: LookupOptions =
    LookupOptions { hold: None, deadline: LONG, due: None, have: 0 };

pub(crate) struct World {
    pub(crate) directory: TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("u.sock")
    }

    /// A daemon that answers everything from its shelf.
    pub(crate) fn daemon(&self, shelf: &Shared) -> FakeDaemon {
        self.daemon_with(shelf, |_, _, _| false)
    }

    /// A daemon that answers from its shelf what `special` does not answer itself.
    pub(crate) fn daemon_with(
        &self,
        shelf: &Shared,
        special: impl Fn(&mut Peer, RequestId, &Request<'_>) -> bool + Send + Sync + 'static,
    ) -> FakeDaemon {
        let shelf = shelf.clone();
        FakeDaemon::start(&self.socket(), move |mut peer| {
            while let Some(frame) = peer.next() {
                let (id, request) = frame.decode();
                if !special(&mut peer, id, &request) {
                    shelf.lock().unwrap().answer(&mut peer, id, &request);
                }
            }
        })
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.options(Wait::Now(LONG))).unwrap()
    }

    pub(crate) fn options(&self, wait: Wait) -> ConnectOptions {
        ConnectOptions { wait, name: "test".into(), ..ConnectOptions::new(self.socket()) }
    }

    pub(crate) fn open(&self) -> (Client, SpaceHandle) {
        let client = self.client();
        let space = client.open_space(&space(), LONG).unwrap();
        (client, space)
    }
}

pub(crate) fn geometry() -> Geometry {
    Geometry::new(3, 2, PAGE_BYTES / 6).unwrap()
}

pub(crate) fn space() -> Space {
    Space {
        family: Family {
            model: [7; 32],
            adapter: [0; 32],
            dtype: Dtype::Bf16,
            quantization: "none".into(),
            attention: "rope".into(),
            layout: "nhd".into(),
            layers: 3,
            kv_heads: 2,
            page_tokens: 16,
        },
        rank: Rank::Shared,
        group: 0,
        geometry: geometry(),
    }
}

pub(crate) fn key(number: u32) -> PageKey {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    PageKey(bytes)
}

pub(crate) fn keys(count: u32) -> Vec<PageKey> {
    (0..count).map(key).collect()
}

pub(crate) fn blocks(count: u32) -> Vec<BlockId> {
    (0..count).map(BlockId).collect()
}

/// A device whose block `i` is full of bytes that name it.
pub(crate) fn device(blocks: u32) -> HostDevice {
    let device = HostDevice::new(geometry(), blocks, HostOptions::default()).unwrap();
    for block in 0..blocks {
        device.write_block(BlockId(block), |at, bytes| bytes.fill(mark(block, at))).unwrap();
    }
    device
}

pub(crate) fn mark(block: u32, at: usize) -> u8 {
    (block * 31 + at as u32 / 1024 * 7 + 1) as u8
}

/// Whether block `to` holds what [`device`] wrote into block `from`.
pub(crate) fn is_copy(device: &HostDevice, to: u32, from: u32) -> bool {
    let mut same = true;
    device
        .read_block(BlockId(to), |at, bytes| {
            same &= bytes.iter().all(|byte| *byte == mark(from, at));
        })
        .unwrap();
    same
}

/// Waits for what another thread is about to bring about.
pub(crate) fn soon(what: &str, mut seen: impl FnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !seen() {
        assert!(Instant::now() < until, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs a call and says whether it came back within its deadline.
pub(crate) fn in_time<T>(deadline: Duration, call: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = call();
    let took = began.elapsed();
    assert!(took < deadline + GRACE, "{took:?} for a deadline of {deadline:?}");
    result
}
