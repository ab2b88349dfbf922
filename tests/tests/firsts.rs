//! What a daemon publishes of the pages that chains begin with: whoever would find one is never told
//! that there is none, whatever becomes of the daemon, and what is not there costs no message.

use std::time::{Duration, Instant};
use undercroft_client::wire::{Mode, PageKey, Purge, Stamp};
use undercroft_client::{Client, ClientState, ConnectOptions, Wait};
use undercroft_tests::{DaemonOptions, Engine, PAGE_BYTES, TestDaemon};

const PAGES: u32 = 8;
const CHAINS: u32 = 24;
/// Conversations that nobody stores.
const NOBODYS: std::ops::Range<u32> = 1000..1200;
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon whose DRAM has room for so many conversations.
fn daemon(chains: u32, ssd: u64, managed: bool) -> TestDaemon {
    let dram = u64::from(chains * PAGES) * PAGE_BYTES;
    TestDaemon::start(DaemonOptions { dram, ssd, managed, ..DaemonOptions::default() })
}

fn engine(client: &Client) -> Engine {
    Engine::new(client, "first pages")
}

fn connect(daemon: &TestDaemon) -> Client {
    daemon.client("engine").expect("it answers")
}

fn first(engine: &Engine, chain: u32) -> PageKey {
    engine.keys(chain, 1)[0]
}

fn store(engine: &mut Engine, chain: u32) {
    let keys = engine.keys(chain, PAGES);
    assert_eq!(engine.store(&keys, Stamp(0)).stored, PAGES);
}

/// How many of these conversations may be found, as the board says.
fn maybe(client: &Client, engine: &Engine, chains: impl Iterator<Item = u32>) -> usize {
    chains.filter(|chain| client.may_hold(&first(engine, *chain)) == Some(true)).count()
}

/// Waits until the client is connected to the daemon that runs now.
fn connected(daemon: &TestDaemon, client: &Client) {
    let pid = daemon.pid();
    let since = Instant::now();
    while client.status(PATIENCE).map(|status| status.pid) != Ok(pid) {
        assert!(since.elapsed() < PATIENCE, "{:?}\n{}", client.state(), daemon.log());
        let _not_yet = client.wait_connected(PATIENCE);
    }
}

/// Of the first conversations as many are found as were stored, none of them is said to be absent, and
/// of those that nobody stored all are.
fn found(client: &Client, engine: &mut Engine) -> u32 {
    let mut found = 0;
    for chain in 0..CHAINS {
        let keys = engine.keys(chain, PAGES);
        let pages = engine.lookup(&keys).pages;
        assert!(
            pages == 0 || client.may_hold(&keys[0]) == Some(true),
            "{pages} pages of {chain} are there"
        );
        found += u32::from(pages > 0);
    }
    assert_eq!(maybe(client, engine, NOBODYS), 0, "what was never stored");
    found
}

#[test]
fn what_was_stored_is_seen_at_once_by_every_client() {
    let daemon = daemon(CHAINS, 0, false);
    let clients = [connect(&daemon), connect(&daemon)];
    let mut engine = engine(&clients[0]);
    for chain in 0..CHAINS {
        let key = first(&engine, chain);
        assert!(
            clients.iter().all(|client| client.may_hold(&key) == Some(false)),
            "{chain} is not there yet"
        );
        store(&mut engine, chain);
        assert!(
            clients.iter().all(|client| client.may_hold(&key) == Some(true)),
            "{chain} is there"
        );
    }
    assert_eq!(found(&clients[1], &mut engine), CHAINS);
}

#[test]
fn lookups_that_the_board_answered_are_counted_with_the_next_store() {
    let daemon = daemon(CHAINS, 0, false);
    let (client, other) = (connect(&daemon), connect(&daemon));
    let mut engine = engine(&client);
    let hits = || other.status(PATIENCE).expect("it answers").hits;
    let before = hits();
    assert_eq!(maybe(&client, &engine, NOBODYS), 0);
    store(&mut engine, 0);
    let now = hits();
    let missed = NOBODYS.len() as u64;
    assert_eq!(now.board_lookups - before.board_lookups, missed);
    assert_eq!((now.lookups - before.lookups, now.keys - before.keys), (missed, missed));
    let keys = engine.keys(0, PAGES);
    assert_eq!(engine.lookup(&keys).pages, PAGES);
    let then = hits();
    assert_eq!((then.lookups, then.board_lookups), (now.lookups + 1, now.board_lookups));
}

