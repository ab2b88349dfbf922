//! Opening a store: the superblock pair, creating, growing and shrinking the file.

use crate::cipher::CipherMaker;
use crate::entropy::{self, Entropy};
use crate::format::{BLOCK, BLOCK_LEN, Block, Decoded, FORMAT_VERSION, StoreId, Superblock};
use crate::layout::{DATA_START, Layout};
use crate::machine::Machine;
use crate::recovery::{Scan, Scanner, scan};
use crate::storage::{LockedFile, Storage, block_memory, read_padded, write_whole};
use crate::writer::Writer;
use crate::{LogConfig, LogCounters, OpenError, Recovery};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use undercroft_arena::{ArenaError, Span};
use undercroft_wire::SegmentUse;

/// A store whose head is in order.
#[derive(Debug)]
pub(crate) struct Head {
    /// The superblock of this opening.
    pub(crate) superblock: Superblock,
    /// Whether there was nothing before.
    pub(crate) created: bool,
    /// Copies of the superblock that were damaged.
    pub(crate) corrupt_superblocks: u32,
    /// Where the file went that was there before and could not be read.
    pub(crate) set_aside: Option<PathBuf>,
}

/// Opens the file, locks it and puts its head in order: see [`open_head`]. A page log that this
/// build cannot read, or that is damaged beyond use, is moved aside and an empty one takes its
/// place: a cache that does not start helps nobody, and nobody's data is overwritten.
pub(crate) fn open(config: &LogConfig) -> Result<(LockedFile, Head), OpenError> {
    match open_once(config) {
        Err(OpenError::Version { .. } | OpenError::Damaged { .. }) => {
            let aside = set_aside(&config.path)?;
            match open_once(config) {
                Ok((file, head)) => Ok((file, Head { set_aside: Some(aside), ..head })),
                Err(error) => {
                    // Nothing took its place, so it goes back there.
                    let _best_effort = std::fs::rename(&aside, &config.path);
                    Err(error)
                }
            }
        }
        result => result,
    }
}

fn open_once(config: &LogConfig) -> Result<(LockedFile, Head), OpenError> {
    // A configuration that cannot be must not leave a file behind.
    Layout::new(config)?;
    let existed = config.path.exists();
    let file = LockedFile::open(&config.path)?;
    let room = |bytes| file.room_for(bytes);
    let random = entropy::system().map_err(|source| OpenError::Entropy { source });
    match random.and_then(|mut entropy| open_head(&file, config, &room, &mut entropy)) {
        Ok(head) => Ok((file, head)),
        Err(error) => {
            if !existed {
                // Best effort: an empty file left behind is formatted next time.
                let _left_behind = std::fs::remove_file(&config.path);
            }
            Err(error)
        }
    }
}

fn set_aside(path: &Path) -> Result<PathBuf, OpenError> {
    let name = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".set-aside-{number}"));
        PathBuf::from(name)
    };
    let aside = (1..).map(name).find(|aside| !aside.exists()).expect("numbers do not end");
    let what = "set aside the file";
    std::fs::rename(path, &aside).map_err(|source| OpenError::Io {
        what,
        path: path.into(),
        source,
    })?;
    Ok(aside)
}

/// Finds the records of a store and makes the machine that goes on with it.
pub(crate) fn recover(
    storage: &dyn Storage,
    config: &LogConfig,
    head: Head,
    entropy: Entropy,
    threads: usize,
) -> Result<(Machine, Recovery), OpenError> {
    let superblock = head.superblock;
    let (device, key) = (config.device, config.key.as_ref());
    let scanned = scan(Scanner { storage, head: &superblock, device, key, threads })?;
    let Scan { segments, mut recovery, newest_use } = scanned;
    // The generation grows with each opening, so a use is never numbered twice even if the
    // newest header was lost.
    let generation = superblock.generation.max((newest_use.0 >> 32) + 1);
    let writer = Writer::new(
        device,
        &superblock,
        segments,
        SegmentUse(generation << 32),
        Duration::from_millis(config.table_flush_ms),
        config.key.clone().map(|key| CipherMaker::new(key, entropy)),
    );
    recovery.corrupt_superblocks = head.corrupt_superblocks;
    recovery.created = head.created;
    let counters = LogCounters {
        recovered_records: recovery.records.len() as u64,
        corrupt_tables: recovery.corrupt_tables,
        io_errors: recovery.io_errors,
        ..LogCounters::default()
    };
    Ok((Machine::new(config, writer, counters)?, recovery))
}

