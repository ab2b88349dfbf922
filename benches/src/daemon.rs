use crate::interrupt::Interrupt;
use crate::{BenchError, ByteRate};
use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use undercroft_client::{Client, ConnectError, ConnectOptions, Wait};
use undercroft_core::{Admission, LoadPolicy, Policy};

/// The longest socket path the system takes, bytes.
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// Longest wait for a daemon to be ready: it faults its arena in and reserves its disk space.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait for a daemon to stop in order.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
const GREETING: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Pause before a daemon that died is started again, growing by this much each time.
const RESTART_PAUSE: Duration = Duration::from_millis(200);
/// Deaths after which no more restarts are tried.
const MAX_RESTARTS: u32 = 10;

/// What a benchmark's own daemon is to be like. Everything not said here is the daemon's default.
#[derive(Debug, Clone)]
pub(crate) struct DaemonPlan {
    /// The program that knows `serve --config FILE`.
    pub(crate) binary: PathBuf,
    pub(crate) arena_bytes: u64,
    pub(crate) part_bytes: u64,
    pub(crate) staging_bytes: u64,
    pub(crate) policy: Policy,
    pub(crate) admission: Admission,
    pub(crate) load: LoadPolicy,
    pub(crate) ssd: Option<SsdPlan>,
}

#[derive(Debug, Clone)]
pub(crate) struct SsdPlan {
    /// The store gets a folder of its own in here.
    pub(crate) within: PathBuf,
    pub(crate) bytes: u64,
    /// `None`: the daemon's choice.
    pub(crate) segment_bytes: Option<u64>,
    /// Depth of the device's queue; `None`: the daemon's choice. A fetch has twice as many pages
    /// under way, as by default: what has landed is checked while what follows is read.
    pub(crate) depth: Option<u32>,
    /// Whether pages are encrypted there, as they are unless configured otherwise.
    pub(crate) encrypted: bool,
    /// How much may be written to it.
    pub(crate) write_budget: Option<ByteRate>,
}

/// The largest part of an arena that wastes nothing on frames of this size: io_uring registers
/// buffers of 1 GiB at most.
pub(crate) fn part_bytes(frame_bytes: u64) -> u64 {
    (1 << 30) / frame_bytes * frame_bytes
}

/// A daemon started for a benchmark: a process of its own, behind a real socket. Dropping it
/// stops it and removes everything it made.
#[derive(Debug)]
pub(crate) struct Daemon {
    plan: DaemonPlan,
    child: Option<Child>,
    home: TempDir,
    store: Option<TempDir>,
    restarts: u32,
    restart_at: Option<Instant>,
}

impl Daemon {
    /// Starts a daemon and waits until it greets.
    pub(crate) fn start(plan: DaemonPlan, interrupt: &Interrupt) -> Result<Self, BenchError> {
        let home = home()?;
        let store = match &plan.ssd {
            None => None,
            Some(ssd) => Some(folder("undercroft-bench-store-", &ssd.within)?),
        };
        let mut daemon = Self { plan, child: None, home, store, restarts: 0, restart_at: None };
        let config = daemon.home.path().join("config.toml");
        std::fs::write(&config, daemon.config()).map_err(BenchError::file("write", &config))?;
        daemon.spawn()?;
        daemon.wait_ready(interrupt)?;
        Ok(daemon)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.home.path().join("s")
    }

    /// Where the store's files are, if it has an SSD tier.
    pub(crate) fn store(&self) -> Option<&Path> {
        self.store.as_ref().map(TempDir::path)
    }

    /// Its process; `None` while it is not running.
    pub(crate) fn process(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub(crate) fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Starts the daemon again if it has died, after a pause: a replay goes on without one, and
    /// with it again.
    pub(crate) fn look_after(&mut self) -> Result<(), BenchError> {
        if let Some(at) = self.restart_at {
            if Instant::now() >= at {
                self.restart_at = None;
                self.restarts += 1;
                self.spawn()?;
            }
            return Ok(());
        }
        if self.exited().is_some() && self.restarts < MAX_RESTARTS {
            self.restart_at = Some(Instant::now() + RESTART_PAUSE * (self.restarts + 1));
        }
        Ok(())
    }

    /// The last line the daemon logged.
    pub(crate) fn last_words(&self) -> String {
        let log = std::fs::read(self.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let last = log.lines().rev().find(|line| !line.trim().is_empty());
        last.map_or_else(|| "it said nothing".to_owned(), |line| line.trim().to_owned())
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("log")
    }

    fn config(&self) -> String {
        let plan = &self.plan;
        let quoted = |path: &Path| toml_text(&path.display().to_string());
        let mut text = format!(
            "[server]\nsocket = {}\nmetrics = \"off\"\n\n\
             [arena]\nsize = {}\npart = {}\nstaging = {}\n\n\
             [policy]\neviction = {}\nadmission = {}\nload = {}\n",
            quoted(&self.socket()),
            plan.arena_bytes,
            plan.part_bytes,
            plan.staging_bytes,
            toml_text(plan.policy.name()),
            toml_text(&plan.admission.to_string()),
            toml_text(plan.load.name()),
        );
        let depth = plan.ssd.as_ref().and_then(|ssd| ssd.depth);
        if let Some(depth) = depth {
            let _infallible = writeln!(text, "fetch_window = {}", 2 * depth);
        }
        text.push_str("\n[ssd]\n");
        let (Some(ssd), Some(store)) = (&plan.ssd, &self.store) else {
            text.push_str("size = 0\n");
            return text;
        };
        let _infallible = writeln!(text, "path = {}\nsize = {}", quoted(store.path()), ssd.bytes);
        if let Some(segment) = ssd.segment_bytes {
            let _infallible = writeln!(text, "segment = {segment}");
        }
        if let Some(depth) = depth {
            let _infallible = writeln!(text, "queue_depth = {depth}");
        }
        if let Some(budget) = ssd.write_budget {
            let _infallible = writeln!(text, "write_budget = {}", toml_text(&budget.to_string()));
        }
        if !ssd.encrypted {
            text.push_str("encryption = \"off\"\n");
        }
        text
    }

    fn spawn(&mut self) -> Result<(), BenchError> {
        let log = self.log_path();
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(BenchError::file("open", &log))?;
        let mut command = Command::new(&self.plan.binary);
        command.arg("serve").arg("--config").arg(self.home.path().join("config.toml"));
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "warn");
        }
        // A group of its own: Ctrl-C is for us, and we stop the daemon in order.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().map_err(BenchError::file("run", &self.plan.binary))?;
        self.child = Some(child);
        Ok(())
    }

