//! Making the SSD tier ready: directories, the store key, the page logs' files. What can be
//! refused is refused here, before anybody is served. And closing the page logs at the end.

use crate::config::{KeyFile, SsdConfig, SsdDirectory};
use crate::error::StartError;
use crate::paths::{Stranger, stranger};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};
use undercroft_ssd_tier::{KeyError, LogConfig, OpenError, PageLog, PreparedLog, StoreKey};
use undercroft_wire::DeviceId;

/// The page log's file name inside a store's directory.
pub(crate) const LOG_NAME: &str = "pages-0.log";
/// The store key's file name inside a store's directory.
pub(crate) const KEY_NAME: &str = "store.key";
/// How long page logs may take to close. A device that does not answer must not keep the daemon
/// from ending.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// A device as it was found.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) device: DeviceId,
    pub(crate) directory: PathBuf,
    /// Its page log, locked and with its space reserved; or what the device failed with.
    pub(crate) log: Result<PreparedLog, OpenError>,
}

/// Makes the directories, gets the key, and opens all page logs at the same time.
///
/// A device that fails by itself is not a reason to refuse: the others can be served.
pub(crate) fn prepare(config: &SsdConfig) -> Result<Vec<Prepared>, StartError> {
    for directory in &config.directories {
        make_directory(&directory.path)?;
    }
    let key = config.key_file.as_ref().map(|file| store_key(file, &config.directories));
    let key = key.transpose()?;
    let numbered = (0..).map(DeviceId).zip(&config.directories);
    thread::scope(|scope| {
        let prepare = |(device, directory)| {
            let log = log_config(config, device, directory, key.clone());
            let thread = thread::Builder::new().name("ucft-prepare".to_owned());
            (device, directory, thread.spawn_scoped(scope, || PageLog::prepare(log)))
        };
        let threads: Vec<_> = numbered.map(prepare).collect();
        let prepared = |(device, directory, thread): (_, &SsdDirectory, io::Result<_>)| {
            let thread: ScopedJoinHandle<'_, _> = thread.map_err(no_thread)?;
            let log = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            match log {
                Err(error) if !is_fault_of_device(&error) => Err(error.into()),
                log => Ok(Prepared { device, directory: directory.path.clone(), log }),
            }
        };
        threads.into_iter().map(prepared).collect()
    })
}

fn no_thread(source: io::Error) -> StartError {
    StartError::Thread { what: "the thread that opens a page log", source }
}

fn log_config(
    config: &SsdConfig,
    device: DeviceId,
    directory: &SsdDirectory,
    key: Option<StoreKey>,
) -> LogConfig {
    LogConfig {
        device,
        segment_bytes: config.segment_bytes,
        engine: config.engine,
        queue_depth: config.queue_depth,
        table_flush_ms: config.table_flush_ms,
        stall: config.stall,
        key,
        ..LogConfig::new(directory.path.join(LOG_NAME), directory.bytes)
    }
}

/// Whether it is the disk that fails, and not what was asked of it.
fn is_fault_of_device(error: &OpenError) -> bool {
    let (OpenError::Open { source, .. } | OpenError::Io { source, .. }) = error else {
        return false;
    };
    let faults = [rustix::io::Errno::IO, rustix::io::Errno::NXIO, rustix::io::Errno::NODEV];
    faults.iter().any(|fault| source.raw_os_error() == Some(fault.raw_os_error()))
}

/// Pages are prompts, and without encryption a record proves that it is whole, not who wrote it:
/// nobody else may own the directory. The last resort of the default path is one that anybody can
/// make first. Whose the file in it is, the page log looks at itself.
fn make_directory(directory: &Path) -> Result<(), StartError> {
    let failed = |doing, source| {
        let path = directory.to_owned();
        StartError::StateDirectory { path, doing, source }
    };
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|source| failed("make it", source))?;
    let who = match stranger(directory).map_err(|source| failed("look at it", source))? {
        None => return Ok(()),
        Some(Stranger::Owner(owner)) => format!("user {owner}, who owns it,"),
        Some(Stranger::Everybody) => "every user".to_owned(),
    };
    Err(StartError::StoreForeign { path: directory.to_owned(), who })
}

/// The key of all stores. Without a key file a new key is made, in the first directory; a
/// directory that was put before the one with the key must not be given another.
fn store_key(file: &KeyFile, directories: &[SsdDirectory]) -> Result<StoreKey, StartError> {
    match file {
        KeyFile::Named(path) => StoreKey::load(path).map_err(|source| match source {
            KeyError::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
                StartError::KeyMissing { path: path.clone() }
            }
            source => source.into(),
        }),
        KeyFile::InStore => {
            let paths: Vec<_> = directories.iter().map(|d| d.path.join(KEY_NAME)).collect();
            let there = paths.iter().find(|path| path.symlink_metadata().is_ok());
            let path = there.or(paths.first()).expect("a checked configuration has a directory");
            Ok(StoreKey::load_or_create(path)?)
        }
    }
}

