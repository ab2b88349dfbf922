//! An arena that grows and shrinks while it is used. Whether memory was given back is seen from
//! outside: by who still has its file open or mapped.

use rustix::process::Signal;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use undercroft_client::wire::{ArenaStatus, Stamp, StartKind};
use undercroft_client::{Client, Fetch, FetchFrom};
use undercroft_tests::{DaemonOptions, Engine, Span, TestDaemon, program};

const PART: u64 = 1 << 20;
/// Pages of a chain; ten of them and four pages more fill a part.
const PAGES: u32 = 6;
/// Chains that fill four parts, but for a little.
const CHAINS: u32 = 40;
/// Chains in the newest part, which is filled last and so the emptiest, and in the first of four that
/// these fill.
const NEWEST: u32 = CHAINS - 1;
const FIRST: u32 = 0;
const PATIENCE: Duration = Duration::from_secs(60);

fn options(parts: u64) -> DaemonOptions {
    let arena = format!("part = {PART}\nhuge_pages = \"off\"\n");
    DaemonOptions { dram: parts * PART, arena, ..DaemonOptions::default() }
}

/// Has the daemon read a configuration with so many parts.
fn resize(daemon: &mut TestDaemon, parts: u64) {
    daemon.reconfigure(|options| options.dram = parts * PART);
    daemon.signal(Signal::HUP);
}

fn wait_for(daemon: &TestDaemon, what: &str, mut is: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is() {
        let status = daemon.status();
        assert!(since.elapsed() < PATIENCE, "{what}: {:?}, {:?}", status.arena, status.reload);
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn arena(daemon: &TestDaemon) -> ArenaStatus {
    daemon.status().arena
}

/// Whether this is a memfd, or a file without a name on the daemon's own mount.
fn is_shared_memory(path: &str) -> bool {
    path.starts_with("/memfd:") || path.starts_with("/undercroft-")
}

/// A file: its file system's numbers, as in `/proc/PID/maps`, and its own.
type FileId = (u32, u32, u64);

/// Files as large as a part that a process has open or mapped.
fn parts_of(pid: u32) -> BTreeSet<FileId> {
    let mut found = BTreeSet::new();
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process lives");
    for link in links.filter_map(Result::ok) {
        let is_memory =
            std::fs::read_link(link.path()).is_ok_and(|to| is_shared_memory(&to.to_string_lossy()));
        if let Some(file) = std::fs::metadata(link.path()).ok().filter(|_| is_memory)
            && file.len() == PART
        {
            let device = file.dev();
            found.insert((rustix::fs::major(device), rustix::fs::minor(device), file.ino()));
        }
    }
    found.extend(
        mapped_by(pid).into_iter().filter(|(range, _)| range.1 - range.0 == PART).map(|m| m.1),
    );
    found
}

/// Which of a daemon's parts this process has: its clients map them, its service manager keeps them.
/// Other tests run in it, too.
fn here(known: &BTreeSet<FileId>) -> BTreeSet<FileId> {
    parts_of(std::process::id()).intersection(known).copied().collect()
}

/// What a process has mapped of files without a name: where, and which.
fn mapped_by(pid: u32) -> Vec<((u64, u64), FileId)> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process lives");
    let of =
        |line: &str| line.find('/').and_then(|at| line.get(at..)).is_some_and(is_shared_memory);
    let files = maps.lines().filter(|line| of(line));
    let one = |line: &str| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (major, minor) = fields.nth(2)?.split_once(':')?;
        let number = |text| u32::from_str_radix(text, 16).ok();
        let file = (number(major)?, number(minor)?, fields.next()?.parse().ok()?);
        Some(((hex(start)?, hex(end)?), file))
    };
    files.filter_map(one).collect()
}

/// The file of the part that a delivered page lies in.
fn part_under(page: &Span) -> FileId {
    let at = page.as_ptr().addr() as u64;
    let mapped = mapped_by(std::process::id());
    let part = mapped.iter().find(|((start, end), _)| (*start..*end).contains(&at));
    part.expect("a page lies in a part").1
}

/// What is resident of a daemon's parts in it, bytes. Its board is not counted: that is touched here and
/// there, whatever becomes of parts.
fn resident_bytes(pid: u32) -> u64 {
    let parts: BTreeSet<_> = mapped_by(pid).into_iter().map(|(range, _)| range).collect();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("it lives");
    let (mut bytes, mut is_part) = (0, false);
    for line in maps.lines() {
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
        if let Some((start, end)) = range.and_then(|(a, b)| Some((hex(a)?, hex(b)?))) {
            is_part = end - start == PART && parts.contains(&(start, end));
        } else if let Some(rss) = line.strip_prefix("Rss:").filter(|_| is_part) {
            let kib = rss.trim().strip_suffix(" kB").expect("Linux says so");
            bytes += kib.parse::<u64>().expect("a number") << 10;
        }
    }
    bytes
}

