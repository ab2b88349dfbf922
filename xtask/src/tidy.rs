//! The house rules a compiler does not check.

mod arrows;
mod manifests;
mod names;
mod purity;
mod sizes;
mod sources;
mod text;
mod unsafety;

use crate::tree::{self, File};
use anyhow::{Result, bail};
use std::fmt;
use std::path::Path;

/// One rule broken in one place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    /// Relative to the workspace root.
    path: String,
    /// Counted from 1.
    line: usize,
    /// What was found.
    what: String,
    /// What is allowed.
    limit: String,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>, limit: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, what: what.into(), limit: limit.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}; allowed: {}", self.path, self.line, self.what, self.limit)
    }
}

/// Checks the checkout at `root` and prints what it finds.
///
/// # Errors
/// A rule is broken, or the checkout cannot be read.
pub(crate) fn run(root: &Path) -> Result<()> {
    let files = tree::load(root)?;
    let mut findings = arrows::check(&arrows::Workspace::read(root)?, &files);
    findings.extend(check_files(&files));
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    let rust = files.iter().filter(|file| file.path.ends_with(".rs")).count();
    match findings.len() {
        0 => {
            println!("tidy: {} files, {rust} of them Rust: nothing to say", files.len());
            Ok(())
        }
        count => bail!("tidy: {count} findings, listed above"),
    }
}

/// Every rule that needs the files alone.
fn check_files(files: &[File]) -> Vec<Finding> {
    let mut findings = manifests::check(files);
    findings.extend(text::check(files));
    findings.extend(names::check(files));
    let (sources, unreadable) = sources::parse(files);
    findings.extend(unreadable);
    for source in &sources {
        findings.extend(sizes::check(source));
        findings.extend(names::check_source(source));
        findings.extend(purity::check(source));
        findings.extend(unsafety::check(source));
    }
    findings
}

#[cfg(test)]
mod tests;
