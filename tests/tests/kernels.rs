//! The daemon on kernels that lack what newer ones have: each call that is missing is refused, and
//! everything works all the same.

use std::time::{Duration, Instant};
use undercroft_client::wire::{CopyReason, Mode, SessionStatus, Stamp, StatusReport};
use undercroft_tests::{
    Accomplice, DaemonOptions, Engine, PAGE_BYTES, PLAIN_POLICY, TestDaemon, Witness, program, skip,
};

const PATIENCE: Duration = Duration::from_secs(10);
/// Everything that came after Linux 5.15: the name `refuse` has for it, and that in the status.
const AFTER_5_15: [(&str, &str); 6] = [
    ("peer-pidfd", "SO_PEERPIDFD"),
    ("noexec-seal", "MFD_NOEXEC_SEAL"),
    ("collapse", "MADV_COLLAPSE"),
    ("sparse-buffers", "IORING_RSRC_REGISTER_SPARSE"),
    ("pidfs", "the inode numbers of pidfds"),
    ("defer-taskrun", "IORING_SETUP_DEFER_TASKRUN"),
];
/// How many of these a filter refuses. The rest take a tracer.
const FILTERED: usize = 4;

/// Whether calls can be refused here; else the test is skipped by its name.
fn can_refuse(test: &str, calls: &[&str]) -> bool {
    let mut command = std::process::Command::new(program("refuse"));
    let output = command.arg(calls.join(",")).arg("true").output().expect("the program runs");
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        skip(test, &format!("calls cannot be refused here: {}", why.trim_end()));
    }
    output.status.success()
}

