//! `undercroft explain`.

use crate::outcome::{Failure, Outcome, print};
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use undercroft_client::wire::{
    Explain as Request, Explained, ExplainedLookup, Finding, Looked, MAX_EXPLAINED, Miss,
    MissCause, OtherProbe, SessionId, SpaceDigest,
};
use undercroft_client::{Client, ConnectOptions, Wait};

const PATIENCE: Duration = Duration::from_secs(5);

/// Say why the newest lookups found what they found: pages in DRAM and on SSD, and of the first page
/// that was missed why it was not there.
///
/// An engine may ask the board first, memory that it shares with the daemon, whether anything begins as
/// its prompt does: of lookups that were over with that there is only how many. What left long ago, or before the
/// daemon was started, reads "never stored" as well.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  undercroft explain
  undercroft explain --last 200 --session 7
  undercroft explain --json | python3 -m json.tool

A process is told of its own domain; root and the daemon's own user of all. `undercroft status` counts
the same causes since the daemon was started.

Exit codes: 0 the daemon answered; 1 none did, or it refused; 2 bad arguments.")]
pub(crate) struct Explain {
    /// How many lookups, 1 to 1024.
    #[arg(long, value_name = "N", default_value_t = 20,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_EXPLAINED)))]
    last: u32,
    /// Of this session only, as `undercroft status` numbers them.
    #[arg(long, value_name = "NUMBER")]
    session: Option<u64>,
    /// The daemon's socket [default: where `serve` has it for this user, else
    /// /run/undercroft/undercroft.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print JSON (schema 1) instead of text.
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(crate) fn run(self) -> Result<Outcome, Failure> {
        let socket = self.socket.unwrap_or_else(undercroft_client::find_socket);
        let mut options = ConnectOptions::new(&socket);
        options.name = "undercroft explain".to_owned();
        // Nothing will be fetched: copy mode spares mapping the arena.
        options.copy_mode = true;
        options.wait = Wait::Now(PATIENCE);
        let client = Client::connect(options).map_err(Failure::run)?;
        let what = Request { last: self.last, session: self.session.map(SessionId) };
        let explained = client
            .explain(what, PATIENCE)
            .map_err(|error| Failure::run(format!("{error} ({})", socket.display())))?;
        print(&if self.json { as_json(&explained) } else { as_text(&explained) })
    }
}

fn as_json(explained: &Explained) -> String {
    let lookups: Vec<Value> = explained.lookups.iter().map(lookup_json).collect();
    let all = json!({ "schema": 1, "now_unix_ms": explained.now_unix_ms, "lookups": lookups });
    format!("{all:#}\n")
}

fn lookup_json(lookup: &ExplainedLookup) -> Value {
    let ExplainedLookup { unix_ms, session, pid, name, domain, finding } = lookup;
    let mut all = json!({
        "unix_ms": unix_ms,
        "session": session.0,
        "pid": pid,
        "name": name,
        "domain": domain,
    });
    match finding {
        Finding::Board { lookups } => all["board_lookups"] = json!(lookups),
        Finding::OtherProbe(OtherProbe { space, known, told }) => {
            let (space, known, told) = (space.to_hex(), hex(known), hex(told));
            all["refused"] = json!({ "space": space, "known_probe": known, "told_probe": told });
        }
        Finding::Looked(looked) => {
            all["space"] = json!(looked.space.to_hex());
            all["spaces"] = json!(looked.spaces);
            all["keys"] = json!(looked.keys);
            all["dram_pages"] = json!(looked.dram);
            all["ssd_pages"] = json!(looked.ssd);
            all["miss"] = looked.miss.map_or(Value::Null, |miss| miss_json(looked, &miss));
        }
    }
    all
}

