//! Clients that do not play by the rules, each beside a well-behaved engine that must not notice.
//! Garbage on the wire is in `protocol.rs`, floods of requests are in `sessions.rs`.

use rustix::process::{Pid, Signal, kill_process};
use std::io::Error;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use undercroft_client::wire::{
    Commit, CommitOutcome, FetchSource, KeyRun, LeaseId, Lookup, Mode, Reply, Request,
    SessionStatus, Stamp,
};
use undercroft_tests::{
    Accomplice, DaemonOptions, Deaths, Engine, Footprint, PAGE_BYTES, RawClient, TestDaemon,
    Witness, program, run_as_ordinary_user, skip,
};

const PATIENCE: Duration = Duration::from_secs(10);

fn daemon() -> TestDaemon {
    TestDaemon::start(DaemonOptions { dram: 4 << 20, ..DaemonOptions::default() })
}

fn untroubled(witness: Witness) {
    let report = witness.stop();
    assert!(report.is_untroubled(), "{report:?}");
}

fn hostile_sessions(daemon: &TestDaemon) -> Vec<SessionStatus> {
    let sessions = daemon.status().sessions;
    sessions.into_iter().filter(|session| session.name == "hostile").collect()
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn clients_that_die_anywhere_leave_nothing() {
    let report = Deaths { deaths: 200 }.run(&|| Ok(())).expect("clients live and die");
    report.check().unwrap_or_else(|what| panic!("{what:#}\n{report}"));
}

#[test]
fn guessing_gets_nothing_that_is_another_ones() {
    let daemon = daemon();
    let mut owner = RawClient::connect(&daemon.socket()).expect("welcome");
    let space = owner.open(0).expect("an answer").expect("the space opens");
    let keys = RawClient::keys(1, 6);
    let stored = CommitOutcome::Stored.to_byte();
    assert_eq!(owner.store(space.id, &keys).expect("an answer"), [stored; 6]);
    let source = FetchSource::Keys { keys: KeyRun::from(&keys[..]) };
    let (end, _) = owner.fetch(space.id, source, LeaseId(1)).expect("pages");
    assert_eq!(end.ready, 6);
    let spaces = vec![space.id];
    let lookup = Lookup { spaces, keys: KeyRun::from(&keys[..]), hold_ms: 60_000 };
    let Reply::Lookup(found) = owner.ask(&Request::Lookup(lookup)).expect("an answer") else {
        panic!("no answer to a lookup");
    };
    let hold = found.hold.expect("a hold");
    let mut robber = Accomplice::start(&["rob", &owner.session.0.to_string()], &daemon);
    assert_eq!(robber.line(), "released 0, fetched 0, taken 0");
    assert!(robber.wait().success());
    let left = hostile_sessions(&daemon);
    assert_eq!(left.iter().map(|session| session.leased_pages).sum::<u64>(), 6, "{left:?}");
    let source = FetchSource::Hold { hold, first: 0, count: 6 };
    let (end, _) = owner.fetch(space.id, source, LeaseId(2)).expect("pages");
    assert_eq!(end.ready, 6, "its hold is still good");
}

#[test]
fn nobody_but_the_daemon_writes_the_arena() {
    let test = "nobody_but_the_daemon_writes_the_arena";
    if !rustix::process::geteuid().is_root() {
        return skip(test, "only root can run a client as another user than the daemon");
    }
    let daemon = daemon();
    let witness = Witness::start(&daemon);
    let open_to_all = |path: &std::path::Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    };
    open_to_all(daemon.home());
    open_to_all(&daemon.socket());
    let output =
        run_as_ordinary_user(&program("hostile-client")).arg("seize").arg(daemon.socket()).output();
    let output = match output {
        Ok(output) => output,
        Err(error) => return skip(test, &format!("the client cannot be run as a user: {error}")),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{wrong}");
    assert_eq!(said.lines().collect::<Vec<_>>(), ["parts 1", "over"], "what it could do");
    untroubled(witness);
}

#[test]
fn a_stopped_client_keeps_its_pages_until_it_dies_and_holds_nobody_up() {
    let daemon = daemon();
    let witness = Witness::start(&daemon);
    let mut stopped = Accomplice::start(&["stop"], &daemon);
    wait_until("it does not stop", || stopped.is_stopped());
    let sessions = hostile_sessions(&daemon);
    assert_eq!(sessions.len(), 1);
    // Two leases on the same pages: the second one's pages lie in its socket.
    assert_eq!((sessions[0].leases, sessions[0].lingering), (2, false), "{sessions:?}");
    std::thread::sleep(Duration::from_millis(100));
    stopped.kill();
    let reaped = Instant::now();
    wait_until("its leases stay", || hostile_sessions(&daemon).is_empty());
    assert!(reaped.elapsed() < Duration::from_secs(2), "{:?}", reaped.elapsed());
    untroubled(witness);
}

#[test]
fn a_child_that_inherits_a_session_does_not_keep_it() {
    let daemon = daemon();
    let witness = Witness::start(&daemon);
    let mut parent = Accomplice::start(&["leave"], &daemon);
    let mut lines = [parent.line(), parent.line()];
    lines.sort_unstable();
    assert_eq!(lines[1], "inherited", "{lines:?}");
    let child = lines[0].strip_prefix("child ").and_then(|pid| pid.parse().ok());
    let child = child.and_then(Pid::from_raw).expect("the child's number");
    assert_eq!(hostile_sessions(&daemon).len(), 1);
    parent.kill();
    wait_until("a child keeps the session", || hostile_sessions(&daemon).is_empty());
    kill_process(child, Signal::KILL).expect("it still runs");
    untroubled(witness);
}

#[test]
fn descriptors_that_are_sent_to_the_daemon_are_not_kept() {
    let daemon = daemon();
    let witness = Witness::start(&daemon);
    let mut flood = RawClient::connect(&daemon.socket()).expect("welcome");
    let before = Footprint::of(&daemon);
    for _ in 0..100 {
        flood.send_with_descriptors(&Request::Ping).expect("the daemon reads");
        assert!(matches!(flood.reply().expect("an answer"), Reply::Done));
    }
    let after = Footprint::of(&daemon);
    assert_eq!(after.descriptors, before.descriptors, "{before} -> {after}");
    untroubled(witness);
}

#[test]
fn a_flood_of_connections_turns_the_flood_away_and_ends_with_it() {
    let daemon = daemon();
    let witness = Witness::start(&daemon);
    let before = Footprint::of(&daemon);
    // server.max_sessions is 64.
    let flood: Vec<UnixStream> =
        (0..1000).filter_map(|_| UnixStream::connect(daemon.socket()).ok()).collect();
    assert!(flood.len() > 64, "{} connections", flood.len());
    let during = Footprint::of(&daemon);
    assert!(during.descriptors < before.descriptors + 3 * 64, "{before} -> {during}");
    drop(flood);
    wait_until("the flood is not over", || daemon.client("after").is_some());
    wait_until("descriptors are left", || Footprint::of(&daemon).descriptors <= before.descriptors);
    untroubled(witness);
}

#[test]
fn many_spaces_are_refused_and_given_back() {
    let daemon = daemon();
    let witness = Witness::start(&daemon);
    let before = Footprint::of(&daemon);
    let mut greedy = RawClient::connect(&daemon.socket()).expect("welcome");
    let mut opened = Vec::new();
    let refused = (0..1000).find_map(|rank| match greedy.open(rank).expect("an answer") {
        Ok(space) => {
            opened.push(space);
            None
        }
        Err(refused) => Some(refused),
    });
    assert!(refused.is_some(), "{} spaces were opened", opened.len());
    drop((greedy, opened));
    wait_until("descriptors are left", || Footprint::of(&daemon).descriptors <= before.descriptors);
    untroubled(witness);
}

#[test]
fn slots_that_are_not_ones_own_are_invalid() {
    let daemon = daemon();
    let witness = Witness::start(&daemon);
    let mut owner = RawClient::connect(&daemon.socket()).expect("welcome");
    let mut thief = RawClient::connect(&daemon.socket()).expect("welcome");
    let space = owner.open(0).expect("an answer").expect("the space opens");
    let theirs = thief.open(0).expect("an answer").expect("the space opens");
    let other = thief.open(1).expect("an answer").expect("the space opens");
    let keys = RawClient::keys(1, 4);
    let wanted = owner.offer(space.id, &keys).expect("an answer");
    assert_eq!(wanted.slots.len(), 4);
    let commit = |space, slots: &[_]| {
        let (filled, returned) = (slots.to_vec(), Vec::new());
        Request::Commit(Commit { space, offer: wanted.offer, filled, returned })
    };
    let outcomes = |reply: std::io::Result<Reply>| match reply.expect("an answer") {
        Reply::Commit(reply) => reply.outcomes,
        other => panic!("no answer to a commit: {other:?}"),
    };
    let invalid = [CommitOutcome::Invalid.to_byte(); 4];
    for (what, space) in [("another session's", theirs.id), ("another space's", other.id)] {
        let reply = thief.ask(&commit(space, &wanted.slots));
        assert_eq!(outcomes(reply), invalid, "{what}");
    }
    let beyond: Vec<_> =
        (0..4).map(|slot| undercroft_client::wire::SlotId(u32::MAX - slot)).collect();
    assert_eq!(outcomes(owner.ask(&commit(space.id, &beyond))), invalid, "no slots at all");
    let stored = [CommitOutcome::Stored.to_byte(); 4];
    assert_eq!(outcomes(owner.ask(&commit(space.id, &wanted.slots))), stored);
    assert_eq!(outcomes(owner.ask(&commit(space.id, &wanted.slots))), invalid, "twice");
    let twice = [wanted.slots.clone(), wanted.slots.clone()].concat();
    assert_eq!(outcomes(owner.ask(&commit(space.id, &twice))), [invalid, invalid].concat());
    untroubled(witness);
}

#[test]
fn staging_that_changes_after_its_commit_changes_no_page() {
    let daemon = daemon();
    let witness = Witness::start(&daemon);
    let mut client = RawClient::connect(&daemon.socket()).expect("welcome");
    assert_eq!(client.mode, Mode::ZeroCopy);
    let space = client.open(0).expect("an answer").expect("the space opens");
    let staging = space.staging.try_clone().expect("a descriptor");
    let bytes = u64::from(space.slots) * u64::from(space.slot_bytes);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for value in (0..=u8::MAX).cycle() {
                let _written = rustix::io::pwrite(&staging, &vec![value; bytes as usize], 0);
                if over.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let look = |client: &RawClient, places: &[undercroft_client::wire::PagePlace]| {
            let read = |place: &undercroft_client::wire::PagePlace| {
                let mut page = vec![0; PAGE_BYTES as usize];
                let got = rustix::io::pread(&client.parts[0], &mut page, place.offset);
                assert_eq!(got.expect("the arena can be read"), page.len());
                page
            };
            places.iter().map(read).collect::<Vec<_>>()
        };
        for conversation in 0..20 {
            let keys = RawClient::keys(conversation, 6);
            client.store(space.id, &keys).expect("an answer");
            let source = FetchSource::Keys { keys: KeyRun::from(&keys[..]) };
            let lease = LeaseId(u64::from(conversation));
            let (_, places) = client.fetch(space.id, source, lease).expect("pages");
            assert_eq!(places.len(), 6);
            let first = look(&client, &places);
            std::thread::sleep(Duration::from_millis(5));
            assert!(first == look(&client, &places), "a resident page changed");
        }
        over.store(true, Ordering::Relaxed);
    });
    untroubled(witness);
}

#[test]
fn an_offer_that_is_never_committed_ends_with_its_session() {
    let daemon = daemon();
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    engine.deadline = Duration::from_millis(300);
    let keys = engine.keys(1, 4);
    let mut idler = RawClient::connect(&daemon.socket()).expect("welcome");
    let space = idler.open_as(engine.space().space()).expect("an answer").expect("it opens");
    assert_eq!(idler.offer(space.id, &keys).expect("an answer").slots.len(), 4);
    let began = Instant::now();
    let waited = engine.store(&keys, Stamp(0));
    assert_eq!((waited.held, waited.stored), (4, 0), "{waited:?}");
    assert!(began.elapsed() >= engine.deadline, "it waits for the other one");
    assert_eq!(engine.lookup(&keys).pages, 0);
    engine.deadline = PATIENCE;
    let ender = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop(idler);
    });
    let stored = engine.store(&keys, Stamp(0));
    assert_eq!(stored.stored, 4, "{stored:?}");
    assert_eq!(engine.load(&keys).pages, 4);
    ender.join().map_err(|_| Error::other("it panicked")).expect("it does not panic");
}
