//! Opening a store: the superblock pair, creating, growing and shrinking the file.

use crate::format::{BLOCK, BLOCK_LEN, Block, Decoded, FORMAT_VERSION, StoreId, Superblock};
use crate::layout::{DATA_START, Layout};
use crate::storage::{LockedFile, Storage, block_memory, read_padded, write_whole};
use crate::{LogConfig, OpenError};
use std::io;
use std::path::Path;
use undercroft_arena::Span;

/// A store whose head is in order.
#[derive(Debug)]
pub(crate) struct Head {
    /// The superblock of this opening.
    pub(crate) superblock: Superblock,
    /// Whether there was nothing before.
    pub(crate) created: bool,
    /// Copies of the superblock that were damaged.
    pub(crate) corrupt_superblocks: u32,
}

/// Opens the file, locks it and puts its head in order: see [`open_head`].
pub(crate) fn open(config: &LogConfig) -> Result<(LockedFile, Head), OpenError> {
    // A configuration that cannot be must not leave a file behind.
    Layout::new(config)?;
    let existed = config.path.exists();
    let file = LockedFile::open(&config.path)?;
    let room = |bytes| file.room_for(bytes);
    match open_head(&file, config, &room) {
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

/// Bytes missing for a length, and bytes available.
type Room<'a> = &'a dyn Fn(u64) -> io::Result<(u64, u64)>;

/// Reads the superblocks, formats an empty medium, applies a changed capacity, and writes the
/// superblock of this opening over the other copy than the newest.
pub(crate) fn open_head(
    storage: &dyn Storage,
    config: &LogConfig,
    room: Room<'_>,
) -> Result<Head, OpenError> {
    let path = config.path.as_path();
    let io = |what| move |source| OpenError::Io { what, path: path.into(), source };
    let bytes = storage.bytes().map_err(io("read the length"))?;
    let area = block_memory(DATA_START / BLOCK)?;
    read_padded(storage, 0, &area).map_err(io("read the superblocks"))?;
    let copies = [copy_at(&area, 0), copy_at(&area, 1)];
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
        let empty = bytes <= DATA_START && area.read(|bytes| bytes.iter().all(|b| *b == 0));
        if !empty {
            return Err(unreadable(path, &copies));
        }
        let superblock = format(storage, config, room)?;
        return Ok(Head { superblock, created: true, corrupt_superblocks: 0 });
    };
    let valid = copies.iter().filter(|copy| matches!(copy, Decoded::Valid(_))).count();
    let superblock = Superblock {
        generation: newest.generation + 1,
        layout: newest.layout.resized(config.capacity_bytes)?,
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
    Ok(Head { superblock, created: false, corrupt_superblocks: 2 - valid as u32 })
}

fn copy_at(area: &Span, index: usize) -> Decoded<Superblock> {
    area.read(|bytes| {
        let at = index * BLOCK_LEN;
        let block: &Block = bytes[at..at + BLOCK_LEN].try_into().expect("a block is 4096 bytes");
        Superblock::decode(block)
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
) -> Result<Superblock, OpenError> {
    let path = config.path.as_path();
    let io = |source| OpenError::Io { what: "write the superblocks", path: path.into(), source };
    let mut store = [0; 16];
    rustix::rand::getrandom(&mut store[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|e| io(e.into()))?;
    let layout = Layout::new(config)?;
    let superblock = Superblock { store: StoreId(store), generation: 1, layout };
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