impl Machine {
    /// Opens a log on any storage, in this thread: what simulators do. The storage is as long as
    /// it must be; nothing is locked. `entropy` names a new store and salts its segments.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        storage: &dyn Storage,
        config: &LogConfig,
        mut entropy: Entropy,
    ) -> Result<(Self, Recovery), OpenError> {
        let head = open_head(storage, config, &|_| Ok((0, u64::MAX)), &mut entropy)?;
        recover(storage, config, head, entropy, 1)
    }
}

/// Bytes missing for a length, and bytes available.
type Room<'a> = &'a dyn Fn(u64) -> io::Result<(u64, u64)>;

/// Reads the superblocks, formats an empty medium, applies a changed capacity, and writes the
/// superblock of this opening over the other copy than the newest.
pub(crate) fn open_head(
    storage: &dyn Storage,
    config: &LogConfig,
    room: Room<'_>,
    entropy: &mut Entropy,
) -> Result<Head, OpenError> {
    let path = config.path.as_path();
    let io = |what| move |source| OpenError::Io { what, path: path.into(), source };
    let bytes = storage.bytes().map_err(io("read the length"))?;
    let (copies, unread) = read_copies(storage)?;
    let found = copies.iter().enumerate().filter_map(|(index, copy)| match copy {
        Decoded::Valid(superblock) => Some((index, *superblock)),
        _ => None,
    });
    let newest = found.max_by_key(|(_, superblock)| superblock.generation);
    if let Some(&Decoded::Version(found)) =
        copies.iter().find(|copy| matches!(copy, Decoded::Version(_)))
    {
        let supported = FORMAT_VERSION;
        return Err(OpenError::Version { path: path.into(), found, supported });
    }
    let Some((index, newest)) = newest else {
        if let Some(source) = unread {
            return Err(io("read the superblocks")(source));
        }
        let area = block_memory(DATA_START / BLOCK)?;
        read_padded(storage, 0, &area).map_err(io("read the superblocks"))?;
        if !is_blank(bytes, &area) {
            return Err(unreadable(path, &copies));
        }
        let superblock = format(storage, config, room, entropy)?;
        return Ok(Head { superblock, created: true, corrupt_superblocks: 0, set_aside: None });
    };
    let key_check = check_key(config, &newest)?;
    let valid = copies.iter().filter(|copy| matches!(copy, Decoded::Valid(_))).count();
    let superblock = Superblock {
        generation: newest.generation + 1,
        layout: newest.layout.resized(config.capacity_bytes)?,
        key_check,
        ..newest
    };
    // Growing reserves first and shrinking gives back last: at each moment the file is long
    // enough for what its superblock says.
    let long_enough = newest.layout.file_bytes().max(superblock.layout.file_bytes());
    reserve(storage, path, long_enough, room)?;
    write_copy(storage, &superblock, 1 - index as u64).map_err(io("write a superblock"))?;
    if superblock.layout != newest.layout {
        reserve(storage, path, superblock.layout.file_bytes(), room)?;
    }
    let corrupt_superblocks = 2 - valid as u32;
    Ok(Head { superblock, created: false, corrupt_superblocks, set_aside: None })
}

/// What the next superblock says of the key. Once a store was encrypted, it keeps to its key; the
/// configuration may turn encryption off and on again.
fn check_key(config: &LogConfig, newest: &Superblock) -> Result<[u8; 16], OpenError> {
    let Some(key) = &config.key else {
        return Ok(newest.key_check);
    };
    let check = key.check(newest.store);
    if newest.key_check != [0; 16] && newest.key_check != check {
        return Err(OpenError::OtherKey { path: config.path.clone() });
    }
    Ok(check)
}

