//! The CUDA kernels, compiled to what lies checked in beside them: `cargo xtask ptx`.

use crate::command::{is_installed, target_directory};
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// CUDA C; the PTX has the same name.
const KERNELS: &[&str] = &["gpu-shim/kernels/pages.cu", "tests/kernels/decode.cu"];
const SCRIPT: &str = "gpu-shim/kernels/compile.py";
const REQUIREMENTS: &str = "gpu-shim/kernels/requirements.txt";
/// Volta, the oldest that vLLM runs on (its documentation: compute capability 7.0). The driver
/// compiles PTX for it on everything newer.
const ARCHITECTURE: &str = "compute_70";
/// What NVRTC's own `<nv/target>` leaves in every module; no kernel refers to it.
const LEFT_BY_HEADERS: &str = "2nv6target";

/// What may be missing to compile anything: Python, pip, the network.
pub(crate) type Missing = String;

/// Compiles every kernel, and writes what came out or, to check, holds it against what is there.
///
/// # Errors
/// A kernel that does not compile; to check, PTX that is not what its kernel compiles to.
pub(crate) fn run(root: &Path, check: bool) -> Result<Result<(), Missing>> {
    let python = match python(root)? {
        Ok(python) => python,
        Err(missing) => return Ok(Err(missing)),
    };
    for kernel in KERNELS {
        let source = root.join(kernel);
        let target = source.with_extension("ptx");
        let compiled = compile(&python, root, &source)?;
        if !check {
            fs::write(&target, compiled)
                .with_context(|| format!("cannot write {}", target.display()))?;
            println!("{}", target.display());
            continue;
        }
        let found = fs::read_to_string(&target)
            .with_context(|| format!("cannot read {}", target.display()))?;
        if let Some(line) = first_difference(&found, &compiled) {
            let shown = target.strip_prefix(root).unwrap_or(&target).display();
            bail!("{shown}:{line}: not what {kernel} compiles to; run `cargo xtask ptx`");
        }
    }
    Ok(Ok(()))
}

/// The first line in which two texts differ, counted from 1.
fn first_difference(found: &str, expected: &str) -> Option<usize> {
    if found == expected {
        return None;
    }
    let same = found.lines().zip(expected.lines()).take_while(|(one, other)| one == other);
    Some(same.count() + 1)
}

fn compile(python: &Path, root: &Path, source: &Path) -> Result<String> {
    let mut command = Command::new(python);
    // What Python compiles of the script does not belong into the source tree.
    command.arg("-B").arg(root.join(SCRIPT)).arg(source).arg(ARCHITECTURE);
    let output = command.output().context("cannot start Python")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} does not compile:\n{}", source.display(), said.trim());
    }
    let text = String::from_utf8(output.stdout).context("PTX that is not text")?;
    Ok(without_clutter(&text))
}

fn without_clutter(ptx: &str) -> String {
    let mut kept = String::from("// By `cargo xtask ptx`, from the .cu beside it.\n");
    for line in ptx.lines().filter(|line| !line.contains(LEFT_BY_HEADERS)) {
        kept.push_str(line.trim_end());
        kept.push('\n');
    }
    kept
}

/// A Python with the compiler's package, in an environment of its own in the target directory.
fn python(root: &Path) -> Result<Result<PathBuf, Missing>> {
    // The package is a library of one machine; there are others, but none that was tried.
    if !(cfg!(target_os = "linux") && cfg!(target_arch = "x86_64")) {
        return Ok(Err("NVRTC's package of this version is for Linux on x86-64".to_owned()));
    }
    if !is_installed(OsStr::new("python3"), &["--version"]) {
        return Ok(Err("there is no python3".to_owned()));
    }
    let directory = target_directory(root)?.join("nvrtc-python");
    let (stamp, inside) = (directory.join("requirements.txt"), directory.join("bin/python"));
    let wanted = root.join(REQUIREMENTS);
    let text =
        fs::read_to_string(&wanted).with_context(|| format!("cannot read {}", wanted.display()))?;
    if fs::read_to_string(&stamp).is_ok_and(|made_with| made_with == text) {
        return Ok(Ok(inside));
    }
    if directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    let made = Command::new("python3").args(["-m", "venv"]).arg(&directory).output();
    let mut pip = Command::new(&inside);
    pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]);
    pip.args(["--only-binary", ":all:", "--require-hashes", "--retries", "1", "--timeout", "15"]);
    pip.arg("-r").arg(&wanted);
    let made =
        succeeded("python3 -m venv", made).and_then(|()| succeeded("pip install", pip.output()));
    if let Err(missing) = made {
        return Ok(Err(missing));
    }
    // Last, so that an environment without it is one that was not finished.
    fs::write(&stamp, text).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(Ok(inside))
}

fn succeeded(what: &str, output: std::io::Result<Output>) -> Result<(), Missing> {
    let output = output.map_err(|error| format!("{what}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let told = said.lines().find(|line| line.starts_with("ERROR"));
    let told = told.or_else(|| said.lines().find(|line| !line.trim().is_empty()));
    Err(format!("{what} failed: {}", told.unwrap_or("it said nothing").trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_differs_is_named() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some(2));
        assert_eq!(first_difference("a\n", "a\nc\n"), Some(2));
        assert_eq!(first_difference("a\nb", "a\nb\n"), Some(3));
    }

    #[test]
    fn nothing_is_left_of_the_compilers_own_headers() {
        let clutter = ".global .u64 _ZN9_pages_cu2nv6target6detail9sm_35_bitE = 2;\n";
        let kept = without_clutter(&format!(".version 8.0 \n{clutter}.entry x\n"));
        assert!(kept.ends_with("\n.version 8.0\n.entry x\n"), "{kept}");
        assert!(!kept.contains("nv6target"), "{kept}");
    }
}
