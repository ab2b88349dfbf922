use anyhow::{Context, Result, ensure};
use rustix::fs::fstat;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::ffi::OsStr;
use std::fmt::Write;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Descriptors of one message at most.
const DESCRIPTORS: usize = 8;
/// What the manager says to itself.
const HEARD: &str = "X_HEARD=";
/// It hears what is said at once, unless the machine is busy.
const PATIENCE: Duration = Duration::from_secs(10);
/// Numbers that no shell uses for itself.
const HIGH: i32 = 1000;

/// Stands in for a service manager: what the daemon says by `sd_notify` is heard, descriptors it
/// wants kept are kept, and passed on to the next daemon, however the last one ended.
#[derive(Debug)]
pub struct Manager {
    socket: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    heard: Mutex<Heard>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Heard {
    /// As systemd has it: the newest first, one beside another of the same name.
    kept: Vec<(String, OwnedFd)>,
    /// How often a daemon was ready.
    ready: u32,
    /// How often a daemon said that it gets on.
    pets: u32,
    /// The last it said to itself.
    last: u64,
    over: bool,
}

impl Manager {
    /// Listens in `home`.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(home: &Path) -> Result<Self> {
        let socket = home.join("n");
        let notifications = UnixDatagram::bind(&socket).context("cannot make a notify socket")?;
        let shared = Arc::new(Shared::default());
        let hearer = Arc::clone(&shared);
        let thread = std::thread::spawn(move || hearer.hear(&notifications));
        Ok(Self { socket, shared, thread: Some(thread) })
    }

    /// A command that starts `program` as a service: with what is kept, where to say things, and
    /// how often at least to say that it gets on, if that matters.
    ///
    /// # Errors
    /// A descriptor cannot be passed on.
    pub fn command(
        &self,
        program: impl AsRef<OsStr>,
        watchdog: Option<Duration>,
    ) -> Result<(Command, Vec<OwnedFd>)> {
        self.hear_out()?;
        let heard = self.shared.lock();
        let mut passed = Vec::new();
        let mut script = String::from("LISTEN_PID=$$ WATCHDOG_PID=$$ exec \"$0\" \"$@\"");
        for (number, fd) in heard.kept.iter().map(|(_, fd)| fd).enumerate() {
            let fd = fcntl_dupfd_cloexec(fd.as_fd(), HIGH)?;
            // Closed again by the shell where it is known by its other number.
            fcntl_setfd(&fd, FdFlags::empty())?;
            write!(script, " {}<&{raw} {raw}<&-", number + 3, raw = fd.as_raw_fd())?;
            passed.push(fd);
        }
        let names: Vec<_> = heard.kept.iter().map(|(name, _)| name.as_str()).collect();
        let mut command = Command::new("bash");
        command.arg("-c").arg(script).arg(program);
        command.env("NOTIFY_SOCKET", &self.socket);
        if !names.is_empty() {
            command.env("LISTEN_FDS", names.len().to_string());
            command.env("LISTEN_FDNAMES", names.join(":"));
        }
        if let Some(patience) = watchdog {
            command.env("WATCHDOG_USEC", patience.as_micros().to_string());
        }
        Ok((command, passed))
    }