fn store(engine: &mut Engine, chains: std::ops::Range<u32>) {
    for chain in chains {
        let keys = engine.keys(chain, PAGES);
        assert_eq!(engine.store(&keys, Stamp(0)).stored, PAGES, "chain {chain}");
    }
}

/// Loads chains with every byte compared; how many pages came.
fn load(engine: &mut Engine, chains: std::ops::Range<u32>) -> u32 {
    chains.map(|chain| engine.load(&engine.keys(chain, PAGES)).pages).sum()
}

/// A lease on all pages of a chain, and the pages where they lie.
fn lease(engine: &Engine, chain: u32) -> (Fetch, Vec<Span>) {
    let keys = engine.keys(chain, PAGES);
    let mut fetch = engine.space().fetch(FetchFrom::Keys(&keys), Stamp(0), PATIENCE);
    let mut pages = Vec::new();
    while let Some(run) = fetch.next_ready() {
        pages.extend(run.pages);
    }
    assert_eq!(pages.len() as u32, PAGES);
    (fetch, pages)
}

fn assert_right(engine: &Engine, chain: u32, pages: &[Span]) {
    for (key, page) in engine.keys(chain, PAGES).iter().zip(pages) {
        engine.look_at(key, page).expect("a leased page keeps its bytes");
    }
}

fn engine(daemon: &TestDaemon) -> (Client, Engine) {
    let client = daemon.client("engine").expect("it serves");
    let engine = Engine::new(&client, "shared model");
    (client, engine)
}

/// A process of its own that leases a chain, if it is given one, and keeps it until it is killed.
fn keeper(daemon: &TestDaemon, chain: u32) -> Child {
    let mut command = Command::new(program("tenant"));
    command.arg("--socket").arg(daemon.socket()).args(["--domain", "default", "--pages"]);
    command.arg(PAGES.to_string()).arg("keep").arg(chain.to_string());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program runs");
    let mut line = String::new();
    let said = child.stdout.take().expect("it is piped");
    BufReader::new(said).read_line(&mut line).expect("it says what it has");
    assert_eq!(line, format!("{{\"kept\":{PAGES}}}\n"), "{}", daemon.log());
    child
}

fn kill(mut child: Child) {
    child.kill().expect("it lives");
    child.wait().expect("our own child");
}

#[test]
fn it_grows_while_pages_are_stored_and_loaded() {
    let mut daemon = TestDaemon::start(options(1));
    let (_client, mut engine) = self::engine(&daemon);
    store(&mut engine, 0..4);
    let before = resident_bytes(daemon.pid());
    assert_eq!(parts_of(daemon.pid()).len(), 1);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (_client, mut other) = self::engine(&daemon);
            while !over.load(Ordering::Relaxed) {
                other.try_store(&other.keys(1000, PAGES));
                other.try_load(&other.keys(1000, PAGES));
            }
        });
        daemon.signal(Signal::HUP);
        std::fs::write(daemon.config(), config_of(&daemon, 4)).expect("its own folder");
        daemon.signal(Signal::HUP);
        wait_for(&daemon, "it has not grown", || arena(&daemon).bytes == 4 * PART);
        over.store(true, Ordering::Relaxed);
    });
    let status = arena(&daemon);
    assert_eq!((status.parts, status.wanted_bytes, status.short), (4, 4 * PART, None));
    assert!(resident_bytes(daemon.pid()) >= before + 3 * PART, "it is there before it is used");
    assert_eq!(parts_of(daemon.pid()).len(), 4);
    // All of it holds pages, and clients that were there before read them where they lie.
    store(&mut engine, 4..CHAINS);
    assert_eq!(load(&mut engine, 0..CHAINS), CHAINS * PAGES);
    let known = parts_of(daemon.pid());
    assert_eq!(here(&known), known);
    daemon.stop().expect("it ran");
}

/// Its configuration with so many parts.
fn config_of(daemon: &TestDaemon, parts: u64) -> String {
    let text = std::fs::read_to_string(daemon.config()).expect("its own folder");
    text.replacen(&format!("size = {PART}\n"), &format!("size = {}\n", parts * PART), 1)
}

