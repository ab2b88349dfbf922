//! `undercroft`: the daemon, its status, its stores and its benchmarks in one binary.

mod bench;
mod explain;
mod inspect;
mod log;
mod mounts;
mod outcome;
mod plan;
mod purge;
mod record;
mod serve;
mod status;

use clap::{Parser, Subcommand};
use outcome::Outcome;
use std::process::ExitCode;

/// Keeps KV-cache pages that no longer fit in GPU memory in host DRAM and on NVMe, and hands
/// them back before the engine misses them.
#[derive(Debug, Parser)]
#[command(
    name = "undercroft",
    version,
    max_term_width = 100,
    after_help = "Examples:
  undercroft serve                        run a daemon with built-in defaults, as any user
  undercroft status                       ask it how it is
  undercroft explain                      why its newest lookups found no more than they did
  undercroft purge --domain NAME          forget all pages of a tenant, for good
  undercroft inspect DIRECTORY --verify   prove every record of a store, with its daemon stopped
  undercroft bench replay                 replay generated traffic through a daemon of its own
  undercroft bench limits                 compare with what this machine could do at best
  undercroft bench longctx                what long contexts gain by being kept, with a picture
  undercroft record --out FILE --for 1h   record a daemon's traffic, as a trace
  undercroft plan --trace FILE            how much DRAM and SSD this traffic is worth

Exit codes: 0 done; 1 it ran and the result is bad (wrong bytes, no answer); 2 it could not start
(bad arguments, configuration or environment)."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon until SIGTERM or Ctrl-C.
    Serve(serve::Serve),
    /// Make the private mounts of a service, before its daemon starts.
    Mounts(mounts::Mounts),
    /// Show a running daemon's tiers, hits, sessions and what the machine refused it.
    Status(status::Status),
    /// Say why the newest lookups found no more than they did.
    Explain(explain::Explain),
    /// Forget pages of a tenant, a space or a writer for good, in every tier.
    Purge(purge::Purge),
    /// Show what lies in a store on SSD, and prove it offline.
    Inspect(inspect::Inspect),
    /// Measure: replay traffic, restore long contexts, or compare with the machine's own limits.
    Bench(bench::Bench),
    /// Record a daemon's traffic as a trace to plan with.
    Record(record::Record),
    /// Find out how much DRAM and SSD some traffic is worth.
    Plan(Box<plan::Plan>),
}

fn main() -> ExitCode {
    // clap answers usage errors with exit code 2 by itself.
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Command::Serve(serve) => serve.run(),
        Command::Mounts(mounts) => mounts.run(),
        Command::Status(status) => status.run(),
        Command::Explain(explain) => explain.run(),
        Command::Purge(purge) => purge.run(),
        Command::Inspect(inspect) => inspect.run(),
        Command::Bench(bench) => bench.run(),
        Command::Record(record) => record.run(),
        Command::Plan(plan) => plan.run(),
    };
    outcome.map_or_else(|failure| failure.report(), Outcome::code)
}
