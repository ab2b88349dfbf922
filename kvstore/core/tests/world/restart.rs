//! One daemon after another on the same memory.

use super::log::Log;
use super::memory::Place;
use super::state::{Row, State};
use super::{World, frame_of};
use std::collections::BTreeMap;
use undercroft_core::{
    Action, Config, DeviceState, Event, Restored, RestoredFrame, RestoredLease, RestoredPage,
    RestoredSession, RestoredSlab, RestoredSpace,
};
use undercroft_wire::Mode;

/// What a state file says, row by row.
#[derive(Default)]
pub(crate) struct Rows {
    pub(crate) spaces: Vec<RestoredSpace>,
    pub(crate) slabs: Vec<RestoredSlab>,
    pub(crate) pages: Vec<RestoredPage>,
    pub(crate) quarantined: Vec<RestoredFrame>,
    pub(crate) sessions: Vec<RestoredSession>,
    pub(crate) leases: Vec<RestoredLease>,
}

impl Rows {
    pub(crate) fn of(state: &State) -> Self {
        let mut rows = Self::default();
        for (&space, &(domain, digest, page_bytes)) in &state.spaces {
            let probe = state.probes.get(&space).copied();
            rows.spaces.push(RestoredSpace { space, domain, digest, page_bytes, probe });
        }
        for (&(part, offset), &(bytes, frame_bytes)) in &state.slabs {
            rows.slabs.push(RestoredSlab { part, offset, bytes, frame_bytes });
        }
        for (&(part, offset), held) in &state.frames {
            match *held {
                Some(Row { space, key, parent, depth, crc, heat, writer, born, purged }) => {
                    rows.pages.push(RestoredPage {
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
                    })
                }
                None => rows.quarantined.push(RestoredFrame { part, offset }),
            }
        }
        for (&session, &(process, domain)) in &state.sessions {
            rows.sessions.push(RestoredSession { session, process, domain });
        }
        for (&(session, lease, index), &(part, offset)) in &state.leases {
            rows.leases.push(RestoredLease { session, lease, index, part, offset });
        }
        rows
    }

    /// All of it, `rows` at a time.
    pub(crate) fn pieces(&self, rows: usize) -> Vec<Restored<'_>> {
        let none = Restored::default();
        let mut pieces = Vec::new();
        pieces.extend(self.spaces.chunks(rows).map(|spaces| Restored { spaces, ..none }));
        pieces.extend(self.slabs.chunks(rows).map(|slabs| Restored { slabs, ..none }));
        let quarantined = self.quarantined.chunks(rows);
        pieces.extend(quarantined.map(|quarantined| Restored { quarantined, ..none }));
        pieces.extend(self.pages.chunks(rows).map(|pages| Restored { pages, ..none }));
        pieces.extend(self.sessions.chunks(rows).map(|sessions| Restored { sessions, ..none }));
        pieces.extend(self.leases.chunks(rows).map(|leases| Restored { leases, ..none }));
        pieces
    }
}

fn without_stamps(frames: &BTreeMap<Place, Option<Row>>) -> Vec<(Place, Option<Row>)> {
    let bare = |row: Row| Row { heat: 0, ..row };
    frames.iter().map(|(at, row)| (*at, row.map(bare))).collect()
}

impl World {
    /// The daemon is dead, and another one begins where it stopped: clients keep what they lease,
    /// and reads from SSD may still land. `logs` is what its SSDs have become; what is remembered
    /// is told `rows` rows at a time.
    pub(crate) fn succeed(self, logs: Vec<Log>, rows: usize) -> Self {
        let first_stamp = self.config.first_stamp + (1 << 32);
        let mut next = Self::new(Config { first_stamp, purge: self.over(), ..self.config });
        next.audits = false;
        next.logs = logs;
        for log in &mut next.logs {
            log.state = DeviceState::Recovering;
        }
        let reads = self.jobs.values().filter(|job| matches!(job, Action::Read { .. }));
        next.haunted = reads.filter_map(frame_of).copied().chain(self.haunted).collect();
        (next.memory, next.state, next.spaces) = (self.memory, self.state, self.spaces);
        (next.modes, next.processes, next.domains) = (self.modes, self.processes, self.domains);
        next.closed = next.modes.keys().copied().collect();
        (next.next_lease, next.next_part) = (self.next_lease, self.next_part);
        (next.now, next.next_purge) = (self.now, self.next_purge);
        let modes = &next.modes;
        let kept = self.leases.into_iter();
        next.leases = kept.filter(|((session, _), _)| modes[session] == Mode::ZeroCopy).collect();
        let parts = next.memory.parts.iter().map(|(part, of)| (*part, of.domain, of.bytes));
        for (part, domain, bytes) in parts.collect::<Vec<_>>() {
            next.step(Event::PartAdded { part, domain, bytes });
        }
        next.restore(rows);
        next.audits = true;
        let parts = next.memory.parts.iter().filter(|(_, of)| of.retired);
        for part in parts.map(|(part, _)| *part).collect::<Vec<_>>() {
            next.step(Event::RetirePart { part });
        }
        next.step(Event::Tick);
        next
    }

    fn restore(&mut self, rows: usize) {
        let before = self.state.clone();
        let told = Rows::of(&before);
        for piece in told.pieces(rows) {
            self.step(Event::Restored(piece));
            self.core.audit();
        }
        self.step(Event::Restored(Restored { last: true, ..Restored::default() }));
        let stats = self.core.stats();
        assert_eq!(stats.restore_ignored, 0, "what is remembered makes sense");
        assert_eq!(stats.restored_pages, told.pages.len() as u64, "every page is there again");
        assert_eq!(stats.restored_leases, told.leases.len() as u64, "and every lease");
        // What was purged and is leased by nobody any more goes.
        let leased = |at: &Place| before.leases.values().any(|leased| leased == at);
        let mut held = before.frames.clone();
        held.retain(|at, row| row.is_none_or(|row| !row.purged) || leased(at));
        let frames = (without_stamps(&held), without_stamps(&self.state.frames));
        assert_eq!(frames.0, frames.1, "every frame holds what it held");
        assert_eq!(before.leases, self.state.leases, "what was leased is leased");
    }

    /// Nothing of an earlier daemon is under way any more.
    pub(crate) fn end_quarantine(&mut self) {
        self.haunted.clear();
        self.step(Event::QuarantineOver);
    }
}
