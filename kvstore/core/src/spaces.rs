use crate::SpaceInfo;
use std::collections::BTreeMap;
use undercroft_wire::{DomainId, SpaceDigest, SpaceId};

/// All pages whose frames have one size.
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
}

/// All spaces by number and by identity.
#[derive(Debug, Default)]
pub(crate) struct Spaces {
    entries: Vec<Space>,
    by_identity: BTreeMap<(DomainId, SpaceDigest), SpaceId>,
}

impl Spaces {
    pub(crate) fn find(&self, domain: DomainId, digest: SpaceDigest) -> Option<SpaceId> {
        self.by_identity.get(&(domain, digest)).copied()
    }

    pub(crate) fn get(&self, space: SpaceId) -> &Space {
        &self.entries[space.0 as usize]
    }

    pub(crate) fn get_mut(&mut self, space: SpaceId) -> &mut Space {
        &mut self.entries[space.0 as usize]
    }

    /// Numbers a new space; at the limit it takes the number of one that has no pages and that
    /// nobody has open. `None` if there is no such.
    pub(crate) fn insert(&mut self, space: Space, limit: u32) -> Option<SpaceId> {
        let identity = (space.domain, space.digest);
        let id = if self.entries.len() < limit as usize {
            self.entries.push(space);
            SpaceId((self.entries.len() - 1) as u32)
        } else {
            let unused = |space: &Space| space.pages == 0 && space.opened == 0;
            let at = self.entries.iter().position(unused)?;
            let old = std::mem::replace(&mut self.entries[at], space);
            self.by_identity.remove(&(old.domain, old.digest));
            SpaceId(at as u32)
        };
        self.by_identity.insert(identity, id);
        Some(id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = SpaceInfo> + '_ {
        self.entries.iter().enumerate().map(|(at, space)| SpaceInfo {
            id: SpaceId(at as u32),
            domain: space.domain,
            digest: space.digest,
            page_bytes: space.page_bytes,
            pages: space.pages,
        })
    }
}
