use super::RawClient;
use rustix::process::{Signal, getpid, kill_process};
use std::io::Result;
use std::path::Path;
use undercroft_client::wire::{
    Commit, FetchSource, KeyRun, LeaseId, Lookup, Request, RequestId, Rival, Stamp, encode_request,
};

/// The last step at which a client can die.
pub const LAST_STEP: u32 = 9;

/// Pages of one conversation of a client that dies.
const PAGES: u32 = 6;

/// Uses the daemon as an engine would and dies, by `kill -9` of itself, at step `step` of it:
///
/// | step | the daemon has |
/// |---|---|
/// | 0 | a connection |
/// | 1 | a session that maps the arena |
/// | 2 | a space with its staging area |
/// | 3 | slots assigned |
/// | 4 | half a commit |
/// | 5 | copies out of staging under way |
/// | 6 | pages stored, and a hold |
/// | 7 | a fetch that nobody reads |
/// | 8 | a lease |
/// | 9 | a second offer, a lease and a fetch under the hold, all at once |
///
/// # Errors
/// The daemon does not do what it should.
pub fn die_at(socket: &Path, step: u32, conversation: u32) -> Result<()> {
    let _connection = std::os::unix::net::UnixStream::connect(socket)?;
    die_if(step == 0);
    let mut client = RawClient::connect(socket)?;
    die_if(step == 1);
    let space = client.open(0)?.map_err(|refused| std::io::Error::other(refused.detail))?;
    die_if(step == 2);
    let keys = RawClient::keys(conversation, PAGES);
    let wanted = client.offer(space.id, &keys)?;
    die_if(step == 3);
    let (offer, filled, returned) = (wanted.offer, wanted.slots, Vec::new());
    let commit = Request::Commit(Commit { space: space.id, offer, filled, returned });
    if step == 4 {
        let mut bytes = Vec::new();
        encode_request(&mut bytes, RequestId(1), &commit);
        client.send_bytes(&bytes[..bytes.len() - 3])?;
        die_if(true);
    }
    client.send(&commit)?;
    die_if(step == 5);
    client.reply()?;
    let all = || KeyRun::from(&keys[..]);
    let lookup =
        Lookup { spaces: vec![space.id], keys: all(), hold_ms: 60_000, rival: Rival::default() };
    let found = client.ask(&Request::Lookup(lookup))?;
    die_if(step == 6);
    let fetch = |lease, source| {
        let (space, stamp) = (space.id, Stamp(0));
        Request::Fetch(undercroft_client::wire::Fetch {
            space,
            lease,
            source,
            stamp,
            deadline_ms: 10_000,
            recompute_ns: 0,
        })
    };
    if step == 7 {
        client.send(&fetch(LeaseId(1), FetchSource::Keys { keys: all() }))?;
        die_if(true);
    }
    client.fetch(space.id, FetchSource::Keys { keys: all() }, LeaseId(1))?;
    die_if(step == 8);
    client.offer(space.id, &RawClient::keys(conversation ^ 0x8000_0000, PAGES))?;
    if let undercroft_client::wire::Reply::Lookup(found) = found
        && let Some(hold) = found.hold
    {
        let source = FetchSource::Hold { hold, first: 0, count: found.pages };
        client.send(&fetch(LeaseId(2), source))?;
    }
    die_if(true);
    Ok(())
}

fn die_if(now: bool) {
    if now {
        // It cannot be refused, and nothing comes after it.
        let _dead = kill_process(getpid(), Signal::KILL);
        std::thread::park();
    }
}
