use super::budget::{Budget, Pace};
use super::context::Context;
use super::copies::Copies;
use super::driver::Attribute;
use super::feeder::Feeder;
use super::flight::{Flight, Landing};
use super::kernel::Kernel;
use super::measure::{self, Measured, Modes};
use super::memory::{self, DeviceMemory};
use super::mode::CopyMode;
use super::pins::Pins;
use super::plan::{Group, Plan};
use super::start::{After, CudaStart};
use super::stream::{EngineStream, Event, Events, Stream};
use super::{CudaError, pointer};
use crate::batch::{Direction, Job, check_jobs};
use crate::{BlockId, Device, DeviceError, KvLayout, LoadJob, Run, StoreJob, Transfer};
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use undercroft_arena::Span;
use undercroft_wire::Geometry;

/// Calls that whoever starts a transfer makes itself: some tenths of a millisecond.
const MOST_CALLS: usize = 256;
/// Transfers that may be under way at once.
const MOST_IN_FLIGHT: usize = 1024;
/// Multiprocessors for the kernel unless something else is said: enough for a PCIe 5 link, of 132
/// that an H100 has.
const KERNEL_BLOCKS: u32 = 16;

/// How a [`CudaDevice`] copies.
#[derive(Debug, Clone, Copy, Default)]
pub struct CudaOptions {
    /// By what pages are loaded; `None`: what is found fastest when the device is made.
    pub load: Option<CopyMode>,
    /// By what pages are stored; `None`: as for loads.
    pub store: Option<CopyMode>,
    /// The most multiprocessors the kernel may use; `None`: 16, or an eighth of all if that is less.
    pub kernel_blocks: Option<u32>,
    /// A bound on what is copied while the engine computes.
    pub pace: Option<Pace>,
    /// Load on this stream of the engine's instead of one of our own.
    pub load_stream: Option<EngineStream>,
    /// Store on this stream of the engine's instead of one of our own.
    pub store_stream: Option<EngineStream>,
}

/// A GPU's memory, through its driver.
///
/// Copies run on streams of the device's own, ordered after the engine's work where the engine says
/// so ([`CudaDevice::after`]). What a copy touches is kept until it is over. An error that takes the
/// context along fails every transfer from then on, and nothing else.
#[derive(Debug)]
pub struct CudaDevice {
    shared: Arc<Shared>,
    load_feeder: Feeder,
    store_feeder: Feeder,
    modes: Modes,
    measured: Vec<Measured>,
}

/// What transfers keep until they are over. The fields go in this order, the context last.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) pins: Pins,
    load: Lane,
    store: Lane,
    /// Carries the engine's events over to ours.
    pub(super) relay: Stream,
    pub(super) copies: Copies,
    pub(super) events: Arc<Events>,
    pub(super) budget: Option<Budget>,
    pub(super) in_flight: AtomicUsize,
    pub(super) layout: KvLayout,
    plan: Plan,
    _memory: Option<DeviceMemory>,
    pub(super) context: Arc<Context>,
}

/// One direction's stream.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) stream: Stream,
    order: Mutex<()>,
}

impl Lane {
    fn new(context: &Arc<Context>, engines: Option<EngineStream>) -> Result<Self, CudaError> {
        Ok(Self { stream: Stream::new(context, engines)?, order: Mutex::default() })
    }

