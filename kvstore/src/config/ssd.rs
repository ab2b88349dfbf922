//! The SSD tier's part of the configuration.

use super::raw::{Quantity, RawSsd, Several};
use super::{ConfigError, GIB, KIB, MIB, choice, human, number, size};
use crate::paths;
use std::path::{Path, PathBuf};
use std::time::Duration;
use undercroft_ssd_tier::EngineChoice;

/// The core can tell so many devices apart.
const MAX_DIRECTORIES: usize = 64;
const MAX_BYTES: u64 = 1 << 50;
const SIZES: &str = "0 (no SSD tier) or 1MiB..=1PiB";

/// The SSD tier's part of a checked configuration.
#[derive(Debug, Clone)]
pub(crate) struct SsdConfig {
    /// One for each device, all different.
    pub(crate) directories: Vec<SsdDirectory>,
    /// Where the store key is; `None` where pages lie on SSD in the clear.
    pub(crate) key_file: Option<KeyFile>,
    pub(crate) segment_bytes: Option<u64>,
    /// What may be written to each directory in a second, averaged over a minute.
    pub(crate) write_bytes_per_s: Option<u64>,
    /// And in a day.
    pub(crate) write_bytes_per_day: Option<u64>,
    /// What may be written to each in its life, if somebody said so.
    pub(crate) endurance_bytes: Option<u64>,
    pub(crate) engine: EngineChoice,
    pub(crate) queue_depth: u32,
    pub(crate) stall: Duration,
    pub(crate) table_flush_ms: u64,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SsdDirectory {
    pub(crate) path: PathBuf,
    /// Room for pages.
    pub(crate) bytes: u64,
}

/// Where the store key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyFile {
    /// Somebody else's to make and to keep: nothing is ever made here. A key made because a path
    /// was mistyped, or because a mount was late, would shut the store's own key out.
    Named(PathBuf),
    /// Beside the pages.
    InStore,
}

impl SsdConfig {
    /// Room for pages on all devices.
    pub(crate) fn bytes(&self) -> u64 {
        self.directories.iter().fold(0, |sum, directory| directory.bytes.saturating_add(sum))
    }

    /// One line for people.
    pub(super) fn summary(&self) -> String {
        let encrypted = if self.key_file.is_some() { "" } else { ", not encrypted" };
        match self.directories.as_slice() {
            [one] => format!("{} in {}{encrypted}", human(one.bytes), one.path.display()),
            several => {
                let paths: Vec<_> = several.iter().map(|d| d.path.display().to_string()).collect();
                format!("{} in {}{encrypted}", human(self.bytes()), paths.join(", "))
            }
        }
    }
}

pub(super) fn check(raw: &RawSsd) -> Result<Option<SsdConfig>, ConfigError> {
    let paths = check_paths(raw.path.as_ref())?;
    let sizes = check_sizes(raw.size.as_ref(), &paths)?;
    let encrypted = choice("ssd.encryption", raw.encryption.as_deref(), "on", &["on", "off"])? == 0;
    let key_file = check_key_file(raw.key_file.as_deref())?;
    let segment_bytes = raw
        .segment
        .as_ref()
        .map(|found| size("ssd.segment", Some(found), 0, 64 * KIB, GIB))
        .transpose()?;
    let bytes = |key, found: &Option<Quantity>, max| {
        found.as_ref().map(|found| size(key, Some(found), 0, MIB, max)).transpose()
    };
    let write_bytes_per_day = bytes("ssd.write_budget_day", &raw.write_budget_day, MAX_BYTES)?;
    let endurance_bytes = bytes("ssd.endurance", &raw.endurance, 1 << 60)?;
    let write_bytes_per_s = raw.write_budget.as_ref().map(check_rate).transpose()?;
    let engines = ["auto", "io_uring", "threads"];
    let engine = match choice("ssd.engine", raw.engine.as_deref(), "auto", &engines)? {
        0 => EngineChoice::Auto,
        1 => EngineChoice::Uring,
        _ => EngineChoice::Threads,
    };
    let queue_depth = number("ssd.queue_depth", raw.queue_depth, 64, 1, 256)? as u32;
    let stall_ms = number("ssd.stall_ms", raw.stall_ms, 500, 10, 60_000)?;
    let table_flush_ms = number("ssd.table_flush_ms", raw.table_flush_ms, 20, 1, 10_000)?;
    Ok(sizes.map(|sizes| {
        let directories = paths.into_iter().zip(sizes);
        SsdConfig {
            directories: directories.map(|(path, bytes)| SsdDirectory { path, bytes }).collect(),
            key_file: encrypted.then_some(key_file),
            segment_bytes,
            write_bytes_per_s,
            write_bytes_per_day,
            endurance_bytes,
            engine,
            queue_depth,
            stall: Duration::from_millis(stall_ms),
            table_flush_ms,
        }
    }))
}

