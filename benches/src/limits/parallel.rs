use super::caller::{Told, Wish};
use super::driver::Setup;
use super::echo::FarEnd;
use super::latencies::Latencies;
use super::pairs::{self, Figure, Pairs, Unit};
use super::report::Row;
use super::rig::Rig;
use crate::BenchError;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

pub(super) const US: &str = "lookup_8_clients_us";
pub(super) const RATE: &str = "lookup_8_clients_per_s";

const CLIENTS: u32 = 8;

/// Lookups of one key by eight processes at once, against as many that echo the same bytes with
/// one single-threaded tokio runtime.
pub(super) fn measure(
    setup: &Setup<'_>,
    side_by_side: &Pairs<'_>,
    rig: &Rig,
    echo: FarEnd,
) -> Result<Vec<Row>, BenchError> {
    let mut callers = (0..CLIENTS)
        .map(|_| Caller::start(&setup.options.binary, &rig.daemon.socket(), &echo.socket()))
        .collect::<Result<Vec<_>, _>>()?;
    let callers = std::cell::RefCell::new(&mut callers);
    let mut ours = |window| run(&mut callers.borrow_mut(), Wish::Lookups, window);
    let mut limit = |window| run(&mut callers.borrow_mut(), Wish::Echoes, window);
    let both = side_by_side.collect(US, &mut ours, &mut limit)?;
    let row = |name, unit, figure: fn(&Calls) -> Figure| {
        let figures: Vec<_> = both.iter().map(|(o, l)| (figure(o), figure(l))).collect();
        Row {
            bare: "as many echoes by single-threaded tokio".to_owned(),
            ..pairs::row(name, unit, &figures)
        }
    };
    let rows = [
        row(US, Unit::Microseconds, Calls::latency),
        row(RATE, Unit::PerSecond, |calls| Figure::from(calls.per_second)),
    ];
    Ok(rows.into_iter().filter(|row| setup.wants(row.name)).collect())
}

/// What all callers did in one window.
struct Calls {
    latencies: Latencies,
    per_second: f64,
}

impl Calls {
    fn latency(&self) -> Figure {
        Figure { value: self.latencies.us(0.5), p99: Some(self.latencies.us(0.99)) }
    }
}

fn run(callers: &mut [Caller], wish: Wish, window: Duration) -> Result<Calls, BenchError> {
    for caller in callers.iter_mut() {
        caller.ask(wish, window)?;
    }
    let mut all = Calls { latencies: Latencies::new(), per_second: 0.0 };
    for caller in callers {
        let told = caller.answer()?;
        let latencies = Latencies::from_counted(&told.counted);
        all.per_second += latencies.calls() as f64 / told.seconds;
        all.latencies.add(&latencies);
    }
    Ok(all)
}

/// A process with a session of its own.
struct Caller {
    child: Child,
    wishes: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Caller {
    fn start(binary: &Path, daemon: &Path, echo: &Path) -> Result<Self, BenchError> {
        let mut command = Command::new(binary);
        command.args(["bench", "caller", "--socket"]).arg(daemon).arg("--echo").arg(echo);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(BenchError::file("run", binary))?;
        let wishes = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        Ok(Self { child, wishes, answers })
    }

    fn ask(&mut self, wish: Wish, window: Duration) -> Result<(), BenchError> {
        writeln!(self.wishes, "{} {}", wish.word(), window.as_millis())
            .map_err(BenchError::system("speak to a caller"))
    }

    fn answer(&mut self) -> Result<Told, BenchError> {
        let mut line = String::new();
        let failed = || BenchError::system("hear a caller");
        let bytes = self.answers.read_line(&mut line).map_err(failed())?;
        if bytes == 0 {
            return Err(failed()(std::io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_str(&line).map_err(std::io::Error::from).map_err(failed())
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
