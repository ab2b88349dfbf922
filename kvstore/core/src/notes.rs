use crate::Core;
use crate::fetches::{Fetch, Reader};
use crate::jobs::Job;
use crate::page::{Dram, Mark, Page, PageId};
use crate::spaces::ClassId;
use undercroft_wire::{
    DomainId, FrameId, LeaseId, Mode, PageKey, PartId, SessionId, SpaceDigest, SpaceId,
};

/// What must be remembered outside the daemon, so that a restart finds DRAM as it was. Notes of a
/// step are to be taken in, in their order, before its actions are performed: at any moment what
/// is remembered is then at most one step ahead of what anybody was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// A space has its number.
    Space {
        /// The number.
        space: SpaceId,
        /// Whose it is.
        domain: DomainId,
        /// What it is.
        digest: SpaceDigest,
        /// Size of its pages, bytes.
        page_bytes: u32,
    },
    /// What a space's clients make of the probe prefix.
    SpaceProbe {
        /// The space's number.
        space: SpaceId,
        /// The key.
        probe: PageKey,
    },
    /// The number will be another space's. No page of it is left.
    SpaceGone {
        /// The number.
        space: SpaceId,
    },
    /// A part is cut here into frames of one size.
    Slab {
        /// The part.
        part: PartId,
        /// Where the slab begins, bytes.
        offset: u64,
        /// Its length, bytes.
        bytes: u64,
        /// Size of each frame, bytes.
        frame_bytes: u32,
    },
    /// The slab is none any more. All its frames are free.
    SlabGone {
        /// The part.
        part: PartId,
        /// Where the slab began, bytes.
        offset: u64,
    },
    /// The frame is in use, and its bytes mean nothing from here on.
    Filling {
        /// The part.
        part: PartId,
        /// Where the frame begins, bytes.
        offset: u64,
    },
    /// The frame holds this page.
    Filled {
        /// The part.
        part: PartId,
        /// Where the frame begins, bytes.
        offset: u64,
        /// The page's space.
        space: SpaceId,
        /// Its key.
        key: PageKey,
        /// The key of the page before it; `None` for the first of a chain.
        parent: Option<PageKey>,
        /// Pages before it in its chain.
        depth: u32,
        /// CRC-64/NVME of its payload.
        crc: u64,
        /// How dear it is: [`crate::RestoredPage::heat`].
        heat: u64,
        /// The user whose process stored it.
        writer: u32,
        /// When it was stored, seconds since 1970.
        born: u32,
        /// It was purged, and there only because somebody uses the frame.
        purged: bool,
    },
    /// The page in the frame was purged, and somebody uses the frame yet.
    Purged {
        /// The part.
        part: PartId,
        /// Where the frame begins, bytes.
        offset: u64,
    },
    /// The page in the frame was used, or is to be the first to go.
    Touched {
        /// The part.
        part: PartId,
        /// Where the frame begins, bytes.
        offset: u64,
        /// How dear it is from now on.
        heat: u64,
    },
    /// The frame is free.
    Gone {
        /// The part.
        part: PartId,
        /// Where the frame begins, bytes.
        offset: u64,
    },
    /// A session that reads frames in place is about to be told of this one.
    Leased {
        /// The session.
        session: SessionId,
        /// Its lease.
        lease: LeaseId,
        /// Which page of the lease.
        index: u32,
        /// The part.
        part: PartId,
        /// Where the frame begins, bytes.
        offset: u64,
    },
    /// Pages of a lease are given back.
    Released {
        /// The session.
        session: SessionId,
        /// Its lease.
        lease: LeaseId,
        /// All before this index; `u32::MAX`: the lease has ended.
        upto: u32,
    },
    /// A session and all its leases are over.
    SessionGone {
        /// Which.
        session: SessionId,
    },
}

/// The notes of the steps since they were last drained.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// Whether any are collected.
    wanted: bool,
    list: Vec<Note>,
}

/// Notes that the list keeps room for, whatever a step before had to say.
const KEPT_NOTES: usize = 4096;

impl Notes {
    pub(crate) fn new(wanted: bool) -> Self {
        Self { wanted, list: Vec::new() }
    }

    /// Gives back the room that only a rare step needs.
    pub(crate) fn trim(&mut self) {
        if self.list.is_empty() {
            self.list.shrink_to(KEPT_NOTES);
        }
    }

    pub(crate) fn add(&mut self, note: impl FnOnce() -> Note) {
        if self.wanted {
            self.list.push(note());
        }
    }
}

