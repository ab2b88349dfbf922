//! Telling the core what lies in the arena, and remembering what it says of that.

use crate::arena::Arena;
use undercroft_arena::{FrameRow, LeaseRow, PageRow, SessionRow, SlabRow, SpaceRow, State, Unkept};
use undercroft_core::{
    Core, Event, Micros, Note, ProcessId, Restored, RestoredFrame, RestoredLease, RestoredPage,
    RestoredSession, RestoredSlab, RestoredSpace,
};
use undercroft_wire::{FRAME_ALIGN, SessionId};

/// Frames told of in one piece.
const PIECE_FRAMES: usize = 4096;

/// What came of taking over.
#[derive(Debug, Default)]
pub(crate) struct Restoration {
    /// Sessions of earlier daemons that hold leases.
    pub(crate) sessions: Vec<SessionRow>,
    /// Bytes of frames that were being filled.
    pub(crate) quarantined_bytes: u64,
}

/// Tells a new core of the arena's parts, and of all that an earlier daemon left in them.
pub(crate) fn restore(core: &mut Core, arena: &Arena, state: &mut State) -> Restoration {
    for (part, of) in arena.iter() {
        let added = Event::PartAdded { part, domain: of.domain, bytes: of.usable_bytes };
        feed(core, arena, added);
    }
    let sessions: Vec<SessionRow> = state.sessions().collect();
    let spaces: Vec<_> = state.spaces().map(space).collect();
    let slabs: Vec<_> = state.slabs().map(slab).collect();
    let holders: Vec<_> = sessions.iter().map(session).collect();
    let (spaces, slabs, holders) = (&spaces, &slabs, &holders);
    feed(core, arena, Event::Restored(Restored { spaces, slabs, ..Restored::default() }));
    let quarantined_bytes = restore_frames(core, arena, state);
    // What a frame holds since is nobody's lease.
    let same = |row: &LeaseRow| arena.generation(row.part, row.offset) == row.generation;
    let leases: Vec<_> = state.leased_pages().filter(same).map(lease).collect();
    let rest = Restored { sessions: holders, leases: &leases, last: true, ..Restored::default() };
    feed(core, arena, Event::Restored(rest));
    remember(core, arena, state, |_| ());
    // Pages that are yet to be found on SSDs are noted as they are: no lookup finds them before.
    arena.first_pages_are_known();
    Restoration { sessions, quarantined_bytes }
}

fn restore_frames(core: &mut Core, arena: &Arena, state: &State) -> u64 {
    let (mut pages, mut quarantined) = (Vec::with_capacity(PIECE_FRAMES), Vec::new());
    let mut quarantined_bytes = 0;
    for frame in state.frames() {
        let FrameRow { part, offset, frame_bytes, page } = frame;
        match page {
            Some(row) => pages.push(page_of(part, offset, &row)),
            None => {
                quarantined_bytes += u64::from(frame_bytes);
                quarantined.push(RestoredFrame { part, offset });
            }
        }
        if pages.len() + quarantined.len() >= PIECE_FRAMES {
            let (pages_piece, frames) = (&pages[..], &quarantined[..]);
            let piece = Restored { pages: pages_piece, quarantined: frames, ..Restored::default() };
            feed(core, arena, Event::Restored(piece));
            pages.clear();
            quarantined.clear();
        }
    }
    let piece = Restored { pages: &pages, quarantined: &quarantined, ..Restored::default() };
    feed(core, arena, Event::Restored(piece));
    quarantined_bytes
}

fn feed(core: &mut Core, arena: &Arena, event: Event<'_>) {
    let mut actions = Vec::new();
    core.step(Micros(0), event, &mut actions);
    publish_firsts(core, arena);
    debug_assert!(actions.is_empty(), "nobody waits for anything yet: {actions:?}");
}

/// Takes in what the core wants remembered. A lease that cannot be remembered must not be told of:
/// `untold` hears of its session.
pub(crate) fn remember(
    core: &mut Core,
    arena: &Arena,
    state: &mut State,
    mut untold: impl FnMut(SessionId),
) {
    for note in core.drain_notes() {
        if let Err(unkept) = take_note(&note, arena, state) {
            if let Note::Leased { session, .. } = note {
                untold(session);
            }
            tracing::warn!(%unkept, "something will be forgotten over a restart");
        }
    }
}

/// Tells clients which first pages came and went, before anybody is told of those that came.
pub(crate) fn publish_firsts(core: &mut Core, arena: &Arena) {
    core.drain_firsts().for_each(|first| arena.note_first(&first));
}

fn take_note(note: &Note, arena: &Arena, state: &mut State) -> Result<(), Unkept> {
    match *note {
        Note::Space { space, domain, digest, page_bytes } => {
            state.space(&SpaceRow { space, domain, digest, page_bytes, probe: None })
        }
        Note::SpaceProbe { space, probe } => state.space_probed(space, probe),
        Note::SpaceGone { space } => {
            state.space_gone(space);
            Ok(())
        }
        Note::Slab { part, offset, bytes, frame_bytes } => {
            // Frames of another size may have begun anywhere in it. Whoever still looks at the
            // generation of one is to see that it has gone.
            for unit in (offset..offset + bytes).step_by(FRAME_ALIGN as usize) {
                arena.raise(part, unit);
            }
            state.slab(&SlabRow { part, offset, bytes, frame_bytes })
        }
        Note::SlabGone { part, offset } => {
            state.slab_gone(part, offset);
            Ok(())
        }
        Note::Filling { part, offset } => {
            // Whoever still reads the frame is to see that its page has gone.
            arena.raise(part, offset);
            state.filling(part, offset)
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
            let generation = arena.generation(part, offset);
            let page =
                PageRow { space, key, parent, depth, crc, heat, generation, writer, born, purged };
            state.filled(part, offset, &page)
        }
        Note::Purged { part, offset } => state.purged(part, offset),
        Note::Touched { part, offset, heat } => state.touched(part, offset, heat),
        Note::Gone { part, offset } => state.gone(part, offset),
        Note::Leased { session, lease, index, part, offset } => {
            state.leased(session, lease, index, part, offset)
        }
        Note::Released { session, lease, upto } => {
            state.released(session, lease, upto);
            Ok(())
        }
        Note::SessionGone { session } => {
            state.session_gone(session);
            Ok(())
        }
    }
}

fn space(row: SpaceRow) -> RestoredSpace {
    let SpaceRow { space, domain, digest, page_bytes, probe } = row;
    RestoredSpace { space, domain, digest, page_bytes, probe }
}

fn slab(row: SlabRow) -> RestoredSlab {
    let SlabRow { part, offset, bytes, frame_bytes } = row;
    RestoredSlab { part, offset, bytes, frame_bytes }
}

fn session(row: &SessionRow) -> RestoredSession {
    let process = ProcessId { pid: row.pid, start: row.started };
    RestoredSession { session: row.session, process, domain: row.domain }
}

fn lease(row: LeaseRow) -> RestoredLease {
    let LeaseRow { session, lease, index, part, offset, .. } = row;
    RestoredLease { session, lease, index, part, offset }
}

fn page_of(part: undercroft_wire::PartId, offset: u64, row: &PageRow) -> RestoredPage {
    let PageRow { space, key, parent, depth, crc, heat, writer, born, purged, .. } = *row;
    RestoredPage { part, offset, space, key, parent, depth, crc, heat, writer, born, purged }
}
