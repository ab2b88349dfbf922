//! A page log looked at from outside: read only, with or without its key, beside a daemon or
//! without one.

mod medium;
mod verify;

use crate::cipher::{Cipher, TAG_BYTES};
use crate::format::{BLOCK, Block, Decoded, FORMAT_VERSION, SegmentHeader, Superblock, TableHead};
use crate::layout::DATA_START;
use crate::recovery::{CHUNK_BLOCKS, Scanner, Tables};
use crate::segment::Record;
use crate::storage::{Storage, block_memory, read_padded};
use crate::store::{is_blank, read_copies};
use crate::{KeptPurges, KeyError, PurgeList, StoreKey};
use medium::Medium;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use thiserror::Error;
use undercroft_arena::{ArenaError, Span};
use undercroft_wire::{DeviceId, Origin, PageIdentity, SegmentId, SegmentUse};
pub use verify::{Damage, DamagedRecord, Verification};

/// Why a page log cannot be looked at. Each text says what, where and what is allowed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InspectError {
    /// The file could not be opened.
    #[error("cannot open the page log {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path names something that is no regular file.
    #[error("{path} is not a regular file; allowed is a page log or the directory of one")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// There is nothing in the file yet.
    #[error("{path} is empty: no store was ever made in it")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{path} is not an undercroft page log: it has no superblock at 0 or 4096")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Both superblocks are damaged.
    #[error("both superblocks of {path} are damaged: nothing in it can be found")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Another version of the format.
    #[error(
        "{path} has format version {found}; allowed is version {supported}, all this build reads"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The version on disk.
        found: u32,
        /// The version of this build.
        supported: u32,
    },
    /// There is no such segment.
    #[error("{path} has no segment {found}; allowed 0..={last}")]
    NoSegment {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        found: u32,
        /// The largest there is.
        last: u32,
    },
    /// The file cannot be read.
    #[error("cannot {what} of {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// No memory to read into.
    #[error("no memory to read a page log into: {0}")]
    Memory(#[from] ArenaError),
}

/// What one of the two superblocks turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SuperblockCopy {
    /// Whole.
    Valid {
        /// Number of the opening that wrote it.
        generation: u64,
    },
    /// It does not prove itself.
    Damaged,
    /// Something else lies there.
    Missing,
}

/// The head of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreFacts {
    /// The version of its format.
    pub format_version: u32,
    /// Its random name.
    pub store: [u8; 16],
    /// How often it was opened.
    pub generation: u64,
    /// Bytes a segment takes in the file.
    pub segment_bytes: u64,
    /// Bytes of records a segment was sized for.
    pub room_bytes: u64,
    /// Number of segments.
    pub segments: u32,
    /// Tells its key from others; `None` if it never had one.
    pub key_check: Option<[u8; 16]>,
    /// Both superblocks, in the order of the file.
    pub superblocks: [SuperblockCopy; 2],
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes a file of that shape has.
    pub expected_bytes: u64,
}

/// What a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentState {
    /// No use of it has begun.
    Free,
    /// Its last use is over.
    Freed,
    /// In use, its records flushed to the medium.
    Sealed,
    /// In use, and not known to be flushed: it is being filled, or whoever filled it died.
    Unsealed,
    /// Its header does not prove itself.
    Damaged,
    /// Its header or tables cannot be read.
    Unreadable,
}

/// A segment without its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentFacts {
    /// Which one.
    pub segment: SegmentId,
    /// What it is.
    pub state: SegmentState,
    /// Its present or last use; `None` if its header names none.
    pub segment_use: Option<SegmentUse>,
    /// Whether that use is encrypted.
    pub encrypted: bool,
    /// Records its tables name, without those whose write failed.
    pub records: u64,
    /// Bytes of their pages; `None` if it takes a key to know.
    pub page_bytes: Option<u64>,
    /// Records whose write failed.
    pub void_records: u64,
    /// Table blocks that do not prove themselves.
    pub damaged_tables: u64,
}