impl Core {
    /// What is to be remembered of the steps since the last call, in order. To be called after
    /// every step where [`crate::Config::notes`] is set: until then notes pile up.
    pub fn drain_notes(&mut self) -> impl Iterator<Item = Note> + '_ {
        self.notes.list.drain(..)
    }

    /// All that is remembered, as notes that say it from nothing. Of sessions only their leases.
    pub fn recall(&self) -> impl Iterator<Item = Note> + '_ {
        let spaces = self.spaces.iter().map(|space| Note::Space {
            space: space.id,
            domain: space.domain,
            digest: space.digest,
            page_bytes: space.page_bytes,
        });
        let probes = self.spaces.iter().filter_map(|space| {
            space.probe.map(|probe| Note::SpaceProbe { space: space.id, probe })
        });
        let pages = self.index.iter().filter_map(|(_, page)| self.recall_frame(page));
        let strays = self.jobs.values().filter_map(|job| match job {
            Job::StrayRead { class, frame, .. } => Some(self.filling(*class, *frame)),
            _ => None,
        });
        let withheld = self.withheld.iter().map(|(frame, of)| (of.class, *frame));
        let quarantined = self.quarantine.iter().copied().chain(withheld);
        let quarantined = quarantined.map(|(class, frame)| self.filling(class, frame));
        let leases = self.fetches.values().flat_map(|fetch| self.recall_lease(fetch));
        spaces
            .chain(probes)
            .chain(self.frames.slabs())
            .chain(pages)
            .chain(strays)
            .chain(quarantined)
            .chain(leases)
    }

    fn recall_frame(&self, page: &Page) -> Option<Note> {
        let frame = self.index.frame_of(page)?;
        match page.dram {
            Dram::Resident => Some(self.filled(page)),
            _ => Some(self.filling(self.spaces.get(page.space).class, frame)),
        }
    }

    fn recall_lease<'a>(&'a self, fetch: &'a Fetch) -> impl Iterator<Item = Note> + 'a {
        let held = fetch.released..fetch.delivered;
        held.filter_map(|at| self.leased(fetch, at))
    }

    pub(crate) fn filling(&self, class: ClassId, frame: FrameId) -> Note {
        let place = self.frames.place(class, frame);
        Note::Filling { part: place.part, offset: place.offset }
    }

    pub(crate) fn filled(&self, page: &Page) -> Note {
        let frame = self.index.frame_of(page).expect("a page in DRAM has a frame");
        let place = self.frames.place(self.spaces.get(page.space).class, frame);
        Note::Filled {
            part: place.part,
            offset: place.offset,
            space: page.space,
            key: page.key,
            parent: page.parent.map(|parent| self.index[parent].key),
            depth: page.depth,
            crc: self.index.crc_of(page),
            heat: page.heat.to_bits(),
            writer: self.writer_of(page),
            born: page.born,
            purged: page.is(Mark::Purged),
        }
    }

    /// The page in the frame is nobody's any more, but somebody uses the frame.
    pub(crate) fn note_purged(&mut self, id: PageId) {
        let page = &self.index[id];
        if let (Dram::Resident, true, Some(frame)) =
            (page.dram, page.is(Mark::Purged), self.index.frame_of(page))
        {
            let place = self.frames.place(self.class_of(id), frame);
            self.notes.add(|| Note::Purged { part: place.part, offset: place.offset });
        }
    }

    pub(crate) fn note_leased(&mut self, fetch: &Fetch, at: u32) {
        if self.notes.wanted {
            let note = self.leased(fetch, at);
            self.notes.list.extend(note);
        }
    }

    /// The reader of a lease has given its first `upto` pages back.
    pub(crate) fn note_released(&mut self, fetch: &Fetch, upto: u32) {
        if let Reader::Lease { session, lease, mode: Mode::ZeroCopy, .. } = fetch.reader {
            let ends = !fetch.active && upto == fetch.delivered;
            let upto = if ends { u32::MAX } else { fetch.index_of(upto) };
            self.notes.add(|| Note::Released { session, lease, upto });
        }
    }

    /// The frame of a page is about to be filled.
    pub(crate) fn note_filling(&mut self, class: ClassId, frame: FrameId) {
        if self.notes.wanted {
            let note = self.filling(class, frame);
            self.notes.list.push(note);
        }
    }

    pub(crate) fn note_filled(&mut self, id: PageId) {
        if self.notes.wanted {
            let note = self.filled(&self.index[id]);
            self.notes.list.push(note);
        }
    }

    pub(crate) fn note_gone(&mut self, class: ClassId, frame: FrameId) {
        if self.notes.wanted {
            let place = self.frames.place(class, frame);
            self.notes.list.push(Note::Gone { part: place.part, offset: place.offset });
        }
    }

    pub(crate) fn note_touched(&mut self, id: PageId) {
        if !self.notes.wanted {
            return;
        }
        let page = &self.index[id];
        if let (Dram::Resident, Some(frame)) = (page.dram, self.index.frame_of(page)) {
            let place = self.frames.place(self.spaces.get(page.space).class, frame);
            let (part, offset, heat) = (place.part, place.offset, page.heat.to_bits());
            self.notes.list.push(Note::Touched { part, offset, heat });
        }
    }

    /// That page `at` of a fetch is leased, if its reader reads it in its frame.
    pub(crate) fn leased(&self, fetch: &Fetch, at: u32) -> Option<Note> {
        let Reader::Lease { session, lease, mode: Mode::ZeroCopy, .. } = fetch.reader else {
            return None;
        };
        let page = &self.index[fetch.pages[at as usize]];
        let frame = self.index.frame_of(page).expect("a leased page has a frame");
        let place = self.frames.place(self.spaces.get(page.space).class, frame);
        let index = fetch.index_of(at);
        Some(Note::Leased { session, lease, index, part: place.part, offset: place.offset })
    }
}