#[test]
fn a_part_that_retires_is_freed_after_its_last_lease_and_mapping() {
    let mut daemon = TestDaemon::start(options(4));
    let (_client, mut engine) = self::engine(&daemon);
    store(&mut engine, 0..CHAINS);
    let (fetch, pages) = lease(&engine, NEWEST);
    let leased: BTreeSet<_> = pages.iter().map(part_under).collect();
    let (before, known) = (resident_bytes(daemon.pid()), parts_of(daemon.pid()));

    resize(&mut daemon, 3);
    wait_for(&daemon, "no part retires", || arena(&daemon).retiring_parts == 1);
    // Whatever is stored now lies elsewhere.
    store(&mut engine, 100..130);
    assert_right(&engine, NEWEST, &pages);
    assert_eq!(load(&mut engine, 120..130), 10 * PAGES);
    assert!(leased.is_subset(&parts_of(daemon.pid())), "a leased part was freed");
    let status = arena(&daemon);
    assert_eq!((status.parts, status.retiring_parts, status.retiring_bytes), (4, 1, PART));

    drop((pages, fetch));
    wait_for(&daemon, "it was not freed", || parts_of(daemon.pid()).len() == 3);
    assert!(resident_bytes(daemon.pid()) + PART <= before, "memory was not given back");
    let own = here(&known);
    assert!(own.is_disjoint(&leased) && own.len() == 3, "this client still has it: {own:?}");
    let status = arena(&daemon);
    assert_eq!((status.parts, status.retiring_parts, status.bytes), (3, 0, 3 * PART));
    // And back, with parts that were never there before.
    resize(&mut daemon, 4);
    wait_for(&daemon, "it has not grown", || arena(&daemon).bytes == 4 * PART);
    store(&mut engine, 200..200 + CHAINS);
    assert_eq!(load(&mut engine, 200..200 + CHAINS), CHAINS * PAGES);
}

#[test]
fn a_killed_client_holds_no_retiring_part() {
    let mut daemon = TestDaemon::start(options(4));
    let (_client, mut engine) = self::engine(&daemon);
    store(&mut engine, 0..CHAINS);
    let child = keeper(&daemon, NEWEST);
    resize(&mut daemon, 3);
    wait_for(&daemon, "it does not retire", || arena(&daemon).retiring_parts == 1);
    assert_eq!(parts_of(daemon.pid()).len(), 4);
    kill(child);
    wait_for(&daemon, "it was not freed", || parts_of(daemon.pid()).len() == 3);
    assert_eq!(daemon.status().sessions.iter().filter(|s| s.leases > 0).count(), 0);
}

#[test]
fn a_part_waits_for_clients_that_do_not_let_go() {
    let mut daemon = TestDaemon::start(options(4));
    let (_client, mut engine) = self::engine(&daemon);
    store(&mut engine, 0..CHAINS);
    // It leases pages of the first part, which stays, and maps all of them.
    let child = keeper(&daemon, FIRST);
    let known = parts_of(daemon.pid());
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::STOP).expect("our own child");
    resize(&mut daemon, 3);
    // Nothing is in it, and this process has let go.
    wait_for(&daemon, "this client does not let go", || here(&known).len() == 3);
    let status = arena(&daemon);
    assert_eq!((status.parts, status.retiring_parts), (4, 1), "somebody still maps it");
    kill(child);
    wait_for(&daemon, "it was not freed", || parts_of(daemon.pid()).len() == 3);
}

#[test]
fn a_retirement_goes_on_after_a_kill() {
    let mut daemon = TestDaemon::start(DaemonOptions { managed: true, ..options(4) });
    let (client, mut engine) = self::engine(&daemon);
    store(&mut engine, 0..CHAINS);
    let (fetch, pages) = lease(&engine, NEWEST);
    let known = parts_of(daemon.pid());
    resize(&mut daemon, 3);
    wait_for(&daemon, "no part retires", || arena(&daemon).retiring_parts == 1);
    daemon.kill();
    assert_right(&engine, NEWEST, &pages);

    daemon.restart();
    let status = daemon.status();
    assert_eq!(status.start.kind, StartKind::Warm, "{:?}", status.start);
    assert_eq!((status.arena.parts, status.arena.retiring_parts), (4, 1), "{:?}", status.arena);
    assert!(client.wait_connected(PATIENCE), "{:?}", client.state());
    store(&mut engine, 100..130);
    assert_right(&engine, NEWEST, &pages);
    assert_eq!(load(&mut engine, 120..130), 10 * PAGES);
    drop((pages, fetch));
    wait_for(&daemon, "it was not freed", || parts_of(daemon.pid()).len() == 3);
    let kept = || {
        let kept = daemon.manager().expect("it has one").kept().expect("it hears");
        kept.iter().filter(|name| name.starts_with("undercroft-part")).count()
    };
    wait_for(&daemon, "a freed part is kept", || kept() == 3);
    // The manager is a thread of this process: with its descriptors the last of it is gone.
    wait_for(&daemon, "it is still held here", || here(&known).len() == 3);
}

