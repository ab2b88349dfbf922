//! Opening the SSD tier: directory, page log, what it recovered.

use crate::bell::Bell;
use crate::config::SsdConfig;
use crate::error::StartError;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
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
    Ok(LogConfig {
        path: directory.join(LOG_NAME),
        device: DeviceId(0),
        capacity_bytes: config.bytes,
        segment_bytes: config.segment_bytes,
        engine: config.engine,
        queue_depth: config.queue_depth,
        table_flush_ms: config.table_flush_ms,
    })
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
        })
        .collect();
    Ok(OpenedStore { log, records, free_segments })
}
