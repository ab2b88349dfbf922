use crate::program;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const REQUIREMENTS: &str = include_str!("../reader/requirements.txt");

/// Python 3.11 or later, with its standard library and nothing else.
///
/// # Errors
/// Why there is none.
pub fn python() -> Result<PathBuf, String> {
    let program = PathBuf::from("python3");
    let test = "import sys; sys.exit(sys.version_info < (3, 11))";
    match Command::new(&program).args(["-c", test]).output() {
        Ok(output) if output.status.success() => Ok(program),
        Ok(_) => Err("python3 is older than 3.11".to_owned()),
        Err(error) => Err(format!("there is no python3: {error}")),
    }
}

/// Python with the packages of `tests/reader/requirements.txt`, in an environment of its own that
/// lies beside the binaries. Made by the first test that asks for it.
///
/// # Errors
/// Why it cannot be made: no Python, no network.
///
/// # Panics
/// If the target directory cannot be written.
pub fn python_with_packages() -> Result<PathBuf, String> {
    // Without network it takes a while to find that out: once is enough.
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOUND.get_or_init(make_environment).clone()
}

fn make_environment() -> Result<PathBuf, String> {
    let python = python()?;
    let directory = program("undercroft").with_file_name("reader-python");
    // One test at a time makes it; the others wait and find it made.
    let lock = File::create(directory.with_extension("lock")).expect("our target directory");
    lock.lock().expect("our target directory");
    let (stamp, inside) = (directory.join("requirements.txt"), directory.join("bin/python"));
    if fs::read_to_string(&stamp).is_ok_and(|made_with| made_with == REQUIREMENTS) {
        return Ok(inside);
    }
    if directory.exists() {
        fs::remove_dir_all(&directory).expect("our target directory");
    }
    let made = Command::new(&python).args(["-m", "venv"]).arg(&directory).output();
    succeeded("python3 -m venv", made)?;
    let list = directory.join("wanted.txt");
    fs::write(&list, REQUIREMENTS).expect("our target directory");
    let mut pip = Command::new(&inside);
    pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]);
    pip.args(["--only-binary", ":all:", "--require-hashes", "--retries", "1", "--timeout", "15"]);
    succeeded("pip install", pip.arg("-r").arg(&list).output())?;
    fs::rename(&list, &stamp).expect("our target directory");
    Ok(inside)
}

fn succeeded(what: &str, output: std::io::Result<Output>) -> Result<(), String> {
    let output = output.map_err(|error| format!("{what}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<_> = err.lines().chain(out.lines()).map(str::trim).collect();
    let told = lines.iter().find(|line| line.starts_with("ERROR"));
    let told = told.or_else(|| lines.iter().find(|line| !line.is_empty()));
    Err(format!("{what} failed: {}", told.unwrap_or(&"it said nothing")))
}

/// Runs the second reader, `tests/reader/read_store.py`, with this Python.
///
/// # Panics
/// If it cannot be started.
#[must_use]
pub fn read_store(python: &Path, log: &Path, key: Option<&Path>) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("reader/read_store.py");
    // What it compiles does not belong into the source tree.
    let mut command = Command::new(python);
    command.arg("-B").arg(script).arg(log).arg("--json");
    if let Some(key) = key {
        command.arg("--key").arg(key);
    }
    command.output().expect("python runs")
}
