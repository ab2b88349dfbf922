//! The arenas of all domains: their parts, their boards, and what the machine gave for them.

use crate::config::{Config, DomainConfig};
use crate::estate::{Estate, Heirloom};
use crate::mounts::Ground;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use undercroft_arena::{
    ArenaError, Board, FileId, HugePages, PageKind, Part, PartFacts, PartOptions, PartRow, Span,
};
use undercroft_core::{FirstPage, FramePlace};
use undercroft_wire::{ArenaStatus, DomainId, Epoch, PartId};

/// The most threads that fault a part in.
const MAX_FAULTING_THREADS: usize = 8;
/// A board has room for an arena of this size at least, and for one that has grown so many times:
/// room that is not used costs addresses only.
const BOARD_BYTES: u64 = 64 << 30;
const BOARD_GROWTH: u64 = 4;

/// What a part is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PartStage {
    /// Pages are placed in it.
    InUse,
    /// Nothing new is placed in it, and what is in it leaves.
    Retiring,
    /// Nothing is in it. It goes when its last client has let go of it.
    Empty,
}

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
    pub(crate) stage: PartStage,
}

impl ArenaPart {
    /// What the next daemon needs of it: also the descriptor for readers, where that cannot be made
    /// again.
    pub(crate) fn heirlooms(&self, id: PartId) -> impl Iterator<Item = (Heirloom, BorrowedFd<'_>)> {
        let read_only = self.part.is_protected().then_some(self.read_only.as_fd());
        let read_only = read_only.map(|fd| (Heirloom::ReadOnly(id), fd));
        [(Heirloom::Part(id), self.part.fd())].into_iter().chain(read_only)
    }
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
    /// Where new parts and boards lie.
    ground: Ground,
    options: PartOptions,
    parts: BTreeMap<PartId, ArenaPart>,
    boards: BTreeMap<DomainId, SharedBoard>,
}

impl Arena {
    /// One without any part.
    pub(crate) fn new(epoch: Epoch, config: &Config, ground: Ground) -> Self {
        Self {
            epoch,
            ground,
            options: part_options(config),
            parts: BTreeMap::new(),
            boards: BTreeMap::new(),
        }
    }

    /// Has parts that are made from now on made as configured.
    pub(crate) fn set_options(&mut self, config: &Config) {
        self.options = part_options(config);
    }

    /// How a part is to be made that is to lie on this memory node.
    pub(crate) fn options(&self, numa_node: Option<u32>) -> PartOptions {
        PartOptions { numa_node, ..self.options }
    }

    /// Gives a new part to a domain, and the domain a board if it has none yet. What it is not
    /// taken as comes back.
    pub(crate) fn add_part(
        &mut self,
        id: PartId,
        domain: &DomainConfig,
        (part, facts): (Part, PartFacts),
        usable_bytes: u64,
    ) -> Result<&ArenaPart, (Part, ArenaError)> {
        let read_only = match part.read_only_fd() {
            Ok(read_only) => Arc::new(read_only),
            Err(error) => return Err((part, error)),
        };
        let board_offset = match self.board_of(domain) {
            Ok(board) => board.place(usable_bytes),
            Err(error) => return Err((part, error)),
        };
        let Some(board_offset) = board_offset else {
            let (what, found) = ("arena of a domain", usable_bytes);
            let allowed = "what is left on its board: it is made at a cold start";
            return Err((part, ArenaError::Size { what, found, allowed }));
        };
        let place = (board_offset, usable_bytes);
        Ok(self.insert(id, domain.id, (part, facts), read_only, place))
    }

    /// Takes a part out. Another one may have its place on the board.
    pub(crate) fn remove(&mut self, id: PartId) -> Option<ArenaPart> {
        let part = self.parts.remove(&id)?;
        if let Some(shared) = self.boards.get_mut(&part.domain) {
            shared.board.let_go(part.board_offset);
        }
        Some(part)
    }

    /// Says what a part is there for from here on.
    pub(crate) fn set_stage(&mut self, id: PartId, stage: PartStage) {
        if let Some(part) = self.parts.get_mut(&id) {
            part.stage = stage;
        }
    }

    pub(crate) fn part(&self, id: PartId) -> Option<&ArenaPart> {
        self.parts.get(&id)
    }

