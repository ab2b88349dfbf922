use std::io::Write;
use std::path::{Path, PathBuf};

/// Says by name that a test could not run here, past the test harness's capture.
pub fn skip(test: &str, reason: &str) {
    let line = format!("SKIPPED {test}: {reason}\n");
    // A test that cannot say so has lost its output altogether; nothing else is to be done.
    let _written = std::io::stdout().write_all(line.as_bytes());
}

/// A published trace, where the folder with them is at hand: `UNDERCROFT_TRACES`, or
/// `shared/traces` beside the checkout.
#[must_use]
pub fn traces(name: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/traces");
    let folder = std::env::var_os("UNDERCROFT_TRACES").map_or(beside, PathBuf::from);
    let path = folder.join(name);
    path.exists().then_some(path)
}
