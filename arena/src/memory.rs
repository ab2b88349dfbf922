#![expect(unsafe_code, reason = "lent memory is what its lender says it is")]

use crate::mapping::Mapping;
use crate::prefault::{Fault, prefault};
use crate::region::{Access, Region};
use crate::{ArenaError, Span};
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// Private memory of this process, in huge pages where the machine gives them: what a device made
/// of ordinary memory and the benches are built on.
#[derive(Debug, Clone)]
pub struct Memory {
    region: Arc<Region>,
}

impl Memory {
    /// Maps `bytes` zeroed bytes, faulted in with `prefault_threads` threads (0: not before use).
    ///
    /// # Errors
    /// No bytes, or more than the machine gives.
    pub fn new(bytes: u64, prefault_threads: usize) -> Result<Self, ArenaError> {
        let usable = usable_bytes("memory", bytes)?;
        let mapping = Mapping::anonymous(usable.next_multiple_of(4096))
            .map_err(ArenaError::system("map memory", bytes))?;
        // Refused where the kernel is built without huge pages: slower, not wrong.
        let _small_pages = mapping.allow_huge();
        if prefault_threads > 0 {
            prefault(&mapping, Fault::Write, prefault_threads)
                .map_err(ArenaError::system("fault memory in", bytes))?;
        }
        let region = Region { mapping, bytes: usable, access: Access::ReadWrite, part: None };
        Ok(Self { region: Arc::new(region) })
    }

    /// Memory of somebody else in this process, as an engine's KV cache: `bytes` bytes from
    /// `address` on. It is neither unmapped nor read ahead here.
    ///
    /// # Errors
    /// No bytes, or a range that no process has.
    ///
    /// # Safety
    /// The range stays readable, and writable if `is_writable`, until the last span of it is gone.
    /// Its bytes are touched as the contract of a span has it: by one side at a time.
    pub unsafe fn lent(address: u64, bytes: u64, is_writable: bool) -> Result<Self, ArenaError> {
        let usable = usable_bytes("lent memory", bytes)?;
        let range = usize::try_from(address).ok().filter(|at| at.checked_add(usable).is_some());
        let base = range.and_then(|at| NonNull::new(ptr::with_exposed_provenance_mut::<u8>(at)));
        let allowed = "an address of this process";
        let what = "the address of lent memory";
        let base = base.ok_or(ArenaError::Size { what, found: address, allowed })?;
        let access = if is_writable { Access::ReadWrite } else { Access::ReadOnly };
        let mapping = Mapping::lent(base, usable);
        let region = Region { mapping, bytes: usable, access, part: None };
        Ok(Self { region: Arc::new(region) })
    }

    /// Usable bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.region.bytes
    }

    /// Never: there is no memory without bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.region.bytes == 0
    }

    /// A piece of it.
    ///
    /// # Errors
    /// A piece that does not lie inside.
    pub fn span(&self, offset: u64, len: usize) -> Result<Span, ArenaError> {
        self.region.span(offset, len)
    }
}

/// A size that an address range can have, room for rounding it up included.
pub(crate) fn usable_bytes(what: &'static str, bytes: u64) -> Result<usize, ArenaError> {
    const MAX: u64 = 1 << 46;
    if bytes == 0 || bytes > MAX {
        return Err(ArenaError::Size { what, found: bytes, allowed: "1 byte to 64 TiB" });
    }
    usize::try_from(bytes).map_err(|_| ArenaError::Size {
        what,
        found: bytes,
        allowed: "what this machine can address",
    })
}
