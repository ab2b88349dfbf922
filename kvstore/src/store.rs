//! Opening the SSD tier: directory, page log, what it recovered.

use crate::bell::Bell;
use crate::config::SsdConfig;
use crate::error::StartError;
use crate::paths::{Stranger, is_foreign, stranger};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use undercroft_arena::Part;
use undercroft_core::RecoveredRecord;
use undercroft_ssd_tier::{Completion, LogConfig, PageLog};
use undercroft_wire::DeviceId;

/// The page log's file name inside the store's directory.
const LOG_NAME: &str = "pages-0.log";

/// An open page log and the records it found.
pub(crate) struct OpenedStore {
    pub(crate) log: PageLog,
    pub(crate) records: Vec<RecoveredRecord>,
    pub(crate) free_segments: u32,
}

/// Makes the store's directory; what to open in it.
pub(crate) fn prepare(config: &SsdConfig) -> Result<LogConfig, StartError> {
    let directory = &config.directory;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|source| {
        StartError::StateDirectory { path: directory.clone(), doing: "make it", source }
    })?;
    let path = directory.join(LOG_NAME);
    check_hands(directory, &path)?;
    Ok(LogConfig {
        path,
        device: DeviceId(0),
        capacity_bytes: config.bytes,
        segment_bytes: config.segment_bytes,
        engine: config.engine,
        queue_depth: config.queue_depth,
        table_flush_ms: config.table_flush_ms,
        ..LogConfig::new("", config.bytes)
    })
}

/// Pages are prompts, and a record proves that it is whole, not who wrote it: nobody else may own
/// the log or the directory it lies in. The last resort of the default path is one that anybody
/// can make first.
fn check_hands(directory: &Path, log: &Path) -> Result<(), StartError> {
    let failed = |source| {
        let path = directory.to_owned();
        StartError::StateDirectory { path, doing: "look at it", source }
    };
    let owner = |owner| format!("user {owner}, who owns it,");
    let (path, who) = match stranger(directory).map_err(failed)? {
        Some(Stranger::Owner(user)) => (directory, owner(user)),
        Some(Stranger::Everybody) => (directory, "every user".to_owned()),
        None => match fs::symlink_metadata(log) {
            Ok(facts) if is_foreign(facts.uid()) => (log, owner(facts.uid())),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        },
    };
    Err(StartError::StoreForeign { path: path.to_owned(), who })
}

/// Opens the page log. Its completions ring `done`.
pub(crate) fn open(
    config: LogConfig,
    memory: Vec<Arc<Part>>,
    done: Bell<Completion>,
) -> Result<OpenedStore, StartError> {
    let sink = Box::new(move |completion| done.ring(completion));
    let (log, recovery) = PageLog::open(config, memory, sink)?;
    let free_segments = recovery.free_segments;
    let records = recovery
        .records
        .into_iter()
        .map(|r| RecoveredRecord {
            identity: r.identity,
            extent: r.extent,
            payload_crc: r.payload_crc,
            sealed: r.sealed,
        })
        .collect();
    Ok(OpenedStore { log, records, free_segments })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn check(directory: &Path) -> Result<(), StartError> {
        check_hands(directory, &directory.join(LOG_NAME))
    }

    #[test]
    fn a_store_that_everybody_may_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        check(directory.path()).unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let line = check(directory.path()).unwrap_err().to_string();
        assert!(line.contains("every user") && line.contains("ssd.path"), "{line}");
    }

    #[test]
    fn a_store_or_log_of_another_user_is_refused() {
        if !rustix::process::geteuid().is_root() {
            // Only root can give files away. Said by name, never silently green.
            return eprintln!("skipped: a_store_or_log_of_another_user_is_refused takes root");
        }
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join(LOG_NAME);
        fs::write(&log, b"").unwrap();
        check(directory.path()).unwrap();
        std::os::unix::fs::chown(&log, Some(65_534), None).unwrap();
        let line = check(directory.path()).unwrap_err().to_string();
        assert!(line.contains(LOG_NAME) && line.contains("65534"), "{line}");
        std::os::unix::fs::chown(directory.path(), Some(65_534), None).unwrap();
        let line = check(directory.path()).unwrap_err().to_string();
        assert!(!line.contains(LOG_NAME) && line.contains("65534"), "{line}");
    }
}
