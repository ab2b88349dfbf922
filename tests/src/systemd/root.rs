use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What systemd of any machine has, and our units' default dependencies name.
const TARGETS: [&str; 11] = [
    "sysinit.target",
    "basic.target",
    "sockets.target",
    "paths.target",
    "timers.target",
    "slices.target",
    "local-fs.target",
    "network.target",
    "shutdown.target",
    "umount.target",
    "multi-user.target",
];
const SYSTEM_UNITS: [&str; 2] = ["/usr/lib/systemd/system", "/lib/systemd/system"];
/// Nodes of a machine's `/dev` without which little works.
const NODES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Places that every system has and that nothing here is in.
const PLACES: [&str; 3] = ["/mnt", "/media", "/srv"];

/// In `/dev`.
const LOG: &str = "kmsg";

/// Where units lie in the root.
pub(super) const UNITS: &str = "/run/undercroft-test/units";
/// What the operator writes.
pub(super) const SAID: &str = "/run/undercroft-test/said";
/// The program of the operator and the engines.
pub(super) const PROGRAM: &str = "/opt/undercroft-test/program";
/// The daemon, as it is installed, and the next build of it.
pub(super) const DAEMON: &str = "/usr/bin/undercroft";
pub(super) const NEXT_DAEMON: &str = "/opt/undercroft-next/undercroft";
pub(super) const CONFIG: &str = "/etc/undercroft/config.toml";
/// A daemon of this machine may have a store there. To give it another owner would copy it.
const STATE: &str = "/var/lib/undercroft";
/// The unit that starts the operator.
pub(super) const OPERATOR: &str = "operator.service";

/// A root directory: this machine's, under a layer that takes whatever is written. Only the mount
/// namespace of this process has it.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
}

impl Root {
    /// Lays it out, with the unit files of `systemd` (our folder) and the daemon installed.
    pub(super) fn lay_out(systemd: &Path, daemon: &Path) -> Result<Self> {
        let own = std::env::current_exe()?;
        let is_free = |place: &&str| !own.starts_with(place) && Path::new(place).is_dir();
        let base = PathBuf::from(PLACES.into_iter().find(is_free).context("no place to mount")?);
        // What the programs are is known before a mount may hide them.
        let (own, daemon) = (fs::File::open(own)?, fs::File::open(daemon)?);
        let files = install_list(systemd)?;
        mount("tmpfs", "mode=755", &base)?;
        let path = base.join("root");
        for part in ["upper", "work", "root"] {
            fs::create_dir(base.join(part))?;
        }
        let layers = format!("lowerdir=/,upperdir={0}/upper,workdir={0}/work", base.display());
        mount("overlay", &layers, &path)?;
        let this = Self { path };
        this.mount_kernel_files()?;
        this.hide(STATE)?;
        for (at, file) in [(PROGRAM, &own), (DAEMON, &daemon), (NEXT_DAEMON, &daemon)] {
            this.bind(file, at)?;
        }
        for (at, text) in files {
            this.write(&at, &text)?;
        }
        this.write(
            OPERATOR,
            &format!(
                "[Unit]\nDefaultDependencies=no\nSuccessAction=exit-force\nFailureAction=exit-force\n\
                 [Service]\nType=oneshot\nExecStart={PROGRAM} --operator\n\
                 StandardOutput=file:{SAID}\nStandardError=inherit\n"
            ),
        )?;
        this.write(
            "nothing.service",
            "[Unit]\nDefaultDependencies=no\nSuccessAction=exit-force\n\
             FailureAction=exit-force\n[Service]\nType=oneshot\nExecStart=/bin/true\n",
        )?;
        Ok(this)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What systemd says. Reading it does not wait, and neither does writing it as long as it is open.
    pub(super) fn log(&self) -> Result<fs::File> {
        use std::os::unix::fs::OpenOptionsExt;
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let at = self.outside("/dev").join(LOG);
        let mut options = fs::File::options();
        Ok(options.read(true).write(true).custom_flags(nonblocking).open(at)?)
    }

    /// Where a path of the root lies outside of it.
    pub(super) fn outside(&self, path: &str) -> PathBuf {
        self.path.join(path.trim_start_matches('/'))
    }

    /// Takes a directory out of the root. This machine keeps it: only the layer on top has none.
    fn hide(&self, at: &str) -> Result<()> {
        match fs::remove_dir_all(self.outside(at)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot leave out {at}"))
            }
            _ => Ok(()),
        }
    }

