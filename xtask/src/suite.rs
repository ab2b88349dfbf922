//! The test suite: `cargo xtask test`.

use crate::capi;
use crate::command::{cargo, check, shown};
use anyhow::{Context, Result, bail};
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

/// What the test binaries said, added up.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    binaries: u64,
    skipped: Vec<String>,
}

/// How a test says that it could not run: it writes a line with this word, its name and the
/// reason to `std::io::stdout()` (not by `println!`, which libtest swallows).
const SKIPPED: &str = "SKIPPED ";

/// Builds what the black-box tests start and link, then runs `cargo test`.
///
/// # Errors
/// The build or a test failed.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<Tally> {
    check(cargo(root).args(["build", "--locked", "--package", "undercroft-cli"]))?;
    check(cargo(root).args(["build", "--locked", "--package", "undercroft-client", "--examples"]))?;
    capi::run(root, false, None)?;
    let mut command = cargo(root);
    command.args(["test", "--locked", "--no-fail-fast"]);
    if arguments.is_empty() {
        command.arg("--workspace");
    }
    command.args(arguments).stdout(Stdio::piped());
    let shown = shown(&command);
    println!("$ {shown}");
    let mut child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let output = child.stdout.take().context("the child's stdout is piped")?;
    let tally = follow(BufReader::new(output), &mut std::io::stdout());
    let status = child.wait().with_context(|| format!("cannot wait for `{shown}`"))?;
    let tally = tally?;
    if !status.success() || tally.failed > 0 {
        bail!("`{shown}`: {status}\n{tally}");
    }
    Ok(tally)
}

/// Copies the output line by line and adds up what it says.
fn follow(mut input: impl BufRead, output: &mut impl Write) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        // Bytes, not text: a test may print anything.
        if input.read_until(b'\n', &mut line).context("cannot read the tests' output")? == 0 {
            return Ok(tally);
        }
        output.write_all(&line).context("cannot print the tests' output")?;
        tally.read(String::from_utf8_lossy(&line).trim_end());
    }
}

impl Tally {
    fn read(&mut self, line: &str) {
        if let Some(at) = line.find(SKIPPED) {
            self.skipped.push(line[at + SKIPPED.len()..].to_owned());
        }
        let Some(counts) = line.strip_prefix("test result: ") else {
            return;
        };
        self.binaries += 1;
        // "ok. 12 passed; 0 failed; 1 ignored; …"
        let words: Vec<&str> = counts.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(count) = pair[0].parse::<u64>() else {
                continue;
            };
            match pair[1] {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for skipped in &self.skipped {
            writeln!(f, "could not run: {skipped}")?;
        }
        let word = if self.failed == 0 { "ok" } else { "FAILED" };
        write!(
            f,
            "test result: {word}. {} passed; {} failed; {} ignored; {} could not run; {} test binaries",
            self.passed,
            self.failed,
            self.ignored,
            self.skipped.len(),
            self.binaries,
        )
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up_and_copied() {
        let input = "running 2 tests\n\
                     test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
                     test x ... SKIPPED huge_pages: none reserved\n\
                     test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured\n";
        let mut copied = Vec::new();
        let tally = follow(input.as_bytes(), &mut copied).unwrap();
        assert_eq!(copied, input.as_bytes());
        let skipped = vec!["huge_pages: none reserved".to_owned()];
        assert_eq!(tally, Tally { passed: 15, failed: 2, ignored: 1, binaries: 2, skipped });
        let text = tally.to_string();
        assert!(text.starts_with("could not run: huge_pages: none reserved\n"), "{text}");
        assert!(text.contains("test result: FAILED. 15 passed; 2 failed; 1 ignored"), "{text}");
    }

    #[test]
    fn output_that_is_not_text_is_copied_unchanged() {
        let mut copied = Vec::new();
        let tally = follow(&b"\xff\xfe\n"[..], &mut copied).unwrap();
        assert_eq!(copied, b"\xff\xfe\n");
        assert_eq!(tally, Tally::default());
    }
}
