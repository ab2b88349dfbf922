//! The list as a file: written whole under another name and renamed, so that a file of its name is
//! one list or the other.

use super::{MAX_PURGES, PurgeList};
use crate::cipher::{self, SALT_BYTES, TAG_BYTES};
use crate::format::FORMAT_VERSION;
use crate::{OpenError, StoreKey, entropy};
use rustix::fs::{Mode, OFlags};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use undercroft_arena::checksum_bytes;
use undercroft_wire::{DomainId, PurgeId, PurgeScope, SpaceDigest};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The file's name beside a page log.
const NAME: &str = "purges";
const MAGIC: [u8; 8] = *b"UCROFTPL";
const ENCRYPTED: u32 = 1;
const DOMAIN: u8 = 1;
const SPACE: u8 = 2;
const WRITER: u8 = 4;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHead {
    magic: [u8; 8],
    version: U32,
    flags: U32,
    last: U32,
    floor: U32,
    count: U32,
    reserved: [u8; 4],
    salt: [u8; SALT_BYTES],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPurge {
    domain: [u8; 16],
    space: [u8; 32],
    writer: U32,
    purge: U32,
    named: u8,
    reserved: [u8; 7],
}

const HEAD_BYTES: usize = size_of::<RawHead>();
const PURGE_BYTES: usize = size_of::<RawPurge>();
const TAIL_BYTES: usize = TAG_BYTES + size_of::<U64>();
const MAX_BYTES: usize = HEAD_BYTES + MAX_PURGES * PURGE_BYTES + TAIL_BYTES;
const _: () = assert!(HEAD_BYTES == 64 && PURGE_BYTES == 64);

/// What lies beside a page log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeptPurges {
    /// This list; an empty one where there is no file.
    Known(PurgeList),
    /// A list that cannot be read: nobody knows what was purged.
    Unknown,
}

impl PurgeList {
    /// Reads the list in a directory.
    ///
    /// # Errors
    /// The file is there and its disk fails.
    pub fn load(directory: &Path, key: Option<&StoreKey>) -> Result<KeptPurges, OpenError> {
        let path = directory.join(NAME);
        let failed = |source| OpenError::Io { what: "read the purges", path: path.clone(), source };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(error) => {
                return match io::Error::from(error) {
                    error if error.kind() == ErrorKind::NotFound => {
                        Ok(KeptPurges::Known(Self::default()))
                    }
                    error => Err(failed(error)),
                };
            }
        };
        let mut bytes = Vec::new();
        match file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes) {
            Ok(_) => {}
            // A directory of that name.
            Err(error) if error.kind() == ErrorKind::IsADirectory => bytes.clear(),
            Err(error) => return Err(failed(error)),
        }
        Ok(Self::decode(&bytes, key).map_or(KeptPurges::Unknown, KeptPurges::Known))
    }

    /// Writes the list into a directory. When this returns, it is on the medium.
    ///
    /// # Errors
    /// The disk fails or is full.
    pub fn save(&self, directory: &Path, key: Option<&StoreKey>) -> io::Result<()> {
        let mut salt = [0; SALT_BYTES];
        if key.is_some() {
            entropy::fill(&mut salt)?;
        }
        let (path, draft) = (directory.join(NAME), draft(directory));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&draft, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?;
        let mut file = File::from(file);
        file.write_all(&self.encode(key, salt))?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(directory)?.sync_all()
    }

    pub(super) fn encode(&self, key: Option<&StoreKey>, salt: [u8; SALT_BYTES]) -> Vec<u8> {
        let purges = self.purges();
        let flags = if key.is_some() { ENCRYPTED } else { 0 };
        let head = RawHead {
            magic: MAGIC,
            version: FORMAT_VERSION.into(),
            flags: flags.into(),
            last: self.last.0.into(),
            floor: self.floor.0.into(),
            count: (purges.len() as u32).into(),
            reserved: [0; 4],
            salt,
        };
        let mut bytes = head.as_bytes().to_vec();
        for (scope, id) in &purges {
            bytes.extend_from_slice(raw(scope, *id).as_bytes());
        }
        let (head, purges) = bytes.split_at_mut(HEAD_BYTES);
        let tag = match key {
            Some(key) => cipher::seal_purges(key, &salt, head, purges),
            None => [0; TAG_BYTES],
        };
        bytes.extend_from_slice(&tag);
        let crc = checksum_bytes(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` if it is no list, is damaged, of another version, or takes another key.
    pub(super) fn decode(bytes: &[u8], key: Option<&StoreKey>) -> Option<Self> {
        let (before, crc) = bytes.split_last_chunk::<8>()?;
        if bytes.len() > MAX_BYTES || checksum_bytes(before) != u64::from_le_bytes(*crc) {
            return None;
        }
        let (rest, tag) = before.split_last_chunk::<TAG_BYTES>()?;
        let (raw_head, purges) = rest.split_at_checked(HEAD_BYTES)?;
        let head = RawHead::ref_from_bytes(raw_head).ok()?;
        let sized = purges.len() == head.count.get() as usize * PURGE_BYTES;
        if head.magic != MAGIC || head.version.get() != FORMAT_VERSION || !sized {
            return None;
        }
        let mut purges = purges.to_vec();
        match (head.flags.get(), key) {
            (0, _) => {}
            (ENCRYPTED, Some(key)) => {
                let salt = &head.salt;
                cipher::open_purges(key, salt, raw_head, tag, &mut purges).then_some(())?;
            }
            _ => return None,
        }
        let (last, floor) = (PurgeId(head.last.get()), PurgeId(head.floor.get()));
        let mut list = Self { last, floor, ..Self::default() };
        for purge in purges.chunks_exact(PURGE_BYTES) {
            let (scope, id) = RawPurge::ref_from_bytes(purge).ok().and_then(scope_of)?;
            // What is at odds with itself was not written by us.
            if id > last || id <= floor || list.purges.insert(scope, id).is_some() {
                return None;
            }
        }
        (floor <= last).then_some(list)
    }
}

fn draft(directory: &Path) -> PathBuf {
    directory.join(format!("{NAME}.new"))
}

fn raw(scope: &PurgeScope, id: PurgeId) -> RawPurge {
    let named = |is_some: bool, bit: u8| if is_some { bit } else { 0 };
    RawPurge {
        domain: scope.domain.unwrap_or_default().0,
        space: scope.space.map_or([0; 32], |space| space.0),
        writer: scope.writer.unwrap_or_default().into(),
        purge: id.0.into(),
        named: named(scope.domain.is_some(), DOMAIN)
            | named(scope.space.is_some(), SPACE)
            | named(scope.writer.is_some(), WRITER),
        reserved: [0; 7],
    }
}

fn scope_of(raw: &RawPurge) -> Option<(PurgeScope, PurgeId)> {
    let named = |bit| raw.named & bit != 0;
    if raw.named == 0 || raw.named & !(DOMAIN | SPACE | WRITER) != 0 {
        return None;
    }
    let scope = PurgeScope {
        domain: named(DOMAIN).then_some(DomainId(raw.domain)),
        space: named(SPACE).then_some(SpaceDigest(raw.space)),
        writer: named(WRITER).then_some(raw.writer.get()),
    };
    Some((scope, PurgeId(raw.purge.get())))
}