/// Closes page logs in order, as far as their devices answer in time. What lies in `path` is then
/// found again at the next start, but for the last of it on a device that did not.
pub(crate) fn close(logs: impl IntoIterator<Item = (PathBuf, PageLog)>) {
    let (sender, closed) = crossbeam_channel::unbounded();
    let mut open = BTreeMap::new();
    for (index, (path, log)) in logs.into_iter().enumerate() {
        let sender = sender.clone();
        let close = move || {
            log.close();
            // Nobody listens any more once patience has run out.
            let _unheard = sender.send(index);
        };
        match thread::Builder::new().name("ucft-close".to_owned()).spawn(close) {
            Ok(_) => drop(open.insert(index, path)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot start a thread to close it");
            }
        }
    }
    drop(sender);
    let until = Instant::now() + CLOSE_PATIENCE;
    while !open.is_empty() {
        match closed.recv_deadline(until) {
            Ok(index) => drop(open.remove(&index)),
            Err(_) => break,
        }
    }
    for path in open.values() {
        let patience = CLOSE_PATIENCE.as_secs();
        tracing::warn!(
            path = %path.display(),
            "the page log did not close within {patience} s and is left as it is: the last pages \
             written to it may be lost"
        );
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use undercroft_ssd_tier::EngineChoice;

    fn config(directories: &[&Path]) -> SsdConfig {
        let directory = |path: &&Path| SsdDirectory { path: path.to_path_buf(), bytes: 1 << 20 };
        SsdConfig {
            directories: directories.iter().map(directory).collect(),
            key_file: Some(KeyFile::InStore),
            segment_bytes: None,
            engine: EngineChoice::Threads,
            queue_depth: 1,
            stall: Duration::from_millis(500),
            table_flush_ms: 20,
        }
    }

    fn refusal(config: &SsdConfig) -> String {
        prepare(config).unwrap_err().to_string()
    }

    #[test]
    fn a_store_that_everybody_may_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let line = refusal(&config(&[directory.path()]));
        assert!(line.contains("every user") && line.contains("ssd.path"), "{line}");
        assert_eq!(directory.path().read_dir().unwrap().count(), 0, "nothing was made there");
    }

    #[test]
    fn a_store_or_log_of_another_user_is_refused() {
        if !rustix::process::geteuid().is_root() {
            use std::io::Write;
            let line = "SKIPPED a_store_or_log_of_another_user_is_refused: only root can give files away\n";
            return std::io::stdout().write_all(line.as_bytes()).unwrap();
        }
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join(LOG_NAME);
        fs::write(&log, b"").unwrap();
        std::os::unix::fs::chown(&log, Some(65_534), None).unwrap();
        let line = refusal(&config(&[directory.path()]));
        assert!(line.contains(LOG_NAME) && line.contains("65534"), "{line}");
        std::os::unix::fs::chown(directory.path(), Some(65_534), None).unwrap();
        let line = refusal(&config(&[directory.path()]));
        assert!(!line.contains(LOG_NAME) && line.contains("65534"), "{line}");
    }

    #[test]
    fn one_key_serves_all_directories_whatever_their_order() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(prepare(&config(&[one.path(), two.path()])).unwrap().len(), 2);
        let key = fs::read(one.path().join(KEY_NAME)).unwrap();
        let mode = fs::metadata(one.path().join(KEY_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert!(!two.path().join(KEY_NAME).exists());
        let prepared = prepare(&config(&[two.path(), one.path()])).unwrap();
        assert!(prepared.iter().all(|p| p.log.is_ok()));
        assert!(!two.path().join(KEY_NAME).exists());
        assert_eq!(fs::read(one.path().join(KEY_NAME)).unwrap(), key);
    }

    #[test]
    fn a_named_key_is_never_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.key");
        let named = SsdConfig {
            key_file: Some(KeyFile::Named(path.clone())),
            ..config(&[directory.path()])
        };
        let line = refusal(&named);
        assert!(line.contains("a.key") && line.contains("ssd.key_file"), "{line}");
        assert!(!path.exists() && !line.contains('\n'));
        fs::write(&path, [7; 32]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let line = refusal(&named);
        assert!(line.contains("a.key") && line.contains("ssd.key_file"), "{line}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(prepare(&named).unwrap()[0].log.is_ok());
    }

    #[test]
    fn a_disk_that_fails_is_told_from_what_cannot_be() {
        let open = |errno: rustix::io::Errno| OpenError::Open {
            path: PathBuf::from("x"),
            source: errno.into(),
        };
        assert!(is_fault_of_device(&open(rustix::io::Errno::IO)));
        assert!(!is_fault_of_device(&open(rustix::io::Errno::ACCESS)));
        assert!(!is_fault_of_device(&OpenError::Locked { path: PathBuf::from("x") }));
    }
}
