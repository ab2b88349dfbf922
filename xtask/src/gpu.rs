//! Everything that needs a GPU, to be carried to a machine that has one: `cargo xtask gpu`.

use crate::command::{cargo, check, target_directory};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const NAME: &str = "undercroft-gpu";
const PROGRAMS: &[&str] = &["undercroft", "gpu-checks"];
/// What lies in the bundle beside the programs.
const FILES: &[&str] = &["tests/gpu/run.sh", "tests/gpu/prefill.py", "docs/gpu.md", "LICENSE"];
/// The most the archive may have: it is carried over whatever line there is.
const MOST_BYTES: u64 = 40_000_000;

/// Builds the bundle, as a folder and as an archive; the folder's path.
///
/// # Errors
/// The build failed, a tool is missing, or the archive is too large.
pub(crate) fn bundle(root: &Path) -> Result<PathBuf> {
    let mut build = cargo(root);
    build.args(["build", "--locked", "--release", "--package", "undercroft-cli"]);
    build.args(["--package", "undercroft-tests"]);
    build.args(PROGRAMS.iter().flat_map(|program| ["--bin", program]));
    check(&mut build)?;
    let target = target_directory(root)?;
    let parent = target.join("gpu");
    let folder = parent.join(NAME);
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for program in PROGRAMS {
        let built = target.join("release").join(program);
        check(Command::new("strip").arg("-o").arg(folder.join(program)).arg(built))?;
    }
    for file in FILES {
        let name = Path::new(file).file_name().context("a file has a name")?;
        fs::copy(root.join(file), folder.join(name))
            .with_context(|| format!("cannot copy {file}"))?;
    }
    let machine = format!("{} with {} or later\n", std::env::consts::ARCH, c_library()?);
    fs::write(folder.join("built-for"), machine).context("cannot write built-for")?;
    let archive = parent.join(format!("{NAME}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&parent).arg("-czf").arg(&archive).arg(NAME);
    // Whoever unpacks it as root must not find files of a user of this machine.
    check(tar.args(["--owner=0", "--group=0", "--numeric-owner"]))?;
    let bytes = fs::metadata(&archive).context("tar made an archive")?.len();
    ensure!(bytes <= MOST_BYTES, "{} has {bytes} bytes, allowed {MOST_BYTES}", archive.display());
    println!("{} ({:.1} MB)", archive.display(), bytes as f64 / 1e6);
    Ok(folder)
}

/// The C library that the programs were linked against; an older one will not do.
fn c_library() -> Result<String> {
    let asked = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    match asked {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        _ => bail!("`getconf GNU_LIBC_VERSION` does not answer: the bundle is for glibc"),
    }
}

/// Runs a bundle here.
///
/// # Errors
/// It cannot be started, or something in it failed.
pub(crate) fn run(folder: &Path, arguments: &[String]) -> Result<()> {
    check(Command::new(folder.join("run.sh")).args(arguments))
}