/// A record as its table names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordFacts {
    /// Its number in its segment.
    pub record: u32,
    /// Whose bytes it says it has.
    pub identity: PageIdentity,
    /// Where they come from.
    pub origin: Origin,
    /// Whether the list of purges beside the log covers it, so that no daemon serves it; `None` if
    /// the list cannot be read.
    pub purged: Option<bool>,
    /// Where they lie in the file.
    pub offset: u64,
    /// Whether that is inside the segment.
    pub inside: bool,
    /// Its write failed: it has a number and nothing else.
    pub void: bool,
    /// The seal of its segment speaks for it; any other proves itself before a lookup finds it.
    pub sealed: bool,
    /// CRC-64/NVME of the page.
    pub payload_crc: u64,
    /// Whether its proof is a tag of AES-256-GCM; else it is a CRC-64/NVME.
    pub encrypted: bool,
    /// What its bytes must agree with.
    pub proof: [u8; TAG_BYTES],
}

/// A segment and its records.
#[derive(Debug, Clone)]
pub struct SegmentContents {
    /// The segment.
    pub facts: SegmentFacts,
    /// Its records in their order; none if it takes a key to know them.
    pub records: Vec<RecordFacts>,
    /// The keys of its use, if it is encrypted and there is a key.
    cipher: Option<Cipher>,
}

/// A page log open for looking. It is never written to.
#[derive(Debug)]
pub struct Inspector {
    medium: Medium,
    path: PathBuf,
    head: Superblock,
    superblocks: [SuperblockCopy; 2],
    file_bytes: u64,
    key: Option<StoreKey>,
    purges: KeptPurges,
}

