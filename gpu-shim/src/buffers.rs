#![expect(unsafe_code, reason = "only the caller knows what lies at its buffers' addresses")]

use crate::batch::{Direction, Job, check_distinct};
use crate::{BlockId, Completion, Device, DeviceError, LoadJob, StoreJob, Transfer};
use std::time::Instant;
use undercroft_arena::{Memory, Span};
use undercroft_wire::{Geometry, frame_bytes};

/// Pages that each lie whole in a buffer of their own, anywhere in this process: block `i` is
/// buffer `i`. What caches in front of an engine hand over, which have gathered their pages
/// already. The calling thread copies, and a transfer is done when the call returns.
#[derive(Debug)]
pub struct Buffers {
    geometry: Geometry,
    buffers: Vec<Span>,
}

impl Buffers {
    /// Buffers of one page each, at these addresses. They can be loaded into if they are writable.
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
        if addresses.is_empty() || u32::try_from(addresses.len()).is_err() {
            let found = addresses.len() as u64;
            return Err(DeviceError::Option { what: "buffers", found, allowed: "1 to 4294967295" });
        }
        let span = |address: &u64| {
            let bytes = u64::from(geometry.page_bytes());
            // SAFETY: the caller vouches for as many bytes at each address while the device lives;
            // spans of them are gone when a call of it returns.
            let memory = unsafe { Memory::lent(*address, bytes, are_writable)? };
            memory.span(0, memory.len())
        };
        if are_writable {
            check_apart(addresses, u64::from(geometry.page_bytes()))?;
        }
        let buffers = addresses.iter().map(span).collect::<Result<_, _>>()?;
        Ok(Self { geometry, buffers })
    }

    fn check(&self, direction: Direction, jobs: &[Job]) -> Result<(), DeviceError> {
        let page_bytes = self.geometry.page_bytes();
        let frame_bytes = frame_bytes(page_bytes);
        for job in jobs {
            let blocks = self.blocks();
            let found = job.block.0;
            let buffer =
                self.buffers.get(found as usize).ok_or(DeviceError::Block { found, blocks })?;
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

    fn buffer(&self, block: BlockId) -> &Span {
        &self.buffers[block.0 as usize]
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
        self.buffers.len() as u32
    }

    fn load(&self, jobs: Vec<LoadJob>) -> Result<Transfer, DeviceError> {
        let jobs: Vec<Job> = jobs.into_iter().map(Job::from).collect();
        self.check(Direction::Load, &jobs)?;
        for Job { page, block } in &jobs {
            let buffer = self.buffer(*block);
            buffer.copy_at(0, page, 0, buffer.len());
        }
        Ok(self.done())
    }

    fn store(&self, jobs: Vec<StoreJob>) -> Result<Transfer, DeviceError> {
        let jobs: Vec<Job> = jobs.into_iter().map(Job::from).collect();
        self.check(Direction::Store, &jobs)?;
        for Job { page, block } in &jobs {
            let buffer = self.buffer(*block);
            page.copy_at(0, buffer, 0, buffer.len());
        }
        Ok(self.done())
    }
}

/// What two pages were loaded into would be one of them, or a mixture.
fn check_apart(addresses: &[u64], page_bytes: u64) -> Result<(), DeviceError> {
    let mut order = addresses.to_vec();
    order.sort_unstable();
    match order.windows(2).find(|pair| pair[1] - pair[0] < page_bytes) {
        None => Ok(()),
        Some(pair) => {
            let what = "the distance of two writable buffers";
            let allowed = "a page or more";
            Err(DeviceError::Option { what, found: pair[1] - pair[0], allowed })
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
