//! `undercroft bench`.

mod loads;
mod longctx;

use crate::outcome::{Failure, Outcome};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use undercroft_benches::{
    Admission, Ahead, BenchError, ByteRate, ByteSize, CallerOptions, EchoOptions, FleetOptions,
    LimitsOptions, Policy, ReplayOptions, TierSize, caller, echo_peer, limits, replay,
    replay_by_fleet, replay_defaults,
};

/// Measure: replay traffic, restore long contexts, or compare with the machine's own limits.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Replay(Box<Replay>),
    Limits(Limits),
    Longctx(Box<longctx::Longctx>),
    Loads(loads::Loads),
    #[command(hide = true)]
    Echo(Echo),
    #[command(hide = true)]
    Caller(Caller),
}

/// Replay LLM requests through a daemon and verify every byte that comes back.
///
/// Each request looks up its longest stored prefix, fetches it into a device made of host memory,
/// compares every byte with what it must be, and stores what was missing. Without --trace it
/// generates agent-like traffic; without --socket it starts a daemon of its own and removes
/// everything it made.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  undercroft bench replay
  undercroft bench replay --requests 200 --json -
  undercroft bench replay --trace conversation.jsonl.zst --page-bytes 64KiB --dram 5% --ssd 20%
  undercroft bench replay --trace conversation.jsonl.zst --ssd 0 --dram 5% --serial --csv hits.csv
  undercroft bench replay --processes 8 --barrier
  undercroft bench replay --trace agents.jsonl.zst --page-bytes 4KiB --dram 2% --ssd 10% \\
    --clients 8 --speed 30 --ahead hints:30

SIZE is bytes, or a number with KiB, MiB or GiB; N% is a share of the trace's distinct pages.
Traces are JSON Lines, plain or .zst, with the fields timestamp, input_length, output_length and
hash_ids (the published Mooncake format).

Exit codes: 0 every byte was right and every call in time, and with --processes sharing cost nobody a
hit; 1 not so, or the run failed; 2 it could not start.")]
struct Replay {
    /// Trace to replay [default: generated traffic].
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Replay only the first N requests; of generated traffic, how many there are.
    #[arg(long, value_name = "N")]
    requests: Option<u64>,
    /// Size of one page.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(replay_defaults::PAGE_BYTES.into()))]
    page_bytes: ByteSize,
    /// DRAM tier of the benchmark's own daemon.
    #[arg(long, value_name = "SIZE|N%", conflicts_with = "socket", default_value_t = TierSize::Bytes(replay_defaults::DRAM_BYTES))]
    dram: TierSize,
    /// SSD tier of the benchmark's own daemon; 0 for none.
    #[arg(long, value_name = "SIZE|N%", conflicts_with = "socket", default_value_t = TierSize::Bytes(replay_defaults::SSD_BYTES))]
    ssd: TierSize,
    /// Where the SSD tier's file lies while the benchmark runs [default: the temporary directory].
    #[arg(long, value_name = "DIR", conflicts_with = "socket")]
    ssd_path: Option<PathBuf>,
    /// Order in which pages leave DRAM: lru, depth or density.
    #[arg(long, value_name = "NAME", conflicts_with = "socket", default_value = Policy::default().name())]
    policy: Policy,
    /// What of them is written to SSD: through, demote or auto:N.
    #[arg(long, value_name = "NAME", conflicts_with = "socket", default_value_t)]
    admission: Admission,
    /// How much of it may be, averaged over a minute, such as 100MiB/s [default: no bound].
    #[arg(long, value_name = "SIZE/s", conflicts_with = "socket")]
    write_budget: Option<ByteRate>,
    /// Clients; they share the trace's requests.
    #[arg(long, value_name = "N", default_value_t = 1)]
    clients: u32,
    /// One request after another, waiting for credits and stores: exact results. Always so with
    /// one client.
    #[arg(long)]
    serial: bool,
    /// Leave out the partial last page of each prompt.
    #[arg(long)]
    full_pages_only: bool,
    /// Write request,pages,prefix_hit,dram_hit,ssd_hit per request; - for standard output.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write the report as JSON (schema 1); - for standard output.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Use the daemon at this socket instead of one of its own.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Seed of generated traffic.
    #[arg(long, value_name = "N", default_value_t = replay_defaults::SEED)]
    seed: u64,
    /// Let so many processes replay all of the trace at once, each as an engine of its own, and hold
    /// their hits against those of one process alone.
    #[arg(long, value_name = "N", conflicts_with_all = ["socket", "clients", "csv"],
          value_parser = clap::value_parser!(u32).range(1..=32))]
    processes: Option<u32>,
    /// With --processes: all look up and fetch, then all store, request by request.
    #[arg(long, requires = "processes")]
    barrier: bool,
    /// Have requests come when they do in the trace, X times as fast, instead of one after the other.
    #[arg(long, value_name = "X", conflicts_with_all = ["serial", "processes"])]
    speed: Option<f64>,
    /// What the daemon is told before a request comes, for prefetches: none; queue:MS, its prompt so
    /// long before; hints:PERCENT, at the end of a turn when the next one comes, off by so much.
    #[arg(long, value_name = "HOW", requires = "speed", default_value_t)]
    ahead: Ahead,
    #[arg(long, hide = true)]
    in_company: bool,
    #[arg(long, hide = true)]
    in_step: bool,
}