    fn exited(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        // What cannot be asked is not known to have exited.
        child.try_wait().ok().flatten()
    }

    fn wait_ready(&mut self, interrupt: &Interrupt) -> Result<(), BenchError> {
        let since = Instant::now();
        loop {
            interrupt.check()?;
            if let Some(status) = self.exited() {
                let problem = format!("{} ({status})", self.last_words());
                return Err(BenchError::DaemonStart { problem });
            }
            let mut options = ConnectOptions::new(self.socket());
            options.copy_mode = true;
            options.wait = Wait::Now(GREETING);
            match Client::connect(options) {
                Ok(_) => return Ok(()),
                // Closed: it died while starting, which the next look at it tells better.
                Err(
                    ConnectError::Absent { .. }
                    | ConnectError::Silent { .. }
                    | ConnectError::Closed { .. },
                ) if since.elapsed() < START_PATIENCE => {}
                Err(error) => return Err(error.into()),
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Daemon {
    /// Ends it in order and starts it again on the same store: what was in DRAM only is gone.
    pub(crate) fn begin_anew(&mut self, interrupt: &Interrupt) -> Result<(), BenchError> {
        self.stop();
        self.spawn()?;
        self.wait_ready(interrupt)
    }

    fn stop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        if let Some(pid) = Pid::from_raw(child.id() as i32)
            && matches!(child.try_wait(), Ok(None))
        {
            let _gone = kill_process(pid, Signal::TERM);
        }
        let until = Instant::now() + STOP_PATIENCE;
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() >= until {
                let _gone = child.kill();
                let _reaped = child.wait();
                break;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// A folder for socket, configuration and log, short enough for a socket's path.
fn home() -> Result<TempDir, BenchError> {
    let wanted = std::env::temp_dir();
    // The name of the folder and of the socket in it take less than 40 bytes.
    let fits = wanted.as_os_str().len() + 40 <= MAX_SOCKET_PATH_BYTES;
    let within = if fits { wanted.as_path() } else { Path::new("/tmp") };
    folder("undercroft-bench-", within)
}

pub(crate) fn folder(prefix: &str, within: &Path) -> Result<TempDir, BenchError> {
    tempfile::Builder::new()
        .prefix(prefix)
        .tempdir_in(within)
        .map_err(BenchError::file("create a folder in", within))
}

/// A TOML basic string.
fn toml_text(text: &str) -> String {
    let mut quoted = String::from("\"");
    for char in text.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            char if char.is_control() => {
                let _infallible = write!(quoted, "\\u{:04X}", char as u32);
            }
            char => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> DaemonPlan {
        DaemonPlan {
            binary: PathBuf::from("/bin/false"),
            arena_bytes: 1 << 20,
            part_bytes: 1 << 20,
            staging_bytes: 4096,
            policy: Policy::Lru,
            admission: Admission::Demote,
            load: LoadPolicy::default(),
            ssd: None,
        }
    }

    #[test]
    fn any_path_can_be_written_into_the_configuration() {
        assert_eq!(toml_text("/tmp/a b"), "\"/tmp/a b\"");
        assert_eq!(toml_text("a\"\\\n"), "\"a\\\"\\\\\\u000A\"");
    }

    #[test]
    fn encryption_is_only_named_where_it_is_off() -> Result<(), BenchError> {
        let within = std::env::temp_dir();
        for encrypted in [true, false] {
            let ssd = SsdPlan {
                within: within.clone(),
                bytes: 1 << 30,
                segment_bytes: None,
                depth: None,
                encrypted,
                write_budget: Some(ByteRate(3 << 20)),
            };
            let daemon = Daemon {
                plan: DaemonPlan { ssd: Some(ssd), ..plan() },
                child: None,
                home: home()?,
                store: Some(folder("undercroft-test-store-", &within)?),
                restarts: 0,
                restart_at: None,
            };
            let config = daemon.config();
            assert_eq!(config.contains("\nencryption = \"off\"\n"), !encrypted, "{config}");
            assert_eq!(config.contains("encryption"), !encrypted, "{config}");
        }
        Ok(())
    }

    #[test]
    fn parts_waste_nothing() {
        assert_eq!(part_bytes(2 << 20), 1 << 30);
        assert_eq!(part_bytes(12_288) % 12_288, 0);
        assert!(part_bytes(64 << 20) <= 1 << 30);
    }

    #[test]
    fn a_daemon_that_does_not_start_says_why() {
        let interrupt = Interrupt::watch().expect("signals can be watched");
        let error = Daemon::start(plan(), &interrupt).expect_err("false is no daemon").to_string();
        assert!(error.contains("it said nothing (exit status: 1)"), "{error}");
    }
}
