use crate::page::{Dram, Page, PageId};
use crate::purges::Forgotten;
use crate::{Core, Micros};
use undercroft_wire::{DomainId, MissCause};

/// How often all pages are looked at for those that are too old, in parts of the shortest age.
const PARTS: u32 = 16;
/// Bounds of that, seconds. A look at a million pages takes some milliseconds.
const PAUSE_S: std::ops::RangeInclusive<u32> = 30..=3600;

/// Looking for pages that are too old. They are served to nobody from the second on that they are;
/// this takes their room back.
#[derive(Debug, Default)]
pub(crate) struct Retention {
    /// Seconds between two looks; `None` where pages stay as long as there is room.
    pause_s: Option<u32>,
    /// When the next look begins.
    due: Micros,
    /// Places of the index to look at.
    next: usize,
    end: usize,
}

impl Retention {
    /// The smallest of the domains' ages decides; 0 is none.
    pub(crate) fn new(ages_s: impl Iterator<Item = u32>) -> Self {
        let shortest = ages_s.filter(|age| *age > 0).min();
        let pause = |age: u32| (age / PARTS).clamp(*PAUSE_S.start(), *PAUSE_S.end());
        Self { pause_s: shortest.map(pause), ..Self::default() }
    }
}

impl Core {
    /// Whether the page is served to nobody, whatever tier it is in: it is being purged, or older
    /// than its domain keeps pages.
    pub(crate) fn is_gone(&self, id: PageId) -> bool {
        (self.is_purging() && self.is_condemned(id)) || self.is_expired(&self.index[id])
    }

    /// All pages are looked at anew, those that were young enough until now included.
    pub(crate) fn set_max_age(&mut self, domain: DomainId, max_age_s: u32) {
        let Some(at) = self.domains.find(domain) else { return };
        let running = &mut self.domains.get_mut(at).config.max_age_s;
        if std::mem::replace(running, max_age_s) != max_age_s {
            let ages = self.domains.iter().map(|(_, domain)| domain.config.max_age_s);
            self.retention = Retention::new(ages);
        }
    }

    /// What is only offered was not stored yet.
    pub(crate) fn is_expired(&self, page: &Page) -> bool {
        self.retention.pause_s.is_some() && page.dram != Dram::Offered && {
            let domain = self.domain_of_space(page.space);
            self.is_too_old(self.domains.get(domain).config.max_age_s, page.born)
        }
    }

    /// Whether a page that was stored then is older than `max_age_s`; 0 is no age.
    pub(crate) fn is_too_old(&self, max_age_s: u32, born: u32) -> bool {
        max_age_s > 0 && self.unix_s().saturating_sub(born) > max_age_s
    }

    /// Whether a look at all pages is under way, and if not, when the next one begins.
    pub(crate) fn next_aging(&self) -> Option<Micros> {
        self.retention.pause_s?;
        let under_way = self.retention.next < self.retention.end;
        Some(if under_way { self.now } else { self.retention.due })
    }

    /// Looks at no more than `limit` pages; returns at how many.
    pub(crate) fn age(&mut self, limit: usize) -> usize {
        let Some(pause_s) = self.retention.pause_s else {
            return 0;
        };
        let Retention { next, end, due, .. } = self.retention;
        let (mut next, mut end) = (next, end);
        if next >= end {
            if self.now < due {
                return 0;
            }
            (next, end) = (0, self.index.places());
        }
        let until = end.min(next + limit);
        for place in next..until {
            self.forget_if_expired(PageId::at(place));
        }
        (self.retention.next, self.retention.end) = (until, end);
        if until == end {
            self.retention.due = self.now.after_ms(pause_s.saturating_mul(1000));
        }
        until - next
    }

    /// Forgets a page that is too old and that nobody uses; who uses it lets go of it some time.
    pub(crate) fn forget_if_expired(&mut self, id: PageId) -> bool {
        let idle = self.index.get(id).is_some_and(|page| {
            let settled = matches!(page.dram, Dram::None | Dram::Resident);
            settled
                && page.is_present()
                && self.index.pins(page) == 0
                && self.index.keeps(page) == 0
        });
        let expired = idle && self.is_expired(&self.index[id]);
        if expired {
            self.forget(id, MissCause::Expired, &mut Forgotten::default());
            self.stats.expired_pages += 1;
        }
        expired
    }
}
