//! Garbage, truncated, oversized and out-of-order messages close the session that sent them, with
//! a line in the log; others do not notice.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use undercroft_client::wire::{
    HEADER_BYTES, Hello, KeyRun, LeaseId, Lookup, MAGIC, PROTOCOL_MAX, PROTOCOL_MIN, Release,
    Reply, Request, RequestId, Rival, SessionId, SpaceId, Stamp, decode_reply, encode_request,
    split_frame,
};
use undercroft_tests::{DaemonOptions, Engine, TestDaemon};

fn connect(daemon: &TestDaemon) -> UnixStream {
    let stream = UnixStream::connect(daemon.socket()).expect("the daemon listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
    stream
}

fn frame(request: u32, message: &Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_request(&mut bytes, RequestId(request), message);
    bytes
}

fn hello() -> Vec<u8> {
    let hello =
        Hello { min: PROTOCOL_MIN, max: PROTOCOL_MAX, name: "hostile".to_owned(), copy_mode: true };
    frame(1, &Request::Hello(hello))
}

/// Reads until the daemon closes; `false` if it did not.
fn is_closed(stream: &mut UnixStream) -> bool {
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn reply(stream: &mut UnixStream) -> Reply {
    let mut bytes = Vec::new();
    loop {
        if let Some((header, body, _)) = split_frame(&bytes).expect("a frame of ours") {
            return decode_reply(&header, body).expect("a reply of ours").1;
        }
        let mut more = [0; 4096];
        let got = stream.read(&mut more).expect("an answer");
        assert!(got > 0, "closed before it answered");
        bytes.extend_from_slice(&more[..got]);
    }
}

fn header(kind: u16, length: u32) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&PROTOCOL_MAX.to_le_bytes());
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&7u32.to_le_bytes());
    assert_eq!(bytes.len(), HEADER_BYTES);
    bytes
}

#[test]
fn every_kind_of_garbage_closes_its_own_session_only() {
    let mut daemon = TestDaemon::start(DaemonOptions::default());
    let client = daemon.client("witness").expect("the daemon answers");
    let mut witness = Engine::new(&client, "model");
    let keys = witness.keys(1, 10);
    assert_eq!(witness.store(&keys, Stamp(0)).stored, 10);

    let ping = frame(2, &Request::Ping);
    let mut second_hello = hello();
    second_hello.extend(hello());
    let mut trailing = header(12, 3);
    trailing.extend([1, 2, 3]);
    let empty_lookup = Lookup {
        spaces: Vec::new(),
        keys: KeyRun::from(Vec::new()),
        hold_ms: 0,
        rival: Rival::default(),
    };
    let after_hello = |bytes: Vec<u8>| [hello(), bytes].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("noise", (0..200u8).map(|b| b.wrapping_mul(37)).collect()),
        ("a request before the hello", ping),
        ("a second hello", second_hello),
        ("an unknown kind", after_hello(header(4711, 0))),
        ("another version", after_hello([&MAGIC[..], &[9, 9], &[0; 10]].concat())),
        ("an oversized body", after_hello(header(3, u32::MAX))),
        ("a body over the limit by one", after_hello(header(3, (2 << 20) + (64 << 10) + 1))),
        ("bytes left over", after_hello(trailing)),
        ("a body that is none", after_hello([header(4, 5), vec![0xff; 5]].concat())),
        ("a lookup of no space", after_hello(frame(3, &Request::Lookup(empty_lookup)))),
        ("a reply instead of a request", after_hello(header(112, 0))),
    ];
    let count = cases.len() as u64;
    for (what, bytes) in cases {
        let mut stream = connect(&daemon);
        // The daemon may close while we are still writing.
        let _sent = stream.write_all(&bytes);
        assert!(is_closed(&mut stream), "{what} was not answered by closing");
        assert_eq!(witness.load(&keys).pages, 10, "after {what}");
    }
    let status = daemon.status();
    assert_eq!(status.protocol_errors, count);
    // The log ends with the daemon: nothing of it is on its way then.
    daemon.stop();
    let log = daemon.log();
    let lines = log.lines().filter(|l| l.contains("closing a session: m")).count();
    assert_eq!(lines as u64, count, "one clear line each:\n{log}");
}

#[test]
fn a_truncated_message_waits_and_then_ends_with_its_sender() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    let client = daemon.client("witness").expect("the daemon answers");
    let mut witness = Engine::new(&client, "model");
    let keys = witness.keys(1, 3);
    witness.try_store(&keys);
    for cut in [1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 3] {
        let mut stream = connect(&daemon);
        stream.write_all(&hello()).expect("the daemon reads");
        assert!(matches!(reply(&mut stream), Reply::Welcome(_)));
        let lookup = Lookup {
            spaces: vec![SpaceId(0)],
            keys: KeyRun::from(&keys[..]),
            hold_ms: 0,
            rival: Rival::default(),
        };
        let whole = frame(2, &Request::Lookup(lookup));
        stream.write_all(&whole[..cut]).expect("the daemon reads");
        assert_eq!(witness.load(&keys).pages, 3, "half a message in another session");
        drop(stream);
        assert_eq!(witness.load(&keys).pages, 3);
    }
    assert_eq!(daemon.status().protocol_errors, 0, "going away is no error");
}

#[test]
fn a_silent_connection_is_closed() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    let mut stream = connect(&daemon);
    assert!(is_closed(&mut stream), "no hello within 5 s");
}

#[test]
fn requests_for_what_is_not_ours_are_refused_and_the_session_goes_on() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    let mut stream = connect(&daemon);
    stream.write_all(&hello()).expect("the daemon reads");
    assert!(matches!(reply(&mut stream), Reply::Welcome(_)));
    let lookup = Lookup {
        spaces: vec![SpaceId(99)],
        keys: KeyRun::from(Vec::new()),
        hold_ms: 0,
        rival: Rival::default(),
    };
    stream.write_all(&frame(2, &Request::Lookup(lookup))).expect("the daemon reads");
    assert!(matches!(reply(&mut stream), Reply::Refused(_)));
    let foreign = Release { session: SessionId(4711), lease: LeaseId(1), upto: u32::MAX };
    stream.write_all(&frame(3, &Request::Release(foreign))).expect("the daemon reads");
    stream.write_all(&frame(4, &Request::Ping)).expect("the daemon reads");
    let mut answer = reply(&mut stream);
    if matches!(answer, Reply::Refused(_)) {
        answer = reply(&mut stream);
    }
    assert!(matches!(answer, Reply::Done), "{answer:?}");
}
