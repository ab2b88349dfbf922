use crate::Core;
use crate::domains::DomainAt;
use crate::page::{Dram, Mark, OnSsd, Page, PageId};
use crate::segments::Age;
use crate::stats::DeviceState;
use undercroft_wire::{DeviceId, MissCause};

/// What a domain has on SSDs, and how far one has come in looking for what of it may go.
#[derive(Debug, Default)]
pub(crate) struct OnSsds {
    /// Of pages with a record, frames counted whole.
    pub(crate) bytes: u64,
    pub(crate) pages: u64,
    /// Records that were forgotten because there were too many.
    pub(crate) forgotten: u64,
    hand: Hand,
}

/// A hand that goes round all segments, oldest first, and in each from the last record to the first:
/// what hangs from a page mostly lies behind it, and goes before it.
#[derive(Debug, Default, Clone, Copy)]
struct Hand {
    /// The segment it is in, and when that began.
    segment: Option<(DeviceId, Age)>,
    born: u64,
    /// Records of it before this one are still to be looked at.
    record: u32,
    /// Rounds begun without anything found that may go.
    barren: u8,
}

impl Hand {
    /// Nothing can go until something changes.
    fn is_stuck(self) -> bool {
        self.barren > 2
    }
}

/// Quotas and floors on SSDs. A domain beyond its quota loses its own oldest records; one that has
/// no more than its floor loses none to reclaim.
impl Core {
    /// A record was added to the domain's, or one that had to stay may go.
    pub(crate) fn look_again_at(&mut self, domain: DomainAt) {
        self.domains.get_mut(domain).ssd.hand.barren = 0;
    }

    /// Until all devices have told what they hold, nobody knows which records are the oldest.
    fn is_over_quota(&self, domain: DomainAt) -> bool {
        let domain = self.domains.get(domain);
        domain.ssd.bytes > domain.config.limits.ssd_bytes
            && self.devices.iter().all(|device| device.state != DeviceState::Recovering)
    }

    /// Whether records wait to be forgotten.
    pub(crate) fn is_any_over_quota(&self) -> bool {
        let can = |(at, domain): (DomainAt, &crate::domains::Domain)| {
            self.is_over_quota(at) && !domain.ssd.hand.is_stuck()
        };
        self.domains.iter().any(can)
    }

    /// Has domains that are beyond their quota forget records. Looks at no more than `limit` pages;
    /// returns at how many.
    pub(crate) fn forget_over_quota(&mut self, limit: usize) -> usize {
        let mut looked = 0;
        for domain in self.domains.ids() {
            while looked < limit
                && self.is_over_quota(domain)
                && !self.domains.get(domain).ssd.hand.is_stuck()
            {
                looked += 1;
                self.turn_hand(domain);
            }
        }
        looked
    }

    /// Looks at one record, or goes on to the next segment.
    fn turn_hand(&mut self, domain: DomainAt) {
        let mut hand = self.domains.get(domain).ssd.hand;
        let listed = hand.segment.and_then(|(device, age)| {
            self.devices.get(device).segments.get(age)?.listed.before(hand.record)
        });
        match listed {
            Some((record, id)) => {
                hand.record = record;
                let own = self.domain_of_space(self.index[id].space) == domain;
                if own && self.may_forget(id, hand.barren > 1) {
                    hand.barren = 0;
                    self.forget_record(id, domain);
                }
            }
            None => self.to_next_segment(&mut hand),
        }
        self.domains.get_mut(domain).ssd.hand = hand;
    }

    fn to_next_segment(&self, hand: &mut Hand) {
        let later = self.devices.iter().filter_map(|device| {
            let mut segments = device.segments.iter();
            let (age, segment) = segments.find(|(_, segment)| segment.born > hand.born)?;
            Some((segment.born, (device.id, age)))
        });
        let next = later.min_by_key(|(born, _)| *born);
        hand.barren += u8::from(next.is_none());
        hand.record = u32::MAX;
        (hand.born, hand.segment) = next.map_or((0, None), |(born, segment)| (born, Some(segment)));
    }

    /// Whether the record may go. At first none of a page that was used since, or that others
    /// hang from; in need all that nobody holds.
    fn may_forget(&mut self, id: PageId, in_need: bool) -> bool {
        let page = &self.index[id];
        if page.dram == Dram::Reading || page.relocations() > 0 || self.is_held_on_ssd(id) {
            return false;
        }
        if in_need {
            return true;
        }
        let used = page.is(Mark::Touched) || page.dram == Dram::Resident;
        let may = !used && !self.has_child(id, Page::is_present);
        self.index[id].set(Mark::Touched, false);
        may
    }

    fn forget_record(&mut self, id: PageId, domain: DomainAt) {
        let extent = self.record_of(&self.index[id]).expect("a listed page has a record");
        self.stats.ssd_dropped_pages += 1;
        self.devices.get_mut(extent.device).stats.dropped_pages += 1;
        self.domains.get_mut(domain).ssd.forgotten += 1;
        if self.index[id].dram == Dram::Resident {
            // Written again before it is used again, it would only drive out another, for ever.
            self.index[id].set(Mark::AppendRefused, true);
            self.forget_copy(id);
        } else {
            self.lose_record(id, MissCause::OverQuota);
        }
    }

    /// Whether reclaim must move the record: somebody holds the page, or its domain has no more
    /// than its floor.
    pub(crate) fn must_stay(&self, id: PageId) -> bool {
        self.is_held_on_ssd(id) || self.is_sheltered(id)
    }

    fn is_sheltered(&self, id: PageId) -> bool {
        let page = &self.index[id];
        let domain = self.domains.get(self.domain_of_space(page.space));
        domain.ssd.bytes <= domain.config.limits.ssd_floor_bytes
            && page.on_ssd() == OnSsd::On
            && page.dram != Dram::Resident
            && self.may_be_reached(page)
    }
}
