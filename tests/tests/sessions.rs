//! What a session leaves behind, and how much one may take: seen from the bare socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use undercroft_client::wire::{
    Chain, Commit, Dtype, Family, Fetch, FetchSource, Geometry, Hello, KeyRun, LeaseId, Offer,
    OpenSpace, PROTOCOL_MAX, PROTOCOL_MIN, PageKey, Rank, Refused, RefusedReason, Release, Reply,
    Request, RequestId, SessionId, Space, SpaceId, Stamp, decode_reply, encode_request,
    split_frame,
};
use undercroft_tests::{DaemonOptions, TestDaemon};

/// A session without the client library. Descriptors it is sent are lost.
struct Raw {
    stream: UnixStream,
    inbox: Vec<u8>,
    id: SessionId,
}

impl Raw {
    fn connect(daemon: &TestDaemon) -> Self {
        let stream = UnixStream::connect(daemon.socket()).expect("the daemon listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
        let mut raw = Self { stream, inbox: Vec::new(), id: SessionId(0) };
        let name = "raw".to_owned();
        let hello = Hello { min: PROTOCOL_MIN, max: PROTOCOL_MAX, name, copy_mode: false };
        let Reply::Welcome(welcome) = raw.ask(&Request::Hello(hello)) else {
            panic!("not welcome");
        };
        raw.id = welcome.session;
        assert!(matches!(raw.reply(), Reply::BoardAdded(_)));
        for _ in 0..welcome.parts {
            assert!(matches!(raw.reply(), Reply::PartAdded(_)));
        }
        raw
    }

    fn send(&mut self, message: &Request<'_>) {
        let mut bytes = Vec::new();
        encode_request(&mut bytes, RequestId(1), message);
        self.stream.write_all(&bytes).expect("the daemon reads");
    }

    fn reply(&mut self) -> Reply {
        loop {
            if let Some((header, body, taken)) = split_frame(&self.inbox).expect("a frame") {
                let (request, reply) = decode_reply(&header, body).expect("a reply");
                self.inbox.drain(..taken);
                // Number 0 is what nobody asked for: parts that come later.
                if request != RequestId(0) {
                    return reply;
                }
                continue;
            }
            let mut more = [0; 4096];
            let got = self.stream.read(&mut more).expect("an answer");
            assert!(got > 0, "closed before it answered");
            self.inbox.extend_from_slice(&more[..got]);
        }
    }

    fn ask(&mut self, message: &Request<'_>) -> Reply {
        self.send(message);
        self.reply()
    }

    fn open(&mut self, rank: u16) -> Result<SpaceId, Refused> {
        match self.ask(&Request::OpenSpace(OpenSpace { space: space(rank), probe: None })) {
            Reply::SpaceOpened(opened) => Ok(opened.space),
            Reply::Refused(refused) => Err(refused),
            other => panic!("{other:?}"),
        }
    }

    fn store(&mut self, space: SpaceId, keys: &[PageKey]) {
        let (parent, first, stamp) = (None, 0, Stamp(0));
        let offer = Offer { space, parent, first, keys: KeyRun::from(keys), stamp };
        let Reply::Offer(wanted) = self.ask(&Request::Offer(offer)) else {
            panic!("no answer to an offer");
        };
        assert_eq!(wanted.slots.len(), keys.len());
        let (filled, returned) = (wanted.slots, Vec::new());
        let commit = Commit { space, offer: wanted.offer, filled, returned };
        assert!(matches!(self.ask(&Request::Commit(commit)), Reply::Commit(_)));
    }

    /// Leases pages, all of them in DRAM.
    fn lease(&mut self, space: SpaceId, keys: &[PageKey], lease: LeaseId) {
        let source = FetchSource::Keys { keys: KeyRun::from(keys) };
        let fetch =
            Fetch { space, lease, source, stamp: Stamp(0), deadline_ms: 10_000, recompute_ns: 0 };
        self.send(&Request::Fetch(fetch));
        loop {
            if let Reply::FetchEnd(end) = self.reply() {
                return assert_eq!(end.ready as usize, keys.len());
            }
        }
    }

    fn is_closed(&mut self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }
}

fn space(rank: u16) -> Space {
    let family = Family {
        model: [7; 32],
        adapter: [0; 32],
        dtype: Dtype::Bf16,
        quantization: "none".to_owned(),
        attention: "full".to_owned(),
        layout: "layer, part, block".to_owned(),
        layers: 2,
        kv_heads: 1,
        page_tokens: 16,
    };
    let geometry = Geometry::new(2, 2, 4 << 10).expect("a small page");
    Space { family, rank: Rank::Of { index: rank, count: 1000 }, group: 0, geometry }
}

fn keys(pages: u32) -> Vec<PageKey> {
    let mut chain = Chain::new(&space(0).family.digest(), b"");
    (0..pages).map(|page| chain.push(&[page])).collect()
}

fn lingering(daemon: &TestDaemon) -> usize {
    daemon.status().sessions.iter().filter(|session| session.lingering).count()
}

#[test]
fn leases_keep_a_session_but_not_its_connection() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    let mut first = Raw::connect(&daemon);
    let space = first.open(0).expect("the space opens");
    let keys = keys(4);
    first.store(space, &keys);
    first.lease(space, &keys, LeaseId(1));
    first.stream.write_all(b"this is no message of ours").expect("the daemon reads");
    assert!(first.is_closed(), "whatever it leases");
    assert_eq!(lingering(&daemon), 1, "this process may still read the frames");
    let mut second = Raw::connect(&daemon);
    let release = Release { session: first.id, lease: LeaseId(1), upto: u32::MAX };
    assert!(matches!(second.ask(&Request::Release(release)), Reply::Done));
    assert_eq!(lingering(&daemon), 0, "nothing is left of it");
}

