//! `undercroft serve`.

use crate::log::LogQueue;
use crate::outcome::{Failure, Outcome, print};
use clap::{Args, ValueEnum};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use tracing_subscriber::EnvFilter;
use undercroft_kvstore::{Config, Daemon};

/// Run the daemon until SIGTERM or Ctrl-C. Without --config it runs on defaults fitted to the
/// machine, as any user: no GPU, no NVMe, no root needed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  undercroft serve
  undercroft serve --config /etc/undercroft/config.toml
  undercroft serve --takeover              upgrade: go on with a running daemon's arena
  undercroft serve --print-config          every key with its default and allowed values
  RUST_LOG=debug undercroft serve --log json")]
pub(crate) struct Serve {
    /// Configuration file (TOML). Every key is optional.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Take over from the daemon that serves the same socket, which then ends: its DRAM pages, its
    /// clients' leases and whoever waits to connect go on here. A daemon with a socket unit
    /// (undercroft.socket) refuses: `systemctl restart` upgrades it.
    #[arg(long)]
    takeover: bool,
    /// Print the reference of all configuration keys (Markdown) and exit.
    #[arg(long)]
    print_config: bool,
    /// Form of the log on standard error. Its level is set by RUST_LOG (default: info).
    #[arg(long, value_enum, default_value = "text")]
    log: LogForm,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogForm {
    Text,
    Json,
}

impl Serve {
    pub(crate) fn run(self) -> Result<Outcome, Failure> {
        if self.print_config {
            return print(&undercroft_kvstore::reference());
        }
        let log = start_log(self.log).map_err(Failure::start)?;
        let served = self.serve();
        log.flush();
        served
    }

    fn serve(self) -> Result<Outcome, Failure> {
        let config = match &self.config {
            Some(path) => Config::load(path),
            None => Config::embedded(),
        }
        .map_err(Failure::start)?;
        let mut summary = config.summary();
        let opened = if self.takeover { Daemon::take_over(config) } else { Daemon::open(config) };
        let daemon = opened.map_err(Failure::start)?;
        if let (Some(address), Some(line)) =
            (daemon.metrics(), summary.iter_mut().find(|(name, _)| *name == "metrics"))
        {
            line.1 = format!("http://{address}/metrics");
        }
        daemon
            .run(|| {
                summary.push((
                    "ready",
                    "`undercroft status` shows how it goes; Ctrl-C stops it".to_owned(),
                ));
                let mut out = std::io::stderr().lock();
                for (name, value) in &summary {
                    // Whoever read it may be gone; the daemon serves all the same.
                    let _unread = writeln!(out, "  {name:<8} {value}");
                }
            })
            .map_err(Failure::start)?;
        Ok(Outcome::Good)
    }
}

fn start_log(form: LogForm) -> std::io::Result<LogQueue> {
    let queue = LogQueue::start(std::io::stderr())?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(queue.clone())
        .with_ansi(std::io::stderr().is_terminal())
        // It would complain of a closed standard error on standard error, and panic over that.
        .log_internal_errors(false)
        .with_target(false);
    match form {
        LogForm::Text => builder.init(),
        LogForm::Json => builder.json().init(),
    }
    Ok(queue)
}
