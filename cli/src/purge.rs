//! `undercroft purge`.

use crate::outcome::{Failure, Outcome, print};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;
use undercroft_client::wire::{Purge as Request, Purged, SpaceDigest};
use undercroft_client::{Client, ConnectOptions, PurgeError, Wait};

const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// The daemon answers sooner, with what it could not do.
const PATIENCE: Duration = Duration::from_secs(120);

/// Forget pages for good, in DRAM and on every SSD: all of a tenant, of a space, or all that a user's
/// processes have stored. Of several options, what has all of them.
///
/// From the moment the daemon takes it up nobody finds them, and once this ends no restart brings them
/// back. What an engine is reading at that moment it may finish reading. On an SSD the bytes are
/// overwritten when their segment is used again.
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("what").required(true).multiple(true)
        .args(["domain", "space", "writer"]),
    after_help = "Examples:
  undercroft purge --domain tenant-a
  undercroft purge --domain tenant-a --writer 1004
  undercroft purge --space 9f0c…64 hex digits… --json

A process may purge its own domain. Root and the daemon's own user may purge every domain, those
included that are configured no more; without --domain they purge all of them.

What is offered before and committed afterwards counts as stored afterwards: have the writer stopped
before you purge what it wrote.

Exit codes: 0 nothing of it is left and every SSD has it in writing; 1 no daemon answered, it refused,
nobody is called so, or an SSD could not write it down: pages come back if a start finds nothing but
that SSD, so ask again once it is well; 2 bad arguments."
)]
pub(crate) struct Purge {
    /// Pages of this domain, by its name in the configuration.
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// Pages of this space: 64 hex digits, as `undercroft status --json` shows them, and of spaces that
    /// only lie on an SSD `undercroft inspect DIRECTORY --segment N --json`.
    #[arg(long, value_name = "HEX", value_parser = digest)]
    space: Option<SpaceDigest>,
    /// Pages that processes of this user were the first to store, by number.
    #[arg(long, value_name = "UID", value_parser = uid)]
    writer: Option<u32>,
    /// The daemon's socket [default: where `serve` has it for this user, else
    /// /run/undercroft/undercroft.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print JSON (schema 1) instead of text.
    #[arg(long)]
    json: bool,
}

fn uid(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "allowed are user numbers, as `id -u NAME` prints them".to_owned())
}

fn digest(text: &str) -> Result<SpaceDigest, String> {
    let digits = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !digits {
        return Err("allowed are 64 hexadecimal digits".to_owned());
    }
    let mut digest = [0; 32];
    for (byte, digits) in digest.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).map_err(|error| error.to_string())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|error| error.to_string())?;
    }
    Ok(SpaceDigest(digest))
}

impl Purge {
    pub(crate) fn run(self) -> Result<Outcome, Failure> {
        let socket = self.socket.unwrap_or_else(undercroft_client::find_socket);
        let mut options = ConnectOptions::new(&socket);
        options.name = "undercroft purge".to_owned();
        // Nothing will be fetched: copy mode spares mapping the arena.
        options.copy_mode = true;
        options.wait = Wait::Now(CONNECT_PATIENCE);
        let client = Client::connect(options).map_err(Failure::run)?;
        let what = Request { domain: self.domain.clone(), space: self.space, writer: self.writer };
        let purged = client.purge(&what, PATIENCE).map_err(|error| match error {
            PurgeError::Refused { .. } => Failure::run(error),
            _ => Failure::run(format!(
                "{error}; whether all of it is gone is not known: ask again ({})",
                socket.display()
            )),
        })?;
        // Most likely a slip of the pen: nothing was found and nobody is called so.
        let unknown = match &self.domain {
            Some(name) if purged.pages == 0 => unknown_domain(&client, name),
            _ => None,
        };
        let text = if self.json { as_json(&purged) } else { as_text(&purged) };
        print(&text)?;
        if let Some(unknown) = &unknown {
            eprintln!("undercroft: {unknown}");
        }
        for directory in &purged.missed {
            eprintln!(
                "undercroft: the SSD at {directory} could not write it down: purge again when it \
                 is well"
            );
        }
        let done = purged.missed.is_empty() && unknown.is_none();
        Ok(if done { Outcome::Good } else { Outcome::Bad })
    }
}

/// What is to be said if no domain is called so now.
fn unknown_domain(client: &Client, name: &str) -> Option<String> {
    let report = client.status(CONNECT_PATIENCE).ok()?;
    let mut known = report.domains.iter().map(|domain| domain.name.as_str());
    if known.any(|known| known == name) {
        return None;
    }
    let known: Vec<_> = report.domains.iter().map(|domain| domain.name.as_str()).collect();
    Some(format!(
        "no domain is called {name:?}, and nothing of one was found; allowed are those that are \
         configured ({}) and those that were",
        known.join(", ")
    ))
}

fn as_json(purged: &Purged) -> String {
    let Purged { pages, dram_bytes, ssd_bytes, missed } = purged;
    let all = json!({
        "schema": 1,
        "pages": pages,
        "dram_bytes": dram_bytes,
        "ssd_bytes": ssd_bytes,
        "missed": missed,
    });
    format!("{all:#}\n")
}

fn as_text(purged: &Purged) -> String {
    let bytes = |bytes| indicatif::HumanBytes(bytes);
    let Purged { pages, dram_bytes, ssd_bytes, .. } = purged;
    format!("{pages} pages: {} in DRAM, {} on SSD\n", bytes(*dram_bytes), bytes(*ssd_bytes))
}
