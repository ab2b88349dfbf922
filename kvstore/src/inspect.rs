//! A store looked at from outside, without a daemon: what `undercroft inspect` is made of.

use crate::store::{KEY_NAME, LOG_NAME};
use std::path::{Path, PathBuf};
pub use undercroft_ssd_tier::{
    Damage, DamagedRecord, InspectError, Inspector, KeptPurges, KeyError, RecordFacts,
    SegmentContents, SegmentFacts, SegmentState, StoreFacts, SuperblockCopy, Verification,
};

/// The page log that is meant by a path: the file itself, or the one in a store's directory.
#[must_use]
pub fn page_log(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(LOG_NAME) } else { path.to_owned() }
}

/// Where the key of a page log is unless the configuration says otherwise.
#[must_use]
pub fn key_beside(log: &Path) -> PathBuf {
    log.with_file_name(KEY_NAME)
}
