//! Sessions and the pages they lease.

use super::State;
use super::error::Unkept;
use super::rows::{LeaseRow, SessionRow};
use super::table::Table;
use super::words::Words;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use undercroft_wire::{LeaseId, PartId, SessionId};

/// The rows of sessions and of their leases, found by their numbers.
#[derive(Debug, Default)]
pub(super) struct Holders {
    sessions: HashMap<SessionId, Holder>,
    leases: HashMap<(SessionId, LeaseId), Pages>,
}

#[derive(Debug)]
struct Holder {
    row: u32,
    leases: HashSet<LeaseId>,
}

/// The pages of a lease and their rows, by index: they are leased and released in that order.
type Pages = VecDeque<(u32, u32)>;

impl Holders {
    /// `false` if there is one of that number already.
    pub(super) fn add(&mut self, session: SessionId, row: u32) -> bool {
        let free = !self.sessions.contains_key(&session);
        if free {
            self.sessions.insert(session, Holder { row, leases: HashSet::new() });
        }
        free
    }

    /// The pages of a lease, made without any if need be; `None` if the session is not known.
    fn pages(&mut self, session: SessionId, lease: LeaseId) -> Option<&mut Pages> {
        match self.leases.entry((session, lease)) {
            Entry::Occupied(pages) => Some(pages.into_mut()),
            Entry::Vacant(none) => {
                self.sessions.get_mut(&session)?.leases.insert(lease);
                Some(none.insert(Pages::new()))
            }
        }
    }

    /// A lease without pages is none.
    fn forget_if_empty(&mut self, session: SessionId, lease: LeaseId) {
        if let Entry::Occupied(pages) = self.leases.entry((session, lease))
            && pages.get().is_empty()
        {
            pages.remove();
            if let Some(holder) = self.sessions.get_mut(&session) {
                holder.leases.remove(&lease);
            }
        }
    }

    /// `false` if the session is not known, or the lease has such a page.
    pub(super) fn lease(&mut self, page: &LeaseRow, row: u32) -> bool {
        let pages = self.pages(page.session, page.lease);
        pages.is_some_and(|pages| match place(pages, page.index) {
            Some(at) => {
                pages.insert(at, (page.index, row));
                true
            }
            None => false,
        })
    }
}

/// Where a page of this index belongs; `None` if there is one.
fn place(pages: &Pages, index: u32) -> Option<usize> {
    match pages.back() {
        Some(last) if last.0 >= index => {
            let at = pages.partition_point(|(before, _)| *before < index);
            (pages[at].0 != index).then_some(at)
        }
        _ => Some(pages.len()),
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
        if self.holders.sessions.contains_key(&session.session) {
            return Err(Unkept::Conflict { what: "session", why: "its number is taken" });
        }
        let row = self.sessions.put(&self.words, session)?;
        self.holders.add(session.session, row);
        Ok(())
    }

    /// The session and all its leases are no more. One that is not known is none already.
    pub fn session_gone(&mut self, session: SessionId) {
        let Some(holder) = self.holders.sessions.remove(&session) else { return };
        for lease in holder.leases {
            let pages = self.holders.leases.remove(&(session, lease)).unwrap_or_default();
            clear(&mut self.leases, &self.words, pages);
        }
        self.sessions.clear(&self.words, holder.row);
    }

    /// Page `index` of a lease lies in this frame. Must be known here before its place is told.
    ///
    /// # Errors
    /// No room for one more leased page: the caller refuses to lease. A session that is not
    /// known, a frame without page, an index that the lease has: nobody may be told of it either.
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
        let unknown = Unkept::Unknown { what: "session" };
        let pages = self.holders.pages(session, lease).ok_or(unknown)?;
        let page = LeaseRow { session, lease, index, part, offset, generation };
        let conflict = Unkept::Conflict { what: "leased page", why: "the lease has such a page" };
        let at = place(pages, index).ok_or(conflict)?;
        match self.leases.put(&self.words, &page) {
            Ok(row) => pages.insert(at, (index, row)),
            Err(full) => {
                self.holders.forget_if_empty(session, lease);
                return Err(full);
            }
        }
        Ok(())
    }

    /// The pages of a lease before `upto` are released; `u32::MAX`: the lease is ended. One that
    /// is not known has none.
    pub fn released(&mut self, session: SessionId, lease: LeaseId, upto: u32) {
        let Some(pages) = self.holders.leases.get_mut(&(session, lease)) else { return };
        let released = match upto {
            u32::MAX => pages.len(),
            _ => pages.partition_point(|(index, _)| *index < upto),
        };
        clear(&mut self.leases, &self.words, pages.drain(..released));
        self.holders.forget_if_empty(session, lease);
    }

    /// Every session, in no order.
    pub fn sessions(&self) -> impl Iterator<Item = SessionRow> + '_ {
        let holders = self.holders.sessions.values();
        holders.filter_map(|holder| self.sessions.get(&self.words, holder.row))
    }

    /// Every leased page; those of one lease in the order of their index.
    pub fn leased_pages(&self) -> impl Iterator<Item = LeaseRow> + '_ {
        let leases = self.holders.leases.values();
        leases.flatten().filter_map(|(_, row)| self.leases.get(&self.words, *row))
    }
}
