//! The arenas of all domains: their parts, and what the machine gave for them.

use crate::config::{Config, DomainConfig};
use crate::error::StartError;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use undercroft_arena::{ArenaError, HugePages, Part, PartFacts, PartOptions, Span};
use undercroft_core::FramePlace;
use undercroft_wire::{ArenaStatus, DomainId, PartId};

/// The most threads that fault a part in.
const MAX_FAULTING_THREADS: usize = 8;

/// One part with the descriptor that clients get.
#[derive(Debug)]
pub(crate) struct ArenaPart {
    pub(crate) domain: DomainId,
    pub(crate) part: Arc<Part>,
    pub(crate) facts: PartFacts,
    pub(crate) read_only: Arc<OwnedFd>,
    /// Bytes that hold frames; the mapping may be longer.
    pub(crate) usable_bytes: u64,
}

/// All parts there are.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    parts: BTreeMap<PartId, ArenaPart>,
}

impl Arena {
    /// Makes the arena of every domain.
    pub(crate) fn make(config: &Config) -> Result<Self, StartError> {
        let mut arena = Self::default();
        for domain in &config.domains {
            arena.make_domain(config, domain).map_err(|source| StartError::Arena {
                domain: domain.name.clone(),
                bytes: domain.dram_bytes,
                source,
            })?;
        }
        Ok(arena)
    }

    fn make_domain(&mut self, config: &Config, domain: &DomainConfig) -> Result<(), ArenaError> {
        let options = part_options(config);
        let mut left = domain.dram_bytes;
        while left > 0 {
            let usable_bytes = left.min(config.part_bytes);
            let id = PartId(self.parts.len() as u32);
            let (part, facts) = Part::create(id, usable_bytes, &options)?;
            let read_only = Arc::new(part.read_only_fd()?);
            let (domain, part) = (domain.id, Arc::new(part));
            self.parts.insert(id, ArenaPart { domain, part, facts, read_only, usable_bytes });
            left -= usable_bytes;
        }
        Ok(())
    }

    /// Every part, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PartId, &ArenaPart)> {
        self.parts.iter().map(|(id, part)| (*id, part))
    }

    /// The parts of one domain.
    pub(crate) fn of(&self, domain: DomainId) -> impl Iterator<Item = (PartId, &ArenaPart)> {
        self.iter().filter(move |(_, part)| part.domain == domain)
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
