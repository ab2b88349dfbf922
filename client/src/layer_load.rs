use crate::bell::from_now;
use crate::fetch::Fetch;
use crate::flights::{Batch, Flights, Order};
use crate::load::{Loaded, fits};
use crate::space::SpaceHandle;
use crate::{FetchFrom, MissReason};
use std::fmt;
use std::time::{Duration, Instant};
use undercroft_gpu_shim::{BlockId, Device, DeviceError};
use undercroft_wire::Stamp;

/// How many copies are under way at once. What is delivered meanwhile waits, and goes as one: the
/// more pages a copy has, the sooner their first layers are all there.
const COPIES_IN_FLIGHT: usize = 2;
/// While copies are under way, how long to wait for more pages before looking whether one of them
/// is over: the daemon may be waiting for the frames it lets go.
const LOOK_AGAIN: Duration = Duration::from_micros(250);

/// A load on which an engine can begin as soon as the first layers lie in their blocks. Nothing
/// goes on behind the caller's back: pages are taken in, and copies begun, in [`wait_layer`] and
/// [`finish`]. Until it is finished or dropped the blocks are its alone; dropping it waits for the
/// copies under way, and gives up what was not begun.
///
/// [`wait_layer`]: LayerLoad::wait_layer
/// [`finish`]: LayerLoad::finish
#[must_use = "a load that nobody waits for copies nothing"]
pub struct LayerLoad<'a> {
    flights: Flights<'a>,
    layers: u32,
    /// Delivered, and not handed to the device.
    waiting: Batch,
    /// What the device said when it failed.
    fault: Option<DeviceError>,
}

impl SpaceHandle {
    /// Fetches pages and scatters them into blocks of `device`, as [`SpaceHandle::fetch_into`]
    /// does, the first layers of all pages first: page `i` of the source into `blocks[i]`. Asks
    /// for the pages and returns. What the daemon has in DRAM is copied as one; what it reads
    /// from SSD comes whole pages at a time, so that the first layer of all is there when the last
    /// page has come. A run longer than its DRAM, or than a session may lease, goes on as early
    /// pages land. No copy is begun after the deadline.
    pub fn fetch_by_layer<'a>(
        &self,
        device: &'a dyn Device,
        source: FetchFrom<'_>,
        blocks: &'a [BlockId],
        stamp: Stamp,
        deadline: Duration,
    ) -> LayerLoad<'a> {
        let until = from_now(deadline);
        let fetch = if fits(self, device, &source, blocks) {
            self.fetch(source, stamp, deadline)
        } else {
            Fetch::of(Err(MissReason::Invalid), None, until)
        };
        LayerLoad {
            flights: Flights::of(fetch, self, device, blocks, until),
            layers: device.geometry().layers(),
            waiting: Batch::default(),
            fault: None,
        }
    }
}

impl LayerLoad<'_> {
    /// Waits until layer `layer` and all before it lie in their blocks, of every page that will
    /// come, and says of how many leading pages: of fewer than were asked for if the rest is a
    /// miss, and of a later layer possibly of fewer than of an earlier one.
    /// [`LayerLoad::finish`] says why.
    ///
    /// # Errors
    /// [`MissReason::Deadline`] if it takes longer than `deadline`: the load goes on, and may be
    /// waited for again. [`MissReason::Device`] if the device failed, [`MissReason::Invalid`] if
    /// there is no such layer.
    pub fn wait_layer(&mut self, layer: u32, deadline: Duration) -> Result<u32, MissReason> {
        if layer >= self.layers {
            return Err(MissReason::Invalid);
        }
        if self.fault.is_some() {
            return Err(MissReason::Device);
        }
        let by = from_now(deadline);
        let waited = match self.take_all(Some(by)) {
            Ok(true) => self.flights.wait_layer(layer, by),
            Ok(false) => Ok(None),
            Err(fault) => Err(fault),
        };
        match waited {
            Ok(pages) => pages.ok_or(MissReason::Deadline),
            Err(fault) => {
                self.fault = Some(fault);
                Err(MissReason::Device)
            }
        }
    }

    /// Waits until every page is in place, or the rest will not come: the end of
    /// [`SpaceHandle::fetch_into`].
    pub fn finish(mut self) -> Loaded {
        let mut fault = self.fault.take();
        if fault.is_none() {
            fault = self.take_all(None).err();
        }
        while fault.is_none() && self.flights.len() > 0 {
            fault = self.flights.land_one(None).err();
        }
        self.flights.loaded(fault)
    }

    /// Begins to copy all that will come. `false`: not all of it has come by then.
    fn take_all(&mut self, by: Option<Instant>) -> Result<bool, DeviceError> {
        loop {
            while let Some(run) = self.flights.fetch.try_ready() {
                self.waiting.add(run);
            }
            if self.flights.is_cut() {
                self.waiting = Batch::default();
                return Ok(true);
            }
            if !self.waiting.is_empty() {
                if self.flights.len() < COPIES_IN_FLIGHT {
                    let batch = std::mem::take(&mut self.waiting);
                    self.flights.start(batch, Order::ByLayer)?;
                } else if !self.flights.land_one(by)? {
                    return Ok(false);
                }
                continue;
            }
            if self.flights.fetch.is_over() {
                return Ok(true);
            }
            self.flights.land_done()?;
            if by.is_some_and(|by| Instant::now() >= by) {
                return Ok(false);
            }
            self.hear_more(by);
        }
    }

    /// Waits a while for pages.
    fn hear_more(&mut self, by: Option<Instant>) {
        let flying = self.flights.len() > 0;
        let look_again = flying.then(|| Instant::now() + LOOK_AGAIN);
        let run = match by.into_iter().chain(look_again).min() {
            Some(until) => self.flights.fetch.next_by(until),
            None => self.flights.fetch.next_ready(),
        };
        if let Some(run) = run {
            self.waiting.add(run);
        }
    }
}

impl fmt::Debug for LayerLoad<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LayerLoad({} copies under way)", self.flights.len())
    }
}
