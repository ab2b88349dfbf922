//! What was forgotten for good: a short list in a file of its own beside each page log. Pages that
//! were purged still lie on the medium until their segments are used again; the list is what keeps
//! a start from believing them.

mod file;

pub use file::KeptPurges;

use std::collections::HashMap;
use undercroft_wire::{DomainId, Origin, PageIdentity, PurgeId, PurgeScope};

/// The most purges a list remembers. Beyond, the oldest take all records with them that are as
/// old: a cache may forget, and a purge must never be refused.
const MAX_PURGES: usize = 4096;
/// The most purges of parts of one domain. Beyond, all of the domain is purged at the next start: a
/// tenant who asks so often harms nobody else.
const MAX_PARTS_OF_DOMAIN: usize = 32;

/// The purges that records on SSD must be held against: a record is purged if it is in the scope
/// of one that is newer than the newest the record had seen when it was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PurgeList {
    last: PurgeId,
    /// Of records that had seen less than this, nobody knows any more whether they were purged:
    /// none of them is believed.
    floor: PurgeId,
    purges: HashMap<PurgeScope, PurgeId>,
}

impl PurgeList {
    /// The newest purge there ever was.
    #[must_use]
    pub fn last(&self) -> PurgeId {
        self.last
    }

    /// Records that had seen less than this are not believed.
    #[must_use]
    pub fn floor(&self) -> PurgeId {
        self.floor
    }

    /// The purges, oldest first.
    #[must_use]
    pub fn purges(&self) -> Vec<(PurgeScope, PurgeId)> {
        let mut purges: Vec<_> = self.purges.iter().map(|(scope, id)| (*scope, *id)).collect();
        purges.sort_unstable_by_key(|(scope, id)| (*id, *scope));
        purges
    }

    /// Adds a purge that begins now, `unix_s` seconds after 1970, and says its number. Numbers
    /// follow the clock as far as they can: lists that grew apart, one of a device that was away,
    /// can then still be put in order.
    pub fn add(&mut self, scope: PurgeScope, unix_s: u32) -> PurgeId {
        let id = PurgeId(unix_s.max(self.last.0.saturating_add(1)));
        self.last = id;
        self.insert(scope, id);
        self.bound();
        id
    }

    /// Takes over what another device's list knows. Says what this one did not know.
    pub fn merge(&mut self, other: &Self) -> Vec<(PurgeScope, PurgeId)> {
        self.last = self.last.max(other.last);
        self.raise_floor(other.floor);
        let unknown = |(scope, id): &(PurgeScope, PurgeId)| !self.knows(*scope, *id);
        let learned: Vec<_> = other.purges().into_iter().filter(unknown).collect();
        for (scope, id) in &learned {
            self.insert(*scope, *id);
        }
        self.bound();
        learned
    }

    /// There were purges up to `newest` that the list does not know: it is not the newest. Nothing
    /// older is believed. Says whether that is news.
    pub fn doubt(&mut self, newest: PurgeId) -> bool {
        let news = newest > self.last;
        if news {
            self.last = newest;
            self.raise_floor(newest);
        }
        news
    }

    /// Whether a record is purged, by what it says of itself.
    #[must_use]
    pub fn covers(&self, identity: &PageIdentity, origin: &Origin) -> bool {
        if origin.purge < self.floor {
            return true;
        }
        // Whatever each purge leaves open may be anything.
        !self.purges.is_empty()
            && (1..8).any(|named: u32| {
                let scope = PurgeScope {
                    domain: (named & 1 != 0).then_some(identity.domain),
                    space: (named & 2 != 0).then_some(identity.space),
                    writer: (named & 4 != 0).then_some(origin.writer),
                };
                self.purges.get(&scope).is_some_and(|id| origin.purge < *id)
            })
    }

    fn knows(&self, scope: PurgeScope, id: PurgeId) -> bool {
        id <= self.floor
            || self.purges.iter().any(|(other, known)| *known >= id && other.includes(&scope))
    }

    fn insert(&mut self, scope: PurgeScope, id: PurgeId) {
        if scope == PurgeScope::default() {
            return self.raise_floor(id);
        }
        self.purges.retain(|other, known| *known > id || !scope.includes(other));
        self.purges.insert(scope, id);
    }

    fn raise_floor(&mut self, floor: PurgeId) {
        self.floor = self.floor.max(floor);
        let floor = self.floor;
        self.purges.retain(|_, id| *id > floor);
    }

    fn bound(&mut self) {
        let mut parts: HashMap<Option<DomainId>, (usize, PurgeId)> = HashMap::new();
        for (scope, id) in &self.purges {
            if scope.space.is_some() || scope.writer.is_some() {
                let (count, newest) = parts.entry(scope.domain).or_default();
                (*count, *newest) = (*count + 1, (*newest).max(*id));
            }
        }
        for (domain, (count, newest)) in parts {
            if count > MAX_PARTS_OF_DOMAIN {
                self.insert(PurgeScope { domain, ..PurgeScope::default() }, newest);
            }
        }
        if self.purges.len() > MAX_PURGES {
            let by_age = self.purges();
            let (_, newest_dropped) = by_age[self.purges.len() - MAX_PURGES - 1];
            self.raise_floor(newest_dropped);
        }
    }
}

#[cfg(test)]
mod tests;
