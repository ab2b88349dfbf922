use anyhow::{Context, Result};
use rustix::process::geteuid;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What the lane runs, beside the daemon.
const PROGRAMS: [&str; 8] =
    ["unshare", "mount", "umount", "losetup", "mkfs.ext4", "e2fsck", "sleep", "true"];
/// Mounts and processes of its own: the kernel ends all of them with the first process, however
/// that ends.
const NAMESPACES: [&str; 4] = ["--mount", "--pid", "--fork", "--mount-proc"];
const NAP: Duration = Duration::from_millis(20);

/// What keeps power cuts from being played here, if anything does.
#[must_use]
pub fn missing() -> Option<String> {
    if !geteuid().is_root() {
        return Some("mounting takes root".to_owned());
    }
    for device in ["/dev/fuse", "/dev/loop-control"] {
        if let Err(error) = File::options().read(true).write(true).open(device) {
            return Some(format!("{device}: {error}"));
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |name: &&str| std::env::split_paths(&path).any(|folder| folder.join(name).exists());
    if let Some(program) = PROGRAMS.iter().find(|name| !has(name)) {
        return Some(format!("there is no {program}"));
    }
    match Command::new("unshare").args(NAMESPACES).arg("true").output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    }
}

/// Runs `program` in namespaces of its own. Its mounts are seen by nobody else and gone with it,
/// even if it is killed; so are its processes; and a loop device ends with its last mount.
///
/// Its standard input ends when this process is told to stop, or dies: see [`stop_with_input`].
///
/// # Errors
/// It cannot be started.
pub fn run_contained(
    program: &Path,
    arguments: &[OsString],
    is_stopped: &dyn Fn() -> bool,
) -> Result<ExitStatus> {
    let mut command = Command::new("unshare");
    command.args(NAMESPACES).arg(program).args(arguments).stdin(Stdio::piped());
    let mut child = command.spawn().context("cannot run unshare")?;
    let mut input = child.stdin.take();
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for unshare")? {
            return Ok(status);
        }
        if is_stopped() {
            input.take();
        }
        std::thread::sleep(NAP);
    }
}

/// Whether the process on the other side of [`run_contained`] wants this one to end.
#[must_use]
pub fn stop_with_input() -> Arc<AtomicBool> {
    let stopped = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stopped);
    std::thread::spawn(move || {
        // Nothing is ever written, so this ends with the input.
        let _read = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        flag.store(true, Ordering::Relaxed);
    });
    stopped
}

/// Keeps the namespaces until this process, their first, has gone altogether. Else the thread that
/// serves the file below a mount may be the one that unmounts it while it dies, and waits for
/// itself forever.
///
/// # Errors
/// It cannot be started.
pub(crate) fn hold_namespaces() -> Result<Holder> {
    // In a group of its own, for a signal to ours must not take it first.
    let mut command = Command::new("sleep");
    Ok(Holder(command.arg("infinity").process_group(0).spawn().context("cannot run sleep")?))
}

/// See [`hold_namespaces`].
#[derive(Debug)]
pub(crate) struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        // What cannot be killed here dies with the namespaces' first process.
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}
