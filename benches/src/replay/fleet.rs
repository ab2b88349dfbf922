use super::driver::plan;
use super::fleet_report::{Alone, FleetReport, Member};
use super::options::ReplayOptions;
use super::output::{Output, json_text};
use super::step::Place;
use crate::daemon::{Daemon, DaemonPlan};
use crate::interrupt::Interrupt;
use crate::{BenchError, progress};
use serde::Deserialize;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use undercroft_client::{Client, ConnectOptions, Wait};

const GREETING: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What a fleet is told beside what it replays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FleetOptions {
    /// How many processes each replay the whole trace.
    pub processes: u32,
    /// All look up and fetch, then all store, request by request.
    pub barrier: bool,
}

/// Replays a trace by one process, and then by several at once on a daemon of the same kind, each
/// of them all of the trace: what they share must cost none of them a hit.
///
/// # Errors
/// As for [`replay`](super::replay()); a process of the fleet that fails.
pub fn replay_by_fleet(
    options: &ReplayOptions,
    fleet: FleetOptions,
) -> Result<FleetReport, BenchError> {
    let output = options.json.as_deref().map(Output::open).transpose()?;
    let trace = options.traffic()?;
    let checked = options.check(&trace)?;
    let interrupt = Interrupt::watch()?;
    let plan = plan(options, &checked);
    let home = crate::daemon::folder("undercroft-fleet-", &std::env::temp_dir())?;
    let run = Run { options, plan, home, interrupt };
    let requests = checked.requests as u64;
    let alone = run.alone()?;
    let (members, committed_pages, wall) = run.fleet(fleet, requests)?;
    let report = FleetReport::new(fleet, checked.page_bytes, alone, members, committed_pages, wall);
    if let Some(output) = output {
        output.write(&json_text(&report))?;
    }
    Ok(report)
}

struct Run<'a> {
    options: &'a ReplayOptions,
    plan: DaemonPlan,
    home: TempDir,
    interrupt: Interrupt,
}

