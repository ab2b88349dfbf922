//! The code that hands addresses to a driver, under an address sanitizer: `cargo xtask asan`.

use crate::command::{cargo, check, host, shown, target_directory};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whose tests run.
const PACKAGES: &[&str] = &["undercroft-stand-in", "undercroft-gpu-shim"];

/// The sanitizer, and its symbols in every program for the libraries that it loads: the stand-in
/// has none of its own.
const FLAGS: &[&str] = &[
    "-Zsanitizer=address",
    "-Clink-arg=-Wl,--export-dynamic-symbol=__asan_*",
    "-Clink-arg=-Wl,--export-dynamic-symbol=__lsan_*",
    "-Clink-arg=-Wl,--export-dynamic-symbol=__sanitizer_*",
];

/// A test with a fault, and what is said where the fault is seen.
const FAULTS: &[(&str, &str)] = &[
    ("sanitizer::a_page_is_freed_while_a_copy_needs_it", "heap-use-after-free"),
    ("sanitizer::device_memory_is_copied_from_after_it_was_freed", "heap-use-after-free"),
];
const LEAK: (&str, &str) = ("sanitizer::memory_is_lost", "LeakSanitizer: detected memory leaks");
/// Where it may not look at its own threads, as in a container without ptrace, the leak sanitizer
/// ends every program with this.
const NO_LEAKS: &str = "LeakSanitizer has encountered a fatal error";

/// How it ran.
pub(crate) enum Sanitized {
    /// All is well; what is worth telling about it.
    Passed(String),
    /// Why it could not run.
    Missing(String),
}

/// Runs the tests, once it is seen that faults are found.
///
/// # Errors
/// A finding, a test that fails, or a fault that is not found.
pub(crate) fn run(root: &Path) -> Result<Sanitized> {
    let host = host()?;
    if let Some(missing) = missing(&host)? {
        return Ok(Sanitized::Missing(missing));
    }
    let build = Build { root, host, directory: target_directory(root)?.join("asan") };
    for (test, said) in FAULTS {
        let found = build.fault(test)?;
        if !found.contains(said) {
            bail!("the address sanitizer does not see that {test}:\n{found}");
        }
    }
    let (test, said) = LEAK;
    let found = build.fault(test)?;
    let leaks = !found.contains(NO_LEAKS);
    if leaks && !found.contains(said) {
        bail!("the leak sanitizer does not see that {test}:\n{found}");
    }
    let mut command = build.test();
    command.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
    command.arg("--tests").env("ASAN_OPTIONS", if leaks { "" } else { "detect_leaks=0" });
    check(&mut command)?;
    let packages = PACKAGES.join(", ");
    let without = if leaks { "" } else { "; SKIPPED leaks: threads may not be traced here" };
    Ok(Sanitized::Passed(format!("{packages}{without}")))
}

/// What it needs and is not there.
fn missing(host: &str) -> Result<Option<String>> {
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(compiler).args(["--print", "target-libdir"]).output();
    let output = output.context("cannot start rustc")?;
    let libraries = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let entries = std::fs::read_dir(&libraries)
        .with_context(|| format!("cannot list {libraries}"))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut runtimes = entries.filter(|name| name.ends_with("_rt.asan.a"));
    let found = runtimes.next().is_some();
    Ok((!found).then(|| format!("the toolchain has no address sanitizer for {host}")))
}

/// How everything is built.
struct Build<'a> {
    root: &'a Path,
    host: String,
    /// Apart from the rest, as everything is compiled anew.
    directory: PathBuf,
}

impl Build<'_> {
    /// A `cargo test`, with the option that a stable compiler takes only so. Naming the target
    /// keeps the sanitizer out of build scripts and procedural macros.
    fn test(&self) -> Command {
        let mut command = cargo(self.root);
        command.env("CARGO_TARGET_DIR", &self.directory);
        command.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
        command.env("RUSTC_BOOTSTRAP", "1");
        command.args(["test", "--locked", "--target", &self.host]);
        command
    }

    /// What a test with a fault says. It must not end well.
    fn fault(&self, test: &str) -> Result<String> {
        let mut command = self.test();
        command.args(["--package", PACKAGES[0], "--test", "driver"]);
        command.args(["--", "--ignored", "--exact", test]);
        let shown = shown(&command);
        println!("$ {shown}");
        let output = command.output().with_context(|| format!("cannot start `{shown}`"))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        if output.status.success() {
            bail!("`{shown}` went well, and has a fault:\n{said}");
        }
        Ok(said)
    }
}
