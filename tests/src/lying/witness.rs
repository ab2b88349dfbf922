//! What a disk can tell of the page log that writes to it, from `docs/disk-format.md` alone: that
//! nothing is encrypted twice under one key and number, and what a restart must find.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hasher};

const BLOCK: u64 = 4096;
/// Where the first segment starts.
pub(super) const DATA_START: u64 = 65_536;
/// Records that one table block names.
const ENTRIES: u32 = 23;

/// Bytes 0 to 8 of a block.
const SUPERBLOCK: &[u8] = b"UCROFTSB";
const HEADER: &[u8] = b"UCROFTSG";
const TABLE: &[u8] = b"UCROFTTB";

/// What a write turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// Nothing that is followed up.
    Other,
    Header {
        segment: u32,
        segment_use: u64,
        freed: bool,
    },
    Table {
        segment: u32,
        segment_use: u64,
        listed: u32,
    },
    Seal {
        segment: u32,
        segment_use: u64,
    },
}

/// What is known of a use of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SegmentNews {
    /// Its header is written.
    pub(crate) opened: bool,
    /// Records before this number are named by tables that are written.
    pub(crate) listed: u32,
    /// The log says that everything in it was flushed.
    pub(crate) sealing: bool,
    /// The log has begun to end this use.
    pub(crate) ending: bool,
}

/// What keys derive from: segment, use and salt; no salt where nothing is encrypted.
type Place = (u32, u64, Option<[u8; 32]>);

/// The payloads of one use of a segment, as far as they can be told from others.
#[derive(Debug, Default)]
struct Payloads {
    /// The use, once its header was seen: payloads may come first.
    of: Option<u64>,
    /// By offset: where it ends, and a sum of the bytes.
    sums: BTreeMap<u64, (u64, u64)>,
    /// The use that owned these places before, if no header was seen since.
    displaced: Option<u64>,
    /// The salt of the last header.
    salt: Option<[u8; 32]>,
}

/// Watches every write to a store.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    segment_bytes: Option<u64>,
    news: BTreeMap<(u32, u64), SegmentNews>,
    payloads: BTreeMap<u32, Payloads>,
    /// Which use of which segment each salt was drawn for.
    salts: HashMap<[u8; 32], (u32, u64)>,
    /// Sums of table blocks by what their key derives from and the number of the write.
    tables: HashMap<(Place, u32), u64>,
    /// Which segment each use belongs to.
    uses: HashMap<u64, u32>,
    /// Whether a use may come twice because the device has lost track of the first.
    pub(crate) forgetful: bool,
}

impl Witness {
    /// The segment that an offset lies in; `None` before the first.
    pub(crate) fn segment_of(&self, offset: u64) -> Option<u32> {
        let behind = offset.checked_sub(DATA_START)?;
        self.segment_bytes.map(|bytes| (behind / bytes) as u32)
    }

    /// What is known of a use of a segment.
    pub(crate) fn news(&self, segment: u32, segment_use: u64) -> SegmentNews {
        self.news.get(&(segment, segment_use)).copied().unwrap_or_default()
    }

    /// Another device has taken the place of this one; no salt is drawn again for all that.
    pub(super) fn replaced(&mut self) {
        let salts = std::mem::take(&mut self.salts);
        *self = Self { salts, ..Self::default() };
    }

    /// Another process has opened the store. Nothing that was open goes on.
    pub(crate) fn opened_anew(&mut self) {
        self.payloads.clear();
    }

    /// The log has nothing left to write: what was put off must have been explained by now.
    ///
    /// # Panics
    /// Records of one use were written twice.
    pub(crate) fn at_rest(&self) {
        for (segment, payloads) in &self.payloads {
            let displaced = payloads.displaced;
            assert_eq!(displaced, None, "records of segment {segment} were written twice in a use");
        }
    }

    /// A write begins, or, not `fresh`, goes on. `bytes` is the whole of it.
    ///
    /// # Panics
    /// The write breaks a promise of the format.
    pub(super) fn begins(&mut self, offset: u64, bytes: &[u8], fresh: bool) -> Sight {
        if offset < DATA_START {
            if bytes.starts_with(SUPERBLOCK) {
                self.segment_bytes = Some(u64_at(bytes, 40));
            }
            return Sight::Other;
        }
        let Some(segment_bytes) = self.segment_bytes else {
            panic!("a segment is written to before the superblock")
        };
        let segment = ((offset - DATA_START) / segment_bytes) as u32;
        let within = (offset - DATA_START) % segment_bytes;
        let end = within + bytes.len() as u64;
        assert!(end <= segment_bytes, "a write stays inside its segment");
        if within == 0 && bytes.starts_with(HEADER) {
            return self.header(segment, bytes);
        }
        if bytes.len() as u64 == BLOCK && bytes.starts_with(TABLE) {
            return self.table(segment, bytes);
        }
        // A segment that is free may be zeroed at any time.
        if bytes.iter().any(|byte| *byte != 0) {
            self.payload(segment, within, bytes, fresh);
        }
        Sight::Other
    }

