use super::{RUN_BYTES, SETTLE_PAUSE, SSD_BYTES, Tier};
use crate::BenchError;
use crate::limits::driver::Setup;
use crate::limits::rig::{Rig, Run};
use undercroft_wire::{SsdStatus, StatusReport};

/// What is put on SSD in one go where all of it must arrive there.
const PIECE_BYTES: u64 = 16 << 20;
/// What is read: most of what the SSD tier holds, and much more than DRAM.
const READ_BYTES: u64 = 14 * RUN_BYTES;

/// Writes once round the log, so that every extent written from then on was written before.
pub(super) fn go_round(tier: Tier, setup: &Setup<'_>, rig: &Rig) -> Result<(), BenchError> {
    while written(&*rig.status()?) < SSD_BYTES + SSD_BYTES / 8 {
        setup.interrupt.check()?;
        store(tier, rig)?;
    }
    Ok(())
}

/// Stores a run nobody has seen before.
pub(super) fn store(tier: Tier, rig: &Rig) -> Result<(), BenchError> {
    let pages = tier.pages(RUN_BYTES);
    rig.store(&rig.fresh(pages), 0..pages)
}

/// Puts runs on SSD in small pieces, no faster than the device takes them: a daemon gives pages
/// up that it cannot write in time, and these are to be there whole.
pub(super) fn fill(tier: Tier, setup: &Setup<'_>, rig: &Rig) -> Result<Vec<Run>, BenchError> {
    let pages = tier.pages(RUN_BYTES);
    let piece_pages = tier.pages(PIECE_BYTES);
    let pieces = || (0..pages).step_by(piece_pages).map(|at| at..at + piece_pages);
    let runs: Vec<Run> = (0..READ_BYTES / RUN_BYTES).map(|_| rig.fresh(pages)).collect();
    for run in &runs {
        for piece in pieces() {
            setup.interrupt.check()?;
            rig.store_piece(run, piece.clone(), piece)?;
            settle(rig)?;
        }
    }
    // The last ones are still in DRAM only, and go to SSD to make room for the first.
    for run in &runs {
        let held = rig.held(run);
        for piece in pieces().take_while(|piece| piece.end <= held) {
            setup.interrupt.check()?;
            rig.fetch(&run[piece])?;
            settle(rig)?;
        }
    }
    Ok(runs)
}

/// Bytes of pages written, without what reclaim wrote again.
pub(super) fn written(status: &StatusReport) -> u64 {
    status.ssd.as_ref().map_or(0, SsdStatus::demoted_bytes)
}

/// Waits until the daemon writes no more.
pub(super) fn settle(rig: &Rig) -> Result<Box<StatusReport>, BenchError> {
    let mut last = rig.status()?;
    loop {
        std::thread::sleep(SETTLE_PAUSE);
        let now = rig.status()?;
        if written(&now) == written(&last) {
            return Ok(now);
        }
        last = now;
    }
}
