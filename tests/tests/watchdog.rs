//! What the service manager hears of a daemon that gets on with its work, and of one that does not.

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::time::{Duration, Instant};
use undercroft_tests::{DaemonOptions, TestDaemon, skip};

const WATCHDOG: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(10);

fn petted(daemon: &TestDaemon) -> u32 {
    daemon.manager().expect("it has one").times_petted()
}

fn wait_until_petted(daemon: &TestDaemon, more: u32) {
    let (since, before) = (Instant::now(), petted(daemon));
    while petted(daemon) < before + more {
        assert!(since.elapsed() < PATIENCE, "it says nothing any more:\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_hung_control_thread_is_silent_although_every_other_thread_runs() {
    let options = DaemonOptions { managed: true, watchdog: Some(WATCHDOG), ..Default::default() };
    let daemon = TestDaemon::start(options);
    wait_until_petted(&daemon, 3);
    // Its first thread alone.
    let control = Pid::from_raw(daemon.pid() as i32);
    match ptrace::seize(control, Options::empty()) {
        Ok(()) => {}
        Err(Errno::EPERM) => return skip("watchdog_hung", "one process may not stop another here"),
        Err(errno) => panic!("cannot trace the control thread: {errno}"),
    }
    ptrace::interrupt(control).expect("it is traced");
    waitpid(control, Some(WaitPidFlag::__WALL)).expect("it stops");
    // What it had said before is heard by then.
    std::thread::sleep(WATCHDOG);
    let before = petted(&daemon);
    std::thread::sleep(5 * WATCHDOG);
    assert_eq!(petted(&daemon), before, "somebody else spoke for the control thread");
    ptrace::detach(control, None).expect("it is stopped");
    wait_until_petted(&daemon, 3);
}

#[test]
fn who_waits_for_nothing_hears_nothing() {
    let options = DaemonOptions { managed: true, ..Default::default() };
    let daemon = TestDaemon::start(options);
    assert!(daemon.client("engine").is_some());
    std::thread::sleep(2 * WATCHDOG);
    assert_eq!(petted(&daemon), 0);
}