/// Compare what the daemon reaches with what this machine could do at best, in one run.
///
/// Each row is the median of interleaved pairs (ours, the limit) with its spread; a ratio above
/// 1.05 would mean that the limit was measured wrong. SSD rows are encrypted, as a daemon is by
/// default, but for those that say plain. The rows pcie_h2d and pcie_d2h take a GPU. Takes about three
/// minutes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  undercroft bench limits
  undercroft bench limits --json limits.json --ssd-path /mnt/nvme0
  undercroft bench limits --only ssd_read
  undercroft bench limits --only lookup
  undercroft bench limits --only pcie

Exit codes: 0 done; 1 the run failed or a byte was wrong; 2 it could not start.")]
struct Limits {
    /// Write the rows as JSON (schema 1); - for standard output.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the SSD tier's file lies while the benchmark runs [default: the temporary directory].
    #[arg(long, value_name = "DIR")]
    ssd_path: Option<PathBuf>,
    /// Measure only rows whose names begin so.
    #[arg(long, value_name = "PREFIX")]
    only: Option<String>,
}

/// The far end of the socket echoes that `bench limits` measures against.
#[derive(Debug, Args)]
struct Echo {
    #[arg(long)]
    socket: PathBuf,
    #[arg(long)]
    request_bytes: usize,
    #[arg(long)]
    reply_bytes: usize,
    #[arg(long, default_value_t = 0)]
    probes: usize,
    #[arg(long)]
    tokio: bool,
}

/// One of the processes that look up at once for `bench limits`.
#[derive(Debug, Args)]
struct Caller {
    #[arg(long)]
    socket: PathBuf,
    #[arg(long)]
    echo: PathBuf,
}

impl Bench {
    pub(crate) fn run(self) -> Result<Outcome, Failure> {
        match self.what {
            What::Replay(replay) => replay.run(),
            What::Limits(limits) => limits.run(),
            What::Longctx(longctx) => longctx.run(),
            What::Loads(loads) => loads.run(),
            What::Echo(echo) => echo.run(),
            What::Caller(caller) => caller.run(),
        }
    }
}

impl Replay {
    fn run(self) -> Result<Outcome, Failure> {
        let options = ReplayOptions {
            binary: this_program()?,
            trace: self.trace,
            requests: self.requests,
            page_bytes: self.page_bytes,
            dram: self.dram,
            ssd: self.ssd,
            ssd_path: self.ssd_path,
            policy: self.policy,
            admission: self.admission,
            write_budget: self.write_budget,
            clients: self.clients,
            serial: self.serial,
            full_pages_only: self.full_pages_only,
            csv: self.csv,
            json: self.json,
            socket: self.socket,
            seed: self.seed,
            in_company: self.in_company,
            in_step: self.in_step,
            speed: self.speed,
            ahead: self.ahead,
        };
        if let Some(processes) = self.processes {
            let fleet = FleetOptions { processes, barrier: self.barrier };
            let report = replay_by_fleet(&options, fleet).map_err(failure)?;
            eprint!("{}", report.summary());
            return Ok(if report.is_good() { Outcome::Good } else { Outcome::Bad });
        }
        let report = replay(&options).map_err(failure)?;
        // Standard output may carry the figures for a machine; people read standard error then.
        eprint!("{}", report.summary());
        Ok(if report.is_good() { Outcome::Good } else { Outcome::Bad })
    }
}

impl Limits {
    fn run(self) -> Result<Outcome, Failure> {
        let options = LimitsOptions {
            binary: this_program()?,
            ssd_path: self.ssd_path,
            json: self.json,
            only: self.only,
        };
        let report = limits(&options).map_err(failure)?;
        eprint!("{}", report.table());
        Ok(Outcome::Good)
    }
}

impl Echo {
    fn run(self) -> Result<Outcome, Failure> {
        let Self { socket, request_bytes, reply_bytes, probes, tokio } = self;
        let options = EchoOptions { socket, request_bytes, reply_bytes, probes, tokio };
        echo_peer(&options).map_err(failure)?;
        Ok(Outcome::Good)
    }
}

impl Caller {
    fn run(self) -> Result<Outcome, Failure> {
        let Self { socket, echo } = self;
        caller(&CallerOptions { socket, echo }).map_err(failure)?;
        Ok(Outcome::Good)
    }
}

fn this_program() -> Result<PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|e| Failure::start(format!("cannot find this program's own file: {e}")))
}

fn failure(error: BenchError) -> Failure {
    if error.is_start() { Failure::start(error) } else { Failure::run(error) }
}
