//! The seal of a segment that a former process left open: it names what it does not speak for.

use std::fmt;

/// Bytes of the bitmap: as many as a table block has room for entries.
pub(crate) const UNPROVED_BYTES: usize = 4000;

/// The records of a segment that did not prove themselves, by number. There is room for numbers
/// below 32,000.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Unproved(Box<[u8; UNPROVED_BYTES]>);

impl Unproved {
    /// All of them proved themselves.
    pub(crate) fn none() -> Self {
        Self(Box::new([0; UNPROVED_BYTES]))
    }

    /// As it lies in a table block.
    pub(crate) fn from_bytes(bytes: &[u8; UNPROVED_BYTES]) -> Self {
        Self(Box::new(*bytes))
    }

    /// As it lies in a table block.
    pub(crate) fn bytes(&self) -> &[u8; UNPROVED_BYTES] {
        &self.0
    }

    /// Adds a record; false if there is no room for its number.
    pub(crate) fn add(&mut self, record: u32) -> bool {
        let byte = self.0.get_mut(record as usize / 8);
        byte.map(|byte| *byte |= 1 << (record % 8)).is_some()
    }

    /// Whether a record is among them.
    pub(crate) fn contains(&self, record: u32) -> bool {
        self.0.get(record as usize / 8).is_some_and(|byte| byte & (1 << (record % 8)) != 0)
    }
}

impl fmt::Debug for Unproved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let records = 0..UNPROVED_BYTES as u32 * 8;
        f.debug_set().entries(records.filter(|record| self.contains(*record))).finish()
    }
}

/// A seal to be written by another process than the one that filled the segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LateSeal {
    /// The table block it takes.
    pub(crate) at: u32,
    /// What it does not speak for.
    pub(crate) unproved: Unproved,
}

/// Where the tables of a segment lie that was left open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeftOpen {
    /// The block of each batch, the batches in their order.
    pub(crate) tables: Vec<u32>,
    /// The block that a seal may take: no batch is read from there.
    pub(crate) seal_at: u32,
}