    fn mount_kernel_files(&self) -> Result<()> {
        mount("sysfs", "ro", &self.outside("/sys"))?;
        for (at, mode) in [("/dev", "mode=755"), ("/run", "mode=755"), ("/tmp", "mode=1777")] {
            mount("tmpfs", mode, &self.outside(at))?;
        }
        let dev = self.outside("/dev");
        for node in NODES {
            let at = dev.join(node);
            fs::File::create(&at)?;
            run(Command::new("mount").arg("--bind").arg(Path::new("/dev").join(node)).arg(&at))?;
        }
        for (link, to) in [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0")] {
            symlink(to, dev.join(link))?;
        }
        for (link, to) in [("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2")] {
            symlink(to, dev.join(link))?;
        }
        fs::create_dir(dev.join("pts"))?;
        fs::create_dir(dev.join("shm"))?;
        mount("devpts", "newinstance,ptmxmode=0666", &dev.join("pts"))?;
        symlink("pts/ptmx", dev.join("ptmx"))?;
        // What systemd has to say: its console would have to be a terminal.
        let mode = Mode::from_raw_mode(0o600);
        mknodat(CWD, dev.join(LOG), FileType::Fifo, mode, 0).context("cannot make a pipe")?;
        mount("tmpfs", "mode=1777", &dev.join("shm"))
    }

    /// Puts a program there: the file itself, so that nothing is copied.
    fn bind(&self, file: &fs::File, at: &str) -> Result<()> {
        use std::os::fd::AsRawFd;
        let at = self.outside(at);
        fs::create_dir_all(at.parent().context("a file lies in a folder")?)?;
        fs::File::create(&at)?;
        let from = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        run(Command::new("mount").arg("--bind").arg(from).arg(&at))
    }

    /// Writes a file of the root; one without a folder is a unit.
    fn write(&self, at: &str, text: &str) -> Result<()> {
        let at = if at.contains('/') { at.to_owned() } else { format!("{UNITS}/{at}") };
        let at = self.outside(&at);
        fs::create_dir_all(at.parent().context("a file lies in a folder")?)?;
        fs::write(&at, text).with_context(|| format!("cannot write {}", at.display()))
    }
}

/// Our files where they are installed, as they are, and the machine's targets.
fn install_list(systemd: &Path) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    let mut take = |at: String, from: PathBuf| -> Result<()> {
        let text =
            fs::read_to_string(&from).with_context(|| format!("cannot read {}", from.display()))?;
        files.push((at, text));
        Ok(())
    };
    for unit in ["undercroft.service", "undercroft.socket"] {
        take(unit.to_owned(), systemd.join(unit))?;
    }
    take("/usr/lib/sysusers.d/undercroft.conf".to_owned(), systemd.join("undercroft.sysusers"))?;
    take("/usr/lib/tmpfiles.d/undercroft.conf".to_owned(), systemd.join("undercroft.tmpfiles"))?;
    for target in TARGETS {
        let all = SYSTEM_UNITS.map(|folder| Path::new(folder).join(target));
        let from = all.into_iter().find(|path| path.exists());
        take(target.to_owned(), from.with_context(|| format!("there is no {target}"))?)?;
    }
    Ok(files)
}

fn mount(kind: &str, options: &str, at: &Path) -> Result<()> {
    run(Command::new("mount").args(["-t", kind, "-o", options, kind]).arg(at))
}

pub(super) fn run(command: &mut Command) -> Result<()> {
    let output = command.env("LC_ALL", "C").output();
    let output = output.with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok(())
}
