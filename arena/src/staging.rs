use crate::mapping::Mapping;
use crate::memory::usable_bytes;
use crate::prefault::{Fault, prefault};
use crate::region::{Access, MappingId, Region};
use crate::{ArenaError, Span, memfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use undercroft_wire::SlotId;

/// A client waits for its staging area: huge pages are worth that much of its time.
const HUGE_PATIENCE: Duration = Duration::from_millis(20);

/// A session's staging area, as the daemon sees it: slots that the client writes to and that are
/// only ever copied. Never reserved huge pages: a hole punched by the client would give one back
/// to the pool, and the daemon would die of SIGBUS where somebody else takes it.
#[derive(Debug)]
pub struct Staging {
    fd: OwnedFd,
    slots: Slots,
}

/// A session's staging area, as its client sees it.
#[derive(Debug, Clone)]
pub struct StagingView {
    slots: Slots,
}

#[derive(Debug, Clone)]
struct Slots {
    region: Arc<Region>,
    count: u32,
    slot_bytes: u32,
}

impl Slots {
    fn slot(&self, slot: SlotId) -> Result<Span, ArenaError> {
        if slot.0 >= self.count {
            return Err(ArenaError::Slot { slot: slot.0, slots: self.count });
        }
        let offset = u64::from(slot.0) * u64::from(self.slot_bytes);
        self.region.span(offset, self.slot_bytes as usize)
    }
}

fn area_bytes(slots: u32, slot_bytes: u32) -> Result<usize, ArenaError> {
    if slot_bytes == 0 || !slot_bytes.is_multiple_of(undercroft_wire::FRAME_ALIGN) {
        let found = u64::from(slot_bytes);
        return Err(ArenaError::Size { what: "slot", found, allowed: "multiples of 4096 bytes" });
    }
    usable_bytes("staging area", u64::from(slots) * u64::from(slot_bytes))
}

impl Staging {
    /// Makes a staging area of `slots` slots of `slot_bytes` bytes each and faults it in, so that
    /// the daemon, not its client, pays for it.
    ///
    /// # Errors
    /// No slots, slots that are not multiples of 4 KiB, or more than the machine gives.
    pub fn create(slots: u32, slot_bytes: u32) -> Result<Self, ArenaError> {
        let bytes = area_bytes(slots, slot_bytes)?;
        let fd = memfd::create(bytes as u64, false)?;
        let mapping = Mapping::shared(fd.as_fd(), bytes, true)
            .map_err(ArenaError::system("map a staging area", bytes as u64))?;
        let _dumped = mapping.keep_out_of_dumps();
        prefault(&mapping, Fault::CollapseWithin(HUGE_PATIENCE), 1)
            .map_err(ArenaError::system("fault a staging area in", bytes as u64))?;
        let region = Region { mapping, bytes, access: Access::Foreign, part: None };
        let slots = Slots { region: Arc::new(region), count: slots, slot_bytes };
        Ok(Self { fd, slots })
    }

    /// The descriptor to send to the session: readable and writable.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Number of slots.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots.count
    }

    /// Bytes of one slot.
    #[must_use]
    pub fn slot_bytes(&self) -> u32 {
        self.slots.slot_bytes
    }

    /// A slot's bytes, to be copied out of or into.
    ///
    /// # Errors
    /// A slot that is not there.
    pub fn slot(&self, slot: SlotId) -> Result<Span, ArenaError> {
        self.slots.slot(slot)
    }
}

impl StagingView {
    /// Maps the staging area that was received as `fd`. The descriptor is not needed afterwards.
    ///
    /// # Errors
    /// A descriptor of another size, or one without the seals that keep the mapping from faulting.
    pub fn map(fd: impl AsFd, slots: u32, slot_bytes: u32) -> Result<Self, ArenaError> {
        let bytes = area_bytes(slots, slot_bytes)?;
        memfd::check(&fd, bytes as u64)?;
        let mapping = Mapping::shared(fd.as_fd(), bytes, true)
            .map_err(ArenaError::system("map a staging area", bytes as u64))?;
        let _dumped = mapping.keep_out_of_dumps();
        let region = Region { mapping, bytes, access: Access::ReadWrite, part: None };
        let slots = Slots { region: Arc::new(region), count: slots, slot_bytes };
        Ok(Self { slots })
    }

    /// Number of slots.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots.count
    }

    /// Bytes of one slot.
    #[must_use]
    pub fn slot_bytes(&self) -> u32 {
        self.slots.slot_bytes
    }

    /// A slot's bytes.
    ///
    /// # Errors
    /// A slot that is not there.
    pub fn slot(&self, slot: SlotId) -> Result<Span, ArenaError> {
        self.slots.slot(slot)
    }

    /// All of it.
    #[must_use]
    pub fn span(&self) -> Span {
        Span::new(Arc::clone(&self.slots.region), 0, self.slots.region.bytes)
    }

    /// How many spans and other views of this mapping there are.
    #[must_use]
    pub fn users(&self) -> usize {
        Arc::strong_count(&self.slots.region) - 1
    }

    /// Which mapping it is, among all that there are and were.
    #[must_use]
    pub fn mapping_id(&self) -> MappingId {
        MappingId::of(&self.slots.region)
    }
}
