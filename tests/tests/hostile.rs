//! Clients that do not play by the rules, each beside a well-behaved engine that must not notice.
//! Garbage on the wire is in `protocol.rs`, floods of requests are in `sessions.rs`.

use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::io::Error;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use undercroft_client::MissReason;
use undercroft_client::wire::{
    Commit, CommitOutcome, CopyReason, FetchSource, KeyRun, LeaseId, Lookup, Mode, ProcessState,
    Reply, Request, Rival, SessionStatus, Stamp,
};
use undercroft_tests::{
    Accomplice, DaemonOptions, Deaths, Engine, Footprint, PAGE_BYTES, PLAIN_POLICY, Place,
    RawClient, TestDaemon, Witness, program, skip,
};

const PATIENCE: Duration = Duration::from_secs(10);

fn daemon() -> TestDaemon {
    TestDaemon::start(DaemonOptions { dram: 4 << 20, ..DaemonOptions::default() })
}

/// One whose arena lies there.
fn daemon_on(backing: &str) -> TestDaemon {
    let arena = format!("backing = \"{backing}\"\n");
    TestDaemon::start(DaemonOptions { dram: 4 << 20, arena, ..DaemonOptions::default() })
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

fn die(test: &str, place: Place, deaths: u32) {
    if let Some(missing) = place.missing() {
        return skip(test, &missing);
    }
    let report = Deaths { deaths, place }.run(&|| Ok(())).expect("clients live and die");
    report.check().unwrap_or_else(|what| panic!("{what:#}\n{report}"));
}

#[test]
fn clients_that_die_anywhere_leave_nothing() {
    die("clients_that_die_anywhere_leave_nothing", Place::Beside, 200);
}

#[test]
fn roots_of_containers_that_die_anywhere_leave_nothing() {
    die("roots_of_containers_that_die_anywhere_leave_nothing", Place::Container, 100);
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
    let lookup =
        Lookup { spaces, keys: KeyRun::from(&keys[..]), hold_ms: 60_000, rival: Rival::default() };
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

/// What a client could do from there, line by line.
fn seize(daemon: &TestDaemon, place: Place) -> Vec<String> {
    let mut command = place.command(&program("hostile-client"));
    let output = command.arg("seize").arg(daemon.socket()).output().expect("the client runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "as {place}: {said}{wrong}");
    said.lines().map(str::to_owned).collect()
}

#[test]
fn nobody_but_the_daemon_writes_an_arena_on_mounts() {
    let test = "nobody_but_the_daemon_writes_an_arena_on_mounts";
    if !rustix::process::geteuid().is_root() {
        return skip(test, "only root can make mounts");
    }
    let daemon = daemon_on("mount");
    daemon.open_to_all();
    wait_until("the arena is elsewhere", || daemon.status().arena.backing == "mount");
    let witness = Witness::start(&daemon);
    for place in Place::ALL {
        if let Some(missing) = place.missing() {
            skip(test, &missing);
            continue;
        }
        let mut lines = seize(&daemon, place);
        // Root of the machine may do to the daemon what it likes, and still not write its memory by
        // what it was given.
        lines.retain(|line| place != Place::Beside || !line.starts_with("daemon: "));
        assert_eq!(lines, ["mode ZeroCopy", "parts 1", "over"], "as {place}");
    }
    untroubled(witness);
}

#[test]
fn nobody_but_the_daemon_writes_an_arena_of_memfds() {
    let test = "nobody_but_the_daemon_writes_an_arena_of_memfds";
    let daemon = daemon_on("memfd");
    daemon.open_to_all();
    let witness = Witness::start(&daemon);
    for (place, why) in [
        (Place::User, None),
        (Place::UserNamespace, Some(CopyReason::Container)),
        (Place::Container, Some(CopyReason::OwnUserContained)),
        (Place::Privileged, Some(CopyReason::OwnUserContained)),
    ] {
        if let Some(missing) = place.missing() {
            skip(test, &missing);
            continue;
        }
        let lines = seize(&daemon, place);
        let mapped = ["mode ZeroCopy", "parts 1", "over"];
        let copied = ["mode Copy", "parts 0", "over"];
        assert_eq!(lines, if why.is_none() { mapped } else { copied }, "as {place}");
        let Some(why) = why else { continue };
        let own = !rustix::process::geteuid().is_root();
        let why = if own { CopyReason::OwnUserContained } else { why };
        assert!(daemon.says(&why.to_string()), "as {place}: no word of {why}");
    }
    untroubled(witness);
}

/// What is tried works where nothing is in its way: else the test above could not fail.
/// User numbers of a container are not the machine's, whatever they look like.
#[test]
fn root_of_a_container_neither_purges_others_nor_takes_over() {
    let test = "root_of_a_container_neither_purges_others_nor_takes_over";
    let more = "[[domain]]\nname = \"a\"\ngid = [2001]\ndram = \"1MiB\"\n\
                [[domain]]\nname = \"rest\"\ndram = \"1MiB\"\n";
    let options = DaemonOptions { dram: 0, more: more.to_owned(), ..DaemonOptions::default() };
    let daemon = TestDaemon::start(options);
    daemon.open_to_all();
    let said = |place: Place, arguments: &[&OsStr]| {
        let mut command = place.command(&program("undercroft"));
        let output = command.args(arguments).output().expect("the binary runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (socket, config) = (daemon.socket(), daemon.config());
    let purge = ["purge", "--domain", "a", "--socket"].map(OsStr::new);
    let purge = [&purge[..], &[socket.as_os_str()]].concat();
    let take_over = ["serve", "--takeover", "--config"].map(OsStr::new);
    let take_over = [&take_over[..], &[config.as_os_str()]].concat();
    for place in [Place::Container, Place::Privileged] {
        if let Some(missing) = place.missing() {
            skip(test, &missing);
            continue;
        }
        let (done, why) = said(place, &purge);
        assert!(!done && why.contains("not the session's own domain"), "as {place}: {why}");
        let (done, why) = said(place, &take_over);
        assert!(!done && why.contains("may take over"), "as {place}: {why}");
        assert!(daemon.client("it").is_some(), "the daemon serves on");
    }
    let (done, why) = said(Place::Beside, &purge);
    assert!(done, "{why}");
}

#[test]
fn the_daemons_own_user_is_trusted_with_an_arena_of_memfds() {
    let daemon = daemon_on("memfd");
    let lines = seize(&daemon, Place::Beside);
    assert!(lines.iter().any(|line| line == "mode ZeroCopy"), "{lines:?}");
    assert!(lines.iter().any(|line| line == "arena: opened for writing"), "{lines:?}");
    let is_root = rustix::process::geteuid().is_root();
    let of_the_daemon =
        ["read its memory", "wrote its memory", "fetched a descriptor", "traced it"];
    for what in of_the_daemon {
        let done = lines.contains(&format!("daemon: {what}"));
        // Root may; another process of the daemon's user may not.
        assert!(done == is_root, "{what}: {lines:?}");
    }
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
fn a_reader_that_is_stopped_raises_an_alarm_and_reads_on_rightly() {
    let policy = format!("{PLAIN_POLICY}silence_ms = 200\n");
    let options = DaemonOptions { dram: 4 << 20, policy, ..DaemonOptions::default() };
    let daemon = TestDaemon::start(options);
    let witness = Witness::start(&daemon);
    let mut reader = Accomplice::start(&["read-slowly"], &daemon);
    assert_eq!(reader.line(), "right");
    reader.signal(Signal::STOP);
    wait_until("it does not stop", || reader.is_stopped());
    let alarm = || hostile_sessions(&daemon).into_iter().find(|session| session.alarm);
    wait_until("there is no alarm", || alarm().is_some());
    let session = alarm().expect("it was there");
    assert_eq!((session.pid, session.process), (reader.pid(), ProcessState::Stopped));
    assert_eq!((session.leased_pages, session.leased_bytes), (6, 6 * PAGE_BYTES), "{session:?}");
    assert!(session.silent_ms >= 200, "{session:?}");
    // All of DRAM changes hands but what it holds.
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    for chain in 0..24 {
        let keys = engine.keys(chain, 32);
        assert_eq!(engine.store(&keys, Stamp(0)).stored, 32, "others go on");
    }
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(daemon.status().lease_alarms, 1, "told more than once");
    let log = daemon.log();
    let told: Vec<_> = log.lines().filter(|line| line.contains("ALARM")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    for word in [format!("pid={}", reader.pid()), format!("bytes={}", 6 * PAGE_BYTES)] {
        assert!(told[0].contains(&word), "{word} is not in {told:?}");
    }
    reader.signal(Signal::CONT);
    for _ in 0..20 {
        assert_eq!(reader.line(), "right", "its pages are not as they were");
    }
    reader.kill();
    wait_until("its leases stay", || hostile_sessions(&daemon).is_empty());
    untroubled(witness);
}

#[test]
fn a_forked_child_has_no_part_in_its_parents_session() {
    let daemon = daemon();
    let witness = Witness::start(&daemon);
    let mut parent = Accomplice::start(&["child-dies"], &daemon);
    assert_eq!(parent.line(), "by returning: it goes on");
    assert_eq!(parent.line(), "by signal: it goes on");
    assert_eq!(parent.line(), "released");
    let sessions = hostile_sessions(&daemon);
    assert_eq!(sessions.len(), 2, "the client and the one that offers: {sessions:?}");
    assert!(sessions.iter().all(|session| session.leases == 0), "{sessions:?}");
    parent.kill();
    wait_until("sessions stay", || hostile_sessions(&daemon).is_empty());
    untroubled(witness);
}

#[test]
fn a_parent_that_dies_before_its_forked_child_leaves_nothing() {
    let daemon = daemon();
    let witness = Witness::start(&daemon);
    let mut parent = Accomplice::start(&["parent-dies"], &daemon);
    let mut lines = [parent.line(), parent.line()];
    lines.sort_unstable();
    assert_eq!(lines[1], "inherited", "{lines:?}");
    let child = lines[0].strip_prefix("child ").and_then(|pid| pid.parse().ok());
    let child = child.and_then(Pid::from_raw).expect("the child's number");
    let of_parent = |session: &SessionStatus| session.pid == parent.pid();
    assert_eq!(hostile_sessions(&daemon).iter().filter(|s| of_parent(s)).count(), 2);
    assert!(hostile_sessions(&daemon).iter().any(|session| session.leased_pages == 6));
    let pid = parent.pid();
    parent.kill();
    wait_until("a dead parent's session stays", || {
        hostile_sessions(&daemon).iter().all(|session| session.pid != pid)
    });
    kill_process(child, Signal::KILL).expect("it still runs");
    wait_until("sessions stay", || hostile_sessions(&daemon).is_empty());
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
    let asker = daemon.client("asker").expect("the daemon answers");
    let mut flood = RawClient::connect(&daemon.socket()).expect("welcome");
    let before = Footprint::of(&daemon, &asker);
    for _ in 0..100 {
        flood.send_with_descriptors(&Request::Ping).expect("the daemon reads");
        assert!(matches!(flood.reply().expect("an answer"), Reply::Done));
    }
    let after = Footprint::of(&daemon, &asker);
    assert_eq!(after.descriptors, before.descriptors, "{before} -> {after}");
    untroubled(witness);
}

#[test]
fn a_flood_of_connections_turns_the_flood_away_and_ends_with_it() {
    let daemon = daemon();
    let witness = Witness::start(&daemon);
    let asker = daemon.client("asker").expect("the daemon answers");
    let before = Footprint::of(&daemon, &asker);
    // server.max_sessions is 64.
    let flood: Vec<UnixStream> =
        (0..1000).filter_map(|_| UnixStream::connect(daemon.socket()).ok()).collect();
    assert!(flood.len() > 64, "{} connections", flood.len());
    let during = Footprint::of(&daemon, &asker);
    assert!(during.descriptors < before.descriptors + 3 * 64, "{before} -> {during}");
    drop(flood);
    wait_until("the flood is not over", || daemon.client("after").is_some());
    wait_until("descriptors are left", || {
        Footprint::of(&daemon, &asker).descriptors <= before.descriptors
    });
    untroubled(witness);
}

#[test]
fn one_users_silent_connections_leave_room_for_others() {
    let test = "one_users_silent_connections_leave_room_for_others";
    if let Some(missing) = Place::User.missing() {
        return skip(test, &missing);
    }
    let daemon = daemon();
    daemon.open_to_all();
    let witness = Witness::start(&daemon);
    let mut flood = Accomplice::start_in(Place::User, &["flood"], &daemon);
    assert_eq!(flood.line(), "flooded");
    let client = daemon.client("engine").expect("there is room for others");
    let mut engine = Engine::new(&client, "model");
    let keys = engine.keys(1, 4);
    assert_eq!(engine.store(&keys, Stamp(0)).stored, 4);
    assert!(daemon.says("have not said hello"), "nobody was turned away");
    untroubled(witness);
}

#[test]
fn connections_that_no_domain_is_for_leave_room_for_an_operator() {
    let test = "connections_that_no_domain_is_for_leave_room_for_an_operator";
    if let Some(missing) = Place::User.missing() {
        return skip(test, &missing);
    }
    let more = "[[domain]]\nname = \"a\"\ngid = [2001]\ndram = \"1MiB\"\n".to_owned();
    let options = DaemonOptions { dram: 0, more, ..DaemonOptions::default() };
    let daemon = TestDaemon::start(options);
    daemon.open_to_all();
    let mut flood = Accomplice::start_in(Place::User, &["flood"], &daemon);
    assert_eq!(flood.line(), "flooded");
    assert!(daemon.client("operator").is_some(), "{}", daemon.log());
    assert!(daemon.says("that no domain is for"), "nobody was turned away");
}

#[test]
fn many_spaces_are_refused_and_given_back() {
    let daemon = daemon();
    let witness = Witness::start(&daemon);
    let asker = daemon.client("asker").expect("the daemon answers");
    let before = Footprint::of(&daemon, &asker);
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
    wait_until("descriptors are left", || {
        Footprint::of(&daemon, &asker).descriptors <= before.descriptors
    });
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
    assert_eq!((waited.coming, waited.held, waited.stored), (4, 0, 0), "{waited:?}");
    assert!(began.elapsed() >= engine.deadline, "it waits for the other one");
    engine.deadline = PATIENCE;
    // Where the processor was not the daemon's when that deadline passed, it counts as hung until
    // it turns.
    wait_until("it never answers", || {
        let found = engine.lookup(&keys);
        assert_eq!(found.pages, 0);
        found.why != Some(MissReason::Hung)
    });
    let ender = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop(idler);
    });
    let stored = engine.store(&keys, Stamp(0));
    assert_eq!(stored.stored, 4, "{stored:?}");
    assert_eq!(engine.load(&keys).pages, 4);
    ender.join().map_err(|_| Error::other("it panicked")).expect("it does not panic");
}
