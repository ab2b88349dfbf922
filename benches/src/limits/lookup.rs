use super::bare_echo::BareEcho;
use super::driver::Setup;
use super::pairs::{Pairs, Unit};
use super::report::Row;
use super::rig::{Rig, lookup};
use crate::BenchError;
use crate::daemon::DaemonPlan;
use std::time::{Duration, Instant};
use undercroft_wire::{
    KeyRun, Lookup, LookupReply, PageKey, Reply, Request, RequestId, SpaceId, Stamp, encode_reply,
    encode_request,
};

/// Keys of the longer lookup.
const KEYS: usize = 4096;
/// The smallest page whose frame wastes nothing: only keys count here.
const PAGE_BYTES: u32 = 4096;
const ARENA_BYTES: u64 = 64 << 20;

/// Round trips of a lookup of one key and of many, against a bare echo of the same bytes.
pub(super) fn measure(setup: &Setup<'_>, pairs: &Pairs<'_>) -> Result<Vec<Row>, BenchError> {
    let plan = DaemonPlan {
        binary: setup.options.binary.clone(),
        arena_bytes: ARENA_BYTES,
        part_bytes: ARENA_BYTES,
        staging_bytes: 4 << 20,
        policy: "lru",
        ssd: None,
    };
    let row = "lookup_4096_us";
    let rig = Rig::start(row, plan, PAGE_BYTES, KEYS as u32, 1, setup.interrupt)?;
    let keys = rig.fresh(KEYS);
    rig.store(&keys, 0..KEYS)?;
    [("lookup_1_us", 1, false), (row, KEYS, true)]
        .into_iter()
        .filter(|(name, ..)| setup.wants(name))
        .map(|(name, count, probe)| one(name, &keys[..count], probe, setup, pairs, &rig))
        .collect()
}

fn one(
    name: &'static str,
    keys: &[PageKey],
    probe: bool,
    setup: &Setup<'_>,
    pairs: &Pairs<'_>,
    rig: &Rig,
) -> Result<Row, BenchError> {
    let (request_bytes, reply_bytes) = message_bytes(keys);
    let raw: Vec<[u8; 32]> = keys.iter().map(|key| key.0).collect();
    let head = if probe { raw.as_slice() } else { &[] };
    let mut echo = BareEcho::start(&setup.options.binary, request_bytes, reply_bytes, head)?;
    let mut ours = |window| {
        median_us(window, || {
            let found = rig.space.lookup(keys, lookup());
            if found.pages as usize == keys.len() {
                return Ok(());
            }
            Err(rig.problem(format!("of {} keys a lookup found {found:?}", keys.len())))
        })
    };
    let mut limit = |window| {
        median_us(window, || {
            echo.round_trip().map_err(BenchError::system("echo over a socket"))?;
            if probe && echo.found() as usize != head.len() {
                return Err(rig.problem(format!("the bare table found {} keys", echo.found())));
            }
            Ok(())
        })
    };
    let row = pairs.measure(name, Unit::Microseconds, &mut ours, &mut limit)?;
    let bare = if probe { "echo and table probes" } else { "echo" };
    Ok(Row { bare: bare.to_owned(), ..row })
}

/// The bytes of such a lookup and of its answer on the wire.
fn message_bytes(keys: &[PageKey]) -> (usize, usize) {
    let (mut request, mut reply) = (Vec::new(), Vec::new());
    let id = RequestId(1);
    let lookup = Lookup { spaces: vec![SpaceId(0)], keys: KeyRun::from(keys), hold_ms: 0 };
    encode_request(&mut request, id, &Request::Lookup(lookup));
    let pages = keys.len() as u32;
    let found =
        LookupReply { pages, dram: pages, ssd: 0, hold: None, stamp: Stamp(1), estimate_us: 0 };
    encode_reply(&mut reply, id, &Reply::Lookup(found));
    (request.len(), reply.len())
}

/// Median time of a call, microseconds.
fn median_us(
    window: Duration,
    mut call: impl FnMut() -> Result<(), BenchError>,
) -> Result<f64, BenchError> {
    let mut times = Vec::with_capacity(1 << 16);
    let since = Instant::now();
    while since.elapsed() < window {
        let began = Instant::now();
        call()?;
        times.push(began.elapsed());
    }
    let middle = times.len() / 2;
    let (_, median, _) = times.select_nth_unstable(middle);
    Ok(median.as_nanos() as f64 / 1e3)
}
