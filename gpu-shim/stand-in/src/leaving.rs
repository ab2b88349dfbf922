//! What is told when a process ends that is not a test and cannot ask.
#![expect(unsafe_code, reason = "the C library is told what to call at the end")]

use crate::state::Held;
use std::ffi::{OsString, c_int};
use std::fmt::Write;

/// Where to: a file.
const VARIABLE: &str = "UNDERCROFT_STAND_IN_REPORT";

unsafe extern "C" {
    fn atexit(call: extern "C" fn()) -> c_int;
}

/// Has the report written at the process's end, if the environment asks for it.
pub(crate) fn tell_at_exit() {
    if path().is_some() {
        // SAFETY: the function stays where it is: a library in use as a driver is not unloaded.
        let refused = unsafe { atexit(tell) } != 0;
        assert!(!refused, "the C library has room for one function more");
    }
}

fn path() -> Option<OsString> {
    std::env::var_os(VARIABLE)
}

extern "C" fn tell() {
    let held = Held::lock();
    let report = held.report_of(None);
    let mut text = String::new();
    for violation in &held.violations {
        let _ = writeln!(text, "violation: {violation}");
    }
    for leak in report.leaks() {
        let _ = writeln!(text, "still there: {leak}");
    }
    let _ = writeln!(text, "{report:#?}");
    if let Some(path) = path()
        && let Err(error) = std::fs::write(&path, text)
    {
        eprintln!("{VARIABLE}: {}: {error}", path.display());
    }
}