/// Both superblocks, and why one could not be read. Each is read by itself: a place that cannot be
/// read takes one of them with it, not both, and is as good as damaged.
pub(crate) fn read_copies(
    storage: &dyn Storage,
) -> Result<([Decoded<Superblock>; 2], Option<io::Error>), ArenaError> {
    let block = block_memory(1)?;
    let mut unread = None;
    let copies = [0, BLOCK].map(|at| match read_padded(storage, at, &block) {
        Ok(()) => block.read(|bytes| {
            let block: &Block = bytes.try_into().expect("a block is 4096 bytes");
            Superblock::decode(block)
        }),
        Err(error) => {
            unread = Some(error);
            Decoded::Corrupt
        }
    });
    Ok((copies, unread))
}

/// Whether nothing was ever stored: the file is empty, or the power was cut while its very first
/// superblock was written, and of that only the end is there. It is zero but for its CRC.
pub(crate) fn is_blank(bytes: u64, area: &Span) -> bool {
    let torn = bytes == BLOCK;
    bytes <= DATA_START
        && area.read(|area| {
            let crc = BLOCK_LEN - 8..BLOCK_LEN;
            let mut bytes = area.iter().enumerate();
            bytes.all(|(at, byte)| *byte == 0 || (torn && crc.contains(&at)))
        })
}

fn unreadable(path: &Path, copies: &[Decoded<Superblock>]) -> OpenError {
    let path = path.to_path_buf();
    if copies.contains(&Decoded::Corrupt) {
        OpenError::Damaged { path }
    } else {
        OpenError::Foreign { path }
    }
}

fn format(
    storage: &dyn Storage,
    config: &LogConfig,
    room: Room<'_>,
    entropy: &mut Entropy,
) -> Result<Superblock, OpenError> {
    let path = config.path.as_path();
    let io = |source| OpenError::Io { what: "write the superblocks", path: path.into(), source };
    let mut store = [0; 16];
    entropy(&mut store);
    let (store, layout) = (StoreId(store), Layout::new(config)?);
    let key_check = config.key.as_ref().map_or([0; 16], |key| key.check(store));
    let superblock = Superblock { store, generation: 1, layout, key_check };
    check_room(storage, path, layout.file_bytes(), room)?;
    // The superblocks come before the length: a file that is longer than they are and has none
    // was never ours, so an interrupted start cannot leave one behind that is refused later.
    for copy in 0..2 {
        write_copy(storage, &superblock, copy).map_err(io)?;
    }
    reserve(storage, path, layout.file_bytes(), room)?;
    storage.flush().map_err(io)?;
    Ok(superblock)
}

fn write_copy(storage: &dyn Storage, superblock: &Superblock, copy: u64) -> io::Result<()> {
    let block = block_memory(1).map_err(io::Error::other)?;
    block.copy_from_slice(&superblock.encode());
    write_whole(storage, copy * BLOCK, &block)?;
    storage.flush()
}

fn check_room(
    storage: &dyn Storage,
    path: &Path,
    bytes: u64,
    room: Room<'_>,
) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { what: "measure the space", path: path.into(), source };
    if storage.bytes().map_err(io)? >= bytes {
        return Ok(());
    }
    let (needed, available) = room(bytes).map_err(io)?;
    if needed > available {
        return Err(OpenError::NoSpace { path: path.into(), needed, available });
    }
    Ok(())
}

fn reserve(
    storage: &dyn Storage,
    path: &Path,
    bytes: u64,
    room: Room<'_>,
) -> Result<(), OpenError> {
    check_room(storage, path, bytes, room)?;
    storage.allocate(bytes).map_err(|source| {
        let full = source.kind() == io::ErrorKind::StorageFull;
        match room(bytes) {
            Ok((needed, available)) if full => {
                OpenError::NoSpace { path: path.into(), needed, available }
            }
            _ => OpenError::Io { what: "reserve the space", path: path.into(), source },
        }
    })
}
