use crate::Core;
use crate::domains::DomainAt;
use crate::page::{Page, PageId};
use hashbrown::HashMap;
use undercroft_wire::{Origin, PurgeId, SessionId};

/// The users whose processes store pages. A page names one by a number, as pages are many and
/// users are few. Each domain has numbers of its own: root of a user namespace is many users, and
/// takes none from others.
#[derive(Debug)]
pub(crate) struct Users {
    tables: Vec<Table>,
}

#[derive(Debug)]
struct Table {
    uids: Vec<u32>,
    numbers: HashMap<u32, u16>,
}

impl Default for Table {
    /// Number 0 is root's: what a page says that nobody has stored yet.
    fn default() -> Self {
        Self { uids: vec![0], numbers: HashMap::from([(0, 0)]) }
    }
}

impl Users {
    /// Of so many domains.
    pub(crate) fn new(domains: usize) -> Self {
        Self { tables: (0..domains).map(|_| Table::default()).collect() }
    }

    /// The user's number in a domain; `None` once it has as many users as numbers reach.
    pub(crate) fn number(&mut self, domain: DomainAt, uid: u32) -> Option<u16> {
        let table = &mut self.tables[domain.0 as usize];
        if let Some(number) = table.numbers.get(&uid) {
            return Some(*number);
        }
        let number = u16::try_from(table.uids.len()).ok()?;
        table.uids.push(uid);
        table.numbers.insert(uid, number);
        Some(number)
    }

    pub(crate) fn uid(&self, domain: DomainAt, number: u16) -> u32 {
        self.tables[domain.0 as usize].uids[usize::from(number)]
    }
}

/// Who stored pages, and when.
impl Core {
    /// Seconds since 1970, by the time the owner gave at start, and no less than when the newest
    /// known page was stored.
    #[must_use]
    pub fn unix_s(&self) -> u32 {
        let passed = u32::try_from(self.now.0 / 1_000_000).unwrap_or(u32::MAX);
        self.config.unix_s.saturating_add(passed)
    }

    /// A page was stored then. If that is yet to come, the clock was set back: ages are counted on
    /// from there, so that none is less than it was, and nothing is taken for older than it is.
    pub(crate) fn learn_time(&mut self, born: u32) {
        let ahead = born.saturating_sub(self.unix_s());
        self.config.unix_s = self.config.unix_s.saturating_add(ahead);
    }

    /// The user's process stores the page. Whatever another's stored under its name, and nobody
    /// could get at, is not it any more: who is named as its writer wrote all of it.
    pub(crate) fn sign(&mut self, id: PageId, writer: u16) {
        let born = self.unix_s();
        let page = &self.index[id];
        if page.has_record() && (page.writer != writer || self.is_expired(page)) {
            self.leave_ssd(id);
        }
        let page = &mut self.index[id];
        // Of two copies the older one's age counts.
        page.born = if page.has_record() { page.born.min(born) } else { born };
        page.writer = writer;
    }

    /// The user whose process stored the page.
    pub(crate) fn writer_of(&self, page: &Page) -> u32 {
        self.users.uid(self.domain_of_space(page.space), page.writer)
    }

    /// The number of the user whose process the session is, given when it is to store its first
    /// page. `None` if its domain has as many users as there may be.
    pub(crate) fn number_writer(&mut self, session: SessionId) -> Option<u16> {
        let state = self.sessions.get_mut(&session)?;
        if state.writer.is_none() {
            state.writer = self.users.number(state.domain, state.user);
        }
        state.writer
    }

    /// What a record of the page that is written now says of itself.
    pub(crate) fn origin(&self, page: &Page) -> Origin {
        Origin { writer: self.writer_of(page), born: page.born, purge: self.purges.over }
    }

    /// All purges up to this one are over: who writes a record from here on has seen them.
    pub(crate) fn purge_over(&mut self, purge: PurgeId) {
        self.purges.over = self.purges.over.max(purge);
    }
}
