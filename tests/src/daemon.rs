use crate::{Manager, Site, program};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use undercroft_client::Client;
use undercroft_client::wire::StatusReport;

const PATIENCE: Duration = Duration::from_secs(30);

/// What [`DaemonOptions::policy`] is by default.
pub const PLAIN_POLICY: &str = "eviction = \"lru\"\nadmission = \"demote\"\n";

/// How a test wants its daemon. The defaults are tiny, so that every limit is met.
#[derive(Debug, Clone)]
pub struct DaemonOptions {
    /// DRAM, bytes; 0 where `more` has domains that say their own.
    pub dram: u64,
    /// SSD, bytes; 0 for none. For each directory, where there are several.
    pub ssd: u64,
    /// Into how many directories its pages go: `ssd-0`, `ssd-1` and so on in its folder; 0 for the
    /// folder itself.
    pub directories: u32,
    /// Staging per session and space, bytes.
    pub staging: u64,
    /// More lines of its table `[arena]`.
    pub arena: String,
    /// Lines of its table `[policy]`. Unless a test is about policies, what is used last leaves last
    /// and all that leaves DRAM is written: then it can say what is where.
    pub policy: String,
    /// More lines of configuration: tables not named above, or none.
    pub more: String,
    /// The directory with its credentials; `None` for none.
    pub credentials: Option<PathBuf>,
    /// Run it on a machine that lacks these calls, by the names the program `refuse` has for them.
    pub refuse: Vec<&'static str>,
    /// Where to make its folder; `None` for the system's place for temporary files.
    pub home_in: Option<PathBuf>,
    /// Where its page log lies; `None` for its folder.
    pub store_in: Option<PathBuf>,
    /// Run it under a service manager that keeps its descriptors.
    pub managed: bool,
    /// How long that one waits for a sign of life; `None` for ever.
    pub watchdog: Option<Duration>,
    /// How many descriptors that one says it keeps; `None`: it says nothing.
    pub keeps: Option<u32>,
}

impl Default for DaemonOptions {
    fn default() -> Self {
        Self {
            dram: 1 << 20,
            ssd: 0,
            directories: 0,
            staging: 256 << 10,
            arena: String::new(),
            policy: PLAIN_POLICY.to_owned(),
            more: String::new(),
            credentials: None,
            refuse: Vec::new(),
            home_in: None,
            store_in: None,
            managed: false,
            watchdog: None,
            keeps: None,
        }
    }
}

/// The real binary serving in a folder of its own. Killed and removed when dropped.
#[derive(Debug)]
pub struct TestDaemon {
    options: DaemonOptions,
    child: Option<Child>,
    manager: Option<Manager>,
    home: TempDir,
}

