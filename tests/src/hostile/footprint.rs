use crate::TestDaemon;
use std::fmt;
use std::fs;
use std::time::{Duration, Instant};
use undercroft_client::Client;

const PATIENCE: Duration = Duration::from_secs(10);

/// What a daemon takes of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Memory it shares with nobody, KiB: its heap and stacks.
    pub heap_kib: u64,
    /// Mapped memory of all kinds, KiB.
    pub mapped_kib: u64,
}

impl Footprint {
    /// Of this daemon, now; by a client that is connected to it.
    ///
    /// # Panics
    /// If neither it nor `/proc` tells.
    #[must_use]
    pub fn of(daemon: &TestDaemon, client: &Client) -> Self {
        let report = client.status(PATIENCE).expect("the daemon answers");
        let own = format!("/proc/{}", daemon.pid());
        let count = |what: &str| fs::read_dir(format!("{own}/{what}")).expect("it runs").count();
        let status = fs::read_to_string(format!("{own}/status")).expect("it runs");
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            number.expect("the kernel tells")
        };
        Self {
            // Nobody but root may look at its descriptors: it tells how many there are.
            descriptors: report.descriptors as usize,
            threads: count("task"),
            heap_kib: kib("RssAnon:"),
            mapped_kib: kib("VmSize:"),
        }
    }
}

impl Footprint {
    /// What the daemon has once it has given back what it gives back in the background, staging
    /// areas for instance; or after seconds in which it has not.
    #[must_use]
    pub fn since(before: &Self, daemon: &TestDaemon, client: &Client) -> Self {
        let began = Instant::now();
        loop {
            let now = Self::of(daemon, client);
            let is_back = now.descriptors <= before.descriptors && now.threads <= before.threads;
            if is_back || began.elapsed() > PATIENCE {
                return now;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { descriptors, threads, heap_kib, mapped_kib } = self;
        write!(f, "{descriptors} descriptors, {threads} threads, heap {heap_kib} KiB, ")?;
        write!(f, "mapped {mapped_kib} KiB")
    }
}
