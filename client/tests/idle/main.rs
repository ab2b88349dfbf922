//! An idle client costs nothing. In a process of its own, so that the keeper thread looked at is
//! the only one.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

#[path = "../session/fake_daemon.rs"]
#[allow(dead_code, reason = "shared with the session tests, which use all of it")]
mod fake_daemon;
#[path = "../session/shelf.rs"]
#[allow(dead_code, reason = "shared with the session tests, which use all of it")]
mod shelf;
#[path = "../session/world.rs"]
#[allow(dead_code, reason = "shared with the session tests, which use all of it")]
mod world;

use std::time::Duration;
use undercroft_wire::Mode;

#[test]
fn an_idle_client_sleeps_in_the_kernel() {
    let world = world::World::new();
    let shelf = shelf::Shelf::with_board(1, Mode::ZeroCopy, 4);
    let _daemon = world.daemon(&shelf);
    let (client, space) = world.open();
    assert_eq!(space.lookup(&world::keys(1), world::PLAIN).pages, 0);
    let quiet = |span: Duration| {
        let before = keeper_wakes();
        std::thread::sleep(span);
        before.is_some() && keeper_wakes() == before
    };
    // After a second without a call it listens to the daemon, and sleeps from then on.
    let longer_than_any_tick = Duration::from_millis(1200);
    world::soon("it sleeps", || quiet(longer_than_any_tick));
    // Calls are their callers' own affair: one of the first wakes it, and the others do not. Where
    // callers are faster than it on a busy machine, it is woken in the kernel, finds the answer
    // gone and sleeps on.
    world::soon("calls do not wake it", || {
        let before = keeper_wakes();
        (0..100).for_each(|_| assert!(client.ping(world::LONG).is_ok()));
        keeper_wakes().unwrap() - before.unwrap() < 20
    });
    world::soon("it sleeps again", || quiet(longer_than_any_tick));
}

/// How often the keeper thread gave up the processor; `None` until it runs and has its name.
fn keeper_wakes() -> Option<u64> {
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let name = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
        if name.starts_with("undercroft-keep") {
            let status = std::fs::read_to_string(task.join("status")).unwrap();
            let line = status.lines().find(|l| l.starts_with("voluntary_ctxt_switches")).unwrap();
            return Some(line.split_whitespace().nth(1).unwrap().parse().unwrap());
        }
    }
    None
}