    /// The board of a domain, made if it has none.
    pub(crate) fn board_of(&mut self, domain: &DomainConfig) -> Result<&mut Board, ArenaError> {
        if !self.boards.contains_key(&domain.id) {
            let bytes = domain.dram_bytes.saturating_mul(BOARD_GROWTH).max(BOARD_BYTES);
            let board = Board::create_in(&self.ground.backing, self.epoch, bytes)?;
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
        read_only: Arc<OwnedFd>,
        (board_offset, usable_bytes): (u64, u64),
    ) -> &ArenaPart {
        let (part, stage) = (Arc::new(part), PartStage::InUse);
        let part = ArenaPart { domain, part, facts, read_only, board_offset, usable_bytes, stage };
        self.parts.entry(id).insert_entry(part).into_mut()
    }

    /// Takes over the board that an earlier daemon left of a domain.
    pub(crate) fn adopt_board(
        &mut self,
        domain: DomainId,
        estate: &mut Estate,
    ) -> Result<(), String> {
        let fd = estate.take(Heirloom::Board(domain)).ok_or("a board is missing")?;
        let read_only = estate.take(Heirloom::ReadOnlyBoard(domain));
        let board = Board::adopt(fd, read_only).map_err(|error| error.to_string())?;
        if board.epoch() != self.epoch {
            return Err("a board is of another epoch".to_owned());
        }
        self.insert_board(domain, board).map_err(|error| error.to_string())
    }

    /// Takes over a part that an earlier daemon left.
    pub(crate) fn adopt_part(
        &mut self,
        row: &PartRow,
        domain: &DomainConfig,
        estate: &mut Estate,
    ) -> Result<(), String> {
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
        let wrong = |error: ArenaError| format!("{name}: {error}");
        let options = self.options(domain.numa_node(row.part));
        let made = Part::adopt(row.part, row.bytes, fd, read_only, &options).map_err(wrong)?;
        let read_only = Arc::new(made.0.read_only_fd().map_err(wrong)?);
        self.insert(row.part, row.domain, made, read_only, (row.board_offset, row.bytes));
        if row.retiring {
            self.set_stage(row.part, PartStage::Retiring);
        }
        Ok(())
    }

    /// Every part, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PartId, &ArenaPart)> {
        self.parts.iter().map(|(id, part)| (*id, part))
    }

    /// Bytes of a domain's parts in this stage or a later one.
    pub(crate) fn bytes_of(&self, domain: DomainId, from: PartStage) -> u64 {
        let parts = self.of(domain).filter(|(_, part)| part.stage >= from);
        parts.map(|(_, part)| part.usable_bytes).sum()
    }

    /// The parts of one domain.
    pub(crate) fn of(&self, domain: DomainId) -> impl Iterator<Item = (PartId, &ArenaPart)> {
        self.iter().filter(move |(_, part)| part.domain == domain)
    }

    /// Whether nobody but the daemon can open for writing what a domain's clients are given, or will
    /// be, whatever his rights.
    pub(crate) fn is_protected(&self, domain: DomainId) -> bool {
        let board = self.boards.get(&domain).is_none_or(|shared| shared.board.is_protected());
        let parts = self.of(domain).all(|(_, part)| part.part.is_protected());
        self.ground.backing.is_protected() && board && parts
    }

    /// The parts of one domain that pages may lie in.
    pub(crate) fn readable(&self, domain: DomainId) -> impl Iterator<Item = (PartId, &ArenaPart)> {
        self.of(domain).filter(|(_, part)| part.stage < PartStage::Empty)
    }

    pub(crate) fn board(&self, domain: DomainId) -> Option<&SharedBoard> {
        self.boards.get(&domain)
    }

    /// The memory of all parts, to be registered with a page log's ring.
    pub(crate) fn memory(&self) -> Vec<Arc<Part>> {
        self.parts.values().map(|part| Arc::clone(&part.part)).collect()
    }

    /// The parts of which it is not known in what pages they lie.
    pub(crate) fn untold(&self) -> Vec<Arc<Part>> {
        let untold = self.parts.values().filter(|part| part.facts.pages == PageKind::Untold);
        untold.map(|part| Arc::clone(&part.part)).collect()
    }

    /// Takes in how much of a part is in huge pages.
    pub(crate) fn tell(&mut self, part: PartId, huge_bytes: u64) {
        if let Some(part) = self.parts.get_mut(&part) {
            part.facts.tell(huge_bytes, part.part.len() as u64);
        }
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

    /// A first page came to be known or is forgotten.
    pub(crate) fn note_first(&self, first: &FirstPage) {
        let Some(shared) = self.boards.get(&first.domain) else { return };
        if first.came {
            shared.board.first_came(&first.key);
        } else {
            shared.board.first_went(&first.key);
        }
    }

    /// Tells clients that all first pages were noted that there may be.
    pub(crate) fn first_pages_are_known(&self) {
        self.boards.values().for_each(|shared| shared.board.first_pages_are_known());
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
        let parts = self.parts.iter().flat_map(|(id, part)| part.heirlooms(*id));
        let boards = self.boards.iter().flat_map(|(domain, shared)| {
            let SharedBoard { board, read_only } = shared;
            let read_only = board.is_protected().then_some(read_only.as_fd());
            let read_only = read_only.map(|fd| (Heirloom::ReadOnlyBoard(*domain), fd));
            [(Heirloom::Board(*domain), board.fd())].into_iter().chain(read_only)
        });
        parts.chain(boards)
    }

    /// What the machine refused, each line once.
    pub(crate) fn refused(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.ground.refused.iter().cloned().collect();
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
        if part.stage > PartStage::InUse {
            status.retiring_parts += 1;
            status.retiring_bytes += part.usable_bytes;
        }
        status.locked &= part.facts.locked;
        if let Some(node) = part.facts.numa_node
            && !status.numa_nodes.contains(&node)
        {
            status.numa_nodes.push(node);
        }
        let pages = part.facts.pages.to_string();
        if status.pages.is_empty() {
            status.pages = pages;
        } else if status.pages != pages {
            status.pages = "mixed".to_owned();
        }
        let backing = if part.part.is_protected() { "mount" } else { "memfd" };
        if status.backing.is_empty() {
            status.backing = backing.to_owned();
        } else if status.backing != backing {
            status.backing = "mixed".to_owned();
        }
    }
    status.locked &= status.parts > 0;
    status.numa_nodes.sort_unstable();
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
