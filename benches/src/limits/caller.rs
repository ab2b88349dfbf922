use super::control::{self, echoed};
use super::far_end::EchoOptions;
use super::latencies::Latencies;
use super::rig::{self, lookup};
use crate::BenchError;
use crate::limits::echo::Echo;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use undercroft_client::{Client, ConnectOptions, Wait};

/// What a caller is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerOptions {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// The socket of an echo of a lookup's bytes.
    pub echo: PathBuf,
}

/// What a caller does when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Lookups,
    Echoes,
}

impl Wish {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Lookups => "lookups",
            Self::Echoes => "echoes",
        }
    }
}

/// What a caller answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) seconds: f64,
    /// Nanoseconds and how many calls took them.
    pub(super) counted: Vec<(u64, u64)>,
}

/// One of several processes that look up at once: for each line `lookups MS` or `echoes MS` of its
/// standard input it does that for so long and says on standard output how long the calls took,
/// until there are no more lines.
///
/// # Errors
/// The daemon or the echo cannot be reached or does not answer.
pub fn caller(options: &CallerOptions) -> Result<(), BenchError> {
    let mut connect = ConnectOptions::new(&options.socket);
    connect.name = "undercroft bench caller".to_owned();
    connect.wait = Wait::Now(rig::GREETING);
    let client = Client::connect(connect)?;
    let (space, keys) = control::known();
    let space = client.open_space(&space, rig::GREETING)?;
    let (request_bytes, reply_bytes) = control::lookup_bytes(&keys);
    let echo = EchoOptions {
        socket: options.echo.clone(),
        request_bytes,
        reply_bytes,
        probes: 0,
        tokio: true,
    };
    let mut echo = Echo::connect(&echo, &[]).map_err(BenchError::system("reach the echo"))?;
    for line in std::io::stdin().lines() {
        let line = line.map_err(BenchError::system("read a wish"))?;
        let (word, ms) = line.split_once(' ').unwrap_or((line.as_str(), ""));
        let window = Duration::from_millis(ms.parse().unwrap_or(0));
        let since = Instant::now();
        let latencies = if word == Wish::Echoes.word() {
            Latencies::of(window, || echoed(echo.round_trip()))?
        } else {
            Latencies::of(window, || {
                let found = space.lookup(&keys, lookup());
                if found.pages == 1 {
                    return Ok(());
                }
                let problem = format!("of one key a lookup found {found:?}");
                Err(BenchError::Measure { row: super::parallel::US, problem })
            })?
        };
        let seconds = since.elapsed().as_secs_f64();
        let told = Told { seconds, counted: latencies.counted() };
        let text = serde_json::to_string(&told).map_err(std::io::Error::from);
        let mut stdout = std::io::stdout();
        text.and_then(|text| writeln!(stdout, "{text}"))
            .map_err(BenchError::system("say how long calls took"))?;
    }
    Ok(())
}
