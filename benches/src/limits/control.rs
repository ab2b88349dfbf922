use super::driver::Setup;
use super::echo::{EchoShape, FarEnd};
use super::latencies::Latencies;
use super::pairs::{Figure, Pairs, Unit};
use super::parallel;
use super::report::Row;
use super::rig::{self, DEADLINE, Rig, lookup};
use crate::BenchError;
use crate::daemon::DaemonPlan;
use std::time::Duration;
use undercroft_client::FetchFrom;
use undercroft_core::{Admission, LoadPolicy, Policy};
use undercroft_wire::{
    Fetch, FetchEnd, FetchReady, FetchSource, KeyRun, LeaseId, Lookup, LookupReply, PageKey,
    PagePlace, PartId, Release, Reply, Request, RequestId, Rival, SessionId, Space, SpaceId, Stamp,
    encode_reply, encode_request,
};

/// The rows of the control path, in their order.
pub(super) const ROWS: [&str; 6] = [ECHO, ONE, FETCH, MANY, parallel::US, parallel::RATE];
const ECHO: &str = "tokio_echo_us";
const ONE: &str = "lookup_1_us";
const FETCH: &str = "fetch_hot_1_us";
const MANY: &str = "lookup_4096_us";

/// Keys of the longer lookup.
const KEYS: usize = 4096;
/// The smallest page whose frame wastes nothing: only keys count here.
const PAGE_BYTES: u32 = 4096;
const ARENA_BYTES: u64 = 64 << 20;

/// Round trips of the control path, against echoes of the same bytes.
pub(super) fn measure(setup: &Setup<'_>, pairs: &Pairs<'_>) -> Result<Vec<Row>, BenchError> {
    let plan = DaemonPlan {
        binary: setup.options.binary.clone(),
        arena_bytes: ARENA_BYTES,
        part_bytes: ARENA_BYTES,
        staging_bytes: 4 << 20,
        policy: Policy::Lru,
        admission: Admission::Demote,
        load: LoadPolicy::default(),
        ssd: None,
    };
    let rig = Rig::start(MANY, plan, PAGE_BYTES, KEYS as u32, 1, setup.interrupt)?;
    let keys = rig.fresh(KEYS);
    rig.store(&keys, 0..KEYS)?;
    let bench = Bench { setup, pairs, rig, keys };
    let mut rows = Vec::new();
    for name in ROWS.into_iter().filter(|name| setup.wants(name)) {
        match name {
            ECHO => rows.push(bench.echo()?),
            ONE => rows.push(bench.lookup_one()?),
            FETCH => rows.push(bench.fetch()?),
            MANY => rows.push(bench.lookup_many()?),
            _ => {}
        }
    }
    if setup.wants(parallel::US) || setup.wants(parallel::RATE) {
        let one = bench.far_end(&bench.keys[..1], true)?;
        rows.extend(parallel::measure(setup, pairs, &bench.rig, one)?);
    }
    Ok(rows)
}

struct Bench<'a> {
    setup: &'a Setup<'a>,
    pairs: &'a Pairs<'a>,
    rig: Rig,
    keys: Vec<PageKey>,
}

