//! A process that forks with a client in its hands, and nothing executed after it.
#![expect(unsafe_code, reason = "a fork is what this is about")]

use super::holder::{DEADLINE, Holder, PAGES, connect};
use super::{LONGEST_LIFE, say};
use anyhow::{Context, Result, ensure};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use rustix::process::{Signal, getpid, kill_process};
use std::path::Path;
use undercroft_client::wire::Stamp;
use undercroft_client::{ClientState, FetchFrom, LookupOptions, MissReason};
use undercroft_tests::{Engine, RawClient};

/// What is in flight as a process forks: a lease with its pages, and slots that an offer has and no
/// commit.
struct Family {
    holder: Holder,
    _offering: RawClient,
}

impl Family {
    fn new(socket: &Path) -> Result<Self> {
        let holder = Holder::new(socket)?;
        let mut offering = RawClient::connect(socket)?;
        let space = offering.open(0)?.map_err(|refused| anyhow::anyhow!(refused.detail))?;
        offering.offer(space.id, &RawClient::keys(700, PAGES))?;
        Ok(Self { holder, _offering: offering })
    }

    fn goes_on(&mut self) -> Result<()> {
        self.holder.still_reads()?;
        let engine = &mut self.holder.engine;
        let keys = engine.keys(2, PAGES);
        let stored = engine.store(&keys, Stamp(0));
        ensure!(stored.stored + stored.held == PAGES, "it cannot store: {stored:?}");
        let inspected = engine.inspect(&keys, Stamp(0));
        ensure!(inspected.loaded.pages == PAGES && inspected.wrong_bytes == 0, "{inspected:?}");
        Ok(())
    }
}

/// What a child of a fork may do with its parent's client: nothing; and with one of its own: all.
fn in_the_child(family: &mut Family, socket: &Path) -> Result<()> {
    let Holder { client, engine, .. } = &mut family.holder;
    let keys = engine.keys(1, PAGES);
    let options = LookupOptions { hold: None, deadline: DEADLINE, ..LookupOptions::default() };
    let found = engine.space().lookup(&keys, options);
    ensure!(found.pages == 0 && found.why == Some(MissReason::Forked), "{found:?}");
    ensure!(client.state() == ClientState::Forked, "it thinks it is connected");
    ensure!(client.status(DEADLINE).err() == Some(MissReason::Forked), "it is answered");
    let mut fetch = engine.space().fetch(FetchFrom::Keys(&keys), Stamp(0), DEADLINE);
    ensure!(fetch.next_ready().is_none(), "it is given pages");
    let stored = engine.store(&keys, Stamp(0));
    ensure!(stored.stored == 0 && stored.held == 0, "it stores: {stored:?}");
    // A client of its own is another session.
    let client = connect(socket)?;
    let mut engine = Engine::new(&client, "holder");
    let inspected = engine.inspect(&keys, Stamp(0));
    ensure!(inspected.loaded.pages == PAGES && inspected.wrong_bytes == 0, "{inspected:?}");
    Ok(())
}

/// Forks; the child uses what it inherited, drops it and dies, and the parent goes on.
pub(crate) fn child_dies(socket: &Path) -> Result<()> {
    let mut family = Family::new(socket)?;
    for ending in ["by returning", "by signal"] {
        // SAFETY: the child runs code of this thread only: no lock of another one is waited for, as
        // the client takes none in a child, and the allocator is in order after a fork.
        match unsafe { fork()? } {
            ForkResult::Child => {
                let outcome = in_the_child(&mut family, socket);
                if let Err(error) = &outcome {
                    eprintln!("the child: {error:#}");
                }
                if ending == "by signal" && outcome.is_ok() {
                    kill_process(getpid(), Signal::KILL)?;
                }
                drop(family);
                std::process::exit(i32::from(outcome.is_err()));
            }
            ForkResult::Parent { child } => {
                let ended = waitpid(child, None)?;
                let is_well = match ending {
                    "by signal" => matches!(ended, WaitStatus::Signaled(..)),
                    _ => matches!(ended, WaitStatus::Exited(_, 0)),
                };
                ensure!(is_well, "the child ended otherwise than {ending}: {ended:?}");
                family.goes_on().with_context(|| format!("after its child died {ending}"))?;
                say(&format!("{ending}: it goes on"))?;
            }
        }
    }
    // Its lease is still its own: it ends it, and the session has none.
    let Holder { client, engine: _engine, fetch, pages } = family.holder;
    drop((pages, fetch));
    client.ping(DEADLINE)?;
    say("released")?;
    std::thread::sleep(LONGEST_LIFE);
    Ok(())
}

/// Forks and waits; the child keeps all it inherited, and uses it from time to time.
pub(crate) fn parent_dies(socket: &Path) -> Result<()> {
    let mut family = Family::new(socket)?;
    // SAFETY: as above.
    match unsafe { fork()? } {
        ForkResult::Child => {
            in_the_child(&mut family, socket)?;
            say("inherited")?;
            std::thread::sleep(LONGEST_LIFE);
            Ok(())
        }
        ForkResult::Parent { child } => {
            say(&format!("child {child}"))?;
            waitpid(child, None)?;
            Ok(())
        }
    }
}