    fn header(&mut self, segment: u32, bytes: &[u8]) -> Sight {
        let (segment_use, freed) = (u64_at(bytes, 40), u32_at(bytes, 12) & 1 == 1);
        assert_eq!(u32_at(bytes, 32), segment, "a header names its segment");
        let salt: [u8; 32] = bytes[48..80].try_into().expect("32 bytes");
        let salt = (u32_at(bytes, 36) != 0).then_some(salt);
        if let Some(salt) = salt {
            let drawn = *self.salts.entry(salt).or_insert((segment, segment_use));
            assert_eq!(drawn, (segment, segment_use), "a salt is drawn for one use of a segment");
        }
        let owner = *self.uses.entry(segment_use).or_insert(segment);
        assert!(owner == segment || self.forgetful, "no two segments have one use");
        let payloads = self.payloads.entry(segment).or_default();
        payloads.salt = salt;
        if freed {
            self.news.entry((segment, segment_use)).or_default().ending = true;
            payloads.check_over(segment, segment_use);
        } else if payloads.of != Some(segment_use) {
            if payloads.of.is_some() {
                payloads.sums.clear();
            }
            payloads.of = Some(segment_use);
            payloads.displaced = None;
        }
        Sight::Header { segment, segment_use, freed }
    }

    fn table(&mut self, segment: u32, bytes: &[u8]) -> Sight {
        let (segment_use, write, batch) = (u64_at(bytes, 40), u32_at(bytes, 48), u32_at(bytes, 36));
        let (flags, count) = (u16_at(bytes, 12), u16_at(bytes, 14));
        assert_eq!(u32_at(bytes, 32), segment, "a table names its segment");
        let payloads = self.payloads.entry(segment).or_default();
        payloads.check_over(segment, segment_use);
        let sum = sum(bytes);
        let place = (segment, segment_use, payloads.salt);
        let known = *self.tables.entry((place, write)).or_insert(sum);
        let twice = "two table blocks of one use have one number, and so one nonce";
        // Of a use that came twice, each has its salt.
        assert!(known == sum || (self.forgetful && payloads.salt.is_none()), "{twice}");
        if flags & 1 == 1 {
            self.news.entry((segment, segment_use)).or_default().sealing = true;
            return Sight::Seal { segment, segment_use };
        }
        let listed = batch * ENTRIES + u32::from(count);
        Sight::Table { segment, segment_use, listed }
    }

    fn payload(&mut self, segment: u32, within: u64, bytes: &[u8], fresh: bool) {
        let payloads = self.payloads.entry(segment).or_default();
        let sum = sum(bytes);
        if !fresh {
            let first = payloads.sums.get(&within);
            assert!(first.is_none_or(|first| first.1 == sum), "a write goes on as it began");
            return;
        }
        let end = within + bytes.len() as u64;
        let before = payloads.sums.range(..end).next_back();
        if before.is_some_and(|(_, (until, _))| *until > within) {
            // Each place is written once in a use, in any order: this must be another use, whose
            // header is still to come.
            payloads.displaced = payloads.of.take().or(payloads.displaced);
            payloads.sums.clear();
        }
        payloads.sums.insert(within, (end, sum));
    }

    /// A write is over, as the log is told.
    pub(super) fn ended(&mut self, sight: Sight, ok: bool) {
        match sight {
            Sight::Header { segment, segment_use, freed: false } if ok => {
                self.news.entry((segment, segment_use)).or_default().opened = true;
            }
            Sight::Table { segment, segment_use, listed } if ok => {
                let news = self.news.entry((segment, segment_use)).or_default();
                news.listed = news.listed.max(listed);
            }
            _ => {}
        }
    }
}

impl Payloads {
    /// A block of a use is written: its records must not have been displaced by others.
    fn check_over(&self, segment: u32, segment_use: u64) {
        assert_ne!(
            self.displaced,
            Some(segment_use),
            "records of segment {segment} were written twice in use {segment_use}"
        );
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A sum that tells bytes from others; nobody chooses them to collide. Not a CRC: all blocks that end
/// with their own have the same.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(write: u32, content: u8) -> Vec<u8> {
        let mut block = vec![content; BLOCK as usize];
        block[..8].copy_from_slice(TABLE);
        block[12..14].copy_from_slice(&0_u16.to_le_bytes());
        block[32..36].copy_from_slice(&0_u32.to_le_bytes());
        block[40..48].copy_from_slice(&7_u64.to_le_bytes());
        block[48..52].copy_from_slice(&write.to_le_bytes());
        let crc = undercroft_arena::checksum_bytes(&block[..4088]);
        block[4088..].copy_from_slice(&crc.to_le_bytes());
        block
    }

    #[test]
    fn a_number_of_a_table_that_comes_twice_is_seen() {
        let mut witness = Witness { segment_bytes: Some(1 << 20), ..Witness::default() };
        let mut write = |number, content| {
            let block = table(number, content);
            witness.begins(DATA_START + (1 << 20) - BLOCK, &block, true)
        };
        write(0, 1);
        write(1, 2);
        write(1, 2);
        let twice = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| write(1, 3)));
        assert!(twice.is_err(), "another block has its number");
    }
}