    /// One transfer after another is put on the stream, so that a later one does not delay an
    /// earlier one's layers.
    pub(super) fn lock(&self) -> MutexGuard<'_, ()> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn new(
        context: Arc<Context>,
        layout: KvLayout,
        memory: Option<DeviceMemory>,
        options: CudaOptions,
    ) -> Result<Self, DeviceError> {
        let plan = Plan::of(&layout);
        let there = u32::try_from(context.attribute(Attribute::MultiprocessorCount)?).unwrap_or(1);
        let blocks = match options.kernel_blocks {
            Some(blocks) => blocks.clamp(1, there),
            None => KERNEL_BLOCKS.min(there / 8).max(1),
        };
        let budget = options.pace.map(Budget::new).transpose()?;
        let relay = Stream::new(&context, None)?;
        let kernel = Kernel::new(&context, &plan, blocks, &relay);
        Ok(Self {
            pins: Pins::new(Arc::clone(&context)).map_err(DeviceError::Thread)?,
            load: Lane::new(&context, options.load_stream)?,
            store: Lane::new(&context, options.store_stream)?,
            relay,
            copies: Copies::new(&context, kernel)?,
            events: Events::new(Arc::clone(&context)),
            budget,
            in_flight: AtomicUsize::new(0),
            layout,
            plan,
            _memory: memory,
            context,
        })
    }

    pub(super) fn lane(&self, direction: Direction) -> &Lane {
        match direction {
            Direction::Load => &self.load,
            Direction::Store => &self.store,
        }
    }

    /// Into what groups of layers a transfer is cut.
    pub(super) fn groups(&self, mode: CopyMode, by_layer: bool) -> &[Group] {
        match (by_layer, mode) {
            (false, _) => &self.plan.whole,
            (true, CopyMode::Pitched) => &self.plan.growing,
            (true, CopyMode::Batched | CopyMode::Kernel) => &self.plan.single,
        }
    }

    /// Waits for all that is on the streams now. Whatever comes later sees what was changed before.
    /// `false`: it could not be found out whether it is over.
    pub(super) fn drain(&self) -> bool {
        [&self.load, &self.store].into_iter().all(|lane| {
            drop(lane.lock());
            lane.stream.settle(&self.events)
        })
    }

    /// A transfer of checked jobs, to be put on its stream.
    pub(super) fn fly(
        self: &Arc<Self>,
        direction: Direction,
        jobs: Vec<Job>,
        start: CudaStart,
    ) -> Result<Arc<Flight>, DeviceError> {
        self.context.alive()?;
        if self.in_flight.load(Ordering::Relaxed) >= MOST_IN_FLIGHT {
            return Err(DeviceError::Busy { limit: MOST_IN_FLIGHT });
        }
        Ok(Arc::new(Flight::new(Arc::clone(self), direction, jobs, start)))
    }
}

impl CudaDevice {
    /// A device over the engine's own KV cache, in the context that is current in this thread. By
    /// what it copies is measured now, unless `options` say it: some blocks are read and written
    /// back as they were.
    ///
    /// # Errors
    /// No driver, no context, tensors that are not memory of its device, a mode that is not there, a
    /// call that failed.
    ///
    /// # Safety
    /// The layout's addresses are device memory of the current context. It, the context and the
    /// streams in `options` outlive the device and all its transfers. Nothing else touches the
    /// blocks during this call, nor those of a transfer while it is under way.
    pub unsafe fn attach(layout: KvLayout, options: CudaOptions) -> Result<Self, DeviceError> {
        let context = Context::current()?;
        for tensor in layout.tensors() {
            pointer::check(&context, tensor)?;
        }
        Self::build(context, layout, None, options)
    }

    /// A device with memory of its own, for benchmarks and tests: `blocks` blocks on `cuda:ordinal`.
    ///
    /// # Errors
    /// No driver, no such device, too little memory, a mode that is not there, a call that failed.
    pub fn allocate(
        ordinal: u32,
        geometry: Geometry,
        blocks: u32,
        options: CudaOptions,
    ) -> Result<Self, DeviceError> {
        Self::allocate_layout(ordinal, &KvLayout::packed(geometry, blocks)?, options)
    }

    /// As [`CudaDevice::allocate`], laid out like an engine's; the layout's addresses are offsets
    /// into memory that ends where the layout does.
    ///
    /// # Errors
    /// As [`CudaDevice::allocate`].
    pub fn allocate_layout(
        ordinal: u32,
        layout: &KvLayout,
        options: CudaOptions,
    ) -> Result<Self, DeviceError> {
        let context = Context::primary(ordinal)?;
        let memory = DeviceMemory::new(&context, layout.end())?;
        let layout = layout.moved(memory.at).ok_or_else(|| DeviceError::Lost {
            reason: format!("it allocated memory at {:#x}, beyond the last address", memory.at),
        })?;
        Self::build(context, layout, Some(memory), options)
    }

    fn build(
        context: Arc<Context>,
        layout: KvLayout,
        memory: Option<DeviceMemory>,
        options: CudaOptions,
    ) -> Result<Self, DeviceError> {
        let shared = Arc::new(Shared::new(context, layout, memory, options)?);
        shared.pins.serve(&shared);
        let wished = [options.load, options.store].into_iter().flatten();
        for mode in wished {
            shared.copies.check(mode)?;
        }
        let (modes, measured) = measure::choose(&shared, options.load, options.store)?;
        let feeder = |name| Feeder::start(&shared.context, name).map_err(DeviceError::Thread);
        let (load_feeder, store_feeder) = (feeder("undercroft-load")?, feeder("undercroft-store")?);
        Ok(Self { shared, load_feeder, store_feeder, modes, measured })
    }

