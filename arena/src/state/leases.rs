//! Sessions and the pages they lease.

use super::State;
use super::error::Unkept;
use super::rows::{LeaseRow, SessionRow};
use super::table::Table;
use super::words::Words;
use std::collections::{HashMap, VecDeque};
use undercroft_wire::{LeaseId, PartId, SessionId};

/// The rows of sessions and of their leases, found by their numbers.
#[derive(Debug, Default)]
pub(super) struct Holders {
    sessions: HashMap<SessionId, Holder>,
}

#[derive(Debug)]
struct Holder {
    row: u32,
    leases: HashMap<LeaseId, Pages>,
}

/// The pages of a lease and their rows, by index: they are leased and released in that order.
type Pages = VecDeque<(u32, u32)>;

impl Holders {
    /// `false` if there is one of that number already.
    pub(super) fn add(&mut self, session: SessionId, row: u32) -> bool {
        let free = !self.sessions.contains_key(&session);
        if free {
            self.sessions.insert(session, Holder { row, leases: HashMap::new() });
        }
        free
    }

    fn knows(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    /// `false` if the session is not known.
    pub(super) fn lease(&mut self, page: &LeaseRow, row: u32) -> bool {
        let Some(holder) = self.sessions.get_mut(&page.session) else { return false };
        let pages = holder.leases.entry(page.lease).or_default();
        if pages.back().is_none_or(|last| last.0 <= page.index) {
            pages.push_back((page.index, row));
        } else {
            let at = pages.partition_point(|(index, _)| *index <= page.index);
            pages.insert(at, (page.index, row));
        }
        true
    }
}

fn clear(
    table: &mut Table<8, LeaseRow>,
    words: &Words,
    pages: impl IntoIterator<Item = (u32, u32)>,
) {
    for (_, row) in pages {
        table.clear(words, row);
    }
}

impl State {
    /// A session is there: its leases can be kept from now on.
    ///
    /// # Errors
    /// No room for one more, or one of that number is there.
    pub fn session(&mut self, session: &SessionRow) -> Result<(), Unkept> {
        if self.holders.knows(session.session) {
            return Err(Unkept::Conflict { what: "session", why: "its number is taken" });
        }
        let row = self.sessions.put(&self.words, session)?;
        self.holders.add(session.session, row);
        Ok(())
    }

    /// The session and all its leases are no more. One that is not known is none already.
    pub fn session_gone(&mut self, session: SessionId) {
        let Some(holder) = self.holders.sessions.remove(&session) else { return };
        for (_, pages) in holder.leases {
            clear(&mut self.leases, &self.words, pages);
        }
        self.sessions.clear(&self.words, holder.row);
    }

    /// Page `index` of a lease lies in this frame. Must be known here before its place is told.
    ///
    /// # Errors
    /// No room for one more leased page: the caller refuses to lease. A session that is not
    /// known, or a frame without page: nobody may be told of it either.
    pub fn leased(
        &mut self,
        session: SessionId,
        lease: LeaseId,
        index: u32,
        part: PartId,
        offset: u64,
    ) -> Result<(), Unkept> {
        let generation =
            self.page_generation(part, offset).ok_or(Unkept::Unknown { what: "page" })?;
        if !self.holders.knows(session) {
            return Err(Unkept::Unknown { what: "session" });
        }
        let page = LeaseRow { session, lease, index, part, offset, generation };
        let row = self.leases.put(&self.words, &page)?;
        self.holders.lease(&page, row);
        Ok(())
    }

    /// The pages of a lease before `upto` are released; `u32::MAX`: the lease is ended. One that
    /// is not known has none.
    pub fn released(&mut self, session: SessionId, lease: LeaseId, upto: u32) {
        let Some(holder) = self.holders.sessions.get_mut(&session) else { return };
        let Some(pages) = holder.leases.get_mut(&lease) else { return };
        let released = match upto {
            u32::MAX => pages.len(),
            _ => pages.partition_point(|(index, _)| *index < upto),
        };
        clear(&mut self.leases, &self.words, pages.drain(..released));
        if pages.is_empty() {
            holder.leases.remove(&lease);
        }
    }

    /// Every session, in no order.
    pub fn sessions(&self) -> impl Iterator<Item = SessionRow> + '_ {
        let holders = self.holders.sessions.values();
        holders.filter_map(|holder| self.sessions.get(&self.words, holder.row))
    }

    /// Every leased page; those of one lease in the order of their index.
    pub fn leased_pages(&self) -> impl Iterator<Item = LeaseRow> + '_ {
        let leases = self.holders.sessions.values().flat_map(|holder| holder.leases.values());
        leases.flatten().filter_map(|(_, row)| self.leases.get(&self.words, *row))
    }
}
