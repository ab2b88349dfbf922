use crate::format::BLOCK;
use crate::storage::block_memory;
use std::collections::BTreeMap;
use undercroft_arena::{ArenaError, Span};
use undercroft_wire::frame_bytes;

/// The log's own memory for pages: what is encrypted before it is written, and pages on their way
/// from one segment to another. One region, made once, so that it can be registered with a ring.
#[derive(Debug)]
pub(crate) struct Scratch {
    region: Span,
    /// Free runs of the region: offset and length.
    free: BTreeMap<usize, usize>,
    /// Whether a page larger than the region is out, in memory of its own.
    oversized: bool,
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
        Ok(Self { region, free, oversized: false })
    }

    /// The whole region.
    pub(crate) fn region(&self) -> &Span {
        &self.region
    }

    /// Room for a page; `None` while there is none. A page larger than the region gets memory of
    /// its own, one at a time.
    pub(crate) fn lend(&mut self, page_bytes: u32) -> Result<Option<ScratchPage>, ArenaError> {
        let bytes = frame_bytes(page_bytes) as usize;
        if bytes > self.region.len() {
            if self.oversized {
                return Ok(None);
            }
            let frame = block_memory(bytes as u64 / BLOCK)?;
            self.oversized = true;
            return Ok(Some(ScratchPage { at: None, frame }));
        }
        let mut runs = self.free.iter();
        let Some((&at, &len)) = runs.find(|(_, len)| **len >= bytes) else {
            return Ok(None);
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
        let large = bytes > self.region.len();
        if large { !self.oversized } else { self.free.values().any(|len| *len >= bytes) }
    }

    /// Takes it back.
    pub(crate) fn take_back(&mut self, page: ScratchPage) {
        let Some(mut at) = page.at else {
            self.oversized = false;
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
