//! A client that does not play by the rules, in a process of its own. Its first argument says what
//! it does; what came of it is on standard output.

mod fork;
mod holder;
mod seize;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Signal, getpid, kill_process};
use std::io::{BufRead, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use undercroft_client::wire::{
    FetchSource, HoldId, KeyRun, LeaseId, Release, Reply, Request, SessionId, Take, Token,
};
use undercroft_tests::{LAST_STEP, RawClient, die_at};

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
        ["breed", socket] => breed(Path::new(socket)),
        ["child-dies", socket] => fork::child_dies(Path::new(socket)),
        ["parent-dies", socket] => fork::parent_dies(Path::new(socket)),
        ["read-slowly", socket] => holder::read_slowly(Path::new(socket)),
        ["seize", socket] => seize::run(Path::new(socket)),
        ["stop", socket] => stop(Path::new(socket)),
        ["flood", socket] => flood(Path::new(socket)),
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

/// Has clients live and die, as many at once as a line of its input says, numbered from there on;
/// writes a line when they are all reaped. Its input's end is its own.
fn breed(socket: &Path) -> Result<()> {
    let own = std::env::current_exe().context("its own file")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (first, count) = line.split_once(' ').context("a number, and how many")?;
        let (first, count): (u32, u32) = (first.parse()?, count.parse()?);
        let children = (first..first + count).map(|number| {
            let mut command = Command::new(&own);
            command.arg("die").arg(socket);
            command.args([(number % (LAST_STEP + 1)).to_string(), number.to_string()]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()
        });
        for mut child in children.collect::<std::io::Result<Vec<_>>>()? {
            let ended = child.wait()?;
            ensure!(ended.code().is_none(), "a client did not come to its death: {ended}");
        }
        say("reaped")?;
    }
    Ok(())
}

/// Connects as often as it can, and says nothing.
fn flood(socket: &Path) -> Result<()> {
    let _open: Vec<_> = (0..1000).filter_map(|_| UnixStream::connect(socket).ok()).collect();
    say("flooded")?;
    std::thread::sleep(LONGEST_LIFE);
    Ok(())
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
            recompute_ns: 0,
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
        recompute_ns: 0,
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
