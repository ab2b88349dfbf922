use crate::SpaceInfo;
use crate::admission::Returns;
use crate::cost::{Speed, assumed_copying};
use crate::notes::{Note, Notes};
use std::collections::BTreeMap;
use undercroft_wire::{DomainId, PageKey, SpaceDigest, SpaceId};

/// A number that a page, a session or a reply names is a space's.
const KNOWN: &str = "a space that is named is known";

/// All pages of a domain whose frames have one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClassId(pub(crate) u32);

/// One space in one domain.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) domain: DomainId,
    pub(crate) digest: SpaceDigest,
    pub(crate) page_bytes: u32,
    pub(crate) class: ClassId,
    /// Entries in the index.
    pub(crate) pages: u64,
    /// Sessions that have it open.
    pub(crate) opened: u32,
    /// How often its pages come back.
    pub(crate) returns: Returns,
    /// What its clients' hash makes of the probe prefix, as the first said that told.
    pub(crate) probe: Option<PageKey>,
    /// How fast engines copy its pages out of DRAM.
    pub(crate) copying: Speed,
}

impl Space {
    /// One without pages.
    pub(crate) fn new(
        (domain, digest): (DomainId, SpaceDigest),
        page_bytes: u32,
        class: ClassId,
    ) -> Self {
        let returns = Returns::default();
        let copying = Speed::new(assumed_copying());
        let probe = None;
        Self { domain, digest, page_bytes, class, pages: 0, opened: 0, returns, probe, copying }
    }
}

/// All spaces by number and by identity.
#[derive(Debug, Default)]
pub(crate) struct Spaces {
    /// A number without space was one of an earlier daemon's that nobody remembers.
    entries: Vec<Option<Space>>,
    vacant: u32,
    by_identity: BTreeMap<(DomainId, SpaceDigest), SpaceId>,
}

impl Spaces {
    pub(crate) fn find(&self, domain: DomainId, digest: SpaceDigest) -> Option<SpaceId> {
        self.by_identity.get(&(domain, digest)).copied()
    }

    pub(crate) fn get(&self, space: SpaceId) -> &Space {
        self.entries[space.0 as usize].as_ref().expect(KNOWN)
    }

    pub(crate) fn get_mut(&mut self, space: SpaceId) -> &mut Space {
        self.entries[space.0 as usize].as_mut().expect(KNOWN)
    }

    /// How many a domain has.
    pub(crate) fn count_of(&self, domain: DomainId) -> usize {
        self.of(domain).count()
    }

    /// Those of a domain.
    pub(crate) fn of(&self, domain: DomainId) -> impl Iterator<Item = SpaceId> + '_ {
        let (first, last) = (SpaceDigest([0; 32]), SpaceDigest([u8::MAX; 32]));
        self.by_identity.range((domain, first)..=(domain, last)).map(|(_, space)| *space)
    }

    /// Numbers a new space; at its domain's limit it takes the number of one of its domain, at the
    /// limit of all of any, that has no pages and that nobody has open. `None` if there is no such.
    /// Says, too, what class that one was of.
    pub(crate) fn insert(
        &mut self,
        space: Space,
        (own_limit, limit): (u32, u32),
        notes: &mut Notes,
    ) -> Option<(SpaceId, Option<ClassId>)> {
        let mut replaced = None;
        let own_is_full = self.count_of(space.domain) >= own_limit as usize;
        let at = if own_is_full {
            let at = self.unused(|other| other.domain == space.domain)?;
            replaced = self.replace(at, notes);
            at
        } else if self.vacant > 0 {
            self.vacant -= 1;
            self.entries.iter().position(Option::is_none)?
        } else if self.entries.len() < limit as usize {
            self.entries.push(None);
            self.entries.len() - 1
        } else {
            let at = self.unused(|_| true)?;
            replaced = self.replace(at, notes);
            at
        };
        let id = SpaceId(at as u32);
        let Space { domain, digest, page_bytes, .. } = space;
        self.by_identity.insert((domain, digest), id);
        self.entries[at] = Some(space);
        notes.add(|| Note::Space { space: id, domain, digest, page_bytes });
        Some((id, replaced))
    }

    /// One that has no pages and that nobody has open.
    fn unused(&self, fits: impl Fn(&Space) -> bool) -> Option<usize> {
        let unused = |space: &Space| space.pages == 0 && space.opened == 0 && fits(space);
        self.entries.iter().position(|entry| entry.as_ref().is_some_and(unused))
    }

    fn replace(&mut self, at: usize, notes: &mut Notes) -> Option<ClassId> {
        let old = self.entries[at].take()?;
        self.by_identity.remove(&(old.domain, old.digest));
        notes.add(|| Note::SpaceGone { space: SpaceId(at as u32) });
        Some(old.class)
    }

    /// Gives a space the number that it had; false if that or the space itself is known.
    pub(crate) fn restore(&mut self, id: SpaceId, space: Space, limit: u32) -> bool {
        let identity = (space.domain, space.digest);
        let fits = id.0 < limit && self.info(id).is_none();
        if !fits || self.by_identity.contains_key(&identity) {
            return false;
        }
        let at = id.0 as usize;
        while self.entries.len() <= at {
            self.entries.push(None);
            self.vacant += 1;
        }
        self.entries[at] = Some(space);
        self.vacant -= 1;
        self.by_identity.insert(identity, id);
        true
    }

    /// What is known of a number that may be nobody's.
    pub(crate) fn info(&self, id: SpaceId) -> Option<SpaceInfo> {
        let space = self.entries.get(id.0 as usize)?.as_ref()?;
        Some(SpaceInfo {
            id,
            domain: space.domain,
            digest: space.digest,
            page_bytes: space.page_bytes,
            pages: space.pages,
            probe: space.probe,
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = SpaceInfo> + '_ {
        (0..self.entries.len() as u32).filter_map(|at| self.info(SpaceId(at)))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use crate::{Config, Core, Limits};
    use undercroft_wire::{DomainId, SpaceDigest};

    #[test]
    fn page_sizes_that_nobody_uses_any_more_leave_nothing_behind() {
        let limits = Limits { max_spaces: 3, ..Limits::default() };
        let mut core = Core::new(Config { limits, ..Config::default() }).unwrap();
        for size in 1..500_u32 {
            let digest = SpaceDigest([size as u8; 32]);
            let _busy = core.intern_space(DomainId::default(), digest, size * 4096);
            core.audit();
        }
        assert!(core.frames.classes().count() <= 4, "{}", core.frames.classes().count());
    }
}
