#![expect(unsafe_code, reason = "only the caller knows what lies at its buffers' addresses")]

use crate::batch::{Direction, Job, check_distinct};
use crate::{BlockId, Completion, Device, DeviceError, LoadJob, StoreJob, Transfer};
use std::time::Instant;
use undercroft_arena::{Memory, Span};
use undercroft_wire::{Geometry, frame_bytes};

/// Pages that each lie in buffers of their own, anywhere in this process: whole in one, or each
/// fragment in one. What caches in front of an engine hand over, which have gathered their pages
/// already. The calling thread copies, and a transfer is done when the call returns.
#[derive(Debug)]
pub struct Buffers {
    geometry: Geometry,
    /// Those of block 0 in the order of its page, then those of block 1, …
    buffers: Vec<Span>,
    /// Where in a page the bytes of each of a block's buffers begin.
    starts: Vec<usize>,
}

impl Buffers {
    /// Buffers of one page each, at these addresses: block `i` is buffer `i`. They can be loaded
    /// into if they are writable.
    ///
    /// # Errors
    /// No buffers, more than have a number, an address that no process has, or buffers that overlap
    /// where they can be written.
    ///
    /// # Safety
    /// At each address lie [`Geometry::page_bytes`] bytes of this process that can be read, and
    /// written if they are said to be writable, and outlive this device. Nothing else touches them
    /// during a call, beyond reading what is stored.
    pub unsafe fn new(
        geometry: Geometry,
        addresses: &[u64],
        are_writable: bool,
    ) -> Result<Self, DeviceError> {
        // SAFETY: the caller vouches for a page at each address.
        unsafe { Self::of(geometry, addresses, &[geometry.page_bytes()], are_writable) }
    }

    /// As [`Buffers::new`], but with a buffer for each fragment, those of a block one after another
    /// in the order they have in a page: layer 0 part 0, layer 0 part 1, layer 1 part 0, …
    ///
    /// # Errors
    /// As [`Buffers::new`], or a block with a buffer too many or too few.
    ///
    /// # Safety
    /// As [`Buffers::new`], but at each address lies a fragment.
    pub unsafe fn of_fragments(
        geometry: Geometry,
        addresses: &[u64],
        are_writable: bool,
    ) -> Result<Self, DeviceError> {
        let layers = geometry.layers() as usize;
        let fragments = geometry.part_bytes().repeat(layers);
        // SAFETY: the caller vouches for a fragment at each address.
        unsafe { Self::of(geometry, addresses, &fragments, are_writable) }
    }

    /// # Safety
    /// As [`Buffers::new`], but at each address lie as many bytes as `pieces` says, in turn.
    unsafe fn of(
        geometry: Geometry,
        addresses: &[u64],
        pieces: &[u32],
        are_writable: bool,
    ) -> Result<Self, DeviceError> {
        let blocks = addresses.len() / pieces.len();
        let is_whole = addresses.len().is_multiple_of(pieces.len());
        if blocks == 0 || !is_whole || u32::try_from(blocks).is_err() {
            let found = addresses.len() as u64;
            let allowed = "those of 1 to 4294967295 whole blocks";
            return Err(DeviceError::Option { what: "buffers", found, allowed });
        }
        let lent: Vec<(u64, u64)> =
            addresses.iter().copied().zip(pieces.iter().cycle().copied().map(u64::from)).collect();
        if are_writable {
            check_apart(&lent)?;
        }
        let span = |(address, bytes): &(u64, u64)| {
            // SAFETY: the caller vouches for as many bytes at each address while the device lives;
            // spans of them are gone when a call of it returns.
            let memory = unsafe { Memory::lent(*address, *bytes, are_writable)? };
            memory.span(0, memory.len())
        };
        let buffers = lent.iter().map(span).collect::<Result<_, _>>()?;
        let starts = pieces.iter().scan(0, |at, bytes| {
            let start = *at;
            *at += *bytes as usize;
            Some(start)
        });
        Ok(Self { geometry, buffers, starts: starts.collect() })
    }

    fn check(&self, direction: Direction, jobs: &[Job]) -> Result<(), DeviceError> {
        let page_bytes = self.geometry.page_bytes();
        let frame_bytes = frame_bytes(page_bytes);
        for job in jobs {
            let blocks = self.blocks();
            let found = job.block.0;
            if found >= blocks {
                return Err(DeviceError::Block { found, blocks });
            }
            let (_, buffer) = self.pieces(job.block).next().expect("a block has a buffer");
            let found = job.page.len();
            if !(page_bytes as usize..=frame_bytes as usize).contains(&found) {
                return Err(DeviceError::PageBytes { found, page_bytes, frame_bytes });
            }
            let target = if direction == Direction::Load { buffer } else { &job.page };
            if !target.is_writable() {
                return Err(DeviceError::ReadOnly { block: job.block.0 });
            }
        }
        if direction == Direction::Load { check_distinct(jobs) } else { Ok(()) }
    }

    /// Where in its page each of a block's buffers begins, and the buffer.
    fn pieces(&self, block: BlockId) -> impl Iterator<Item = (usize, &Span)> {
        let first = block.0 as usize * self.starts.len();
        self.starts.iter().copied().zip(&self.buffers[first..])
    }

    fn done(&self) -> Transfer {
        let layers = self.geometry.layers();
        Transfer::new(layers, Box::new(Done { layers }))
    }
}

impl Device for Buffers {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn blocks(&self) -> u32 {
        (self.buffers.len() / self.starts.len()) as u32
    }

    fn load(&self, jobs: Vec<LoadJob>) -> Result<Transfer, DeviceError> {
        let jobs: Vec<Job> = jobs.into_iter().map(Job::from).collect();
        self.check(Direction::Load, &jobs)?;
        for Job { page, block } in &jobs {
            for (at, buffer) in self.pieces(*block) {
                buffer.copy_at(0, page, at, buffer.len());
            }
        }
        Ok(self.done())
    }

    fn store(&self, jobs: Vec<StoreJob>) -> Result<Transfer, DeviceError> {
        let jobs: Vec<Job> = jobs.into_iter().map(Job::from).collect();
        self.check(Direction::Store, &jobs)?;
        for Job { page, block } in &jobs {
            for (at, buffer) in self.pieces(*block) {
                page.copy_at(at, buffer, 0, buffer.len());
            }
        }
        Ok(self.done())
    }
}

/// What two pages were loaded into would be one of them, or a mixture.
fn check_apart(lent: &[(u64, u64)]) -> Result<(), DeviceError> {
    let mut order = lent.to_vec();
    order.sort_unstable();
    match order.windows(2).find(|pair| pair[1].0 - pair[0].0 < pair[0].1) {
        None => Ok(()),
        Some(pair) => {
            let (what, allowed) = ("the distance of two writable buffers", "their size or more");
            Err(DeviceError::Option { what, found: pair[1].0 - pair[0].0, allowed })
        }
    }
}

/// A transfer that was over before anybody could wait for it.
struct Done {
    layers: u32,
}

impl Completion for Done {
    fn wait_layers(&self, _: u32, _: Option<Instant>) -> Result<bool, DeviceError> {
        Ok(true)
    }

    fn layers_done(&self) -> u32 {
        self.layers
    }
}
