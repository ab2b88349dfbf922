//! The state file of the world: what the notes of all steps come to.

use super::memory::Place;
use std::collections::BTreeMap;
use undercroft_core::{Core, Note, ProcessId};
use undercroft_wire::{DomainId, LeaseId, PageKey, PartId, SessionId, SpaceDigest, SpaceId};

/// A page in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) space: SpaceId,
    pub(crate) key: PageKey,
    pub(crate) parent: Option<PageKey>,
    pub(crate) depth: u32,
    pub(crate) crc: u64,
    pub(crate) heat: u64,
    pub(crate) writer: u32,
    pub(crate) born: u32,
    pub(crate) purged: bool,
}

/// All that is remembered, and that each note makes sense after those before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) spaces: BTreeMap<SpaceId, (DomainId, SpaceDigest, u32)>,
    pub(crate) probes: BTreeMap<SpaceId, PageKey>,
    /// Length and frame size of each slab.
    pub(crate) slabs: BTreeMap<Place, (u64, u32)>,
    /// Frames in use; `None` while they are filled.
    pub(crate) frames: BTreeMap<Place, Option<Row>>,
    pub(crate) leases: BTreeMap<(SessionId, LeaseId, u32), Place>,
    /// The daemon writes these by itself.
    pub(crate) sessions: BTreeMap<SessionId, (ProcessId, DomainId)>,
}

impl State {
    pub(crate) fn note(&mut self, note: Note) {
        match note {
            Note::Space { space, domain, digest, page_bytes } => {
                let old = self.spaces.insert(space, (domain, digest, page_bytes));
                assert_eq!(old, None, "a number is one space's");
            }
            Note::SpaceProbe { space, probe } => {
                assert!(self.spaces.contains_key(&space), "a space that is there");
                self.probes.insert(space, probe);
            }
            Note::SpaceGone { space } => {
                self.spaces.remove(&space);
                self.probes.remove(&space);
                let of_space = |row: &&Option<Row>| row.is_some_and(|row| row.space == space);
                assert_eq!(self.frames.values().find(of_space), None, "no page of it is left");
            }
            Note::Slab { part, offset, bytes, frame_bytes } => {
                let overlaps = |(at, (len, _)): (&Place, &(u64, u32))| {
                    at.0 == part && at.1 < offset + bytes && offset < at.1 + len
                };
                assert!(!self.slabs.iter().any(overlaps), "slabs do not overlap");
                self.slabs.insert((part, offset), (bytes, frame_bytes));
            }
            Note::SlabGone { part, offset } => {
                let (bytes, _) = self.slabs.remove(&(part, offset)).expect("a slab that is there");
                let mut inside = self.frames.range((part, offset)..(part, offset + bytes));
                assert_eq!(inside.next(), None, "all its frames are free");
            }
            Note::Leased { session, lease, index, part, offset } => {
                let held = self.frames.get(&(part, offset));
                assert!(held.is_some_and(Option::is_some), "only whole pages are leased");
                let known = self.sessions.contains_key(&session);
                assert!(known, "a session that leases is known");
                self.leases.insert((session, lease, index), (part, offset));
            }
            Note::Released { session, lease, upto } => {
                let gone = |at: &(SessionId, LeaseId, u32)| {
                    (at.0, at.1) == (session, lease) && (upto == u32::MAX || at.2 < upto)
                };
                self.leases.retain(|at, _| !gone(at));
            }
            Note::SessionGone { session } => {
                self.sessions.remove(&session);
                self.leases.retain(|at, _| at.0 != session);
            }
            note => self.note_frame(note),
        }
    }

    fn note_frame(&mut self, note: Note) {
        match note {
            Note::Filling { part, offset } => {
                self.check_frame((part, offset));
                let old = self.frames.insert((part, offset), None);
                assert_eq!(old, None, "a frame is taken while it is free");
            }
            Note::Filled {
                part,
                offset,
                space,
                key,
                parent,
                depth,
                crc,
                heat,
                writer,
                born,
                purged,
            } => {
                let row = Row { space, key, parent, depth, crc, heat, writer, born, purged };
                assert!(self.spaces.contains_key(&space), "a page's space is known");
                let old = self.frames.insert((part, offset), Some(row));
                assert_eq!(old, Some(None), "a frame is being filled before it is whole");
            }
            Note::Purged { part, offset } => {
                let held = self.frames.get_mut(&(part, offset)).and_then(Option::as_mut);
                let row = held.expect("only whole pages are purged");
                assert!(!std::mem::replace(&mut row.purged, true), "a page is purged once");
            }
            Note::Touched { part, offset, heat } => {
                let held = self.frames.get_mut(&(part, offset)).and_then(Option::as_mut);
                held.expect("only whole pages are touched").heat = heat;
            }
            Note::Gone { part, offset } => {
                assert!(self.frames.remove(&(part, offset)).is_some(), "a frame in use is freed");
                let leased = self.leases.values().any(|at| *at == (part, offset));
                assert!(!leased, "a leased frame is not freed");
            }
            note => panic!("a note that says nothing of a frame: {note:?}"),
        }
    }

    /// The frame lies in a slab.
    fn check_frame(&self, at: Place) {
        let (first, (bytes, each)) = self.slabs.range(..=at).next_back().expect("a slab");
        let inside = first.0 == at.0 && at.1 - first.1 < *bytes;
        assert!(inside && (at.1 - first.1).is_multiple_of((*each).into()), "a frame of a slab");
    }

    /// What is remembered is what the core has.
    pub(crate) fn check(&self, core: &Core) {
        let sessions = self.sessions.clone();
        let mut now = Self { sessions, ..Self::default() };
        for note in core.recall() {
            if let Note::Filled { part, offset, .. } = note {
                now.frames.insert((part, offset), None);
            }
            now.note(note);
        }
        assert_eq!(*self, now, "what is remembered is what is there");
    }

    /// Whether anything is remembered of a part.
    pub(crate) fn has_part(&self, part: PartId) -> bool {
        self.slabs.keys().any(|at| at.0 == part)
    }
}
