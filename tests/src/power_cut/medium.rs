use super::fuse_file::{DiskFile, FILE_NAME, locked};
use super::lossy_disk::{LossyDisk, Survival};
use super::stall::Stall;
use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use fuser::{BackgroundSession, MountOption};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The kernel lets go of a dead process's files only when its I/O is over.
const PATIENCE: Duration = Duration::from_secs(20);
const NAP: Duration = Duration::from_millis(5);

/// A lossy disk and the places where it is mounted.
#[derive(Debug)]
pub(crate) struct Medium {
    home: TempDir,
    disk: Arc<Mutex<LossyDisk>>,
    stall: Arc<Stall>,
}

/// A disk that is attached: a file (FUSE), a block device over it (loop), a file system (ext4).
/// Taken apart when dropped, whatever state it is in.
#[derive(Debug)]
pub(crate) struct Attached {
    disk: Arc<Mutex<LossyDisk>>,
    stall: Arc<Stall>,
    fuse: Option<BackgroundSession>,
    fuse_at: PathBuf,
    ext4_at: PathBuf,
    /// Under `/sys/block`; there while a file is bound to the device.
    backing: Option<PathBuf>,
}

impl Medium {
    pub(crate) fn new(disk: LossyDisk) -> Result<Self> {
        let home = tempfile::tempdir().context("cannot make a folder for mounts")?;
        for name in ["fuse", "ext4"] {
            std::fs::create_dir(home.path().join(name))?;
        }
        Ok(Self { home, disk: Arc::new(Mutex::new(disk)), stall: Arc::default() })
    }

    pub(crate) fn disk(&self) -> &Mutex<LossyDisk> {
        &self.disk
    }

    /// What makes its reads hang.
    pub(crate) fn stall(&self) -> &Stall {
        &self.stall
    }

    /// Where the file system is mounted while it is attached.
    pub(crate) fn directory(&self) -> PathBuf {
        self.home.path().join("ext4")
    }

    /// Makes the file system on a new disk and attaches it.
    pub(crate) fn format(&self) -> Result<Attached> {
        self.attach_after(|file| {
            // All of it written now: a file system at rest, flushed, before anything is measured.
            let options = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
            run(
                "mkfs.ext4",
                [OsStr::new("-qF"), "-m0".as_ref(), "-E".as_ref(), options.as_ref()],
                file,
            )
        })
    }

    /// Attaches the disk as a machine does at boot: file system check, then mount, which replays
    /// the journal.
    pub(crate) fn attach(&self) -> Result<Attached> {
        self.attach_after(|file| {
            let output = command("e2fsck").arg("-p").arg(file).output().context("e2fsck")?;
            // 1: errors were corrected, which is what it is for.
            let fine = matches!(output.status.code(), Some(0 | 1));
            ensure!(fine, "e2fsck gave up on the file system:\n{}", said(&output));
            Ok(())
        })
    }

    fn attach_after(&self, prepare: impl FnOnce(&Path) -> Result<()>) -> Result<Attached> {
        locked(&self.disk).power_on();
        let fuse_at = self.home.path().join("fuse");
        let mut options = fuser::Config::default();
        options.mount_options = vec![MountOption::FSName("lossy".to_owned())];
        let file = DiskFile::new(Arc::clone(&self.disk), Arc::clone(&self.stall));
        let fuse = fuser::spawn_mount(file, &fuse_at, &options)
            .with_context(|| format!("cannot mount FUSE at {}", fuse_at.display()))?;
        let mut attached = Attached {
            disk: Arc::clone(&self.disk),
            stall: Arc::clone(&self.stall),
            fuse: Some(fuse),
            fuse_at,
            ext4_at: self.directory(),
            backing: None,
        };
        let file = attached.fuse_at.join(FILE_NAME);
        prepare(&file)?;
        attached.mount(&file)?;
        Ok(attached)
    }
}

impl Attached {
    /// The device is made by `mount`, and so ends with the mount, whoever ends that: there is no
    /// moment in which it is anybody's to remove.
    fn mount(&mut self, file: &Path) -> Result<()> {
        let options = [OsStr::new("-text4"), "-oloop,nodiscard,noatime".as_ref(), file.as_ref()];
        run("mount", options, &self.ext4_at)?;
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let at = self.ext4_at.to_string_lossy();
        let device = mounts.lines().rev().find_map(|line| {
            let (device, rest) = line.split_once(' ')?;
            (rest.split(' ').next() == Some(&*at)).then_some(Path::new(device))
        });
        let device = device.context("mounted, and not in /proc/self/mounts")?;
        let name = device.file_name().context("a device has a name")?;
        let bound = Path::new("/sys/block").join(name).join("loop");
        self.backing = Some(bound.join("backing_file"));
        run("losetup", ["--direct-io=on"].map(OsStr::new), device)?;
        let direct = std::fs::read_to_string(bound.join("dio"))?;
        ensure!(direct.trim() == "1", "{} does no direct I/O", device.display());
        Ok(())
    }

    /// Takes everything apart. The power is off, and nobody uses it any more.
    pub(crate) fn detach(mut self) -> Result<()> {
        self.take_apart()
    }

    fn take_apart(&mut self) -> Result<()> {
        let since = Instant::now();
        let patiently = |what: &str, done: &dyn Fn() -> Result<()>| -> Result<()> {
            while let Err(error) = done() {
                if since.elapsed() > PATIENCE {
                    return Err(error).with_context(|| format!("cannot {what}"));
                }
                std::thread::sleep(NAP);
            }
            Ok(())
        };
        if let Some(backing) = self.backing.take() {
            patiently("unmount ext4", &|| run("umount", [], &self.ext4_at))?;
            patiently("free the loop device", &|| match backing.exists() {
                true => bail!("{} is still there", backing.display()),
                false => Ok(()),
            })?;
        }
        if let Some(fuse) = self.fuse.take() {
            patiently("unmount FUSE", &|| run("umount", [], &self.fuse_at))?;
            fuse.join().context("the FUSE thread")?;
        }
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.fuse.is_none() {
            return;
        }
        // Without power nothing that is still on its way can block.
        locked(&self.disk).cut(Survival::None, &mut Rng::with_seed(0));
        self.stall.end(&self.disk);
        if let Err(error) = self.take_apart() {
            eprintln!("left behind until this process ends: {error:#}");
        }
    }
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C");
    command
}

fn run<'a>(program: &str, options: impl IntoIterator<Item = &'a OsStr>, at: &Path) -> Result<()> {
    let output = command(program)
        .args(options)
        .arg(at)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program} {}: {}", at.display(), said(&output));
    Ok(())
}

fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&text).trim().to_owned()
}