fn miss_json(looked: &Looked, miss: &Miss) -> Value {
    json!({
        "page": looked.dram + looked.ssd,
        "key": hex(&miss.key),
        "cause": miss.cause.name(),
        "left_unix_s": miss.left_unix_s,
        "held_in": miss.held_in.map(|space| space.to_hex()),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As `status` shows them.
fn short(space: SpaceDigest) -> String {
    space.to_hex().chars().take(16).collect()
}

fn as_text(explained: &Explained) -> String {
    let mut text = String::new();
    for lookup in &explained.lookups {
        let ago = ago(explained.now_unix_ms.saturating_sub(lookup.unix_ms));
        let ExplainedLookup { session, pid, name, domain, .. } = lookup;
        let who =
            format!("session {session} \"{name}\" pid {pid} of {domain}", session = session.0);
        match &lookup.finding {
            Finding::Board { lookups } => text.push_str(&format!(
                "{ago:>9} ago  {who}: {lookups} lookup(s) answered by the board, nothing begins so\n"
            )),
            Finding::OtherProbe(OtherProbe { space, known, told }) => text.push_str(&format!(
                "{ago:>9} ago  {who}: space {} was refused, as its clients name the probe prefix {} and \
                 this one {}\n",
                short(*space),
                hex(known),
                hex(told)
            )),
            Finding::Looked(looked) => {
                let Looked { keys, dram, ssd, spaces, space, .. } = looked;
                let others =
                    if *spaces > 1 { format!(" and {} more", spaces - 1) } else { String::new() };
                text.push_str(&format!(
                    "{ago:>9} ago  {who}: {} of {keys} pages, {dram} in DRAM, {ssd} on SSD; space \
                     {}{others}\n",
                    dram + ssd,
                    short(*space)
                ));
                if let Some(miss) = &looked.miss {
                    text.push_str(&format!("{:>13}  {}\n", "", miss_text(lookup, looked, miss)));
                }
            }
        }
    }
    text + &summary(&explained.lookups)
}

fn miss_text(lookup: &ExplainedLookup, looked: &Looked, miss: &Miss) -> String {
    let page = looked.dram + looked.ssd;
    let mut text = format!("page {page} (key {}): {}", hex(&miss.key), miss.cause);
    if let Some(space) = miss.held_in {
        text += &format!(": {}", short(space));
    }
    if let Some(left_s) = miss.left_unix_s {
        let before_ms = lookup.unix_ms.saturating_sub(u64::from(left_s) * 1000);
        text += &format!(", {} before", ago(before_ms));
    }
    text
}

/// All of them in one line.
fn summary(lookups: &[ExplainedLookup]) -> String {
    let (mut looked, mut whole, mut board, mut refused) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut causes: BTreeMap<MissCause, u64> = BTreeMap::new();
    for lookup in lookups {
        match lookup.finding {
            Finding::Board { lookups } => board += u64::from(lookups),
            Finding::OtherProbe(_) => refused += 1,
            Finding::Looked(Looked { miss, .. }) => {
                looked += 1;
                match miss {
                    None => whole += 1,
                    Some(miss) => *causes.entry(miss.cause).or_default() += 1,
                }
            }
        }
    }
    let refused = match refused {
        0 => String::new(),
        _ => format!("{refused} refused space(s): clients whose hashes or hash seeds differ\n"),
    };
    if looked + board == 0 {
        return refused + "no lookups are remembered\n";
    }
    let causes = causes.iter().map(|(cause, count)| format!("; {} {count}", cause.name()));
    let causes: String = causes.collect();
    format!(
        "{refused}{} lookups: {board} answered by the board, {whole} found all they asked for{causes}\n",
        looked + board
    )
}

fn ago(ms: u64) -> String {
    match ms {
        0..60_000 => format!("{:.1} s", ms as f64 / 1e3),
        60_000..3_600_000 => format!("{:.1} min", ms as f64 / 6e4),
        3_600_000..86_400_000 => format!("{:.1} h", ms as f64 / 3.6e6),
        _ => format!("{:.1} days", ms as f64 / 8.64e7),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained() -> Explained {
        let one = |unix_ms, finding| ExplainedLookup {
            unix_ms,
            session: SessionId(7),
            pid: 4711,
            name: "engine".to_owned(),
            domain: "default".to_owned(),
            finding,
        };
        let looked = |miss| {
            let space = SpaceDigest([0xab; 32]);
            Finding::Looked(Looked { space, spaces: 2, keys: 80, dram: 10, ssd: 4, miss })
        };
        let miss = |cause, left_unix_s, held_in| {
            Some(Miss { key: [1, 2, 3, 4, 5, 6, 7, 0xff], cause, left_unix_s, held_in })
        };
        let (space, known, told) = (SpaceDigest([0xab; 32]), [1; 8], [2; 8]);
        let refused = Finding::OtherProbe(OtherProbe { space, known, told });
        let elsewhere = miss(MissCause::OtherSpace, None, Some(SpaceDigest([0xcd; 32])));
        let lookups = vec![
            one(1_000_000_000, looked(miss(MissCause::Reclaimed, Some(999_880), None))),
            one(1_000_001_000, Finding::Board { lookups: 30 }),
            one(1_000_002_000, looked(elsewhere)),
            one(1_000_003_000, looked(None)),
            one(1_000_003_000, refused),
        ];
        Explained { now_unix_ms: 1_000_003_500, lookups }
    }

    #[test]
    fn text_says_who_found_what_and_why_it_was_no_more() {
        let text = as_text(&explained());
        for words in [
            "3.5 s ago  session 7 \"engine\" pid 4711 of default: 14 of 80 pages, 10 in DRAM, 4 on \
             SSD; space abababababababab and 1 more\n",
            "page 14 (key 01020304050607ff): dropped from SSD to make room, 2.0 min before\n",
            "2.5 s ago  session 7 \"engine\" pid 4711 of default: 30 lookup(s) answered by the board",
            "not known in this space, but held in another one: cdcdcdcdcdcdcdcd\n",
            "space abababababababab was refused, as its clients name the probe prefix \
             0101010101010101 and this one 0202020202020202\n",
            "1 refused space(s): clients whose hashes or hash seeds differ\n33 lookups: 30 answered by the board, 1 found all they asked for; reclaimed 1; \
             other-space 1\n",
        ] {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
        assert_eq!(as_text(&Explained::default()), "no lookups are remembered\n");
    }

    #[test]
    fn json_has_the_same() {
        let all: Value = serde_json::from_str(&as_json(&explained())).expect("it is JSON");
        let [first, second, third, last, refused] = &all["lookups"].as_array().expect("a list")[..]
        else {
            panic!("{all}")
        };
        assert_eq!((&first["dram_pages"], &first["ssd_pages"]), (&json!(10), &json!(4)));
        assert_eq!(first["miss"]["cause"], "reclaimed");
        assert_eq!(first["miss"]["left_unix_s"], 999_880);
        assert_eq!(second["board_lookups"], 30);
        assert_eq!(third["miss"]["held_in"], "cd".repeat(32));
        assert_eq!(last["miss"], Value::Null);
        assert_eq!(refused["refused"]["told_probe"], "02".repeat(8));
    }

    #[test]
    fn causes_have_one_name() {
        for cause in MissCause::ALL {
            assert_eq!(json!(cause), json!(cause.name()), "in `status --json` and in metrics");
        }
    }
}
