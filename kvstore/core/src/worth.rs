use crate::Core;
use crate::domains::DomainAt;
use crate::order::OrderKey;
use crate::page::{Dram, Mark, OnSsd, Page, PageId};
use crate::segments::Age;

/// Of all records of a domain one in so many is cold: used less lately than the others.
const COLD_SHARE: usize = 4;
/// How many records are looked at to tell which are cold, and how many pages to find these.
const SAMPLE: usize = 512;
const PROBES: usize = 2048;

/// From where in the eviction order on records are worth being appended anew, domain by domain.
///
/// Heat never rises along a chain, and one cutoff counts for all devices: what is dropped for
/// being cold drops nothing's ancestor that would stay.
#[derive(Debug, Default)]
pub(crate) struct Cutoffs(Vec<Option<OrderKey>>);

/// What of a segment that is reclaimed is worth being appended anew.
impl Core {
    /// Judges by a sample that is spread evenly over all pages, beginning anywhere.
    pub(crate) fn cutoffs(&self, age: Age) -> Cutoffs {
        let mut found: Vec<Vec<OrderKey>> = self.domains.ids().map(|_| Vec::new()).collect();
        let places = self.index.places();
        // The golden section of the whole: steps of it leave no gap much larger than another.
        let step = (places as f64 * 0.618_033_988_7) as usize | 1;
        let start = (self.config.seed ^ age.segment_use.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut place = start as usize % places.max(1);
        let mut left = SAMPLE;
        for _ in 0..PROBES.min(places) {
            let id = PageId::at(place);
            if let Some(page) = self.index.get(id).filter(|page| page.on_ssd() == OnSsd::On) {
                let domain = self.domain_of_space(page.space);
                found[domain.0 as usize].push(self.index.order_key(id));
                left -= 1;
            }
            if left == 0 {
                break;
            }
            place = (place + step) % places;
        }
        let cutoff = |mut keys: Vec<OrderKey>| {
            keys.sort_unstable();
            keys.get(keys.len() / COLD_SHARE).copied()
        };
        Cutoffs(found.into_iter().map(cutoff).collect())
    }

    pub(crate) fn is_held_on_ssd(&self, id: PageId) -> bool {
        let page = &self.index[id];
        let proved = page.on_ssd() == OnSsd::On;
        proved
            && page.dram != Dram::Resident
            && (self.index.keeps(page) > 0 || self.index.pins(page) > 0)
    }

    /// Whether somebody holds the page, or lookups can find it, it was used since it was written,
    /// and it was not cold when its segment's turn came.
    pub(crate) fn is_worth_moving(&self, id: PageId, cutoffs: &Cutoffs) -> bool {
        let page = &self.index[id];
        // What has not proved itself may be worth nothing, and moving it would take the proof.
        if page.on_ssd() != OnSsd::On {
            return false;
        }
        let DomainAt(domain) = self.domain_of_space(page.space);
        let cutoff = cutoffs.0.get(domain as usize).copied().flatten();
        let cold = || cutoff.is_some_and(|cutoff| self.index.order_key(id) < cutoff);
        self.is_held_on_ssd(id) || (self.was_used(id, page) && self.may_be_reached(page) && !cold())
    }

    /// Of what was found at start nobody knows: other pages hang from what was used most.
    fn was_used(&self, id: PageId, page: &Page) -> bool {
        let leads_on = || self.has_child(id, Page::is_present);
        page.is(Mark::Touched) || (page.heat.stamp() == 0 && leads_on())
    }
}
