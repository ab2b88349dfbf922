//! The arenas of all domains: their parts, their boards, and what the machine gave for them.

use crate::config::{Config, DomainConfig};
use crate::estate::{Estate, Heirloom};
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use undercroft_arena::{
    ArenaError, Board, FileId, HugePages, Part, PartFacts, PartOptions, PartRow, Span,
};
use undercroft_core::FramePlace;
use undercroft_wire::{ArenaStatus, DomainId, Epoch, PartId};

/// The most threads that fault a part in.
const MAX_FAULTING_THREADS: usize = 8;
/// A board has room for an arena of this size at least, and for one that has grown so many times:
/// room that is not used costs addresses only.
const BOARD_BYTES: u64 = 64 << 30;
const BOARD_GROWTH: u64 = 4;

/// One part with the descriptor that clients get.
#[derive(Debug)]
pub(crate) struct ArenaPart {
    pub(crate) domain: DomainId,
    pub(crate) part: Arc<Part>,
    pub(crate) facts: PartFacts,
    pub(crate) read_only: Arc<OwnedFd>,
    /// Where the generations of its frames begin on its domain's board.
    pub(crate) board_offset: u64,
    /// Bytes that hold frames; the mapping may be longer.
    pub(crate) usable_bytes: u64,
}

/// A domain's board with the descriptor that clients get.
#[derive(Debug)]
pub(crate) struct SharedBoard {
    pub(crate) board: Board,
    pub(crate) read_only: Arc<OwnedFd>,
}

/// All parts and boards there are.
#[derive(Debug)]
pub(crate) struct Arena {
    pub(crate) epoch: Epoch,
    options: PartOptions,
    parts: BTreeMap<PartId, ArenaPart>,
    boards: BTreeMap<DomainId, SharedBoard>,
}

impl Arena {
    /// One without any part.
    pub(crate) fn new(epoch: Epoch, config: &Config) -> Self {
        let options = part_options(config);
        Self { epoch, options, parts: BTreeMap::new(), boards: BTreeMap::new() }
    }

    /// Makes a part for a domain, and the domain's board if it has none yet.
    pub(crate) fn make_part(
        &mut self,
        id: PartId,
        domain: &DomainConfig,
        usable_bytes: u64,
    ) -> Result<&ArenaPart, ArenaError> {
        let (part, facts) = Part::create(id, usable_bytes, &self.options)?;
        let board_offset = self.board_of(domain)?.place(usable_bytes);
        let board_offset = board_offset.ok_or(ArenaError::Size {
            what: "arena of a domain",
            found: usable_bytes,
            allowed: "what is left on its board",
        })?;
        self.insert(id, domain.id, (part, facts), usable_bytes, board_offset)
    }

    fn board_of(&mut self, domain: &DomainConfig) -> Result<&mut Board, ArenaError> {
        if !self.boards.contains_key(&domain.id) {
            let bytes = domain.dram_bytes.saturating_mul(BOARD_GROWTH).max(BOARD_BYTES);
            let board = Board::create(self.epoch, bytes)?;
            self.insert_board(domain.id, board)?;
        }
        let board = self.boards.get_mut(&domain.id).map(|shared| &mut shared.board);
        Ok(board.expect("it was made above"))
    }

    fn insert_board(&mut self, domain: DomainId, board: Board) -> Result<(), ArenaError> {
        let read_only = Arc::new(board.read_only_fd()?);
        self.boards.insert(domain, SharedBoard { board, read_only });
        Ok(())
    }

    fn insert(
        &mut self,
        id: PartId,
        domain: DomainId,
        (part, facts): (Part, PartFacts),
        usable_bytes: u64,
        board_offset: u64,
    ) -> Result<&ArenaPart, ArenaError> {
        let read_only = Arc::new(part.read_only_fd()?);
        let part = Arc::new(part);
        let part = ArenaPart { domain, part, facts, read_only, board_offset, usable_bytes };
        Ok(self.parts.entry(id).insert_entry(part).into_mut())
    }

    /// Takes over the board that an earlier daemon left of a domain.
    pub(crate) fn adopt_board(
        &mut self,
        domain: DomainId,
        estate: &mut Estate,
    ) -> Result<(), String> {
        let fd = estate.take(Heirloom::Board(domain)).ok_or("a board is missing")?;
        let board = Board::adopt(fd, None).map_err(|error| error.to_string())?;
        if board.epoch() != self.epoch {
            return Err("a board is of another epoch".to_owned());
        }
        self.insert_board(domain, board).map_err(|error| error.to_string())
    }

