//! Finding the records of the SSDs while the daemon serves already: a thread for each device reads
//! its tables, and what it finds reaches the control thread in small pieces.

use crate::bell::Bell;
use crate::device::Completed;
use crate::purge_book::PurgeBook;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Instant;
use undercroft_arena::Part;
use undercroft_core::RecoveredRecord;
use undercroft_ssd_tier::{self as ssd, PageLog, PreparedLog, Recovery};
use undercroft_wire::{DeviceId, PurgeId, PurgeScope};

/// Records handed over at once: a piece is taken in within a fraction of a millisecond.
pub(crate) const PIECE_RECORDS: usize = 256;
/// Words that may wait for the control thread.
pub(crate) const ROOM: usize = 16;

/// Waits for a page log to be open, for as long as its disk takes.
pub(crate) type Coming = Box<dyn FnOnce() -> Result<PreparedLog, ssd::OpenError> + Send>;

/// What such a thread has to say.
pub(crate) enum Found {
    /// The page log works, and this is what its tables came to, without the records.
    Opened { device: DeviceId, log: Box<PageLog>, recovery: Recovery, began: Instant },
    /// Purges that only this device knew of. Comes before any of its records.
    Purges(Vec<(PurgeScope, PurgeId)>),
    /// Some records, in the order they were appended.
    Records { device: DeviceId, records: Vec<RecoveredRecord>, free_segments: u32, last: bool },
    /// The device is lost, and this is why.
    Failed { device: DeviceId, reason: String },
}

/// Starts a thread that opens the page log. Nobody waits for it: its words are wanted as long as
/// the daemon runs. Of `memory` it keeps nothing alive meanwhile: a disk may hang for long.
pub(crate) fn start(
    device: DeviceId,
    log: Coming,
    memory: Vec<Weak<Part>>,
    book: Arc<PurgeBook>,
    (done, found): (Bell<Completed>, Bell<Found>),
) -> std::io::Result<()> {
    let body = move || {
        let recovered =
            catch_unwind(AssertUnwindSafe(|| recover(device, log, memory, &book, (done, &found))));
        let reason = match recovered {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            // The panic's own words are on standard error.
            Err(_) => "the search for its records broke off: this is a bug".to_owned(),
        };
        found.ring(Found::Failed { device, reason });
    };
    std::thread::Builder::new().name(format!("ucft-find-{device}")).spawn(body).map(drop)
}

fn recover(
    device: DeviceId,
    log: Coming,
    memory: Vec<Weak<Part>>,
    book: &PurgeBook,
    (done, found): (Bell<Completed>, &Bell<Found>),
) -> Result<(), ssd::OpenError> {
    let log = log()?;
    let own = log.purges().clone();
    found.ring(Found::Purges(book.take_in(device, &own)));
    let began = Instant::now();
    let sink = Box::new(move |completion| done.ring(Completed { device, completion }));
    let memory = memory.iter().filter_map(Weak::upgrade).collect();
    let (log, mut recovery) = log.start(memory, sink)?;
    book.seen(recovery.newest_purge);
    found.ring(Found::Purges(Vec::new()));
    if !book.is_newest(&own) {
        // Should the next start find nothing but this device, it must know what the others do.
        let path = book.directory(device).into();
        let failed = |source| ssd::OpenError::Io { what: "write the purges", path, source };
        book.save(device).result.map_err(failed)?;
    }
    let records = std::mem::take(&mut recovery.records);
    let free_segments = recovery.free_segments;
    found.ring(Found::Opened { device, log: Box::new(log), recovery, began });
    let mut left = records.len();
    for piece in records.chunks(PIECE_RECORDS) {
        left -= piece.len();
        let records = piece.iter().map(core_record).collect();
        found.ring(Found::Records { device, records, free_segments, last: left == 0 });
    }
    if records.is_empty() {
        found.ring(Found::Records { device, records: Vec::new(), free_segments, last: true });
    }
    Ok(())
}

fn core_record(record: &ssd::RecoveredRecord) -> RecoveredRecord {
    let ssd::RecoveredRecord { identity, origin, extent, payload_crc, sealed } = *record;
    RecoveredRecord { identity, origin, extent, payload_crc, sealed, purged: false }
}
