//! A client that does not play by the rules, in a process of its own. Its first argument says what
//! it does; what came of it is on standard output.

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FallocateFlags, Mode, OFlags, SealFlags};
use rustix::process::{Signal, getpid, kill_process};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use undercroft_client::wire::{
    FetchSource, HoldId, KeyRun, LeaseId, Release, Reply, Request, SessionId, Take, Token,
};
use undercroft_tests::{RawClient, die_at};

const PAGES: u32 = 6;
/// A client that nobody ends is gone by then: its test failed.
const LONGEST_LIFE: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["die", socket, step, conversation] => {
            Ok(die_at(Path::new(socket), step.parse()?, conversation.parse()?)?)
        }
        ["rob", socket, session] => rob(Path::new(socket), SessionId(session.parse()?)),
        ["seize", socket] => seize(Path::new(socket)),
        ["stop", socket] => stop(Path::new(socket)),
        ["leave", socket] => leave(Path::new(socket)),
        ["inherit"] => inherit(),
        _ => bail!("it does not know how to {words:?}"),
    }
}

fn say(what: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{what}")?;
    Ok(stdout.flush()?)
}

/// Guesses at what another session has: its leases, its holds, its tokens.
fn rob(socket: &Path, victim: SessionId) -> Result<()> {
    let mut client = RawClient::connect(socket)?;
    let space = client.open(0)?.map_err(|refused| anyhow::anyhow!(refused.detail))?;
    let (mut released, mut fetched, mut taken) = (0, 0, 0);
    for lease in 0..64 {
        let release = Release { session: victim, lease: LeaseId(lease), upto: u32::MAX };
        let answer = client.ask(&Request::Release(release))?;
        released += u32::from(matches!(answer, Reply::Done));
    }
    for hold in 0..4096 {
        let source = FetchSource::Hold { hold: HoldId(hold), first: 0, count: 1 };
        let fetch = undercroft_client::wire::Fetch {
            space: space.id,
            lease: LeaseId(1 + hold),
            source,
            stamp: undercroft_client::wire::Stamp(0),
            deadline_ms: 1000,
        };
        client.send(&Request::Fetch(fetch))?;
        loop {
            match client.reply()? {
                Reply::FetchReady(_) => fetched += 1,
                Reply::FetchEnd(_) | Reply::Refused(_) => break,
                other => bail!("no answer to a fetch: {other:?}"),
            }
        }
        let dropped = undercroft_client::wire::DropHold { hold: HoldId(hold) };
        client.ask(&Request::DropHold(dropped))?;
    }
    for guess in 0..=u8::MAX {
        let take =
            Take { token: Token([guess; 16]), lease: LeaseId(10_000), space: Some(space.id) };
        let answer = client.ask(&Request::Take(take))?;
        taken += u32::from(!matches!(answer, Reply::Refused(_)));
    }
    say(&format!("released {released}, fetched {fetched}, taken {taken}"))
}

/// Tries to write what it was only given to read, and says what it could do.
fn seize(socket: &Path) -> Result<()> {
    let mut client = RawClient::connect(socket)?;
    let space = client.open(1)?.map_err(|refused| anyhow::anyhow!(refused.detail))?;
    say(&format!("parts {}", client.parts.len()))?;
    for part in &client.parts {
        for (what, done) in attempts(part.as_fd()) {
            if done {
                say(&format!("arena: {what}"))?;
            }
        }
    }
    // The staging area is its own: it may write there, and spoil nothing but its own pages.
    let staging = &space.staging;
    if rustix::fs::ftruncate(staging, 4096).is_ok() {
        say("staging: truncated")?;
    }
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let _its_own = rustix::fs::fallocate(staging, hole, 0, u64::from(space.slot_bytes));
    let keys = RawClient::keys(900, PAGES.min(space.slots));
    client.store(space.id, &keys)?;
    let source = FetchSource::Keys { keys: KeyRun::from(&keys[..]) };
    let (end, _) = client.fetch(space.id, source, LeaseId(1))?;
    ensure!(end.ready as usize == keys.len(), "its own pages did not come: {end:?}");
    say("over")
}

fn attempts(fd: BorrowedFd<'_>) -> Vec<(&'static str, bool)> {
    let own = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let open = |flags| rustix::fs::open(&own, flags, Mode::empty()).is_ok();
    vec![
        ("written", rustix::io::pwrite(fd, &[1; 64], 0).is_ok()),
        ("shortened", rustix::fs::ftruncate(fd, 4096).is_ok()),
        ("lengthened", rustix::fs::ftruncate(fd, 1 << 40).is_ok()),
        ("punched", rustix::fs::fallocate(fd, hole, 0, 4096).is_ok()),
        ("sealed", rustix::fs::fcntl_add_seals(fd, SealFlags::WRITE).is_ok()),
        ("made writable", rustix::fs::fchmod(fd, Mode::from_raw_mode(0o666)).is_ok()),
        ("opened for writing", open(OFlags::RDWR)),
        ("opened for writing only", open(OFlags::WRONLY)),
        ("opened and truncated", open(OFlags::RDWR | OFlags::TRUNC)),
    ]
}

/// A session with a lease, and a fetch under way that nobody reads.
fn with_lease(socket: &Path) -> Result<RawClient> {
    let mut client = RawClient::connect(socket)?;
    let space = client.open(0)?.map_err(|refused| anyhow::anyhow!(refused.detail))?;
    let keys = RawClient::keys(800, PAGES);
    client.store(space.id, &keys)?;
    let source = || FetchSource::Keys { keys: KeyRun::from(&keys[..]) };
    let (end, _) = client.fetch(space.id, source(), LeaseId(1))?;
    ensure!(end.ready == PAGES, "its pages did not come: {end:?}");
    let fetch = undercroft_client::wire::Fetch {
        space: space.id,
        lease: LeaseId(2),
        source: source(),
        stamp: undercroft_client::wire::Stamp(0),
        deadline_ms: 10_000,
    };
    client.send(&Request::Fetch(fetch))?;
    Ok(client)
}

/// Stops in the middle of a fetch.
fn stop(socket: &Path) -> Result<()> {
    let _client = with_lease(socket)?;
    kill_process(getpid(), Signal::STOP)?;
    std::thread::sleep(LONGEST_LIFE);
    Ok(())
}

/// Has a child that goes on with its session, and waits for its end.
fn leave(socket: &Path) -> Result<()> {
    let client = with_lease(socket)?;
    let own = std::env::current_exe().context("its own file")?;
    let inherited = client.socket().try_clone_to_owned()?;
    let mut child = Command::new(own).arg("inherit").stdin(Stdio::from(inherited)).spawn()?;
    say(&format!("child {}", child.id()))?;
    child.wait()?;
    Ok(())
}

/// Uses the session of its parent until it is ended.
fn inherit() -> Result<()> {
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut client = RawClient::inherit(socket)?;
    client.send(&Request::Ping)?;
    say("inherited")?;
    std::thread::sleep(LONGEST_LIFE);
    Ok(())
}