    /// Takes over a part that an earlier daemon left.
    pub(crate) fn adopt_part(&mut self, row: &PartRow, estate: &mut Estate) -> Result<(), String> {
        let name = Heirloom::Part(row.part);
        let fd = estate.take(name).ok_or_else(|| format!("{name} is missing"))?;
        let read_only = estate.take(Heirloom::ReadOnly(row.part));
        if FileId::of(&fd).map_err(|error| error.to_string())? != row.file {
            return Err(format!("{name} is another file"));
        }
        let board = self.boards.get_mut(&row.domain).ok_or("a board is missing")?;
        if !board.board.take(row.board_offset, row.bytes) {
            return Err(format!("{name} has no place on its board"));
        }
        let made = Part::adopt(row.part, row.bytes, fd, read_only, &self.options)
            .map_err(|error| format!("{name}: {error}"))?;
        self.insert(row.part, row.domain, made, row.bytes, row.board_offset)
            .map(drop)
            .map_err(|error| format!("{name}: {error}"))
    }

    /// Every part, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PartId, &ArenaPart)> {
        self.parts.iter().map(|(id, part)| (*id, part))
    }

    /// The parts of one domain.
    pub(crate) fn of(&self, domain: DomainId) -> impl Iterator<Item = (PartId, &ArenaPart)> {
        self.iter().filter(move |(_, part)| part.domain == domain)
    }

    /// Whether nobody but the daemon can open a domain's parts for writing, whatever his rights.
    pub(crate) fn is_protected(&self, domain: DomainId) -> bool {
        self.of(domain).all(|(_, part)| part.part.is_protected())
    }

    pub(crate) fn board(&self, domain: DomainId) -> Option<&SharedBoard> {
        self.boards.get(&domain)
    }

    /// The memory of all parts, to be registered with a page log's ring.
    pub(crate) fn memory(&self) -> Vec<Arc<Part>> {
        self.parts.values().map(|part| Arc::clone(&part.part)).collect()
    }

    /// The first `bytes` bytes of a frame.
    pub(crate) fn frame(&self, frame: &FramePlace, bytes: u32) -> Span {
        let part = self.parts.get(&frame.part).map(|part| &part.part);
        let span = part.map(|part| part.span(frame.offset, bytes as usize));
        span.expect("the core places frames in parts it was told of").expect("and inside of them")
    }

    /// A frame's bytes mean something else from here on.
    pub(crate) fn raise(&self, part: PartId, offset: u64) {
        let Some(part) = self.parts.get(&part) else { return };
        if let Some(shared) = self.boards.get(&part.domain) {
            shared.board.raise(part.board_offset, offset);
        }
    }

    /// The generation of a frame's bytes.
    pub(crate) fn generation(&self, part: PartId, offset: u64) -> u32 {
        let Some(part) = self.parts.get(&part) else { return 0 };
        let board = self.boards.get(&part.domain).map(|shared| &shared.board);
        board.map_or(0, |board| board.generation(part.board_offset, offset))
    }

    /// Tells a domain's clients that the daemon lives.
    pub(crate) fn beat(&self, domain: DomainId) {
        if let Some(shared) = self.boards.get(&domain) {
            shared.board.beat();
        }
    }

    /// Tells clients that the daemon ends.
    pub(crate) fn stop(&self) {
        self.boards.values().for_each(|shared| shared.board.stop());
    }

    /// What the next daemon needs of it.
    pub(crate) fn estate(&self) -> impl Iterator<Item = (Heirloom, BorrowedFd<'_>)> {
        let parts = self.parts.iter().map(|(id, part)| (Heirloom::Part(*id), part.part.fd()));
        let boards = self.boards.iter();
        parts.chain(boards.map(|(id, shared)| (Heirloom::Board(*id), shared.board.fd())))
    }

    /// What the machine refused, each line once.
    pub(crate) fn refused(&self) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for line in self.parts.values().flat_map(|part| &part.facts.refused) {
            if !lines.contains(line) {
                lines.push(line.clone());
            }
        }
        lines
    }
}

/// What `status` says of some parts.
pub(crate) fn status<'a>(parts: impl Iterator<Item = (PartId, &'a ArenaPart)>) -> ArenaStatus {
    let mut status = ArenaStatus { locked: true, ..ArenaStatus::default() };
    for (_, part) in parts {
        status.parts += 1;
        status.bytes += part.usable_bytes;
        status.locked &= part.facts.locked;
        let pages = part.facts.pages.to_string();
        if status.pages.is_empty() {
            status.pages = pages;
        } else if status.pages != pages {
            status.pages = "mixed".to_owned();
        }
    }
    status.locked &= status.parts > 0;
    status
}

fn part_options(config: &Config) -> PartOptions {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    PartOptions {
        huge: if config.huge_pages { HugePages::Auto } else { HugePages::Off },
        lock: config.lock,
        prefault_threads: threads.min(MAX_FAULTING_THREADS),
        ..PartOptions::default()
    }
}