    /// The device's name, as the driver says it.
    ///
    /// # Errors
    /// The call failed.
    pub fn name(&self) -> Result<String, CudaError> {
        self.shared.context.driver.device_name(self.shared.context.device)
    }

    /// Where its blocks lie.
    #[must_use]
    pub fn layout(&self) -> &KvLayout {
        &self.shared.layout
    }

    /// By what it copies.
    #[must_use]
    pub fn modes(&self) -> Modes {
        self.modes
    }

    /// What was measured to choose by, if anything was.
    #[must_use]
    pub fn measured(&self) -> &[Measured] {
        &self.measured
    }

    /// Host memory as this device knows it: what is registered here is copied without the
    /// processor.
    #[must_use]
    pub fn pins(&self) -> &Pins {
        &self.shared.pins
    }

    /// Registers memory now, for as long as what is returned lives.
    ///
    /// # Errors
    /// The driver refused.
    pub fn register(&self, span: &Span) -> Result<Registered, CudaError> {
        Registered::new(&self.shared, span)
    }

    /// Whether memory that this process may only read, as a client's view of the arena, can be
    /// registered. Where not, a client is better off in copy mode: its pages come through staging.
    ///
    /// # Errors
    /// The driver could not be asked.
    pub fn can_pin_read_only(&self) -> Result<bool, CudaError> {
        Ok(self.shared.context.attribute(Attribute::ReadOnlyHostRegister)? != 0)
    }

    /// The engine begins a step: as many bytes as the pace allows may be copied in it.
    pub fn begin_step(&self) {
        if let Some(budget) = &self.shared.budget {
            budget.begin_step();
        }
    }

    /// The device for transfers that must wait for something of the engine's first: a store for
    /// the kernel that computes the blocks, a load for whoever still reads them.
    ///
    /// What is waited for is what is on the engine's stream, or what its event stands for, now.
    ///
    /// # Errors
    /// The engine captures a graph on that stream, or a call failed.
    pub fn after(&self, after: After) -> Result<CudaDeviceAfter<&Self>, CudaError> {
        Ok(CudaDeviceAfter { device: self, after: after.note(&self.shared)? })
    }

    /// As [`CudaDevice::after`], for transfers that are begun elsewhere.
    ///
    /// # Errors
    /// As [`CudaDevice::after`].
    pub fn after_shared(
        self: &Arc<Self>,
        after: After,
    ) -> Result<CudaDeviceAfter<Arc<Self>>, CudaError> {
        Ok(CudaDeviceAfter { device: Arc::clone(self), after: after.note(&self.shared)? })
    }

    fn plain(&self) -> CudaDeviceAfter<&Self> {
        CudaDeviceAfter { device: self, after: None }
    }

    /// Reads a block, as a page. Waits for it.
    ///
    /// # Errors
    /// A block that is not there, a page of another length, a call that failed.
    pub fn read_block(&self, block: BlockId, page: &mut [u8]) -> Result<(), DeviceError> {
        let Shared { context, store: Lane { stream, .. }, .. } = &*self.shared;
        self.check_image(block, page.len())?;
        let _entered = context.enter()?;
        let read = self.runs(block).try_for_each(|Run { at, in_page, bytes, .. }| {
            // SAFETY: the run is of the layout, whose addresses are memory of this context; the
            // stream is waited for below.
            unsafe { memory::read(context, stream, at, &mut page[in_page..in_page + bytes]) }
        });
        Ok(stream.synchronize().and(read)?)
    }

    /// Writes a page into a block. Waits for it. No transfer may touch the block meanwhile.
    ///
    /// # Errors
    /// A block that is not there, a page of another length, a call that failed.
    pub fn write_block(&self, block: BlockId, page: &[u8]) -> Result<(), DeviceError> {
        let Shared { context, load: Lane { stream, .. }, .. } = &*self.shared;
        self.check_image(block, page.len())?;
        let _entered = context.enter()?;
        let written = self.runs(block).try_for_each(|Run { at, in_page, bytes, .. }| {
            // SAFETY: as above.
            unsafe { memory::write(context, stream, at, &page[in_page..in_page + bytes]) }
        });
        Ok(stream.synchronize().and(written)?)
    }

