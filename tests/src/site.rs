use anyhow::{Result, ensure};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use undercroft_client::wire::{DeviceCondition, SsdDeviceStatus, StatusReport};
use undercroft_client::{Client, ConnectOptions, Wait};

const PATIENCE: Duration = Duration::from_secs(30);
/// How long one client may take to connect, and one report to come.
const ANSWER: Duration = Duration::from_secs(5);

/// Where a daemon serves, whoever runs it.
#[derive(Debug, Clone)]
pub struct Site {
    socket: PathBuf,
}

impl Site {
    /// The one at a socket.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// A client of it, if it answers.
    #[must_use]
    pub fn client(&self, name: &str) -> Option<Client> {
        let mut options = ConnectOptions::new(self.socket.clone());
        options.name = name.to_owned();
        options.wait = Wait::Now(ANSWER);
        Client::connect(options).ok()
    }

    /// What it says of itself.
    ///
    /// # Panics
    /// If it does not answer.
    #[must_use]
    pub fn status(&self) -> Box<StatusReport> {
        let client = self.client("status").expect("the daemon answers");
        client.status(ANSWER).expect("the daemon answers")
    }

    /// Waits until its arena is whole, and all records on its SSDs are known and have proved
    /// themselves, as far as they have to.
    ///
    /// # Errors
    /// That does not come about.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn wait_recovered(&self) -> Result<()> {
        let since = Instant::now();
        let is_over = |device: &SsdDeviceStatus| {
            let known = device.recovery_ms.is_some() && device.unproved_records == 0;
            known || device.condition == DeviceCondition::Lost
        };
        loop {
            let StatusReport { ssd, start, .. } = *self.status();
            if !start.opening && ssd.iter().flat_map(|ssd| &ssd.devices).all(is_over) {
                return Ok(());
            }
            ensure!(since.elapsed() < PATIENCE, "not up within {PATIENCE:?}: {start:?}, {ssd:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