fn daemon(refuse: &[&'static str]) -> TestDaemon {
    TestDaemon::start(DaemonOptions {
        dram: 4 << 20,
        ssd: 32 << 20,
        managed: true,
        refuse: refuse.to_vec(),
        ..DaemonOptions::default()
    })
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn missing(status: &StatusReport) -> Vec<&str> {
    status.fallbacks.iter().map(|fallback| fallback.call.as_str()).collect()
}

fn hostile(daemon: &TestDaemon) -> Vec<SessionStatus> {
    let sessions = daemon.status().sessions.into_iter();
    sessions.filter(|session| session.leases > 0 && session.name != "witness").collect()
}

/// Three times as many pages as DRAM holds, stored and loaded, every byte compared.
fn stores_and_loads(daemon: &TestDaemon) {
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    let (chains, pages) = (3 * (4 << 20) / PAGE_BYTES as u32 / 32, 32);
    for chain in 0..chains {
        let keys = engine.keys(chain, pages);
        assert_eq!(engine.store(&keys, Stamp(0)).stored, pages);
    }
    let mut from_ssd = 0;
    for chain in 0..chains {
        let keys = engine.keys(chain, pages);
        let inspected = engine.inspect(&keys, Stamp(0));
        assert_eq!((inspected.loaded.pages, inspected.wrong_bytes), (pages, 0), "{inspected:?}");
        from_ssd += inspected.loaded.ssd_pages;
    }
    assert!(from_ssd > 0, "nothing came from SSD");
}

/// A lease lasts as long as its process, over a restart too, and no longer.
fn leases_last_as_long_as_their_process(mut daemon: TestDaemon) {
    let mut stopped = Accomplice::start(&["stop"], &daemon);
    wait_until("it does not stop", || stopped.is_stopped());
    let held = |daemon: &TestDaemon| -> u64 {
        hostile(daemon).iter().map(|session| session.leased_pages).sum()
    };
    wait_until("it holds nothing", || held(&daemon) > 0);
    let before = held(&daemon);
    daemon.kill();
    daemon.restart();
    assert_eq!(held(&daemon), before, "its frames are its own after a restart");
    stopped.kill();
    wait_until("a dead process keeps its frames", || hostile(&daemon).is_empty());
    let mut dies = Accomplice::start(&["die", "8", "7"], &daemon);
    let _killed = dies.wait();
    wait_until("a dead process keeps its frames", || hostile(&daemon).is_empty());
}

#[test]
fn on_linux_5_15_everything_works_and_status_says_what_is_missing() {
    let test = "on_linux_5_15_everything_works_and_status_says_what_is_missing";
    let mut old = &AFTER_5_15[..];
    if !rustix::process::geteuid().is_root() {
        // The daemon shuts its memory to others of its user: their tracer sees no arguments.
        skip(test, "calls whose arguments lie in memory are there, as only root can refuse them");
        old = &AFTER_5_15[..FILTERED];
    }
    let refuse: Vec<_> = old.iter().map(|(refuse, _)| *refuse).collect();
    if !can_refuse(test, &refuse) {
        return;
    }
    let daemon = daemon(&refuse);
    let status = daemon.status();
    let missing = missing(&status);
    for (_, name) in old {
        assert!(missing.contains(name), "{name} is not among {missing:?}");
    }
    assert!(status.fallbacks.iter().all(|f| !f.instead.is_empty() && !f.cost.is_empty()));
    let ssd = status.ssd.as_ref().expect("there is one");
    assert_eq!(ssd.devices[0].engine, "io_uring", "{:?}", status.refused);
    let witness = Witness::start(&daemon);
    stores_and_loads(&daemon);
    let report = witness.stop();
    assert!(report.is_untroubled(), "{report:?}");
    let sessions = daemon.status().sessions;
    assert!(sessions.iter().all(|session| session.mode == Mode::ZeroCopy), "{sessions:?}");
    leases_last_as_long_as_their_process(daemon);
}

#[test]
fn on_this_kernel_only_what_it_lacks_is_named() {
    let test = "on_this_kernel_only_what_it_lacks_is_named";
    let has_all = ["6.1", "6.3", "6.5", "6.9"].into_iter().all(is_at_least);
    if !has_all {
        return skip(test, "the kernel is older than Linux 6.9");
    }
    let daemon = daemon(&[]);
    let status = daemon.status();
    let missing = missing(&status);
    for name in ["SO_PEERPIDFD", "the inode numbers of pidfds", "MFD_NOEXEC_SEAL", "pidfd_open"] {
        assert!(!missing.contains(&name), "{name} is among {missing:?}");
    }
    if status.ssd.as_ref().expect("there is one").devices[0].engine == "io_uring" {
        assert!(!missing.iter().any(|name| name.starts_with("IORING")), "{missing:?}");
    }
    leases_last_as_long_as_their_process(daemon);
}

fn is_at_least(version: &str) -> bool {
    let numbers = |text: &str| -> Vec<u32> {
        let words = text.split(|c: char| !c.is_ascii_digit());
        words.map_while(|word| word.parse().ok()).take(2).collect()
    };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    numbers(&release) >= numbers(version)
}

#[test]
fn where_no_process_can_be_watched_sessions_get_copies() {
    let test = "where_no_process_can_be_watched_sessions_get_copies";
    let refuse = ["peer-pidfd", "pidfd-open"];
    if !can_refuse(test, &refuse) {
        return;
    }
    let daemon = daemon(&refuse);
    stores_and_loads(&daemon);
    let client = daemon.client("engine").expect("the daemon answers");
    let status = client.status(PATIENCE).expect("the daemon answers");
    let missing = missing(&status);
    assert!(missing.contains(&"SO_PEERPIDFD") && missing.contains(&"pidfd_open"), "{missing:?}");
    let session = status.sessions.iter().find(|s| s.name == "engine").expect("our own");
    assert_eq!((session.mode, session.copy_reason), (Mode::Copy, Some(CopyReason::Unwatched)));
}

#[test]
fn leases_are_kept_where_the_next_daemon_cannot_watch_their_process() {
    let test = "leases_are_kept_where_the_next_daemon_cannot_watch_their_process";
    let refuse = vec!["peer-pidfd", "pidfd-open"];
    if !can_refuse(test, &refuse) {
        return;
    }
    let policy = format!("{PLAIN_POLICY}silence_ms = 100\n");
    let options =
        DaemonOptions { dram: 4 << 20, managed: true, policy, ..DaemonOptions::default() };
    let mut daemon = TestDaemon::start(options);
    let mut stopped = Accomplice::start(&["stop"], &daemon);
    wait_until("it does not stop", || stopped.is_stopped());
    wait_until("it holds nothing", || !hostile(&daemon).is_empty());
    daemon.reconfigure(|options| options.refuse = refuse);
    daemon.kill();
    daemon.restart();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(hostile(&daemon).len(), 1, "a living process lost its frames");
    stopped.kill();
    wait_until("a dead process keeps its frames", || hostile(&daemon).is_empty());
}

#[test]
fn where_io_uring_and_huge_pages_are_forbidden_status_says_so() {
    let test = "where_io_uring_and_huge_pages_are_forbidden_status_says_so";
    let refuse = ["io-uring", "hugetlb", "mbind"];
    if !can_refuse(test, &refuse) {
        return;
    }
    let daemon = daemon(&refuse);
    stores_and_loads(&daemon);
    let status = daemon.status();
    assert!(missing(&status).contains(&"io_uring"), "{:?}", status.fallbacks);
    assert!(status.refused.iter().any(|line| line.contains("huge")), "{:?}", status.refused);
}
