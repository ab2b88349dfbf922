//! Making the SSD tier ready: directories, the store key, the page logs' files. What can be
//! refused is refused here, before anybody is served. And closing the page logs at the end.

use crate::config::{KeyFile, SsdConfig, SsdDirectory};
use crate::error::StartError;
use crate::paths::{Stranger, stranger};
use crossbeam_channel::Receiver;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
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
/// How long after a page log was found locked it is tried again.
const LOCK_PAUSE: Duration = Duration::from_secs(1);

/// How long it may take until the page logs are open. A disk that takes longer is not waited for: the
/// others are served. Long enough for a large file to be reserved.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);
/// As long for a daemon that goes on with an arena: what is in DRAM does not wait for a disk.
const WARM_PATIENCE: Duration = Duration::from_millis(150);
const SILENT: &str = "it does not answer";
const NO_KEY: &str = "the store key may lie on a disk that fails or does not answer";

/// A number that stands for the directories of the SSD tier, in whatever order; 0 for none. It
/// outlives the daemon, and builds.
pub(crate) fn name(config: Option<&SsdConfig>) -> u64 {
    let Some(config) = config else { return 0 };
    let mut paths: Vec<_> =
        config.directories.iter().map(|directory| directory.path.as_os_str().as_bytes()).collect();
    paths.sort_unstable();
    // FNV-1a, with a byte after each path that none can contain.
    let bytes = paths.iter().flat_map(|path| path.iter().chain(&[0]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash | 1
}

/// A device as it was found.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) device: DeviceId,
    pub(crate) directory: PathBuf,
    /// What the files in it are encrypted with; `None` where nobody can say.
    pub(crate) key: Option<Option<StoreKey>>,
    pub(crate) log: Opening,
}

/// A page log.
#[derive(Debug)]
pub(crate) enum Opening {
    /// Locked and with its space reserved.
    Open(Box<PreparedLog>),
    /// Not open yet. What becomes of it is heard here, if ever.
    Late(Receiver<Result<PreparedLog, OpenError>>),
    /// The device fails, and this is how.
    Failed(String),
}

type MakeDirectory = dyn Fn(&Path) -> Result<(), StartError> + Send + Sync;
type OpenLog = dyn Fn(LogConfig) -> Result<PreparedLog, OpenError> + Send + Sync;

/// Looks at what can be looked at while another daemon has the page logs: directories, key, what is
/// in the files, and room for them.
///
/// # Errors
/// What [`prepare`] would refuse.
pub(crate) fn look_ahead(config: &SsdConfig) -> Result<(), StartError> {
    let disks = Disks { make: Arc::new(make_directory), open: Arc::new(PageLog::prepare) };
    let until = Instant::now() + OPEN_PATIENCE;
    let sick = make_directories(&disks, config, until)?;
    let key = match &config.key_file {
        None => None,
        Some(KeyFile::Named(path)) => Some(named_key(path)?),
        // One that is not there is made when it is wanted.
        Some(KeyFile::InStore) => config.directories.iter().zip(&sick).find_map(|(its, sick)| {
            let path = its.path.join(KEY_NAME);
            sick.is_none().then(|| StoreKey::load(&path).ok()).flatten()
        }),
    };
    let well = (0..).map(DeviceId).zip(config.directories.iter().zip(sick));
    let looked = well.filter(|(_, (_, sick))| sick.is_none()).map(|(device, (directory, _))| {
        let log = log_config(config, device, directory, key.clone());
        on_thread(move || PageLog::look(&log))
    });
    for looked in looked.collect::<Result<Vec<_>, StartError>>()? {
        match looked.recv_deadline(until) {
            Ok(Err(error)) if !is_fault_of_device(&error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// What may fail, or never end, on a sick disk.
#[derive(Clone)]
struct Disks {
    make: Arc<MakeDirectory>,
    open: Arc<OpenLog>,
}

/// Makes the directories, gets the key, and opens all page logs at the same time.
///
/// A device that fails by itself or does not answer is not a reason to refuse: the others can be
/// served. `succeeds` says that this daemon goes on with the arena of one that is gone.
pub(crate) fn prepare(config: &SsdConfig, succeeds: bool) -> Result<Vec<Prepared>, StartError> {
    let disks = Disks { make: Arc::new(make_directory), open: Arc::new(PageLog::prepare) };
    let patience = if succeeds { WARM_PATIENCE } else { OPEN_PATIENCE };
    prepare_on(&disks, config, patience, succeeds)
}

fn prepare_on(
    disks: &Disks,
    config: &SsdConfig,
    patience: Duration,
    succeeds: bool,
) -> Result<Vec<Prepared>, StartError> {
    let until = Instant::now() + patience;
    let sick = make_directories(disks, config, until)?;
    let well = sick.iter().zip(&config.directories).filter(|(sick, _)| sick.is_none());
    let well: Vec<_> = well.map(|(_, directory)| directory.path.clone()).collect();
    let key = match &config.key_file {
        None => Some(None),
        Some(KeyFile::Named(path)) => Some(Some(named_key(path)?)),
        Some(KeyFile::InStore) => {
            let all = well.len() == sick.len();
            match on_thread(move || key_in_store(&well, all))?.recv_deadline(until) {
                Ok(key) => key?.map(Some),
                Err(_) => None,
            }
        }
    };
    let start = |(device, (directory, sick)): (_, (&SsdDirectory, Option<String>))| {
        let log = match (sick, &key) {
            (Some(reason), _) => Err(reason),
            (None, None) => Err(NO_KEY.to_owned()),
            (None, Some(key)) => {
                let log = log_config(config, device, directory, key.clone());
                let (open, its) = (Arc::clone(&disks.open), log.clone());
                Ok((log, on_thread(move || open(its))?))
            }
        };
        Ok((device, directory.path.clone(), log))
    };
    let numbered = (0..).map(DeviceId).zip(config.directories.iter().zip(sick));
    let started = numbered.map(start).collect::<Result<Vec<_>, StartError>>()?;
    let mut prepared = Vec::new();
    let mut locked = Vec::new();
    for (device, directory, log) in started {
        let log = match log {
            Err(reason) => Opening::Failed(reason),
            Ok((config, opened)) => match opened.recv_deadline(until) {
                Ok(Ok(log)) => Opening::Open(Box::new(log)),
                Ok(Err(error @ OpenError::Locked { .. })) => {
                    locked.push((prepared.len(), config, error));
                    Opening::Failed(String::new())
                }
                Ok(Err(error)) if is_fault_of_device(&error) => Opening::Failed(error.to_string()),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    let path = directory.display();
                    tracing::error!(%path, "an SSD does not answer: it is left out until it does");
                    Opening::Late(opened)
                }
            },
        };
        prepared.push(Prepared { device, directory, key: key.clone(), log });
    }
    wait_for_locks(disks, &mut prepared, locked, succeeds)?;
    Ok(prepared)
}

/// Page logs that others hold. A store of which nothing can be had is most likely another daemon's,
/// unless this one goes on with the arena of a daemon that is gone. One of several, or its, most
/// likely belongs to a killed daemon whose last transfers hang: it is taken as soon as they end.
fn wait_for_locks(
    disks: &Disks,
    prepared: &mut [Prepared],
    locked: Vec<(usize, LogConfig, OpenError)>,
    succeeds: bool,
) -> Result<(), StartError> {
    let any_open = prepared.iter().any(|one| matches!(one.log, Opening::Open(_)));
    for (at, config, error) in locked {
        if !any_open && !succeeds {
            return Err(error.into());
        }
        tracing::error!(%error, "an SSD is left out until its page log is let go of");
        let open = Arc::clone(&disks.open);
        let again = move || loop {
            match open(config.clone()) {
                Err(OpenError::Locked { .. }) => thread::sleep(LOCK_PAUSE),
                result => return result,
            }
        };
        prepared[at].log = Opening::Late(on_thread(again)?);
    }
    Ok(())
}

/// Makes the directories; for each whose disk fails or does not answer says so.
fn make_directories(
    disks: &Disks,
    config: &SsdConfig,
    until: Instant,
) -> Result<Vec<Option<String>>, StartError> {
    let start = |directory: &SsdDirectory| {
        let (make, path) = (Arc::clone(&disks.make), directory.path.clone());
        on_thread(move || make(&path))
    };
    let started: Vec<_> = config.directories.iter().map(start).collect::<Result<_, _>>()?;
    let made = |made: Receiver<Result<(), StartError>>| match made.recv_deadline(until) {
        Ok(Ok(())) => Ok(None),
        Ok(Err(StartError::StateDirectory { source, path, doing }))
            // Where a directory cannot be made because nothing can, none was ever used.
            if is_fault(&source) && source.kind() != ErrorKind::ReadOnlyFilesystem =>
        {
            Ok(Some(StartError::StateDirectory { source, path, doing }.to_string()))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Ok(Some(SILENT.to_owned())),
    };
    started.into_iter().map(made).collect()
}

/// Has `work` done on a thread that nobody waits for: on a disk that hangs it may never end.
fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Receiver<T>, StartError> {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    // What comes too late for anybody to listen is dropped, and with it a lock.
    let body = move || drop(sender.send(work()));
    let thread = thread::Builder::new().name("ucft-prepare".to_owned()).spawn(body);
    thread.map(|_| receiver).map_err(no_thread)
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
        // Zeros wear a drive out as anything does.
        zero_ahead: config.write_bytes_per_s.is_none() && config.write_bytes_per_day.is_none(),
        key,
        ..LogConfig::new(directory.path.join(LOG_NAME), directory.bytes)
    }
}

/// Whether it is the disk that fails, and not what was asked of it.
fn is_fault_of_device(error: &OpenError) -> bool {
    let (OpenError::Open { source, .. } | OpenError::Io { source, .. }) = error else {
        return false;
    };
    is_fault(source)
}

/// What the kernel says of block devices that fail (`blk_errors` in its `block/blk-core.c`), of file
/// systems that have given up on theirs, and of file servers that are gone.
fn is_fault(error: &io::Error) -> bool {
    const FAULTS: [Errno; 13] = [
        Errno::IO,
        Errno::NXIO,
        Errno::NODEV,
        Errno::NODATA,
        Errno::TIMEDOUT,
        Errno::REMOTEIO,
        Errno::NOLINK,
        Errno::ILSEQ,
        Errno::UCLEAN,
        Errno::ROFS,
        Errno::NOTCONN,
        Errno::STALE,
        Errno::SHUTDOWN,
    ];
    FAULTS.iter().any(|fault| error.raw_os_error() == Some(fault.raw_os_error()))
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

/// The key of all stores from a file that was named.
fn named_key(path: &Path) -> Result<StoreKey, StartError> {
    StoreKey::load(path).map_err(|source| match source {
        KeyError::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
            StartError::KeyMissing { path: path.to_owned() }
        }
        source => source.into(),
    })
}

/// The key of all stores from one of the directories that can be used. If none is there a new one is
/// made, in the first; a directory that was put before the one with the key must not be given
/// another. `None` if the key may lie where nobody can look: then `all` is false, or its disk fails.
fn key_in_store(directories: &[PathBuf], all: bool) -> Result<Option<StoreKey>, StartError> {
    let paths: Vec<_> = directories.iter().map(|directory| directory.join(KEY_NAME)).collect();
    let mut there = None;
    for path in &paths {
        match path.symlink_metadata() {
            Ok(_) => {
                there = Some(path);
                break;
            }
            Err(error) if is_fault(&error) => return Ok(None),
            Err(_) => {}
        }
    }
    let Some(path) = there.or(paths.first().filter(|_| all)) else {
        return Ok(None);
    };
    match StoreKey::load_or_create(path) {
        Err(KeyError::Io { source, .. }) if is_fault(&source) => Ok(None),
        key => Ok(Some(key?)),
    }
}

/// Closes page logs in order, as far as their devices answer in time. What lies in `path` is then
/// found again at the next start, but for the last of it on a device that did not. Says whether all of
/// them did.
pub(crate) fn close(logs: impl IntoIterator<Item = (PathBuf, PageLog)>) -> bool {
    let (sender, closed) = crossbeam_channel::unbounded();
    let mut open = BTreeMap::new();
    let mut all_tried = true;
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
                all_tried = false;
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
    all_tried && open.is_empty()
}

#[cfg(test)]
mod tests;