impl Bench<'_> {
    /// What the runtime costs that the daemon is built on, and nothing else.
    fn echo(&self) -> Result<Row, BenchError> {
        let mut tokio = self.far_end(&self.keys[..1], true)?;
        let mut bare = self.far_end(&self.keys[..1], false)?;
        let (mut tokio, mut bare) = (tokio.connect()?, bare.connect()?);
        let mut ours = |window| figure(window, || echoed(tokio.round_trip()));
        let mut limit = |window| figure(window, || echoed(bare.round_trip()));
        self.row(ECHO, "echo by blocking calls", &mut ours, &mut limit)
    }

    fn lookup_one(&self) -> Result<Row, BenchError> {
        let mut far = self.far_end(&self.keys[..1], true)?;
        let mut echo = far.connect()?;
        let mut ours = |window| figure(window, || self.look_up(&self.keys[..1]));
        let mut limit = |window| figure(window, || echoed(echo.round_trip()));
        self.row(ONE, "echo by single-threaded tokio", &mut ours, &mut limit)
    }

    /// A fetch of one resident page, until its end was heard and its lease released.
    fn fetch(&self) -> Result<Row, BenchError> {
        let (request_bytes, reply_bytes) = fetch_bytes(&self.keys[..1]);
        let shape = EchoShape { request_bytes, reply_bytes, head: &[], tokio: true };
        let mut far = FarEnd::start(&self.setup.options.binary, shape)?;
        let mut echo = far.connect()?;
        let mut ours = |window| {
            figure(window, || {
                let from = FetchFrom::Keys(&self.keys[..1]);
                let report = self.rig.space.fetch(from, Stamp(0), DEADLINE).outcome();
                if report.pages == 1 && report.why.is_none() {
                    return Ok(());
                }
                Err(self.rig.problem(format!("of one page came {report:?}")))
            })
        };
        let mut limit = |window| figure(window, || echoed(echo.round_trip()));
        self.row(FETCH, "echo by single-threaded tokio", &mut ours, &mut limit)
    }

    fn lookup_many(&self) -> Result<Row, BenchError> {
        let (request_bytes, reply_bytes) = lookup_bytes(&self.keys);
        let head: Vec<[u8; 32]> = self.keys.iter().map(|key| key.0).collect();
        let shape = EchoShape { request_bytes, reply_bytes, head: &head, tokio: false };
        let mut far = FarEnd::start(&self.setup.options.binary, shape)?;
        let mut echo = far.connect()?;
        let mut ours = |window| figure(window, || self.look_up(&self.keys));
        let mut limit = |window| {
            figure(window, || {
                echoed(echo.round_trip())?;
                if echo.found() as usize == head.len() {
                    return Ok(());
                }
                Err(self.rig.problem(format!("the bare table found {} keys", echo.found())))
            })
        };
        self.row(MANY, "echo by blocking calls and table probes", &mut ours, &mut limit)
    }

    fn row(
        &self,
        name: &'static str,
        bare: &str,
        ours: &mut dyn FnMut(Duration) -> Result<Figure, BenchError>,
        limit: &mut dyn FnMut(Duration) -> Result<Figure, BenchError>,
    ) -> Result<Row, BenchError> {
        let row = self.pairs.measure(name, Unit::Microseconds, ours, limit)?;
        Ok(Row { bare: bare.to_owned(), ..row })
    }

    /// An echo of the bytes of such a lookup.
    fn far_end(&self, keys: &[PageKey], tokio: bool) -> Result<FarEnd, BenchError> {
        let (request_bytes, reply_bytes) = lookup_bytes(keys);
        let shape = EchoShape { request_bytes, reply_bytes, head: &[], tokio };
        FarEnd::start(&self.setup.options.binary, shape)
    }

    fn look_up(&self, keys: &[PageKey]) -> Result<(), BenchError> {
        let found = self.rig.space.lookup(keys, lookup());
        if found.pages as usize == keys.len() {
            return Ok(());
        }
        Err(self.rig.problem(format!("of {} keys a lookup found {found:?}", keys.len())))
    }
}

pub(super) fn echoed(result: std::io::Result<()>) -> Result<(), BenchError> {
    result.map_err(BenchError::system("echo over a socket"))
}

/// Median and 99th percentile of a call, microseconds.
fn figure(
    window: Duration,
    call: impl FnMut() -> Result<(), BenchError>,
) -> Result<Figure, BenchError> {
    let latencies = Latencies::of(window, call)?;
    Ok(Figure { value: latencies.us(0.5), p99: Some(latencies.us(0.99)) })
}

/// The space of these rows and the key that every caller looks up.
pub(super) fn known() -> (Space, Vec<PageKey>) {
    let space = rig::space(MANY, PAGE_BYTES).expect("a possible page");
    let key = rig::key(&space.family.digest(), 0);
    (space, vec![key])
}

/// The bytes of a lookup and of its answer on the wire.
pub(super) fn lookup_bytes(keys: &[PageKey]) -> (usize, usize) {
    let (mut request, mut reply) = (Vec::new(), Vec::new());
    let id = RequestId(1);
    let lookup = Lookup {
        spaces: vec![SpaceId(0)],
        keys: KeyRun::from(keys),
        hold_ms: 0,
        rival: Rival::default(),
    };
    encode_request(&mut request, id, &Request::Lookup(lookup));
    let pages = keys.len() as u32;
    let (dram, present, worth, stamp) = (pages, pages, pages, Stamp(1));
    let found = LookupReply { pages, dram, present, worth, stamp, ..LookupReply::default() };
    encode_reply(&mut reply, id, &Reply::Lookup(found));
    (request.len(), reply.len())
}

/// The bytes of a fetch of these pages with the release of its lease, and of what it is answered.
fn fetch_bytes(keys: &[PageKey]) -> (usize, usize) {
    let (mut request, mut reply) = (Vec::new(), Vec::new());
    let (id, lease) = (RequestId(1), LeaseId(1));
    let source = FetchSource::Keys { keys: KeyRun::from(keys) };
    let fetch = Fetch {
        space: SpaceId(0),
        lease,
        source,
        stamp: Stamp(0),
        deadline_ms: 30_000,
        recompute_ns: 0,
    };
    encode_request(&mut request, id, &Request::Fetch(fetch));
    let release = Release { session: SessionId(1), lease, upto: u32::MAX };
    encode_request(&mut request, RequestId(0), &Request::Release(release));
    let place = PagePlace { part: PartId(0), offset: 4096 };
    let places = vec![place; keys.len()];
    encode_reply(&mut reply, id, &Reply::FetchReady(FetchReady { lease, first: 0, places }));
    let end = FetchEnd { lease, ready: keys.len() as u32, ssd: 0, outcome: 0 };
    encode_reply(&mut reply, id, &Reply::FetchEnd(end));
    (request.len(), reply.len())
}