#[test]
fn it_shrinks_at_a_restart_with_less_and_keeps_its_pages() {
    let mut daemon = TestDaemon::start(DaemonOptions { managed: true, ..options(4) });
    let (client, mut engine) = self::engine(&daemon);
    store(&mut engine, 0..CHAINS);
    let known = parts_of(daemon.pid());
    daemon.stop().expect("it ran");
    daemon.reconfigure(|options| options.dram = 2 * PART);
    daemon.restart();
    assert_eq!(daemon.status().start.kind, StartKind::Warm);
    wait_for(&daemon, "it has not shrunk", || arena(&daemon).bytes == 2 * PART);
    assert!(client.wait_connected(PATIENCE), "{:?}", client.state());
    // What lay in the parts that stay.
    assert_eq!(load(&mut engine, 0..21), 21 * PAGES);
    wait_for(&daemon, "parts are still held", || here(&known).len() == 2);
    daemon.stop().expect("it ran");
    daemon.reconfigure(|options| options.dram = 3 * PART);
    daemon.restart();
    wait_for(&daemon, "it has not grown", || arena(&daemon).bytes == 3 * PART);
    assert!(client.wait_connected(PATIENCE), "{:?}", client.state());
    assert_eq!(load(&mut engine, 0..21), 21 * PAGES);
}

#[test]
fn a_bad_configuration_changes_nothing_and_says_why() {
    let mut daemon = TestDaemon::start(options(2));
    let (_client, mut engine) = self::engine(&daemon);
    store(&mut engine, 0..8);
    let good = std::fs::read_to_string(daemon.config()).expect("its own folder");
    let times = |wanted| move |daemon: &TestDaemon| daemon.status().reload.times == wanted;
    for (at, (text, words)) in [
        ("[arena\nsize = 1".to_owned(), "line 1"),
        (good.replace("size = 2097152", "size = 1"), "arena.size = 1: allowed"),
        (good.replace("[arena]", "[arena]\nsizes = 1"), "unknown field `sizes`"),
    ]
    .into_iter()
    .enumerate()
    {
        std::fs::write(daemon.config(), text).expect("its own folder");
        daemon.signal(Signal::HUP);
        wait_for(&daemon, "it was not read", || times(at as u32 + 1)(&daemon));
        let status = daemon.status();
        let why = status.reload.refused.expect("it is refused");
        assert!(why.contains(words), "{why}");
        assert_eq!((status.arena.bytes, status.arena.wanted_bytes), (2 * PART, 2 * PART));
        assert!(daemon.says(words), "{}", daemon.log());
    }
    assert_eq!(load(&mut engine, 0..8), 8 * PAGES);
    // What needs a restart is named, and the rest counts.
    daemon.reconfigure(|options| {
        options.dram = 3 * PART;
        options.more = "[copy]\nworkers = 3\n".to_owned();
    });
    daemon.signal(Signal::HUP);
    wait_for(&daemon, "it has not grown", || arena(&daemon).bytes == 3 * PART);
    let reload = daemon.status().reload;
    assert_eq!((reload.refused, reload.pending), (None, vec!["copy.workers".to_owned()]));
    assert_eq!(load(&mut engine, 0..8), 8 * PAGES);
}

#[test]
fn growth_that_there_is_no_memory_for_is_not_begun() {
    let large = "part = \"1GiB\"\nhuge_pages = \"off\"\n".to_owned();
    let mut daemon =
        TestDaemon::start(DaemonOptions { dram: PART, arena: large, ..DaemonOptions::default() });
    let (_client, mut engine) = self::engine(&daemon);
    store(&mut engine, 0..8);
    // More than any machine of today has, and so much that taking what there is of it takes long.
    daemon.reconfigure(|options| options.dram = 3 << 40);
    daemon.signal(Signal::HUP);
    let short = || daemon.status().domains[0].arena.short.clone();
    wait_for(&daemon, "it does not say so", || short().is_some());
    let (short, status) = (short().expect("it was there"), arena(&daemon));
    assert!(short.contains("bytes more, and"), "{short}");
    assert_eq!((status.bytes, status.parts), (PART, 1));
    assert_eq!(load(&mut engine, 0..8), 8 * PAGES);
}

#[test]
fn a_new_arena_finds_nothing_of_the_old_one_mapped() {
    let mut daemon = TestDaemon::start(options(4));
    let (client, mut engine) = self::engine(&daemon);
    store(&mut engine, 0..8);
    let old = parts_of(daemon.pid());
    assert_eq!((here(&old).len(), old.len()), (4, 4));
    daemon.kill();
    daemon.restart();
    assert_eq!(daemon.status().start.kind, StartKind::Cold);
    assert!(client.wait_connected(PATIENCE), "{:?}", client.state());
    wait_for(&daemon, "the old arena is still here", || here(&old).is_empty());
    store(&mut engine, 0..8);
    assert_eq!(load(&mut engine, 0..8), 8 * PAGES);
}
