use crate::proof::Proof;
use crate::space::SpaceHandle;
use crate::{Fetch, FetchReport, Loaded, MissReason, ReadyRun};
use std::collections::VecDeque;
use std::time::Instant;
use undercroft_gpu_shim::{BlockId, Device, DeviceError, LoadJob, Span, Transfer};

/// Which bytes of its pages a copy takes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// As suits the device.
    Any,
    /// The first layers of all pages.
    ByLayer,
}

/// Pages that follow one another and are handed to the device at once.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Index of the first one, counted from the start of the fetch.
    first: u32,
    pages: Vec<Span>,
    /// Each with how many pages it is of, in their order.
    proofs: Vec<(Proof, usize)>,
}

impl Batch {
    pub(crate) fn of(first: u32, pages: Vec<Span>, proof: Proof) -> Self {
        Self { first, proofs: vec![(proof, pages.len())], pages }
    }

    /// Takes the pages that follow in.
    pub(crate) fn add(&mut self, run: ReadyRun) {
        if self.is_empty() {
            self.first = run.first;
        }
        self.proofs.push((run.proof, run.pages.len()));
        self.pages.extend(run.pages);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
}

/// Copies into a device, of pages that a fetch delivers: begun in order, and landed in order.
pub(crate) struct Flights<'a> {
    device: &'a dyn Device,
    blocks: &'a [BlockId],
    page_bytes: usize,
    flying: VecDeque<Flight>,
    /// Leading pages that are in place.
    landed: u32,
    /// Pages from this one on are not what was delivered.
    believed: u32,
    /// No copy is begun after this.
    until: Instant,
    /// Why nothing more is to be copied, whatever is delivered.
    cut: Option<MissReason>,
    /// Stands behind the copies under way, so that it is dropped after them: nothing may be
    /// released while the device still reads it.
    pub(crate) fetch: Fetch,
}

/// Copies under way, of which pages, and how to tell that these are what was delivered.
struct Flight {
    transfer: Transfer,
    first: u32,
    upto: u32,
    proofs: Vec<(Proof, usize)>,
}

impl Flight {
    /// The page before which all are still what was delivered.
    fn intact_upto(&self) -> u32 {
        let mut upto = self.first;
        for (proof, pages) in &self.proofs {
            let intact = proof.intact(*pages);
            upto += intact as u32;
            if intact < *pages {
                break;
            }
        }
        upto
    }
}

impl<'a> Flights<'a> {
    pub(crate) fn of(
        fetch: Fetch,
        space: &SpaceHandle,
        device: &'a dyn Device,
        blocks: &'a [BlockId],
        until: Instant,
    ) -> Self {
        Self {
            device,
            blocks,
            page_bytes: space.state.page_bytes(),
            flying: VecDeque::new(),
            landed: 0,
            believed: u32::MAX,
            until,
            cut: None,
            fetch,
        }
    }

    pub(crate) fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// How many copies are under way.
    pub(crate) fn len(&self) -> usize {
        self.flying.len()
    }

    /// Whether nothing more is to be copied, whatever is delivered.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut.is_some()
    }

    /// Nothing more is to be copied if it is too late for that.
    pub(crate) fn look_at_clock(&mut self) {
        if self.cut.is_none() && Instant::now() >= self.until {
            self.cut = Some(MissReason::Deadline);
        }
    }

    /// Begins to copy pages, unless it is too late or there are no blocks for them.
    pub(crate) fn start(&mut self, batch: Batch, order: Order) -> Result<(), DeviceError> {
        self.look_at_clock();
        if self.is_cut() || batch.is_empty() {
            return Ok(());
        }
        let blocks = self.blocks.get(batch.first as usize..).unwrap_or_default();
        if batch.pages.len() > blocks.len() {
            self.cut = Some(MissReason::Invalid);
        }
        if blocks.is_empty() {
            return Ok(());
        }
        let pages = batch.pages.into_iter().zip(blocks);
        let jobs: Vec<LoadJob> =
            pages.map(|(page, block)| LoadJob { page, block: *block }).collect();
        let (first, upto) = (batch.first, batch.first + jobs.len() as u32);
        let transfer = match order {
            Order::Any => self.device.load(jobs)?,
            Order::ByLayer => self.device.load_by_layer(jobs)?,
        };
        self.flying.push_back(Flight { transfer, first, upto, proofs: batch.proofs });
        Ok(())
    }

    /// Waits for the oldest copy, at most until then, and releases its pages. Says whether a copy
    /// has landed.
    pub(crate) fn land_one(&mut self, by: Option<Instant>) -> Result<bool, DeviceError> {
        let Some(flight) = self.flying.front() else {
            return Ok(false);
        };
        let waited = match by {
            None => flight.transfer.wait(),
            Some(by) => flight.transfer.wait_deadline(by),
        };
        if let Err(DeviceError::Expired { .. }) = waited {
            return Ok(false);
        }
        let Some(flight) = self.flying.pop_front() else {
            return Ok(false);
        };
        waited?;
        self.landed = self.believe(flight.intact_upto(), flight.upto);
        // At the end all of it is released at once, and so it is where nothing more is believed.
        if self.landed == flight.upto && !self.fetch.is_over() {
            self.fetch.release_upto(flight.upto);
        }
        Ok(true)
    }

    /// Lands the copies that are over.
    pub(crate) fn land_done(&mut self) -> Result<(), DeviceError> {
        while self.flying.front().is_some_and(|flight| flight.transfer.is_done()) {
            self.land_one(None)?;
        }
        Ok(())
    }

    /// Waits until layer `layer` of everything that was begun is in place, at most until then.
    /// `None`: it is not. Else how many leading pages it is in place of.
    pub(crate) fn wait_layer(
        &mut self,
        layer: u32,
        by: Instant,
    ) -> Result<Option<u32>, DeviceError> {
        for index in 0..self.flying.len() {
            let flight = &self.flying[index];
            match flight.transfer.wait_layer(layer, Some(by)) {
                Err(DeviceError::Expired { .. }) => return Ok(None),
                waited => waited?,
            }
            let (intact, upto) = (flight.intact_upto(), flight.upto);
            if self.believe(intact, upto) < upto {
                break;
            }
        }
        let begun = self.flying.back().map_or(self.landed, |flight| flight.upto);
        Ok(Some(begun.min(self.believed)))
    }

    /// Pages before `intact` are what was delivered, `upto` is where the looking ended. Returns
    /// where believing ends.
    fn believe(&mut self, intact: u32, upto: u32) -> u32 {
        if intact < upto && intact < self.believed {
            if self.believed == u32::MAX {
                self.fetch.found_changed();
            }
            self.believed = intact;
            self.cut = Some(MissReason::Changed);
        }
        upto.min(self.believed)
    }

    /// What came of it all. No copy may be under way, but after a failure of the device.
    pub(crate) fn loaded(&self, fault: Option<DeviceError>) -> Loaded {
        let FetchReport { ssd_pages, why, .. } = self.fetch.report();
        let why = if fault.is_some() { Some(MissReason::Device) } else { self.cut.or(why) };
        let bytes = u64::from(self.landed) * self.page_bytes as u64;
        Loaded { pages: self.landed, ssd_pages, bytes, why, fault }
    }
}
