//! Rules about lines of text: the length of a file, and paths that exist on one machine only.

use super::Finding;
use crate::tree::File;

/// The longest source file, lines.
const FILE_LINES: usize = 800;
/// Which files are sources.
const SOURCES: &[&str] = &["rs", "py", "sh", "c", "h", "cu"];
/// Top directories that only mean something on the machine of whoever wrote them down.
const MACHINE_DIRECTORIES: &[&str] = &["work", "root", "home", "Users"];
/// Files other programs write.
const GENERATED: &[&str] = &[
    "Cargo.lock",
    "client/examples/candle/Cargo.lock",
    "client/ffi/undercroft.h",
    "fuzz/Cargo.lock",
];

pub(super) fn check(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| !GENERATED.contains(&&*file.path)) {
        let extension = file.path.rsplit_once('.').map_or("", |(_, extension)| extension);
        let lines = file.text.lines().count();
        if SOURCES.contains(&extension) && lines > FILE_LINES {
            let what = format!("file of {lines} lines");
            findings.push(Finding::new(&file.path, lines, what, format!("{FILE_LINES} lines")));
        }
        for (index, line) in file.text.lines().enumerate() {
            if let Some(found) = machine_path(line) {
                let what = format!("path of one machine, {found}");
                let limit = "paths inside the checkout, or asked for at run time";
                findings.push(Finding::new(&file.path, index + 1, what, limit));
            }
        }
    }
    findings
}

/// The first such path on the line.
fn machine_path(line: &str) -> Option<String> {
    MACHINE_DIRECTORIES.iter().find_map(|directory| {
        let path = format!("/{directory}/");
        line.match_indices(&path).find_map(|(at, _)| {
            // `target/home/x` and `../home/x` are relative; a path starts a word.
            let before = line[..at].chars().next_back();
            let starts = before.is_none_or(|c| !c.is_alphanumeric() && !"._-~}*%$".contains(c));
            starts.then(|| path.clone())
        })
    })
}