    /// Waits until all is heard that a daemon has said, as any manager does before it starts the
    /// next one.
    fn hear_out(&self) -> Result<()> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let word = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        UnixDatagram::unbound()?.send_to(format!("{HEARD}{word}").as_bytes(), &self.socket)?;
        self.wait_until(PATIENCE, |heard| heard.last >= word).context("the manager is deaf")
    }

    fn wait_until(&self, patience: Duration, is_so: impl Fn(&Heard) -> bool) -> Result<()> {
        let until = Instant::now() + patience;
        let mut heard = self.shared.lock();
        while !is_so(&heard) {
            let left = until.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "not within {patience:?}");
            let woken = self.shared.changed.wait_timeout(heard, left);
            heard = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Names of all that is kept.
    ///
    /// # Errors
    /// Not all is heard that was said.
    pub fn kept(&self) -> Result<Vec<String>> {
        self.hear_out()?;
        let heard = self.shared.lock();
        Ok(heard.kept.iter().map(|(name, _)| name.clone()).collect())
    }

    /// Throws away what is kept under names that begin so.
    ///
    /// # Errors
    /// Not all is heard that was said.
    pub fn forget(&self, prefix: &str) -> Result<()> {
        self.hear_out()?;
        self.shared.lock().kept.retain(|(name, _)| !name.starts_with(prefix));
        Ok(())
    }

    /// The descriptor that is kept under a name.
    ///
    /// # Errors
    /// There is none, or not all is heard that was said.
    pub fn copy(&self, name: &str) -> Result<OwnedFd> {
        self.hear_out()?;
        let heard = self.shared.lock();
        let kept = heard.kept.iter().find(|(of, _)| of == name);
        let (_, fd) = kept.with_context(|| format!("{name} is not kept"))?;
        Ok(fd.try_clone()?)
    }

    /// Keeps one thing more, as if a daemon had asked for it.
    ///
    /// # Errors
    /// Not all is heard that was said.
    pub fn keep(&self, name: &str, fd: OwnedFd) -> Result<()> {
        self.hear_out()?;
        self.shared.lock().keep(name, fd);
        Ok(())
    }

    /// How often a daemon was ready so far.
    #[must_use]
    pub fn times_ready(&self) -> u32 {
        self.shared.lock().ready
    }

    /// How often a daemon said so far that it gets on.
    #[must_use]
    pub fn times_petted(&self) -> u32 {
        self.shared.lock().pets
    }

    /// Waits until a daemon was ready more than `before` times.
    ///
    /// # Errors
    /// It was not in time.
    pub fn wait_ready(&self, before: u32, patience: Duration) -> Result<()> {
        self.wait_until(patience, |heard| heard.ready > before).context("no daemon was ready")
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, notifications: &UnixDatagram) {
        loop {
            let Ok((text, descriptors)) = receive(notifications) else { return };
            let mut heard = self.lock();
            if heard.over {
                return;
            }
            heard.take(&text, descriptors);
            self.changed.notify_all();
        }
    }
}

impl Heard {
    fn take(&mut self, text: &str, descriptors: Vec<OwnedFd>) {
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        if text.lines().any(|line| line == "READY=1") {
            self.ready += 1;
        }
        if text.lines().any(|line| line == "WATCHDOG=1") {
            self.pets += 1;
        }
        if let Some(word) = value(HEARD).and_then(|word| word.parse().ok()) {
            self.last = self.last.max(word);
        }
        let name = value("FDNAME=").unwrap_or("stored").to_owned();
        if text.lines().any(|line| line == "FDSTOREREMOVE=1") {
            self.kept.retain(|(kept, _)| *kept != name);
        } else if text.lines().any(|line| line == "FDSTORE=1") {
            descriptors.into_iter().for_each(|fd| self.keep(&name, fd));
        }
    }

    /// The same file kept again is kept once; another one of the same name beside the first.
    fn keep(&mut self, name: &str, fd: OwnedFd) {
        let file = |fd: &OwnedFd| fstat(fd).map(|facts| (facts.st_dev, facts.st_ino)).ok();
        if !self.kept.iter().any(|(of, kept)| of == name && file(kept) == file(&fd)) {
            self.kept.insert(0, (name.to_owned(), fd));
        }
    }
}

fn receive(socket: &UnixDatagram) -> Result<(String, Vec<OwnedFd>)> {
    let mut bytes = vec![0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let got = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok((String::from_utf8_lossy(&bytes[..got.bytes]).into_owned(), descriptors))
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        // Wakes the thread, which then sees that it is over.
        let woken = UnixDatagram::unbound().and_then(|s| s.send_to(b"STOPPING=1", &self.socket));
        if woken.is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ended = thread.join();
        }
    }
}