#[test]
fn a_process_that_reconnects_does_not_use_up_the_connections() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    let keys = keys(2);
    // server.max_sessions is 64.
    for round in 0..100 {
        let mut raw = Raw::connect(&daemon);
        let space = raw.open(0).expect("the space opens");
        if round == 0 {
            raw.store(space, &keys);
        }
        raw.lease(space, &keys, LeaseId(1));
    }
    let since = Instant::now();
    while lingering(&daemon) < 100 {
        assert!(since.elapsed() < Duration::from_secs(10), "{} lingering", lingering(&daemon));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn staging_areas_have_a_limit_together() {
    // 64 areas of 256 KiB by default.
    let daemon = TestDaemon::start(DaemonOptions::default());
    let mut greedy = Raw::connect(&daemon);
    for rank in 0..64 {
        greedy.open(rank).expect("within the limit");
    }
    let mut other = Raw::connect(&daemon);
    let refused = other.open(0).expect_err("beyond the limit");
    assert_eq!(refused.reason, RefusedReason::Busy);
    assert!(refused.detail.contains("arena.staging_total"), "{}", refused.detail);
    drop(greedy);
    let since = Instant::now();
    while other.open(0).is_err() {
        assert!(since.elapsed() < Duration::from_secs(10), "its areas are not given back");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn many_small_requests_at_once_hold_nobody_up() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    let mut witness = Raw::connect(&daemon);
    let mut flood = Vec::new();
    while flood.len() < 8 << 20 {
        encode_request(&mut flood, RequestId(1), &Request::Status);
    }
    let mut greedy = Raw::connect(&daemon);
    let mut stream = greedy.stream.try_clone().expect("a socket");
    // It never reads. The daemon closes it before it has taken everything.
    let writer = std::thread::spawn(move || stream.write_all(&flood));
    let mut longest = Duration::ZERO;
    let since = Instant::now();
    while !writer.is_finished() && since.elapsed() < Duration::from_secs(20) {
        let asked = Instant::now();
        assert!(matches!(witness.ask(&Request::Ping), Reply::Done));
        longest = longest.max(asked.elapsed());
    }
    assert!(writer.join().expect("it does not panic").is_err(), "it was closed");
    assert!(greedy.is_closed());
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    assert!(daemon.says("it does not read"), "{}", daemon.log());
}
