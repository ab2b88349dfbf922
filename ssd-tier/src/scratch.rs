use crate::format::BLOCK;
use crate::storage::block_memory;
use std::collections::BTreeMap;
use undercroft_arena::{ArenaError, Span};
use undercroft_wire::frame_bytes;

/// Of pages larger than this the region has room for few: when it is full they get memory of their
/// own, up to a bound.
const LARGE_BYTES: usize = 4 << 20;
/// That bound, but for a page that is larger alone.
const MAX_OWN_BYTES: usize = 48 << 20;

/// The log's own memory for pages: what is encrypted before it is written, and pages on their way
/// from one segment to another. One region, made once, so that it can be registered with a ring.
#[derive(Debug)]
pub(crate) struct Scratch {
    region: Span,
    /// Free runs of the region: offset and length.
    free: BTreeMap<usize, usize>,
    /// Bytes of pages that are out in memory of their own.
    own_bytes: usize,
}

/// Room for one page.
#[derive(Debug)]
pub(crate) struct ScratchPage {
    /// Where it lies in the region; `None` for memory of its own.
    at: Option<usize>,
    /// The page's frame.
    pub(crate) frame: Span,
}

impl Scratch {
    /// A region of that size.
    pub(crate) fn new(bytes: u64) -> Result<Self, ArenaError> {
        let region = block_memory(bytes.div_ceil(BLOCK).max(1))?;
        let free = BTreeMap::from([(0, region.len())]);
        Ok(Self { region, free, own_bytes: 0 })
    }

    /// The whole region.
    pub(crate) fn region(&self) -> &Span {
        &self.region
    }

    /// Room for a page; `None` while there is none.
    pub(crate) fn lend(&mut self, page_bytes: u32) -> Result<Option<ScratchPage>, ArenaError> {
        let bytes = frame_bytes(page_bytes) as usize;
        let Some((at, len)) = self.run_of(bytes) else {
            if !self.may_have_own(bytes) {
                return Ok(None);
            }
            let frame = block_memory(bytes as u64 / BLOCK)?;
            self.own_bytes += bytes;
            return Ok(Some(ScratchPage { at: None, frame }));
        };
        let frame = self.region.sub(at, bytes)?;
        self.free.remove(&at);
        if len > bytes {
            self.free.insert(at + bytes, len - bytes);
        }
        Ok(Some(ScratchPage { at: Some(at), frame }))
    }

    /// Whether there is room for a page now.
    pub(crate) fn has_room(&self, page_bytes: u32) -> bool {
        let bytes = frame_bytes(page_bytes) as usize;
        self.run_of(bytes).is_some() || self.may_have_own(bytes)
    }

    /// The first free run that is long enough.
    fn run_of(&self, bytes: usize) -> Option<(usize, usize)> {
        let mut runs = self.free.iter().map(|(at, len)| (*at, *len));
        runs.find(|(_, len)| *len >= bytes)
    }

    fn may_have_own(&self, bytes: usize) -> bool {
        let is_large = bytes > LARGE_BYTES.min(self.region.len());
        is_large && (self.own_bytes == 0 || self.own_bytes + bytes <= MAX_OWN_BYTES)
    }

    /// Takes it back.
    pub(crate) fn take_back(&mut self, page: ScratchPage) {
        let Some(mut at) = page.at else {
            self.own_bytes -= page.frame.len();
            return;
        };
        let mut len = page.frame.len();
        if let Some(next) = self.free.remove(&(at + len)) {
            len += next;
        }
        let before = self.free.range(..at).next_back().map(|(start, run)| (*start, *run));
        if let Some((start, run)) = before.filter(|(start, run)| start + run == at) {
            at = start;
            len += run;
        }
        let overlapped = self.free.insert(at, len).is_some_and(|run| run > len);
        assert!(!overlapped, "room is given back once");
    }
}

/// Blocks for headers and tables, made once.
#[derive(Debug)]
pub(crate) struct Blocks(Vec<Span>);

impl Blocks {
    /// That many blocks.
    pub(crate) fn new(count: usize) -> Result<Self, ArenaError> {
        let memory = block_memory(count as u64)?;
        let block = |index| memory.sub(index * BLOCK as usize, BLOCK as usize);
        Ok(Self((0..count).map(block).collect::<Result<_, _>>()?))
    }

    /// Whether there is one.
    pub(crate) fn any_left(&self) -> bool {
        !self.0.is_empty()
    }

    /// One of them.
    pub(crate) fn take(&mut self) -> Span {
        self.0.pop().expect("the caller asked whether there is a block left")
    }

    /// Takes one back.
    pub(crate) fn take_back(&mut self, block: Span) {
        self.0.push(block);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    const MIB: u32 = 1 << 20;

    #[test]
    fn large_pages_get_memory_of_their_own_and_small_ones_wait() {
        let mut scratch = Scratch::new(16 << 20).unwrap();
        let mut lent = Vec::new();
        while let Some(page) = scratch.lend(8 * MIB).unwrap() {
            lent.push(page);
        }
        assert_eq!(lent.len(), 2 + 6, "the region, and 48 MiB beside it");
        assert!(!scratch.has_room(8 * MIB) && !scratch.has_room(4096));
        scratch.take_back(lent.pop().unwrap());
        assert!(scratch.has_room(8 * MIB) && !scratch.has_room(4 * MIB));
        for page in lent {
            scratch.take_back(page);
        }
        assert!(scratch.lend(64 * MIB).unwrap().is_some(), "one that is too large, alone");
        assert!(!scratch.has_room(17 * MIB) && scratch.has_room(16 * MIB));
    }
}
