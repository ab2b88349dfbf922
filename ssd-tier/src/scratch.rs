use crate::format::BLOCK;
use crate::storage::block_memory;
use undercroft_arena::{ArenaError, Span};
use undercroft_wire::frame_bytes;

/// Memory for pages on their way from one segment to another: at most as many as it is made for,
/// each as large as the largest page it has carried. Nothing is held before it is needed.
#[derive(Debug)]
pub(crate) struct Scratch {
    idle: Vec<Span>,
    lent: usize,
    limit: usize,
}

/// Room for one page.
#[derive(Debug)]
pub(crate) struct ScratchPage {
    whole: Span,
    /// The page's frame.
    pub(crate) frame: Span,
}

impl Scratch {
    /// Room for `limit` pages at once.
    pub(crate) fn new(limit: usize) -> Self {
        Self { idle: Vec::new(), lent: 0, limit }
    }

    /// Room for a page; `None` while all is lent.
    pub(crate) fn lend(&mut self, page_bytes: u32) -> Result<Option<ScratchPage>, ArenaError> {
        if self.lent == self.limit {
            return Ok(None);
        }
        let bytes = frame_bytes(page_bytes) as usize;
        let whole = match self.idle.pop() {
            Some(span) if span.len() >= bytes => span,
            // Too small: its memory goes before more is asked for.
            smaller => {
                drop(smaller);
                block_memory(bytes as u64 / BLOCK)?
            }
        };
        let frame = whole.sub(0, bytes)?;
        self.lent += 1;
        Ok(Some(ScratchPage { whole, frame }))
    }

    /// Takes it back.
    pub(crate) fn take_back(&mut self, page: ScratchPage) {
        self.lent -= 1;
        self.idle.push(page.whole);
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
