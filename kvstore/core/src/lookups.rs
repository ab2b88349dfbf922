use crate::commits::NOT_OPEN;
use crate::holds::Hold;
use crate::index::Guide;
use crate::page::{Dram, Page};
use crate::{Action, Core};
use undercroft_wire::{
    HoldId, Lookup, LookupReply, PageKey, RefusedReason, Reply, RequestId, SessionId, SpaceId,
    Stamp,
};

/// What a lookup found so far.
#[derive(Debug, Default)]
struct Found {
    pages: u32,
    /// Pages that are in DRAM in every space.
    dram: u32,
    /// Bytes to be read from each SSD, over all spaces; empty for none.
    ssd_bytes: Vec<u64>,
}

impl Core {
    pub(crate) fn lookup(
        &mut self,
        session: SessionId,
        request: RequestId,
        body: &Lookup<'_>,
        actions: &mut Vec<Action>,
    ) {
        let opened = match self.sessions.get(&session) {
            Some(state) => body.spaces.iter().all(|space| state.stagings.contains_key(space)),
            None => false,
        };
        if !opened || body.spaces.is_empty() {
            return self.refuse(session, request, RefusedReason::Unknown, NOT_OPEN, actions);
        }
        if body.spaces.iter().enumerate().any(|(at, space)| body.spaces[..at].contains(space)) {
            let detail = "a lookup names each space once";
            return self.refuse(session, request, RefusedReason::Invalid, detail, actions);
        }
        let keys = body.keys.as_slice();
        let found = self.longest_run(&body.spaces, keys);
        let stamp = self.next_stamp(session);
        self.stats.lookups += 1;
        self.stats.lookup_keys += keys.len() as u64;
        self.stats.prefix_pages += u64::from(found.pages);
        self.stats.prefix_dram_pages += u64::from(found.dram);
        let hold = if body.hold_ms > 0 && found.pages > 0 {
            self.hold(session, &body.spaces, &keys[..found.pages as usize], body.hold_ms)
        } else {
            None
        };
        let reply = Reply::Lookup(LookupReply {
            pages: found.pages,
            dram: found.dram,
            ssd: found.pages - found.dram,
            hold,
            stamp: Stamp(stamp),
            estimate_us: self.estimate_us(&found.ssd_bytes),
        });
        actions.push(Action::Reply { session, request, reply });
    }

    fn longest_run(&self, spaces: &[SpaceId], keys: &[PageKey]) -> Found {
        match spaces {
            [space] => self.longest_run_of_one(*space, keys),
            _ => self.longest_run_of_all(spaces, keys),
        }
    }

    fn longest_run_of_one(&self, space: SpaceId, keys: &[PageKey]) -> Found {
        let mut found = Found::default();
        let mut guide = Guide::default();
        for key in keys {
            let Some(id) = self.index.find_next(&mut guide, space, key) else {
                break;
            };
            if !self.is_visible(id) {
                break;
            }
            let page = &self.index[id];
            if page.dram == Dram::Resident {
                found.dram += 1;
            } else {
                self.note_read(&mut found, page);
            }
            found.pages += 1;
        }
        found
    }

    fn longest_run_of_all(&self, spaces: &[SpaceId], keys: &[PageKey]) -> Found {
        let mut found = Found::default();
        let mut to_read = Vec::new();
        let mut guides: Vec<Guide> = spaces.iter().map(|_| Guide::default()).collect();
        for key in keys {
            let mut in_dram = true;
            to_read.clear();
            for (space, guide) in spaces.iter().zip(&mut guides) {
                let found_page = self.index.find_next(guide, *space, key);
                let Some(id) = found_page.filter(|id| self.is_visible(*id)) else {
                    return found;
                };
                let page = &self.index[id];
                if page.dram != Dram::Resident {
                    in_dram = false;
                    to_read.push(page);
                }
            }
            for page in &to_read {
                self.note_read(&mut found, page);
            }
            found.pages += 1;
            found.dram += u32::from(in_dram);
        }
        found
    }

    fn note_read(&self, found: &mut Found, page: &Page) {
        let record = page.record().expect("a page that is read has a record");
        let device = self.segments.device(record.0);
        found.ssd_bytes.resize(self.config.devices.len(), 0);
        found.ssd_bytes[usize::from(device.0)] +=
            self.frame_bytes(self.spaces.get(page.space).class);
    }

    /// Time to read so many bytes from each SSD, all at once and otherwise idle.
    fn estimate_us(&self, ssd_bytes: &[u64]) -> u64 {
        let read = ssd_bytes.iter().zip(&self.config.devices).filter(|(bytes, _)| **bytes > 0);
        let times = read.map(|(bytes, device)| {
            let rate = u128::from(device.read_bytes_per_s.max(1));
            let transfer = u128::from(*bytes) * 1_000_000 / rate;
            device.read_latency_us.saturating_add(transfer as u64)
        });
        times.max().unwrap_or(0)
    }

    /// Holds `keys`, all visible in all `spaces`; `None` if a limit is reached.
    fn hold(
        &mut self,
        session: SessionId,
        spaces: &[SpaceId],
        keys: &[PageKey],
        hold_ms: u32,
    ) -> Option<HoldId> {
        let domain = self.domain_of(session)?;
        let wished = spaces.len() as u64 * keys.len() as u64;
        if !self.domains.get(domain).may_hold(wished) {
            self.stats.holds_declined += 1;
            return None;
        }
        let mut pages = Vec::with_capacity(wished as usize);
        for &space in spaces {
            for key in keys {
                let page = self.index.find(space, key).expect("the lookup has found it");
                let pinned = self.index[page].dram == Dram::Resident;
                if pinned {
                    self.pin(page);
                } else {
                    self.keep(page);
                }
                pages.push((page, pinned));
            }
        }
        let expires = self.now.after_ms(hold_ms.min(self.config.limits.max_hold_ms));
        let count = keys.len() as u32;
        let hold = Hold { session, domain, spaces: spaces.to_vec(), count, pages, expires };
        Some(self.insert_hold(hold))
    }
}