impl Inspector {
    /// Opens a page log and reads its head.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn open(path: &Path) -> Result<Self, InspectError> {
        let medium = Medium::open(path)?;
        let io = |what| move |source| InspectError::Io { what, path: path.into(), source };
        let file_bytes = medium.bytes().map_err(io("read the length"))?;
        let (copies, unread) = read_copies(&medium)?;
        let valid = copies.iter().any(|copy| matches!(copy, Decoded::Valid(_)));
        if let Some(source) = unread.filter(|_| !valid) {
            return Err(io("read the superblocks")(source));
        }
        let area = block_memory(DATA_START / BLOCK)?;
        if !valid {
            read_padded(&medium, 0, &area).map_err(io("read the superblocks"))?;
        }
        let head = newest(path, &copies, is_blank(file_bytes, &area))?;
        let superblocks = copies.map(|copy| match copy {
            Decoded::Valid(copy) => SuperblockCopy::Valid { generation: copy.generation },
            Decoded::Corrupt => SuperblockCopy::Damaged,
            Decoded::Foreign | Decoded::Version(_) => SuperblockCopy::Missing,
        });
        let purges = purges_beside(path, None);
        Ok(Self { medium, path: path.into(), head, superblocks, file_bytes, key: None, purges })
    }

    /// The list of purges beside the log.
    #[must_use]
    pub fn purges(&self) -> &KeptPurges {
        &self.purges
    }

    /// The log's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The head of the store.
    #[must_use]
    pub fn facts(&self) -> StoreFacts {
        let Superblock { store, generation, layout, key_check } = self.head;
        StoreFacts {
            format_version: FORMAT_VERSION,
            store: store.0,
            generation,
            segment_bytes: layout.segment_bytes,
            room_bytes: layout.room_bytes,
            segments: layout.segments,
            key_check: Some(key_check).filter(|check| *check != [0; 16]),
            superblocks: self.superblocks,
            file_bytes: self.file_bytes,
            expected_bytes: layout.file_bytes(),
        }
    }

    /// Reads encrypted segments with this key from here on; false if it is another store's. The
    /// key's file may also belong to the owner of the log.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn use_key_file(&mut self, path: &Path) -> Result<bool, KeyError> {
        let key = StoreKey::load_of(path, self.medium.owner())?;
        let check = self.head.key_check;
        let fits = check == [0; 16] || key.check(self.head.store) == check;
        self.key = fits.then_some(key);
        self.purges = purges_beside(&self.path, self.key.as_ref());
        Ok(fits)
    }

    /// Whether a daemon has the log open, or died so recently that its transfers may still land.
    ///
    /// # Errors
    /// The file system knows no locks.
    pub fn is_in_use(&self) -> io::Result<bool> {
        let held = self.medium.lock()?;
        if held {
            self.medium.unlock()?;
        }
        Ok(!held)
    }

    /// Keeps daemons from opening the log until this is dropped; false if one has it open.
    ///
    /// # Errors
    /// As [`Inspector::is_in_use`].
    pub fn lock(&self) -> io::Result<bool> {
        self.medium.lock()
    }

    /// All segments by number, without their records.
    ///
    /// # Errors
    /// No memory.
    pub fn segments(&self) -> Result<Vec<SegmentFacts>, InspectError> {
        self.each_segment(|segment, chunk| self.read_segment(segment, chunk).facts)
    }

    /// A segment and its records.
    ///
    /// # Errors
    /// There is no such segment, or no memory.
    pub fn segment(&self, segment: SegmentId) -> Result<SegmentContents, InspectError> {
        let segments = self.head.layout.segments;
        if segment.0 >= segments {
            let (path, found, last) = (self.path.clone(), segment.0, segments - 1);
            return Err(InspectError::NoSegment { path, found, last });
        }
        let chunk = block_memory(u64::from(CHUNK_BLOCKS))?;
        Ok(self.read_segment(segment, &chunk))
    }

    /// Does `work` for each segment, several at a time.
    fn each_segment<T: Send>(
        &self,
        work: impl Fn(SegmentId, &Span) -> T + Sync,
    ) -> Result<Vec<T>, InspectError> {
        let segments = self.head.layout.segments;
        let next = AtomicU32::new(0);
        let results: Mutex<BTreeMap<u32, T>> = Mutex::new(BTreeMap::new());
        let run = |chunk: &Span| {
            loop {
                let segment = next.fetch_add(1, Ordering::Relaxed);
                if segment >= segments {
                    return;
                }
                let result = work(SegmentId(segment), chunk);
                results.lock().expect("no reading thread panics").insert(segment, result);
            }
        };
        let threads = crate::recovery::THREADS.min(segments as usize);
        let chunk = || block_memory(u64::from(CHUNK_BLOCKS));
        let chunks: Vec<Span> = (0..threads).map(|_| chunk()).collect::<Result<_, _>>()?;
        thread::scope(|scope| {
            for chunk in &chunks[1..] {
                // Without another thread the others do its share.
                let _helper = thread::Builder::new().spawn_scoped(scope, || run(chunk));
            }
            run(&chunks[0]);
        });
        Ok(results.into_inner().expect("no reading thread panics").into_values().collect())
    }

    fn scanner(&self) -> Scanner<'_> {
        let (storage, head, key) = (&self.medium, &self.head, self.key.as_ref());
        Scanner { storage, head, device: DeviceId(0), key, threads: 1 }
    }

    fn cipher(&self, header: &SegmentHeader) -> Option<Cipher> {
        let (key, salt) = self.key.as_ref().zip(header.salt)?;
        Some(Cipher::new(key, self.head.store, header.segment, header.segment_use, &salt))
    }

    fn read_segment(&self, segment: SegmentId, chunk: &Span) -> SegmentContents {
        let bare = |state| SegmentContents::bare(segment, state);
        let scanner = self.scanner();
        let header = match scanner.read_header(segment, chunk) {
            Ok(Decoded::Valid(header)) => header,
            Ok(Decoded::Foreign) => return bare(SegmentState::Free),
            Ok(Decoded::Corrupt | Decoded::Version(_)) => return bare(SegmentState::Damaged),
            Err(_) => return bare(SegmentState::Unreadable),
        };
        let mut contents = bare(SegmentState::Freed);
        contents.facts.segment_use = Some(header.segment_use);
        contents.facts.encrypted = header.salt.is_some();
        if header.freed {
            return contents;
        }
        contents.cipher = self.cipher(&header);
        let read = if header.salt.is_some() && contents.cipher.is_none() {
            contents.count_heads(&scanner, &self.head, &header, chunk)
        } else {
            let tables = scanner.read_tables(&header, contents.cipher.as_ref(), chunk);
            tables.map(|tables| contents.take(&tables, &self.head, &self.purges))
        };
        if read.is_err() {
            contents.facts.state = SegmentState::Unreadable;
        }
        contents
    }
}

impl SegmentContents {
    fn bare(segment: SegmentId, state: SegmentState) -> Self {
        let facts = SegmentFacts {
            segment,
            state,
            segment_use: None,
            encrypted: false,
            records: 0,
            page_bytes: Some(0),
            void_records: 0,
            damaged_tables: 0,
        };
        Self { facts, records: Vec::new(), cipher: None }
    }

