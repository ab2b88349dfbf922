use crate::bell::from_now;
use crate::proof::Proof;
use crate::space::SpaceHandle;
use crate::{Fetch, FetchFrom, FetchReport, MissReason, ReadyRun};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use undercroft_gpu_shim::{BlockId, Device, DeviceError, LoadJob, Transfer};
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
        let fits = blocks.len() == source.pages() && device.geometry() == self.space().geometry;
        if !fits || is_named_twice(blocks) {
            return Loaded { why: Some(MissReason::Invalid), ..Loaded::default() };
        }
        let until = from_now(deadline);
        Loading::of(self.fetch(source, stamp, deadline), self, device, blocks, until).run()
    }

    /// Takes over a lease that another session gave, as [`SpaceHandle::take_lease`] does, and
    /// scatters its page `i` into `blocks[i]` of `device`. The lease has ended when this returns.
    /// Of a lease of more pages than blocks the rest is [`MissReason::Invalid`].
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
        Loading::of(self.take_lease(token, deadline), self, device, blocks, until).run()
    }
}

/// Whether two pages would go into the same block: what lies there in the end is one of them, and
/// the other one would have been reported as loaded.
fn is_named_twice(blocks: &[BlockId]) -> bool {
    let mut numbers: Vec<u32> = blocks.iter().map(|block| block.0).collect();
    // Engines name blocks in runs, which are sorted in one pass.
    numbers.sort_unstable();
    numbers.windows(2).any(|pair| pair[0] == pair[1])
}

/// Copies under way, how many, and the page after the last one.
struct Flight {
    transfer: Transfer,
    pages: usize,
    upto: u32,
    proof: Proof,
}

struct Loading<'a> {
    device: &'a dyn Device,
    blocks: &'a [BlockId],
    page_bytes: usize,
    /// Pages of one piece.
    piece: usize,
    flying: VecDeque<Flight>,
    /// Pages that are in place.
    landed: u32,
    until: Instant,
    /// The deadline came before all that was delivered could be copied.
    late: bool,
    /// A page was no longer what was delivered when it had been copied.
    changed: bool,
    /// There are more pages than blocks.
    surplus: bool,
    /// Stands behind the copies under way, so that it is dropped after them: nothing may be
    /// released while the device still reads it.
    fetch: Fetch,
}

impl<'a> Loading<'a> {
    fn of(
        fetch: Fetch,
        space: &SpaceHandle,
        device: &'a dyn Device,
        blocks: &'a [BlockId],
        until: Instant,
    ) -> Self {
        let page_bytes = space.state.page_bytes();
        Self {
            device,
            blocks,
            page_bytes,
            piece: (PIECE_BYTES / page_bytes).max(1),
            flying: VecDeque::new(),
            landed: 0,
            until,
            late: false,
            changed: false,
            surplus: false,
            fetch,
        }
    }

    fn run(mut self) -> Loaded {
        let mut fault = self.load().err();
        while fault.is_none() && !self.flying.is_empty() {
            fault = self.land_one().err();
        }
        let FetchReport { ssd_pages, why, .. } = self.fetch.report();
        let why = match &fault {
            Some(_) => Some(MissReason::Device),
            None if self.changed => Some(MissReason::Changed),
            None if self.late => Some(MissReason::Deadline),
            None if self.surplus => Some(MissReason::Invalid),
            None => why,
        };
        let bytes = u64::from(self.landed) * self.page_bytes as u64;
        Loaded { pages: self.landed, ssd_pages, bytes, why, fault }
    }

    fn load(&mut self) -> Result<(), DeviceError> {
        loop {
            let run = match self.fetch.try_ready() {
                Some(run) => run,
                None if self.fetch.is_over() => return Ok(()),
                // The daemon may be waiting for frames that the copies under way will free.
                None if self.land_one()? => {
                    if self.changed {
                        return Ok(());
                    }
                    continue;
                }
                None => match self.fetch.next_ready() {
                    Some(run) => run,
                    None => return Ok(()),
                },
            };
            // What is delivered page by page may go on coming after the deadline.
            self.late |= Instant::now() >= self.until;
            if !self.is_cut() {
                self.launch(run)?;
            }
            if self.is_cut() {
                return Ok(());
            }
        }
    }

    /// Whether nothing more is to be copied, whatever is delivered.
    fn is_cut(&self) -> bool {
        self.late || self.changed || self.surplus
    }

    fn launch(&mut self, mut run: ReadyRun) -> Result<(), DeviceError> {
        let mut at = run.first as usize;
        let mut pages = run.pages.into_iter().peekable();
        while pages.peek().is_some() {
            while self.flying.len() >= PIECES_IN_FLIGHT {
                self.land_one()?;
            }
            if Instant::now() >= self.until {
                self.late = true;
            }
            self.surplus = at >= self.blocks.len();
            if self.is_cut() {
                return Ok(());
            }
            let blocks = &self.blocks[at..];
            let jobs: Vec<LoadJob> = pages
                .by_ref()
                .take(self.piece)
                .zip(blocks)
                .map(|(page, block)| LoadJob { page, block: *block })
                .collect();
            let count = jobs.len();
            at += count;
            let transfer = self.device.load(jobs)?;
            let proof = run.proof.split_to(count);
            self.flying.push_back(Flight { transfer, pages: count, upto: at as u32, proof });
        }
        Ok(())
    }

    /// Waits for the oldest copy and releases its pages. Says whether there was one.
    fn land_one(&mut self) -> Result<bool, DeviceError> {
        let Some(Flight { transfer, pages, upto, proof }) = self.flying.pop_front() else {
            return Ok(false);
        };
        transfer.wait()?;
        if self.changed {
            return Ok(true);
        }
        let intact = proof.intact(pages);
        self.landed = upto - (pages - intact) as u32;
        if intact < pages {
            self.changed = true;
            self.fetch.found_changed();
            return Ok(true);
        }
        // At the end all of it is released at once.
        if !self.fetch.is_over() {
            self.fetch.release_upto(upto);
        }
        Ok(true)
    }
}