fn check_rate(found: &Quantity) -> Result<u64, ConfigError> {
    let refused = || ConfigError::Value {
        key: "ssd.write_budget",
        found: found.to_string(),
        allowed: "a rate of 64 KiB/s..=1 TiB/s, such as \"200MiB/s\"".to_owned(),
    };
    let Quantity::Text(text) = found else {
        return Err(refused());
    };
    let size = text.strip_suffix("/s").and_then(super::parse_size);
    size.filter(|bytes| (64 * KIB..=1 << 40).contains(bytes)).ok_or_else(refused)
}

fn check_paths(raw: Option<&Several<String>>) -> Result<Vec<PathBuf>, ConfigError> {
    let refused = |found: String| ConfigError::Value {
        key: "ssd.path",
        found,
        allowed: format!("a directory, or a list of 1..={MAX_DIRECTORIES} different directories"),
    };
    let Some(raw) = raw else {
        return Ok(vec![paths::default_state()]);
    };
    let named = raw.as_slice();
    if named.is_empty() || named.len() > MAX_DIRECTORIES {
        return Err(refused(format!("a list of {}", named.len())));
    }
    if named.iter().any(String::is_empty) {
        return Err(refused("\"\"".to_owned()));
    }
    // The same directory may have several names. One that is not there yet has only its own.
    let mut known: Vec<PathBuf> = Vec::new();
    for name in named {
        let real = std::fs::canonicalize(name).unwrap_or_else(|_| PathBuf::from(name));
        if known.contains(&real) {
            return Err(refused(format!("\"{name}\", which is in the list already")));
        }
        known.push(real);
    }
    Ok(named.iter().map(PathBuf::from).collect())
}

/// The size for each directory; `None` for no SSD tier.
fn check_sizes(
    raw: Option<&Several<Quantity>>,
    paths: &[PathBuf],
) -> Result<Option<Vec<u64>>, ConfigError> {
    let checked = |found: &Quantity| size("ssd.size", Some(found), 0, 0, MAX_BYTES);
    let refused = |found: String, allowed: &str| {
        Err(ConfigError::Value { key: "ssd.size", found, allowed: allowed.to_owned() })
    };
    let sizes: Vec<u64> = match raw {
        None => paths.iter().map(|path| default_size(path, paths.len() as u64)).collect(),
        Some(Several::One(one)) => match checked(one)? {
            0 => return Ok(None),
            bytes => vec![bytes; paths.len()],
        },
        Some(Several::List(list)) => {
            let sizes: Vec<u64> = list.iter().map(checked).collect::<Result<_, _>>()?;
            if sizes.len() != paths.len() {
                let allowed =
                    format!("one size, or a list of {}: one for each of ssd.path", paths.len());
                return refused(format!("a list of {}", sizes.len()), &allowed);
            }
            sizes
        }
    };
    match sizes.iter().find(|bytes| **bytes < MIB) {
        Some(0) => refused("a list with 0 in it".to_owned(), "1MiB..=1PiB for each directory"),
        Some(bytes) => refused(bytes.to_string(), SIZES),
        None => Ok(Some(sizes)),
    }
}

fn check_key_file(raw: Option<&str>) -> Result<KeyFile, ConfigError> {
    match raw {
        Some("") => Err(ConfigError::Value {
            key: "ssd.key_file",
            found: "\"\"".to_owned(),
            allowed: "the path of a file".to_owned(),
        }),
        Some(path) => Ok(KeyFile::Named(path.into())),
        None => {
            Ok(paths::credential("undercroft.store-key").map_or(KeyFile::InStore, KeyFile::Named))
        }
    }
}

/// 4 GiB, or half of the file system's free space where that is less; all `directories` may lie on
/// the same.
fn default_size(directory: &Path, directories: u64) -> u64 {
    let mut at = Some(directory);
    while let Some(path) = at {
        if let Ok(facts) = rustix::fs::statvfs(path) {
            let free = facts.f_bavail.saturating_mul(facts.f_frsize);
            return (4 * GIB).min(free / 2 / directories).max(16 * MIB) / MIB * MIB;
        }
        at = path.parent();
    }
    16 * MIB
}
