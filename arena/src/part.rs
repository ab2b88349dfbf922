use crate::mapping::{HUGE_BYTES, Mapping};
use crate::memory::usable_bytes;
use crate::prefault::{Fault, prefault};
use crate::region::{Access, Region};
use crate::{ArenaError, Span, memfd};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use undercroft_wire::PartId;

/// Whether to look for huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HugePages {
    /// The best the machine gives: reserved huge pages, else shared memory made huge, else 4 KiB.
    #[default]
    Auto,
    /// 4 KiB pages.
    Off,
}

/// How a part is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartOptions {
    /// Whether to look for huge pages.
    pub huge: HugePages,
    /// Whether to try to lock the part in memory. A refusal is a fact, not an error.
    pub lock: bool,
    /// Threads that fault the part in before it is used; 0 leaves it to first use.
    pub prefault_threads: usize,
}

impl Default for PartOptions {
    fn default() -> Self {
        Self { huge: HugePages::Auto, lock: true, prefault_threads: 1 }
    }
}

/// What kind of pages a part got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    /// Reserved huge pages.
    Hugetlb,
    /// Shared memory made huge.
    Transparent,
    /// 4 KiB pages.
    Base,
}

impl fmt::Display for PageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hugetlb => "hugetlb",
            Self::Transparent => "transparent",
            Self::Base => "4k",
        })
    }
}

/// What the machine gave and what it refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartFacts {
    /// What kind of pages.
    pub pages: PageKind,
    /// Bytes in huge pages.
    pub huge_bytes: u64,
    /// Whether the part is locked in memory.
    pub locked: bool,
    /// What was refused, one line each.
    pub refused: Vec<String>,
}

/// A piece of the arena, as its owner sees it: readable and writable.
#[derive(Debug)]
pub struct Part {
    id: PartId,
    fd: OwnedFd,
    region: Arc<Region>,
}

fn no_reserved_pages(bytes: usize) -> String {
    format!("reserved huge pages: no room for {bytes} bytes in the pool (vm.nr_hugepages)")
}

impl Part {
    /// Makes a part of `bytes` bytes.
    ///
    /// # Errors
    /// No bytes, or more than the machine gives.
    pub fn create(
        id: PartId,
        bytes: u64,
        options: &PartOptions,
    ) -> Result<(Self, PartFacts), ArenaError> {
        let usable = usable_bytes("part", bytes)?;
        let mut refused = Vec::new();
        let reserved = if options.huge == HugePages::Auto && usable >= HUGE_BYTES {
            Self::map(usable.next_multiple_of(HUGE_BYTES), true)
                .inspect_err(|_| refused.push(no_reserved_pages(usable)))
                .ok()
        } else {
            None
        };
        let hugetlb = reserved.is_some();
        let (fd, mapping) = match reserved {
            Some(made) => made,
            None => Self::map(usable.next_multiple_of(4096), false)?,
        };
        if let Err(errno) = mapping.keep_out_of_dumps() {
            refused.push(format!("keeping the arena out of core dumps: {errno}"));
        }
        let huge_bytes = if hugetlb {
            Self::fault_hugetlb(&mapping, options)?
        } else {
            Self::fault_plain(&mapping, options, &mut refused)?
        };
        let pages = match (hugetlb, huge_bytes) {
            (true, _) => PageKind::Hugetlb,
            (false, 0) => PageKind::Base,
            (false, _) => PageKind::Transparent,
        };
        let locked = options.lock && Self::lock(&mapping, &mut refused);
        let facts = PartFacts { pages, huge_bytes: huge_bytes as u64, locked, refused };
        let region = Region { mapping, bytes: usable, access: Access::ReadWrite, part: Some(id) };
        Ok((Self { id, fd, region: Arc::new(region) }, facts))
    }

    fn map(len: usize, hugetlb: bool) -> Result<(OwnedFd, Mapping), ArenaError> {
        let fd = memfd::create(len as u64, hugetlb)?;
        // For reserved huge pages this is where a pool without room says so.
        let mapping = Mapping::shared(fd.as_fd(), len, true)
            .map_err(ArenaError::system("map a part", len as u64))?;
        Ok((fd, mapping))
    }

    fn fault_hugetlb(mapping: &Mapping, options: &PartOptions) -> Result<usize, ArenaError> {
        if options.prefault_threads > 0 {
            prefault(mapping, Fault::Write, options.prefault_threads)
                .map_err(ArenaError::system("fault a part in", mapping.len() as u64))?;
        }
        Ok(mapping.len())
    }

    fn fault_plain(
        mapping: &Mapping,
        options: &PartOptions,
        refused: &mut Vec<String>,
    ) -> Result<usize, ArenaError> {
        let huge = options.huge == HugePages::Auto;
        let advised = if huge { mapping.allow_huge() } else { mapping.forbid_huge() };
        if let Err(errno) = advised
            && huge
        {
            refused.push(format!("advice on huge pages: {errno}"));
        }
        if options.prefault_threads == 0 {
            return Ok(0);
        }
        let fault = if huge { Fault::Collapse } else { Fault::Write };
        let made = prefault(mapping, fault, options.prefault_threads)
            .map_err(ArenaError::system("fault a part in", mapping.len() as u64))?;
        let possible = mapping.len() / HUGE_BYTES * HUGE_BYTES;
        if huge && made < possible {
            refused.push(format!("huge shared memory: {made} of {possible} bytes"));
        }
        Ok(made)
    }

    fn lock(mapping: &Mapping, refused: &mut Vec<String>) -> bool {
        mapping
            .lock()
            .inspect_err(|errno| refused.push(format!("locking the arena in memory: {errno}")))
            .is_ok()
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

    /// Where it is mapped, for registration with the kernel.
    #[must_use]
    pub fn base_ptr(&self) -> *mut u8 {
        self.region.mapping.base().as_ptr()
    }

    /// A descriptor of the same memory that cannot write: what clients are given.
    ///
    /// # Errors
    /// `/proc` is not there, or the process is out of descriptors.
    pub fn read_only_fd(&self) -> Result<OwnedFd, ArenaError> {
        memfd::reopen_read_only(&self.fd, self.region.bytes as u64)
    }

    /// A piece of it.
    ///
    /// # Errors
    /// A piece that does not lie inside.
    pub fn span(&self, offset: u64, len: usize) -> Result<Span, ArenaError> {
        self.region.span(offset, len)
    }
}

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
        let whole = usable_bytes("part", memfd::check(&fd, bytes)?)?;
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