    fn runs(&self, block: BlockId) -> impl Iterator<Item = Run> + '_ {
        self.shared.layout.runs(block, 0..self.geometry().layers())
    }

    fn check_image(&self, block: BlockId, found: usize) -> Result<(), DeviceError> {
        let page_bytes = self.geometry().page_bytes();
        if !self.shared.layout.has_block(block) {
            return Err(DeviceError::Block { found: block.0, blocks: self.blocks() });
        }
        if found != page_bytes as usize {
            return Err(DeviceError::PageBytes { found, page_bytes, frame_bytes: page_bytes });
        }
        Ok(())
    }

    fn start(
        &self,
        direction: Direction,
        jobs: Vec<Job>,
        by_layer: bool,
        after: Option<Arc<Event>>,
    ) -> Result<Transfer, DeviceError> {
        check_jobs(&self.shared.layout, direction, &jobs)?;
        let mode = match (direction, by_layer) {
            (Direction::Load, false) => self.modes.load,
            (Direction::Load, true) => self.modes.load_by_layer,
            (Direction::Store, _) => self.modes.store,
        };
        let start = CudaStart { mode, by_layer, after, paced: true };
        let flight = self.shared.fly(direction, jobs, start)?;
        let feeder = match direction {
            Direction::Load => &self.load_feeder,
            Direction::Store => &self.store_feeder,
        };
        let takes_time = self.shared.budget.is_some() || flight.calls() > MOST_CALLS;
        if takes_time || feeder.is_busy() {
            feeder.submit(&flight)?;
        } else {
            flight.put()?;
        }
        Ok(Transfer::new(self.geometry().layers(), Box::new(Landing(flight))))
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        if let Some(budget) = &self.shared.budget {
            budget.lift();
        }
        // Whoever else has the pins registers nothing with a context that may go after the device.
        self.shared.pins.close();
    }
}

/// Memory that is registered with a device while this lives. Dropping it waits for the copies
/// under way.
#[derive(Debug)]
pub struct Registered {
    shared: Arc<Shared>,
    span: Span,
}

impl Registered {
    pub(super) fn new(shared: &Arc<Shared>, span: &Span) -> Result<Self, CudaError> {
        shared.pins.register(span)?;
        Ok(Self { shared: Arc::clone(shared), span: span.clone() })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let shared = &*self.shared;
        shared.pins.unlist(&self.span);
    }
}

/// A [`CudaDevice`] whose transfers wait for something of the engine's: [`CudaDevice::after`].
#[derive(Debug, Clone)]
pub struct CudaDeviceAfter<D> {
    device: D,
    after: Option<Arc<Event>>,
}

impl<D: Deref<Target = CudaDevice> + Send + Sync> Device for CudaDeviceAfter<D> {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn blocks(&self) -> u32 {
        self.device.blocks()
    }

    fn load(&self, jobs: Vec<LoadJob>) -> Result<Transfer, DeviceError> {
        self.device.start(
            Direction::Load,
            jobs.into_iter().map(Job::from).collect(),
            false,
            self.after.clone(),
        )
    }

    fn load_by_layer(&self, jobs: Vec<LoadJob>) -> Result<Transfer, DeviceError> {
        self.device.start(
            Direction::Load,
            jobs.into_iter().map(Job::from).collect(),
            true,
            self.after.clone(),
        )
    }

    fn store(&self, jobs: Vec<StoreJob>) -> Result<Transfer, DeviceError> {
        self.device.start(
            Direction::Store,
            jobs.into_iter().map(Job::from).collect(),
            false,
            self.after.clone(),
        )
    }
}

impl Device for CudaDevice {
    fn geometry(&self) -> Geometry {
        self.shared.layout.geometry()
    }

    fn blocks(&self) -> u32 {
        self.shared.layout.blocks()
    }

    fn load(&self, jobs: Vec<LoadJob>) -> Result<Transfer, DeviceError> {
        self.plain().load(jobs)
    }

    fn load_by_layer(&self, jobs: Vec<LoadJob>) -> Result<Transfer, DeviceError> {
        self.plain().load_by_layer(jobs)
    }

    fn store(&self, jobs: Vec<StoreJob>) -> Result<Transfer, DeviceError> {
        self.plain().store(jobs)
    }
}
