use crate::Core;
use crate::page::{Page, PageId};
use hashbrown::HashMap;
use undercroft_wire::{Origin, PurgeId};

/// The users whose processes store pages. A page names one by a number, as pages are many and
/// users are few.
#[derive(Debug)]
pub(crate) struct Users {
    uids: Vec<u32>,
    numbers: HashMap<u32, u16>,
}

impl Default for Users {
    /// Number 0 is root's: what a page says that nobody has stored yet.
    fn default() -> Self {
        Self { uids: vec![0], numbers: HashMap::from([(0, 0)]) }
    }
}

impl Users {
    /// The user's number; `None` once there are as many as numbers reach.
    pub(crate) fn number(&mut self, uid: u32) -> Option<u16> {
        if let Some(number) = self.numbers.get(&uid) {
            return Some(*number);
        }
        let number = u16::try_from(self.uids.len()).ok()?;
        self.uids.push(uid);
        self.numbers.insert(uid, number);
        Some(number)
    }

    pub(crate) fn uid(&self, number: u16) -> u32 {
        self.uids[usize::from(number)]
    }

    pub(crate) fn is_full(&self) -> bool {
        self.uids.len() > usize::from(u16::MAX)
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

    /// What a record of the page that is written now says of itself.
    pub(crate) fn origin(&self, page: &Page) -> Origin {
        Origin { writer: self.users.uid(page.writer), born: page.born, purge: self.purges.over }
    }

    /// All purges up to this one are over: who writes a record from here on has seen them.
    pub(crate) fn purge_over(&mut self, purge: PurgeId) {
        self.purges.over = self.purges.over.max(purge);
    }
}