    fn found(&mut self, sealed: bool, damaged_tables: u64) {
        self.facts.state = if sealed { SegmentState::Sealed } else { SegmentState::Unsealed };
        self.facts.damaged_tables = damaged_tables;
    }

    /// Takes in what the tables say.
    fn take(&mut self, tables: &Tables, head: &Superblock, purges: &KeptPurges) {
        self.found(tables.sealed, tables.corrupt);
        for table in tables.batches.values() {
            let first = table.batch * crate::format::ENTRIES_PER_TABLE as u32;
            for (record, entry) in (first..).zip(&table.entries) {
                let place = Record {
                    offset_blocks: entry.offset_blocks,
                    page_bytes: entry.identity.page_bytes,
                    ..Record::default()
                };
                let offset = u64::from(entry.offset_blocks) * BLOCK;
                self.records.push(RecordFacts {
                    record,
                    identity: entry.identity,
                    origin: entry.origin,
                    purged: match purges {
                        KeptPurges::Known(list) => {
                            Some(list.covers(&entry.identity, &entry.origin))
                        }
                        KeptPurges::Unknown => None,
                    },
                    offset: head.layout.segment_at(self.facts.segment) + offset,
                    inside: place.is_inside(head.layout.segment_bytes),
                    void: entry.void,
                    sealed: tables.speak_for(record),
                    payload_crc: entry.payload_crc,
                    encrypted: self.facts.encrypted,
                    proof: entry.proof.0,
                });
            }
        }
        let whole = self.records.iter().filter(|record| !record.void);
        let bytes = whole.clone().map(|record| u64::from(record.identity.page_bytes)).sum();
        self.facts.page_bytes = Some(bytes);
        self.facts.records = whole.count() as u64;
        self.facts.void_records = self.records.len() as u64 - self.facts.records;
    }

    /// Counts what the tables name without reading it: all that can be known without the key.
    fn count_heads(
        &mut self,
        scanner: &Scanner<'_>,
        head: &Superblock,
        header: &SegmentHeader,
        chunk: &Span,
    ) -> io::Result<()> {
        let (mut sealed, mut damaged) = (false, 0);
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        let mut take = |index: u32, block: &Block| match TableHead::decode(
            block,
            head.store,
            header.segment,
            header.segment_use,
        ) {
            Decoded::Valid(table)
                if [Some(index), index.checked_sub(1)].contains(&Some(table.batch)) =>
            {
                sealed |= table.sealed;
                let count = counts.entry(table.batch).or_default();
                *count = table.count.max(*count);
                true
            }
            Decoded::Foreign => false,
            Decoded::Valid(_) | Decoded::Corrupt | Decoded::Version(_) => {
                damaged += 1;
                true
            }
        };
        scanner.each_table(header.segment, chunk, &mut take)?;
        self.found(sealed, damaged);
        self.facts.records = counts.values().sum::<usize>() as u64;
        self.facts.page_bytes = None;
        Ok(())
    }
}

fn purges_beside(path: &Path, key: Option<&StoreKey>) -> KeptPurges {
    let directory = path.parent().unwrap_or(Path::new("."));
    PurgeList::load(directory, key).unwrap_or(KeptPurges::Unknown)
}

/// The superblock that counts.
fn newest(
    path: &Path,
    copies: &[Decoded<Superblock>; 2],
    empty: bool,
) -> Result<Superblock, InspectError> {
    let path = || path.to_path_buf();
    let version = copies.iter().find_map(|copy| match copy {
        Decoded::Version(found) => Some(*found),
        _ => None,
    });
    if let Some(found) = version {
        return Err(InspectError::Version { path: path(), found, supported: FORMAT_VERSION });
    }
    let valid = copies.iter().filter_map(|copy| match copy {
        Decoded::Valid(superblock) => Some(*superblock),
        _ => None,
    });
    valid.max_by_key(|superblock| superblock.generation).ok_or_else(|| {
        if empty {
            InspectError::Empty { path: path() }
        } else if copies.contains(&Decoded::Corrupt) {
            InspectError::Damaged { path: path() }
        } else {
            InspectError::Foreign { path: path() }
        }
    })
}
