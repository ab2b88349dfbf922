use std::fmt;

/// What is done to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Bit,
    Sector,
    Torn,
    SwapInSegment,
    SwapAcross,
    SwapDevices,
    OldUse,
    OtherSpace,
    OtherDomain,
    AskedByAnother,
    TableBit,
    TableSector,
    HeaderBit,
    HeaderSector,
    SuperblockBit,
    SuperblockSector,
    TableMoved,
    EntryMoved,
    OldTable,
    OldHeader,
    OldSegment,
    Truncated,
}

impl Kind {
    /// Found by reading what was hit, in a log that is open.
    pub(super) const OF_RECORDS: [Self; 10] = [
        Self::Bit,
        Self::Sector,
        Self::Torn,
        Self::SwapInSegment,
        Self::SwapAcross,
        Self::SwapDevices,
        Self::OldUse,
        Self::OtherSpace,
        Self::OtherDomain,
        Self::AskedByAnother,
    ];
    /// Found by opening the store.
    pub(super) const OF_STORES: [Self; 12] = [
        Self::TableBit,
        Self::TableSector,
        Self::HeaderBit,
        Self::HeaderSector,
        Self::SuperblockBit,
        Self::SuperblockSector,
        Self::TableMoved,
        Self::EntryMoved,
        Self::OldTable,
        Self::OldHeader,
        Self::OldSegment,
        Self::Truncated,
    ];

    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Self::OF_RECORDS.into_iter().chain(Self::OF_STORES)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bit => "record: one bit flipped",
            Self::Sector => "record: a sector garbled or zeroed",
            Self::Torn => "record: torn, the rest is older, zero or another's",
            Self::SwapInSegment => "two records of a segment swapped",
            Self::SwapAcross => "two records of two segments swapped",
            Self::SwapDevices => "two records of two devices swapped",
            Self::OldUse => "record: what its slot held in an earlier use",
            Self::OtherSpace => "record: another space's in its place",
            Self::OtherDomain => "record: another domain's in its place",
            Self::AskedByAnother => "record: asked for by another's name",
            Self::TableBit => "table: one bit flipped",
            Self::TableSector => "table: a sector garbled or zeroed",
            Self::HeaderBit => "segment header: one bit flipped",
            Self::HeaderSector => "segment header: a sector garbled or zeroed",
            Self::SuperblockBit => "superblocks: bits flipped in one or both",
            Self::SuperblockSector => "superblocks: a sector of one or both",
            Self::TableMoved => "table with its records in another's place",
            Self::EntryMoved => "record with its entry in another slot",
            Self::OldTable => "table: that of an earlier use",
            Self::OldHeader => "segment header: that of an earlier use",
            Self::OldSegment => "segment: all of an earlier use",
            Self::Truncated => "file cut short",
        })
    }
}