impl TestDaemon {
    /// Starts a daemon and waits until it answers and knows what is on its SSD.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start(options: DaemonOptions) -> Self {
        let mut daemon = Self::prepare(options).expect("a folder of its own");
        daemon.restart();
        daemon
    }

    /// A daemon in a folder of its own that has not been started yet.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn prepare(options: DaemonOptions) -> Result<Self> {
        let parent = options.home_in.clone().unwrap_or_else(std::env::temp_dir);
        let home = tempfile::tempdir_in(&parent)
            .with_context(|| format!("cannot make a folder in {}", parent.display()))?;
        let manager = options.managed.then(|| Manager::start(home.path())).transpose()?;
        let daemon = Self { options, child: None, manager, home };
        std::fs::write(daemon.config(), daemon.config_text())?;
        Ok(daemon)
    }

    /// The folder everything lies in.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.home.path().join("s")
    }

    /// Where it serves.
    #[must_use]
    pub fn site(&self) -> Site {
        Site::new(self.socket())
    }

    /// Lets processes of every user connect to it.
    ///
    /// # Panics
    /// If its folder is not ours.
    pub fn open_to_all(&self) {
        for path in [self.home().to_owned(), self.socket()] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            std::fs::set_permissions(path, mode).expect("it is ours");
        }
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.home.path().join("config.toml")
    }

    /// Its first page log.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.stores().swap_remove(0).join("pages-0.log")
    }

    /// The directories of its page logs.
    #[must_use]
    pub fn stores(&self) -> Vec<PathBuf> {
        let within = self.options.store_in.as_deref().unwrap_or(self.home.path());
        match self.options.directories {
            0 => vec![within.to_owned()],
            some => (0..some).map(|number| within.join(format!("ssd-{number}"))).collect(),
        }
    }

    /// The service manager it runs under, if it does.
    #[must_use]
    pub fn manager(&self) -> Option<&Manager> {
        self.manager.as_ref()
    }

    /// Everything it logged so far, of all its lives.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.home.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether words are in its log, or come into it soon: it writes a little behind what it does.
    #[must_use]
    pub fn says(&self, words: &str) -> bool {
        let since = Instant::now();
        while !self.log().contains(words) {
            if since.elapsed() > PATIENCE {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Its process, while it runs.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Starts it (again) on the same folder, and waits until it knows what is on its SSD.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn restart(&mut self) {
        if let Err(error) = self.try_restart().and_then(|_| self.wait_recovered()) {
            panic!("{error:#}");
        }
    }

    /// Waits until all records on its SSDs are known and have proved themselves, as far as they
    /// have to.
    ///
    /// # Errors
    /// That does not come about.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn wait_recovered(&self) -> Result<()> {
        self.site().wait_recovered().with_context(|| self.log())
    }

    /// Starts it (again) on the same folder; how long it took until it answered.
    ///
    /// # Errors
    /// It cannot be started, ends, or does not answer; with all of its log.
    ///
    /// # Panics
    /// If it runs.
    pub fn try_restart(&mut self) -> Result<Duration> {
        let since = Instant::now();
        self.launch()?;
        loop {
            if let Some(status) = self.exited() {
                self.child = None;
                bail!("the daemon ended with {status}:\n{}", self.log());
            }
            if self.client("probe").is_some() {
                return Ok(since.elapsed());
            }
            ensure!(
                since.elapsed() < PATIENCE,
                "the daemon did not answer within {PATIENCE:?}:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Starts it (again) on the same folder without waiting for anything.
    ///
    /// # Errors
    /// It cannot be started.
    ///
    /// # Panics
    /// If it runs.
    pub fn launch(&mut self) -> Result<()> {
        self.launch_with(&[])
    }

    fn launch_with(&mut self, arguments: &[&str]) -> Result<()> {
        assert!(self.child.is_none(), "one at a time");
        let log = File::options().create(true).append(true).open(self.home.path().join("log"))?;
        let binary = program("undercroft");
        let refuse = self.options.refuse.join(",");
        let first = if refuse.is_empty() { binary.clone() } else { program("refuse") };
        let (mut command, _passed) = match &self.manager {
            Some(manager) => manager.command(first, self.options.watchdog)?,
            None => (Command::new(first), Vec::new()),
        };
        if !refuse.is_empty() {
            command.arg(refuse).arg(binary);
        }
        command.arg("serve").arg("--config").arg(self.config()).args(arguments);
        match self.options.keeps {
            Some(keeps) => command.env("FDSTORE", keeps.to_string()),
            None => command.env_remove("FDSTORE"),
        };
        match &self.options.credentials {
            Some(directory) => command.env("CREDENTIALS_DIRECTORY", directory),
            None => command.env_remove("CREDENTIALS_DIRECTORY"),
        };
        command.env("RUST_LOG", "info").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().context("cannot run the binary")?);
        Ok(())
    }

    /// Has another daemon take over from it, and waits until that one answers and it has ended.
    ///
    /// # Panics
    /// If that does not come about.
    pub fn take_over(&mut self) {
        let mut old = self.child.take().expect("it runs");
        self.launch_with(&["--takeover"]).expect("it can be started");
        let since = Instant::now();
        while old.try_wait().expect("our own child").is_none() {
            assert!(since.elapsed() < PATIENCE, "the old one does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        while self.client("probe").is_none() {
            assert!(since.elapsed() < PATIENCE, "the new one does not serve:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// `kill -9`, and waits until the process is reaped.
    pub fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    /// SIGTERM, and how it ended.
    ///
    /// # Panics
    /// If it does not end.
    pub fn stop(&mut self) -> Option<ExitStatus> {
        self.child.as_ref()?;
        self.signal(Signal::TERM);
        let since = Instant::now();
        loop {
            if let Some(status) = self.exited() {
                self.child = None;
                return Some(status);
            }
            assert!(since.elapsed() < PATIENCE, "it did not stop within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Changes its options; they count from its next start on.
    ///
    /// # Panics
    /// If its configuration cannot be written.
    pub fn reconfigure(&mut self, change: impl FnOnce(&mut DaemonOptions)) {
        change(&mut self.options);
        std::fs::write(self.config(), self.config_text()).expect("a folder of its own");
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it does not run.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid() as i32).expect("a process number");
        kill_process(pid, signal).expect("our own child");
    }

    fn end(&mut self, signal: Signal) -> Option<ExitStatus> {
        self.child.as_ref()?;
        self.signal(signal);
        let mut child = self.child.take()?;
        child.wait().ok()
    }

    fn exited(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok().flatten()
    }

    /// A client of it, if it answers.
    #[must_use]
    pub fn client(&self, name: &str) -> Option<Client> {
        self.site().client(name)
    }

    /// What it says of itself.
    ///
    /// # Panics
    /// If it does not answer.
    #[must_use]
    pub fn status(&self) -> Box<StatusReport> {
        self.site().status()
    }

    fn config_text(&self) -> String {
        let DaemonOptions { dram, ssd, staging, arena, policy, more, .. } = &self.options;
        let size = if *dram > 0 { format!("size = {dram}\n") } else { String::new() };
        format!(
            "[server]\nsocket = \"{socket}\"\nmetrics = \"off\"\n\
             [arena]\n{size}staging = {staging}\n{arena}\
             [policy]\n{policy}\
             [ssd]\nsize = {ssd}\npath = {paths:?}\n{more}\n",
            socket = self.socket().display(),
            paths = self.stores(),
        )
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- the daemon's log ---\n{}", self.log());
        }
    }
}
