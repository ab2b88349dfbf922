use crate::mapping::Mapping;
use crate::memory::usable_bytes;
use crate::prefault::{Fault, prefault};
use crate::region::{Access, MappingId, Region};
use crate::shared_file::check_received;
use crate::{ArenaError, Span};
use std::os::fd::AsFd;
use std::sync::Arc;
use undercroft_wire::PartId;

/// A piece of the arena, as a client sees it: read-only.
#[derive(Debug, Clone)]
pub struct PartView {
    id: PartId,
    region: Arc<Region>,
}

impl PartView {
    /// Maps the part `id` of `bytes` bytes that was received as `fd`. The descriptor is not needed
    /// afterwards.
    ///
    /// # Errors
    /// A descriptor of another size, or one without the seals that keep the mapping from faulting.
    pub fn map(fd: impl AsFd, id: PartId, bytes: u64) -> Result<Self, ArenaError> {
        let usable = usable_bytes("part", bytes)?;
        let whole = usable_bytes("part", check_received(&fd, bytes)?)?;
        let mapping = Mapping::shared(fd.as_fd(), whole, false)
            .map_err(ArenaError::system("map a part", bytes))?;
        // The engine's core dumps are not ours to fail over.
        let _dumped = mapping.keep_out_of_dumps();
        let _small_pages = mapping.allow_huge();
        let region = Region { mapping, bytes: usable, access: Access::ReadOnly, part: Some(id) };
        Ok(Self { id, region: Arc::new(region) })
    }

    /// Fills this process's page tables for the part, so that first loads do not fault. The pages
    /// themselves were made by the daemon.
    ///
    /// # Errors
    /// The kernel is older than 5.14 or out of memory; the view works all the same.
    pub fn prefault(&self, threads: usize) -> Result<(), ArenaError> {
        prefault(&self.region.mapping, Fault::Read, threads)
            .map(|_| ())
            .map_err(ArenaError::system("fault a part in", self.region.bytes as u64))
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> PartId {
        self.id
    }

    /// Usable bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.region.bytes
    }

    /// Never: there is no part without bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.region.bytes == 0
    }

    /// How many spans and other views of this mapping there are.
    #[must_use]
    pub fn users(&self) -> usize {
        Arc::strong_count(&self.region) - 1
    }

    /// Which mapping it is, among all that there are and were.
    #[must_use]
    pub fn mapping_id(&self) -> MappingId {
        MappingId::of(&self.region)
    }

    /// Where it is mapped, for registration with a device.
    #[must_use]
    pub fn base_ptr(&self) -> *const u8 {
        self.region.mapping.base().as_ptr()
    }

    /// A piece of it.
    ///
    /// # Errors
    /// A piece that does not lie inside.
    pub fn span(&self, offset: u64, len: usize) -> Result<Span, ArenaError> {
        self.region.span(offset, len)
    }
}
