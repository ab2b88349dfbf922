use super::cgroup::try_one;
use super::root::{OPERATOR, Root, SAID, UNITS};
use anyhow::{Context, Result, bail};
use rustix::process::geteuid;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const PROGRAMS: [&str; 8] = [
    "unshare",
    "mount",
    "chroot",
    "env",
    "sh",
    "systemctl",
    "systemd-sysusers",
    "systemd-tmpfiles",
];
const SYSTEMD: &str = "/lib/systemd/systemd";
const NAMESPACES: [&str; 8] = [
    "--mount",
    "--pid",
    "--uts",
    "--ipc",
    "--net",
    "--cgroup",
    "--fork",
    // It goes when the one that waits for it does.
    "--kill-child",
];
/// The control group first, for its namespace begins where the process is.
const ENTER: &str = r#"echo 0 > "$1/cgroup.procs" && shift && exec unshare "$@""#;
/// What can be mounted in the namespaces alone, and then systemd, which is given only our units.
const BOOT: &str = r#"mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup" && cd "$1" &&
exec env -i container=undercroft-test PATH=/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_UNIT_PATH="$2" \
chroot . "$3" --log-target=kmsg --log-level=info --show-status=no --unit="$4""#;
const NAP: Duration = Duration::from_millis(20);
/// A systemd that has nothing to do is through within a second.
const NOTHING: Duration = Duration::from_secs(30);
/// The whole of it takes a minute.
const EVERYTHING: Duration = Duration::from_secs(400);

/// What keeps systemd from being booted here, as far as that can be told without trying; see
/// [`boot`].
#[must_use]
pub fn unbootable() -> Option<String> {
    if !geteuid().is_root() {
        return Some("namespaces with mounts of their own take root".to_owned());
    }
    if !Path::new(SYSTEMD).exists() {
        return Some(format!("there is no {SYSTEMD}"));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |name: &&str| std::env::split_paths(&path).any(|folder| folder.join(name).exists());
    if let Some(program) = PROGRAMS.iter().find(|name| !has(name)) {
        return Some(format!("there is no {program}"));
    }
    if let Err(error) = try_one() {
        return Some(format!("{error:#}"));
    }
    match Command::new("unshare").args(NAMESPACES).arg("true").output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    }
}

/// Boots systemd with our unit files from the folder `systemd` and the daemon at `daemon`, and has the
/// operator try them; what that one says goes to standard output. `Err` in the result: a systemd that
/// has nothing to do does not get through here, and why.
///
/// For the first process of a process namespace, with mounts of its own.
///
/// # Errors
/// Something of it cannot be done, or `go_on` says no.
pub fn boot(
    group: &Path,
    systemd: &Path,
    daemon: &Path,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<std::result::Result<ExitStatus, String>> {
    let root = match Root::lay_out(systemd, daemon) {
        Ok(root) => root,
        Err(error) => return Ok(Err(format!("{error:#}"))),
    };
    match run_unit(&root, group, "nothing.service", NOTHING, go_on) {
        Ok(status) if status.success() => {}
        Ok(status) => return Ok(Err(format!("a systemd with nothing to do ends with {status}"))),
        Err(error) => return Ok(Err(format!("{error:#}"))),
    }
    run_unit(&root, group, OPERATOR, EVERYTHING, go_on).map(Ok)
}

/// Boots, and waits until `unit` has run and systemd has ended with its status.
fn run_unit(
    root: &Root,
    group: &Path,
    unit: &str,
    patience: Duration,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<ExitStatus> {
    let mut log = Log { pipe: root.log()?, text: Vec::new() };
    let mut command = Command::new("sh");
    command.args(["-c", ENTER, "sh"]).arg(group).args(NAMESPACES);
    command.arg(format!("--mount-proc={}", root.outside("/proc").display()));
    command.args(["sh", "-c", BOOT, "sh"]).arg(root.path()).args([UNITS, SYSTEMD, unit]);
    command.stdin(Stdio::null()).stdout(log.pipe.try_clone()?).stderr(log.pipe.try_clone()?);
    let mut booted = Booted(command.spawn().context("cannot run sh")?);
    let since = Instant::now();
    let mut said = Said { seen: 0 };
    loop {
        let ended = booted.0.try_wait().context("cannot wait for systemd")?;
        said.pass_on(&root.outside(SAID))?;
        log.read();
        let why = match ended {
            Some(status) if status.success() => return Ok(status),
            Some(status) => format!("it ended with {status}"),
            None if since.elapsed() > patience => format!("it did not end within {patience:?}"),
            None => match go_on() {
                Ok(()) => {
                    std::thread::sleep(NAP);
                    continue;
                }
                Err(error) => return Err(error),
            },
        };
        bail!("{unit}: {why}; systemd said:\n{}", String::from_utf8_lossy(&log.text));
    }
}

/// A systemd that is killed, and everything in it, as soon as nobody waits for it.
struct Booted(Child);

impl Drop for Booted {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// What systemd says.
struct Log {
    pipe: File,
    text: Vec<u8>,
}

impl Log {
    fn read(&mut self) {
        // It ends with a refusal to wait for more.
        let _would_block = self.pipe.read_to_end(&mut self.text);
    }
}

/// What was written to a file so far.
struct Said {
    seen: usize,
}

impl Said {
    fn pass_on(&mut self, file: &Path) -> Result<()> {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(file) {
            file.read_to_end(&mut text)?;
        }
        std::io::stdout().write_all(text.get(self.seen..).unwrap_or_default())?;
        self.seen = text.len();
        Ok(())
    }
}
