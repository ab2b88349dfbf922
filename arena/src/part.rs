use crate::mapping::{HUGE_BYTES, Mapping};
use crate::memory::usable_bytes;
use crate::part_facts::small_pages;
use crate::prefault::{Fault, prefault};
use crate::region::{Access, Region};
use crate::shared_file::SharedFile;
use crate::smaps::Smaps;
use crate::{ArenaError, Backing, FileId, HugePages, PageKind, PartFacts, PartOptions, Span, numa};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use undercroft_wire::PartId;

/// A piece of the arena, as its owner sees it: readable and writable.
#[derive(Debug)]
pub struct Part {
    id: PartId,
    file: SharedFile,
    region: Arc<Region>,
}

fn no_reserved_pages(bytes: usize, error: &ArenaError) -> String {
    match error {
        ArenaError::Unprotected { what } => format!("reserved huge pages: {what}"),
        _ => {
            format!("reserved huge pages: no room for {bytes} bytes in the pool (vm.nr_hugepages)")
        }
    }
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
        Self::create_in(&Backing::memfd(), id, bytes, options)
    }

    /// As [`Part::create`], where `backing` says.
    ///
    /// # Errors
    /// No bytes, or more than the machine or the backing gives.
    pub fn create_in(
        backing: &Backing,
        id: PartId,
        bytes: u64,
        options: &PartOptions,
    ) -> Result<(Self, PartFacts), ArenaError> {
        let usable = usable_bytes("part", bytes)?;
        let mut refused = Vec::new();
        let make = |len: usize, hugetlb| {
            // What is not faulted in now must be there when it is.
            let reserve = options.prefault_threads == 0;
            Self::make(backing, len, hugetlb, reserve)
        };
        let reserved = if options.huge == HugePages::Auto && usable >= HUGE_BYTES {
            make(usable.next_multiple_of(HUGE_BYTES), true)
                .inspect_err(|error| refused.push(no_reserved_pages(usable, error)))
                .ok()
        } else {
            None
        };
        let hugetlb = reserved.is_some();
        let (file, mapping) = match reserved {
            Some(made) => made,
            None => make(usable.next_multiple_of(4096), false)?,
        };
        keep_out_of_dumps(&mapping, &mut refused);
        prefer_node(&mapping, options, &mut refused);
        let huge_bytes = if hugetlb {
            fault_hugetlb(&mapping, options)?
        } else {
            fault_plain(&mapping, options, &mut refused)?
        };
        Ok(Self::mapped(id, usable, file, mapping, options, Fresh { hugetlb, huge_bytes, refused }))
    }

    /// Maps a part again that an earlier daemon made and did not give up: `fd` and `read_only` are
    /// what its [`Part::fd`] and [`Part::read_only_fd`] were, the latter needed only where it
    /// cannot be made again. Its bytes are as they were; nothing of them is moved or copied. Where it
    /// may be in transparent huge pages, [`Part::huge_bytes`] tells how much of it is.
    ///
    /// # Errors
    /// A file of another size, one whose size could change, or one that is not ours to write.
    pub fn adopt(
        id: PartId,
        bytes: u64,
        fd: OwnedFd,
        read_only: Option<OwnedFd>,
        options: &PartOptions,
    ) -> Result<(Self, PartFacts), ArenaError> {
        let usable = usable_bytes("part", bytes)?;
        let (file, whole) = SharedFile::adopt(fd, read_only, bytes)?;
        let mapping = Mapping::shared(file.fd(), usable_bytes("part", whole)?, true)
            .map_err(ArenaError::system("map a part", bytes))?;
        let mut refused = Vec::new();
        keep_out_of_dumps(&mapping, &mut refused);
        let hugetlb = file.is_hugetlb();
        let huge_bytes = if hugetlb {
            fault_hugetlb(&mapping, options)?
        } else {
            map_again(&mapping, options, &mut refused)?;
            0
        };
        let (part, mut facts) = Self::mapped(
            id,
            usable,
            file,
            mapping,
            options,
            Fresh { hugetlb, huge_bytes, refused },
        );
        if !hugetlb && options.huge == HugePages::Auto {
            facts.pages = PageKind::Untold;
        }
        Ok((part, facts))
    }

    /// Bytes of each of these that are mapped in transparent huge pages: what the kernel says, and
    /// nothing where it says nothing. It goes through the page tables of the whole process for it,
    /// in tens of milliseconds, however few are asked for.
    #[must_use]
    pub fn huge_bytes(parts: &[Arc<Self>]) -> Vec<u64> {
        let smaps = Smaps::read();
        let of = |part: &Arc<Self>| {
            let mapping = &part.region.mapping;
            smaps.huge_bytes(mapping.base().as_ptr() as usize, mapping.len()) as u64
        };
        parts.iter().map(of).collect()
    }

    fn make(
        backing: &Backing,
        len: usize,
        hugetlb: bool,
        reserve: bool,
    ) -> Result<(SharedFile, Mapping), ArenaError> {
        let file = backing.create(len as u64, hugetlb, reserve)?;
        // For reserved huge pages this is where a pool without room says so.
        let mapping = Mapping::shared(file.fd(), len, true)
            .map_err(ArenaError::system("map a part", len as u64))?;
        Ok((file, mapping))
    }

    fn mapped(
        id: PartId,
        bytes: usize,
        file: SharedFile,
        mapping: Mapping,
        options: &PartOptions,
        fresh: Fresh,
    ) -> (Self, PartFacts) {
        let Fresh { hugetlb, huge_bytes, mut refused } = fresh;
        let pages = match (hugetlb, huge_bytes) {
            (true, _) => PageKind::Hugetlb,
            (false, 0) => PageKind::Base,
            (false, _) => PageKind::Transparent,
        };
        say_if_elsewhere(&mapping, options, &mut refused);
        let locked = options.lock && lock(&mapping, &mut refused);
        let numa_node = numa::preferred(&mapping);
        let huge_bytes = huge_bytes as u64;
        let facts = PartFacts { pages, huge_bytes, locked, numa_node, refused };
        let region = Region { mapping, bytes, access: Access::ReadWrite, part: Some(id) };
        (Self { id, file, region: Arc::new(region) }, facts)
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

    /// The descriptor that can write, for the descriptor store. Never to be handed out.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.fd()
    }

    /// Whether nobody but the daemon can open it for writing, whatever his rights over files.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.file.is_protected()
    }

    /// Which file it is.
    ///
    /// # Errors
    /// The system does not say.
    pub fn file_id(&self) -> Result<FileId, ArenaError> {
        self.file.id()
    }

    /// A descriptor of the same memory that cannot write: what clients are given.
    ///
    /// # Errors
    /// `/proc` is not there, or the process is out of descriptors.
    pub fn read_only_fd(&self) -> Result<OwnedFd, ArenaError> {
        self.file.read_only_fd()
    }

    /// A piece of it.
    ///
    /// # Errors
    /// A piece that does not lie inside.
    pub fn span(&self, offset: u64, len: usize) -> Result<Span, ArenaError> {
        self.region.span(offset, len)
    }
}

