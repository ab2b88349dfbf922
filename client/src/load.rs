use crate::bell::from_now;
use crate::flights::{Batch, Flights, Order};
use crate::space::SpaceHandle;
use crate::{FetchFrom, MissReason, ReadyRun};
use std::time::Duration;
use undercroft_gpu_shim::{BlockId, Device, DeviceError, Span};
use undercroft_wire::{Stamp, Token};

/// Pages are handed to the device in pieces of about this many bytes, so that early ones are
/// released while later ones are copied.
const PIECE_BYTES: usize = 8 << 20;
/// How many pieces the device works on at once.
const PIECES_IN_FLIGHT: usize = 2;

/// What a load brought into the device.
#[derive(Debug, Default)]
#[must_use]
pub struct Loaded {
    /// Leading pages that lie in their blocks.
    pub pages: u32,
    /// Of what the daemon delivered, how many pages it read from SSD; 0 if it never said.
    pub ssd_pages: u32,
    /// Bytes copied into the device.
    pub bytes: u64,
    /// Why it was not more: `None` if all were loaded.
    pub why: Option<MissReason>,
    /// What the device said, where [`MissReason::Device`] is the reason.
    pub fault: Option<DeviceError>,
}

impl SpaceHandle {
    /// Fetches pages and scatters each into its block of `device` as soon as it is ready:
    /// page `i` of the source into `blocks[i]`. Returns when every page is in place, or when the
    /// rest will not come. No new copy is begun after the deadline, and those that were are waited
    /// for: until the call returns the blocks are its alone. No block may be named twice:
    /// [`MissReason::Invalid`].
    pub fn fetch_into(
        &self,
        device: &dyn Device,
        source: FetchFrom<'_>,
        blocks: &[BlockId],
        stamp: Stamp,
        deadline: Duration,
    ) -> Loaded {
        if !fits(self, device, &source, blocks) {
            return Loaded { why: Some(MissReason::Invalid), ..Loaded::default() };
        }
        let until = from_now(deadline);
        let fetch = self.fetch(source, stamp, deadline);
        load_in_pieces(Flights::of(fetch, self, device, blocks, until))
    }

    /// Takes over a lease that another session gave, as [`SpaceHandle::take_lease`] does, and
    /// scatters its page `i` into `blocks[i]` of `device`. The lease has ended when this returns.
    /// Of a lease of more pages than blocks the rest is [`MissReason::Invalid`], and of one of
    /// fewer [`MissReason::Absent`]: it had no more, or its giver's fetch had found no more.
    pub fn take_into(
        &self,
        device: &dyn Device,
        token: Token,
        blocks: &[BlockId],
        deadline: Duration,
    ) -> Loaded {
        if device.geometry() != self.space().geometry || is_named_twice(blocks) {
            return Loaded { why: Some(MissReason::Invalid), ..Loaded::default() };
        }
        let until = from_now(deadline);
        let fetch = self.take_lease(token, deadline);
        let loaded = load_in_pieces(Flights::of(fetch, self, device, blocks, until));
        // The end of a lease says that all of it was delivered, not that it was all of the blocks.
        let is_short = loaded.pages as usize != blocks.len();
        let why = loaded.why.or(is_short.then_some(MissReason::Absent));
        Loaded { why, ..loaded }
    }
}

/// Whether each page has a block of its own in a device of this space's pages.
pub(crate) fn fits(
    space: &SpaceHandle,
    device: &dyn Device,
    source: &FetchFrom<'_>,
    blocks: &[BlockId],
) -> bool {
    let fits = blocks.len() == source.pages() && device.geometry() == space.space().geometry;
    fits && !is_named_twice(blocks)
}

/// Whether two pages would go into the same block: what lies there in the end is one of them, and
/// the other one would have been reported as loaded.
fn is_named_twice(blocks: &[BlockId]) -> bool {
    let mut numbers: Vec<u32> = blocks.iter().map(|block| block.0).collect();
    // Engines name blocks in runs, which are sorted in one pass.
    numbers.sort_unstable();
    numbers.windows(2).any(|pair| pair[0] == pair[1])
}

fn load_in_pieces(mut flights: Flights<'_>) -> Loaded {
    let mut fault = start_pieces(&mut flights).err();
    while fault.is_none() && flights.len() > 0 {
        fault = flights.land_one(None).err();
    }
    flights.loaded(fault)
}

fn start_pieces(flights: &mut Flights<'_>) -> Result<(), DeviceError> {
    loop {
        let run = match flights.fetch.try_ready() {
            Some(run) => run,
            None if flights.fetch.is_over() => return Ok(()),
            // The daemon may be waiting for frames that the copies under way will free.
            None if flights.land_one(None)? => {
                if flights.is_cut() {
                    return Ok(());
                }
                continue;
            }
            None => match flights.fetch.next_ready() {
                Some(run) => run,
                None => return Ok(()),
            },
        };
        // What is delivered page by page may go on coming after the deadline.
        flights.look_at_clock();
        start_run(flights, run)?;
        if flights.is_cut() {
            return Ok(());
        }
    }
}

fn start_run(flights: &mut Flights<'_>, mut run: ReadyRun) -> Result<(), DeviceError> {
    let of_piece = (PIECE_BYTES / flights.page_bytes()).max(1);
    let mut at = run.first;
    let mut pages = run.pages.into_iter();
    while pages.len() > 0 && !flights.is_cut() {
        while flights.len() >= PIECES_IN_FLIGHT {
            flights.land_one(None)?;
        }
        let piece: Vec<Span> = pages.by_ref().take(of_piece).collect();
        let proof = run.proof.split_to(piece.len());
        let first = at;
        at += piece.len() as u32;
        flights.start(Batch::of(first, piece, proof), Order::Any)?;
    }
    Ok(())
}
