//! Where everything lies in the file, derived from its limits alone.

use super::{StateError, words::WORD_BYTES};
use crate::ArenaError;

/// The bounds of every table of a [`State`](crate::State), fixed when it is created. Room that is
/// not used costs addresses and no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateLimits {
    /// Parts of all domains, those included that are being retired.
    pub max_parts: u32,
    /// The largest part, bytes.
    pub max_part_bytes: u64,
    /// Slabs of all parts.
    pub max_slabs: u32,
    /// Spaces of all domains.
    pub max_spaces: u32,
    /// Sessions, those included whose socket is closed and whose leases are still held.
    pub max_sessions: u32,
    /// Pages in all leases.
    pub max_leased_pages: u32,
}

impl StateLimits {
    /// Whether nothing that keeps to `other` is beyond these.
    #[must_use]
    pub fn cover(&self, other: &Self) -> bool {
        self.max_parts >= other.max_parts
            && self.max_part_bytes >= other.max_part_bytes
            && self.max_slabs >= other.max_slabs
            && self.max_spaces >= other.max_spaces
            && self.max_sessions >= other.max_sessions
            && self.max_leased_pages >= other.max_leased_pages
    }

    /// The least limits that cover both.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        Self {
            max_parts: self.max_parts.max(other.max_parts),
            max_part_bytes: self.max_part_bytes.max(other.max_part_bytes),
            max_slabs: self.max_slabs.max(other.max_slabs),
            max_spaces: self.max_spaces.max(other.max_spaces),
            max_sessions: self.max_sessions.max(other.max_sessions),
            max_leased_pages: self.max_leased_pages.max(other.max_leased_pages),
        }
    }
}

impl Default for StateLimits {
    fn default() -> Self {
        Self {
            max_parts: 256,
            max_part_bytes: 256 << 30,
            max_slabs: 1 << 16,
            max_spaces: 1024,
            max_sessions: 4096,
            max_leased_pages: 1 << 22,
        }
    }
}

/// The unit in which places are counted: frames start at multiples of it.
pub(super) const UNIT_BYTES: u64 = undercroft_wire::FRAME_ALIGN as u64;
/// One page of the state file: tables start at multiples of it.
pub(super) const PAGE_WORDS: usize = 4096 / WORD_BYTES;
/// Words of a row of the frame table.
pub(super) const FRAME_WORDS: usize = 16;
/// What a table of any kind may have at most, and at least one.
const MAX_ROWS: u32 = 1 << 26;
const MAX_PARTS: u32 = 4096;
const MAX_PART_BYTES: u64 = 8 << 40;
/// What a process has addresses for, with room for everything else.
const MAX_BYTES: u64 = 1 << 45;

/// A table of fixed-size rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// First word.
    pub(super) at: usize,
    /// Words of a row.
    pub(super) row_words: usize,
    /// Rows.
    pub(super) rows: u32,
}

/// Where the tables lie, in words from the start of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) parts: Place,
    pub(super) spaces: Place,
    pub(super) slabs: Place,
    pub(super) sessions: Place,
    pub(super) leases: Place,
    /// First word of the frame rows.
    pub(super) frames_at: usize,
    /// Words of the frame rows of one part.
    pub(super) part_words: usize,
    /// Size of the file, bytes.
    pub(super) bytes: u64,
}

impl StateLimits {
    /// Where everything lies.
    ///
    /// # Errors
    /// A limit out of range, or more than a process has addresses for.
    pub(super) fn layout(&self) -> Result<Layout, StateError> {
        self.check()?;
        let mut at = PAGE_WORDS;
        let mut table = |rows: u32, row_words: usize| {
            let place = Place { at, row_words, rows };
            at += (rows as usize * row_words).next_multiple_of(PAGE_WORDS);
            place
        };
        let parts = table(self.max_parts, 16);
        let spaces = table(self.max_spaces, 16);
        let slabs = table(self.max_slabs, 8);
        let sessions = table(self.max_sessions, 8);
        let leases = table(self.max_leased_pages, 8);
        let units = self.max_part_bytes.div_ceil(UNIT_BYTES) as usize;
        let part_words = (units * FRAME_WORDS).next_multiple_of(PAGE_WORDS);
        let words = at as u64 + u64::from(self.max_parts) * part_words as u64;
        let bytes = words * WORD_BYTES as u64;
        if bytes > MAX_BYTES {
            return Err(size("all parts of the state file together", bytes, "1 byte to 32 TiB"));
        }
        Ok(Layout { parts, spaces, slabs, sessions, leases, frames_at: at, part_words, bytes })
    }

    fn check(&self) -> Result<(), StateError> {
        let rows = [
            ("max_slabs", self.max_slabs, MAX_ROWS, "1 to 2^26"),
            ("max_spaces", self.max_spaces, MAX_ROWS, "1 to 2^26"),
            ("max_sessions", self.max_sessions, MAX_ROWS, "1 to 2^26"),
            ("max_leased_pages", self.max_leased_pages, MAX_ROWS, "1 to 2^26"),
            ("max_parts", self.max_parts, MAX_PARTS, "1 to 4096"),
        ];
        for (what, found, most, allowed) in rows {
            if found == 0 || found > most {
                return Err(size(what, found.into(), allowed));
            }
        }
        if self.max_part_bytes < UNIT_BYTES || self.max_part_bytes > MAX_PART_BYTES {
            return Err(size("max_part_bytes", self.max_part_bytes, "4 KiB to 8 TiB"));
        }
        Ok(())
    }
}

fn size(what: &'static str, found: u64, allowed: &'static str) -> StateError {
    StateError::Arena(ArenaError::Size { what, found, allowed })
}
