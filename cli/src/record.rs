//! `undercroft record`.

use crate::outcome::{Failure, Outcome};
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;
use undercroft_benches::{RecordOptions, record};

/// Record a daemon's traffic as a trace: which pages were asked for when, and nothing of what they
/// hold or whose prompts they were.
///
/// Pages have numbers of this recording only. `undercroft plan --trace FILE` says what more DRAM or SSD
/// would do for it, and `undercroft bench replay --trace FILE` replays it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  undercroft record --out traffic.jsonl.zst --for 1h
  undercroft plan --trace traffic.jsonl.zst --html plan.html

A process may record its own domain; root and the daemon's own user record all domains. There is one
recording at a time. Ctrl-C ends it in order.

Exit codes: 0 done; 1 the daemon refused, or went away before the end; 2 it could not start.")]
pub(crate) struct Record {
    /// Where the trace goes; compressed if its name ends in .zst.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// For how long: a number with s, m or h [default: until Ctrl-C].
    #[arg(long = "for", value_name = "TIME", value_parser = length)]
    length: Option<Duration>,
    /// The daemon's socket [default: where `serve` has it for this user, else
    /// /run/undercroft/undercroft.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

fn length(text: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600)];
    let parsed = units.into_iter().find_map(|(unit, seconds)| {
        let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        number.checked_mul(seconds).filter(|seconds| (1..=366 * 86_400).contains(seconds))
    });
    parsed.map(Duration::from_secs).ok_or_else(|| {
        "allowed are a whole number with s, m or h, from 1s to 8784h (90s, 15m, 1h)".to_owned()
    })
}

impl Record {
    pub(crate) fn run(self) -> Result<Outcome, Failure> {
        let socket = self.socket.unwrap_or_else(undercroft_client::find_socket);
        let options = RecordOptions { socket, out: self.out, length: self.length };
        let begun = || eprintln!("recording to {}", options.out.display());
        let report = record(&options, begun).map_err(|error| {
            if error.is_start() { Failure::start(error) } else { Failure::run(error) }
        })?;
        eprintln!(
            "{} requests of {} pages, {} different ones, in {:.0} s",
            report.requests, report.pages, report.distinct, report.seconds
        );
        if report.dropped > 0 {
            eprintln!("{} lookups and offers came too fast and are missing", report.dropped);
        }
        if report.orphans > 0 {
            eprintln!(
                "{} offers are left out: what they hang from was asked for before the recording or \
                 more than a minute earlier",
                report.orphans
            );
        }
        if report.is_cut {
            eprintln!("undercroft: the daemon went away: the recording ends there");
            return Ok(Outcome::Bad);
        }
        Ok(Outcome::Good)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        assert_eq!(length("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(length("15m").unwrap(), Duration::from_secs(900));
        assert_eq!(length("1h").unwrap(), Duration::from_secs(3600));
        for text in ["", "1", "h", "-1h", "1.5h", "0s", "9999999h", "1d"] {
            assert!(length(text).unwrap_err().contains("90s"), "{text}");
        }
    }
}
