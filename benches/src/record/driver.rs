use super::assembler::Assembler;
use super::writer::Writer;
use crate::BenchError;
use crate::interrupt::Interrupt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use undercroft_client::{Client, ClientState, ConnectOptions, RecordError, Wait};
use undercroft_wire::{Recorded, SessionId};

const GREETING: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);
/// The pause after an answer that had nothing more: a daemon keeps much more than comes in that.
const PAUSE: Duration = Duration::from_millis(50);

/// What `undercroft record` is told.
#[derive(Debug, Clone)]
pub struct RecordOptions {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// Where the trace goes; compressed if its name ends in `.zst`.
    pub out: PathBuf,
    /// For how long; `None`: until it is interrupted.
    pub length: Option<Duration>,
}

/// What was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RecordReport {
    /// Requests written.
    pub requests: u64,
    /// Their pages, repeated ones included.
    pub pages: u64,
    /// Different pages.
    pub distinct: u64,
    /// Lookups and offers that came faster than they were taken.
    pub dropped: u64,
    /// Offers that hang from what was asked for before, or long ago.
    pub orphans: u64,
    /// How long it was, seconds.
    pub seconds: f64,
    /// The daemon went away: what it was asked for from then on is missing.
    pub is_cut: bool,
}

/// Records what a daemon is asked for until the time is over or Ctrl-C. `begun` is called once the
/// daemon records.
///
/// # Errors
/// No daemon, one that refuses, a file that cannot be written.
pub fn record(options: &RecordOptions, begun: impl FnOnce()) -> Result<RecordReport, BenchError> {
    let interrupt = Interrupt::watch()?;
    let mut connect = ConnectOptions::new(&options.socket);
    "undercroft record".clone_into(&mut connect.name);
    // Nothing is fetched: copy mode spares mapping the arena.
    connect.copy_mode = true;
    connect.wait = Wait::Now(GREETING);
    let client = Client::connect(connect)?;
    let session = session_of(&client);
    client.record(ANSWER).map_err(refused)?;
    let mut tape = Tape {
        assembler: Assembler::default(),
        writer: Writer::create(&options.out)?,
        report: RecordReport::default(),
    };
    begun();
    let since = Instant::now();
    let is_over = || options.length.is_some_and(|length| since.elapsed() >= length);
    loop {
        // Looked at before, so that what came until then is asked for once more.
        let was_over = is_over() || interrupt.is_set();
        let recorded = match client.record(ANSWER) {
            // A daemon that came meanwhile gives pages other names.
            Ok(recorded) if session_of(&client) == session => recorded,
            Ok(_) | Err(_) => {
                tape.report.is_cut = true;
                break;
            }
        };
        let is_empty = recorded.runs.is_empty();
        tape.take(recorded, since.elapsed())?;
        if is_empty && was_over {
            break;
        }
        if is_empty {
            std::thread::sleep(PAUSE);
        }
    }
    tape.finish(since.elapsed())
}

fn session_of(client: &Client) -> Option<SessionId> {
    match client.state() {
        ClientState::Connected { session, .. } => Some(session),
        _ => None,
    }
}

fn refused(error: RecordError) -> BenchError {
    BenchError::Record { problem: error.to_string() }
}

struct Tape {
    assembler: Assembler,
    writer: Writer,
    report: RecordReport,
}

impl Tape {
    fn take(&mut self, recorded: Recorded, now: Duration) -> Result<(), BenchError> {
        self.report.dropped = recorded.dropped;
        for run in recorded.runs {
            self.assembler.take(run);
        }
        while let Some(request) = self.assembler.next(now.as_millis() as u64) {
            self.write(&request)?;
        }
        Ok(())
    }

    fn write(&mut self, request: &super::assembler::Request) -> Result<(), BenchError> {
        self.report.requests += 1;
        self.report.pages += request.pages.len() as u64;
        self.writer.write(request)
    }

    fn finish(mut self, length: Duration) -> Result<RecordReport, BenchError> {
        while let Some(request) = self.assembler.end_oldest() {
            self.write(&request)?;
        }
        self.report.distinct = self.assembler.distinct();
        self.report.orphans = self.assembler.orphans();
        self.report.seconds = length.as_secs_f64();
        self.writer.finish()?;
        Ok(self.report)
    }
}