/// What mapping a part came to.
struct Fresh {
    hugetlb: bool,
    huge_bytes: usize,
    refused: Vec<String>,
}

fn keep_out_of_dumps(mapping: &Mapping, refused: &mut Vec<String>) {
    if let Err(errno) = mapping.keep_out_of_dumps() {
        refused.push(format!("keeping the arena out of core dumps: {errno}"));
    }
}

fn prefer_node(mapping: &Mapping, options: &PartOptions, refused: &mut Vec<String>) {
    if let Some(node) = options.numa_node
        && let Err(errno) = numa::prefer(mapping, node)
    {
        refused.push(format!("NUMA node {node}: {errno}"));
    }
}

fn say_if_elsewhere(mapping: &Mapping, options: &PartOptions, refused: &mut Vec<String>) {
    let Some(node) = options.numa_node else { return };
    match numa::elsewhere(mapping, node) {
        Ok((0, _)) => {}
        Ok((far, seen)) => {
            refused.push(format!("NUMA node {node}: {far} of {seen} places lie on another"));
        }
        Err(errno) => refused.push(format!("NUMA node {node}: where the part lies: {errno}")),
    }
}

fn fault_hugetlb(mapping: &Mapping, options: &PartOptions) -> Result<usize, ArenaError> {
    if options.prefault_threads > 0 {
        prefault(mapping, Fault::Write, options.prefault_threads)
            .map_err(ArenaError::system("fault a part in", mapping.len() as u64))?;
    }
    Ok(mapping.len())
}

fn advise(mapping: &Mapping, options: &PartOptions, refused: &mut Vec<String>) -> bool {
    let huge = options.huge == HugePages::Auto;
    let advised = if huge { mapping.allow_huge() } else { mapping.forbid_huge() };
    if let Err(errno) = advised
        && huge
    {
        refused.push(format!("advice on huge pages: {errno}"));
    }
    huge
}

fn fault_plain(
    mapping: &Mapping,
    options: &PartOptions,
    refused: &mut Vec<String>,
) -> Result<usize, ArenaError> {
    let huge = advise(mapping, options, refused);
    if options.prefault_threads == 0 {
        return Ok(0);
    }
    let fault = if huge { Fault::Collapse } else { Fault::Write };
    let made = prefault(mapping, fault, options.prefault_threads)
        .map_err(ArenaError::system("fault a part in", mapping.len() as u64))?;
    if huge {
        refused.extend(small_pages(made as u64, mapping.len() as u64));
    }
    Ok(made)
}

/// Fills the page tables for memory that is there already. None of it is made huge: that would copy
/// pages that a dead daemon's reads may still land in.
fn map_again(
    mapping: &Mapping,
    options: &PartOptions,
    refused: &mut Vec<String>,
) -> Result<(), ArenaError> {
    advise(mapping, options, refused);
    if options.prefault_threads == 0 {
        return Ok(());
    }
    prefault(mapping, Fault::Write, options.prefault_threads)
        .map(drop)
        .map_err(ArenaError::system("fault a part in", mapping.len() as u64))
}

fn lock(mapping: &Mapping, refused: &mut Vec<String>) -> bool {
    mapping
        .lock()
        .inspect_err(|errno| refused.push(format!("locking the arena in memory: {errno}")))
        .is_ok()
}