#[test]
fn what_was_evicted_or_purged_is_absent_again() {
    let daemon = daemon(CHAINS / 3, 0, false);
    let client = connect(&daemon);
    let mut engine = engine(&client);
    (0..CHAINS).for_each(|chain| store(&mut engine, chain));
    let left = found(&client, &mut engine);
    assert!((1..=CHAINS / 3).contains(&left), "{left}");
    assert_eq!(maybe(&client, &engine, 0..CHAINS), left as usize, "all others are gone");
    let all = Purge { domain: None, space: Some(engine.digest()), writer: None };
    client.purge(&all, PATIENCE).expect("it is our own");
    assert_eq!(maybe(&client, &engine, 0..CHAINS), 0);
    store(&mut engine, 3);
    assert_eq!((maybe(&client, &engine, 0..CHAINS), found(&client, &mut engine)), (1, 1));
}

#[test]
fn what_is_on_an_ssd_may_be_found_also_after_a_cold_start() {
    let mut daemon = daemon(CHAINS / 3, 64 << 20, false);
    let client = connect(&daemon);
    let mut engine = engine(&client);
    (0..CHAINS).for_each(|chain| store(&mut engine, chain));
    assert_eq!(found(&client, &mut engine), CHAINS);
    // What had not left DRAM is gone with it.
    for _ in 0..2 {
        daemon.stop().expect("it ran");
        daemon.try_restart().expect("it starts again");
        connected(&daemon, &client);
        // While its records are still being found, too.
        let _so_far = found(&client, &mut engine);
        daemon.wait_recovered().expect("it finds its records");
        let left = found(&client, &mut engine);
        assert!((CHAINS / 2..=CHAINS).contains(&left), "{left}");
        let maybe = maybe(&connect(&daemon), &engine, 0..CHAINS);
        assert!((left as usize..=CHAINS as usize).contains(&maybe), "{maybe} of {left}");
    }
}

#[test]
fn whoever_goes_on_with_the_arena_says_the_same() {
    let mut daemon = daemon(2 * CHAINS, 0, true);
    let client = connect(&daemon);
    let mut engine = engine(&client);
    (0..CHAINS).for_each(|chain| store(&mut engine, chain));
    let next: [fn(&mut TestDaemon); 4] = [
        |daemon| {
            daemon.kill();
            daemon.restart();
        },
        |daemon| {
            daemon.stop().expect("it ran");
            daemon.restart();
        },
        TestDaemon::take_over,
        |daemon| {
            daemon.kill();
            daemon.restart();
        },
    ];
    for (at, next) in next.into_iter().enumerate() {
        next(&mut daemon);
        connected(&daemon, &client);
        assert_eq!(found(&client, &mut engine), CHAINS, "after the end {at}");
        assert_eq!(found(&connect(&daemon), &mut engine), CHAINS, "after the end {at}");
        // And it goes on counting.
        let more = 100 + at as u32;
        assert!(client.may_hold(&first(&engine, more)) == Some(false));
        store(&mut engine, more);
        assert!(client.may_hold(&first(&engine, more)) == Some(true));
    }
}

#[test]
fn while_daemons_come_and_go_nothing_that_is_there_is_said_to_be_absent() {
    let mut daemon = daemon(2 * CHAINS, 0, true);
    let client = connect(&daemon);
    let mut one = engine(&client);
    (0..CHAINS).for_each(|chain| store(&mut one, chain));
    std::thread::scope(|scope| {
        let looks = scope.spawn(|| {
            let mut looks = 0;
            let since = Instant::now();
            // The board is read as a client that stays connected reads it.
            while since.elapsed() < Duration::from_secs(3) {
                for chain in 0..CHAINS {
                    assert!(!is_denied(&client, &first(&one, chain)), "{chain} is there");
                    looks += 1;
                }
            }
            looks
        });
        while !looks.is_finished() {
            daemon.kill();
            daemon.restart();
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(looks.join().expect("it never fails") > 1000);
    });
}

/// Whether it is said to be absent, and not for want of a connection.
fn is_denied(client: &Client, key: &PageKey) -> bool {
    client.may_hold(key) == Some(false)
}

#[test]
fn a_session_in_copy_mode_has_no_board_and_asks() {
    let daemon = daemon(CHAINS, 0, false);
    let options = ConnectOptions {
        wait: Wait::Now(PATIENCE),
        copy_mode: true,
        ..ConnectOptions::new(daemon.socket())
    };
    let client = Client::connect(options).expect("it answers");
    assert!(matches!(client.state(), ClientState::Connected { mode: Mode::Copy, .. }));
    let engine = engine(&client);
    assert_eq!(maybe(&client, &engine, NOBODYS), NOBODYS.len());
}
