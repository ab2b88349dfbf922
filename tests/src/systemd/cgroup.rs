use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, test_kill_process};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PREFIX: &str = "undercroft-test-";
const PATIENCE: Duration = Duration::from_secs(10);

/// A control group that a systemd takes for the root of all. Removed when dropped, with what is below
/// it, once nobody is in it any more.
#[derive(Debug)]
pub struct ControlGroup {
    path: PathBuf,
}

impl ControlGroup {
    /// Makes one that belongs to this process, and removes those whose processes were killed before
    /// they could.
    ///
    /// # Errors
    /// There is no unified hierarchy, or it is not ours to change.
    pub fn make() -> Result<Self> {
        let all = hierarchy().context("no cgroup2 is mounted")?;
        sweep(&all);
        let path = all.join(format!("{PREFIX}{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }

    /// One that another process has made: the last of both removes it.
    #[must_use]
    pub fn shared(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where its files are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let since = Instant::now();
        while let Err(error) = remove(&self.path) {
            if since.elapsed() > PATIENCE {
                return eprintln!("left behind: {}: {error}", self.path.display());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Where the unified hierarchy is mounted.
fn hierarchy() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let at = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (at, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then_some(at)
    });
    at.map(PathBuf::from)
}

/// Removes the group and those below it, which are directories with nothing else to remove in them.
fn remove(group: &Path) -> std::io::Result<()> {
    let inside = match std::fs::read_dir(group) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        inside => inside?,
    };
    for entry in inside {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    std::fs::remove_dir(group)
}

fn sweep(all: &Path) {
    for entry in std::fs::read_dir(all).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        let Some(owner) = owner.and_then(Pid::from_raw) else { continue };
        if test_kill_process(owner).is_err() {
            // Whoever is still in it keeps it.
            let _kept = remove(&entry.path());
        }
    }
}

/// Whether groups can be made.
///
/// # Errors
/// What is in the way.
pub(super) fn try_one() -> Result<()> {
    let group = ControlGroup::make()?;
    ensure!(group.path.join("cgroup.procs").exists(), "{} is no group", group.path.display());
    Ok(())
}