impl Run<'_> {
    /// One process alone, with a daemon of its own.
    fn alone(&self) -> Result<Alone, BenchError> {
        let daemon = Daemon::start(self.plan.clone(), &self.interrupt)?;
        let mut process = Process::start(self.options, &daemon, self.home.path(), "alone", None)?;
        self.wait_for(std::slice::from_mut(&mut process))?;
        let (report, hits) = process.results()?;
        Ok(Alone { committed_pages: committed(&daemon)?, report, hits })
    }

    fn fleet(
        &self,
        fleet: FleetOptions,
        requests: u64,
    ) -> Result<(Vec<Member>, u64, Duration), BenchError> {
        let daemon = Daemon::start(self.plan.clone(), &self.interrupt)?;
        let mut processes = (0..fleet.processes)
            .map(|index| {
                let name = format!("process-{index}");
                let step = Some(fleet.barrier);
                Process::start(self.options, &daemon, self.home.path(), &name, step)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let since = Instant::now();
        if fleet.barrier {
            self.keep_in_step(&mut processes, requests)?;
        }
        self.wait_for(&mut processes)?;
        let wall = since.elapsed();
        let committed_pages = committed(&daemon)?;
        let members = processes.into_iter().map(|process| {
            let (report, hits) = process.results()?;
            Ok(Member { report, hits })
        });
        Ok((members.collect::<Result<_, BenchError>>()?, committed_pages, wall))
    }

    fn keep_in_step(&self, processes: &mut [Process], requests: u64) -> Result<(), BenchError> {
        let bar = progress::bar(requests, "requests");
        let mut line = String::new();
        loop {
            self.interrupt.check()?;
            let mut over = Vec::new();
            for (index, process) in processes.iter_mut().enumerate() {
                if !process.arrive(&mut line)? {
                    over.push(index);
                }
            }
            if over.len() == processes.len() {
                break;
            }
            if let Some(first) = over.first() {
                let words = processes[*first].last_words();
                let problem = format!("process {first} ended before the others: {words}");
                return Err(BenchError::Measure { row: "fleet", problem });
            }
            if line.trim_end() == Place::Load.word() {
                bar.inc(1);
            }
            processes.iter_mut().try_for_each(Process::go_on)?;
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn wait_for(&self, processes: &mut [Process]) -> Result<(), BenchError> {
        let failed = || BenchError::system("wait for a process of the fleet");
        for process in processes {
            loop {
                self.interrupt.check()?;
                match process.child.try_wait().map_err(failed())? {
                    None => std::thread::sleep(LOOK_AGAIN),
                    // 1: wrong bytes or late calls, which its report tells.
                    Some(status) if matches!(status.code(), Some(0 | 1)) => break,
                    Some(status) => {
                        let problem = format!("{status}: {}", process.last_words());
                        return Err(BenchError::Measure { row: "fleet", problem });
                    }
                }
            }
        }
        Ok(())
    }
}

/// Pages that the daemon was given and took.
fn committed(daemon: &Daemon) -> Result<u64, BenchError> {
    let mut options = ConnectOptions::new(daemon.socket());
    options.copy_mode = true;
    options.wait = Wait::Now(GREETING);
    let problem = |why| BenchError::Measure { row: "fleet", problem: format!("status: {why}") };
    let report = Client::connect(options)?.status(GREETING).map_err(problem)?;
    Ok(report.stores.stored)
}

/// What a process of the fleet reports, as far as it is read here.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Told {
    pub(super) prefix_hits: u64,
    pub(super) pages: u64,
    pub(super) wrong_bytes: u64,
    pub(super) verified_bytes: u64,
    pub(super) stored_pages: u64,
    pub(super) held_pages: u64,
    pub(super) declined: u64,
    pub(super) overdue_calls: u64,
    pub(super) unanswered_lookups: u64,
    pub(super) cut_fetches: u64,
    pub(super) faults: Vec<String>,
}

/// One engine of a fleet: `undercroft bench replay` in a process of its own.
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    json: PathBuf,
    csv: PathBuf,
}

impl Process {
    /// `company`: whether it is kept in step with others; `None` where it is alone.
    fn start(
        options: &ReplayOptions,
        daemon: &Daemon,
        home: &Path,
        name: &str,
        company: Option<bool>,
    ) -> Result<Self, BenchError> {
        let (json, csv) = (home.join(format!("{name}.json")), home.join(format!("{name}.csv")));
        let mut command = Command::new(&options.binary);
        command.args(["bench", "replay", "--serial", "--socket"]).arg(daemon.socket());
        command.arg(format!("--page-bytes={}", options.page_bytes.0));
        command.arg(format!("--seed={}", options.seed));
        if let Some(trace) = &options.trace {
            command.arg("--trace").arg(trace);
        }
        if let Some(requests) = options.requests {
            command.arg(format!("--requests={requests}"));
        }
        if options.full_pages_only {
            command.arg("--full-pages-only");
        }
        match company {
            None => {}
            Some(false) => drop(command.arg("--in-company")),
            Some(true) => drop(command.args(["--in-company", "--in-step"])),
        }
        command.arg("--json").arg(&json).arg("--csv").arg(&csv);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(BenchError::file("run", &options.binary))?;
        let input = child.stdin.take().expect("it is piped");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        Ok(Self { child, input, output, json, csv })
    }

    /// Waits until it tells where it is; `false` if it ended.
    fn arrive(&mut self, line: &mut String) -> Result<bool, BenchError> {
        line.clear();
        let read = self.output.read_line(line);
        Ok(read.map_err(BenchError::system("hear a process of the fleet"))? > 0)
    }

    fn go_on(&mut self) -> Result<(), BenchError> {
        let told = self.input.write_all(b"\n");
        told.map_err(BenchError::system("speak to a process of the fleet"))
    }

    fn last_words(&mut self) -> String {
        let mut words = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            // Whatever it said is better than nothing.
            let _unheard = stderr.read_to_string(&mut words);
        }
        words.lines().last().unwrap_or("it said nothing").to_owned()
    }

    /// Its report, and its prefix hits request by request.
    fn results(mut self) -> Result<(Told, Vec<u32>), BenchError> {
        let broken = |path: &Path, problem: String| BenchError::Measure {
            row: "fleet",
            problem: format!("{}: {problem}", path.display()),
        };
        let Ok(json) = std::fs::read(&self.json) else {
            return Err(broken(&self.json.clone(), self.last_words()));
        };
        let told = serde_json::from_slice(&json).map_err(|e| broken(&self.json, e.to_string()))?;
        let csv =
            std::fs::read_to_string(&self.csv).map_err(BenchError::file("read", &self.csv))?;
        let hits = csv.lines().skip(1).map(|line| line.split(',').nth(2)?.parse().ok());
        let hits: Option<Vec<u32>> = hits.collect();
        let hits = hits.ok_or_else(|| broken(&self.csv, "not the lines of a replay".to_owned()))?;
        Ok((told, hits))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
