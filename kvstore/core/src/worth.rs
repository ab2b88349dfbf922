use crate::Core;
use crate::devices::Device;
use crate::page::{Dram, Mark, OnSsd, Page, PageId};
use crate::segments::Age;
use undercroft_wire::DeviceId;

/// How many pages are looked at to tell whether a child stays. Chains that are spread over devices
/// page by page need two or three.
const LOOKS: u32 = 32;

/// What will leave soon although it is not being emptied now.
///
/// Parts of one run lie on several devices, in segments of about the same age. While one of these
/// is emptied the others are not, but they are next: what lies there must not keep its parents.
#[derive(Debug)]
pub(crate) struct Outlook {
    /// For each device the newest of the segments that will be emptied soon.
    leaving: Vec<Option<Age>>,
}

/// What of a segment that is reclaimed is worth being appended anew.
impl Core {
    /// What leaves when a segment of a device does: what lies in segments of other devices that
    /// were begun before its successor was full.
    pub(crate) fn outlook(&self, device: DeviceId, age: Age) -> Outlook {
        let later = self.devices.get(device).segments.next_but_one(age);
        let end = later.map_or(u64::MAX, |later| later.born);
        let leaving = |other: &Device| {
            let goes_on = other.takes_appends() && other.is_nearly_full();
            let newest = other.segments.newest_begun_before(end);
            newest.filter(|_| goes_on && other.id != device)
        };
        Outlook { leaving: self.devices.iter().map(leaving).collect() }
    }

    pub(crate) fn is_held_on_ssd(&self, id: PageId) -> bool {
        let page = &self.index[id];
        let proved = page.on_ssd() == OnSsd::On;
        proved
            && page.dram != Dram::Resident
            && (self.index.keeps(page) > 0 || self.index.pins(page) > 0)
    }

    /// Whether somebody holds the page, or lookups can find it and it was used since it was
    /// written or leads to pages that stay.
    pub(crate) fn is_worth_moving(&self, id: PageId, outlook: &Outlook) -> bool {
        let page = &self.index[id];
        // What has not proved itself may be worth nothing, and moving it would take the proof.
        if page.on_ssd() != OnSsd::On {
            return false;
        }
        let used = || page.is(Mark::Touched) || self.has_staying_child(id, outlook);
        self.is_held_on_ssd(id) || (self.may_be_reached(page) && used())
    }

    pub(crate) fn has_staying_child(&self, id: PageId, outlook: &Outlook) -> bool {
        self.does_child_stay(id, outlook, &mut LOOKS.clone())
    }

    fn does_child_stay(&self, id: PageId, outlook: &Outlook, looks: &mut u32) -> bool {
        self.children_of(id).any(|child| {
            let page = &self.index[child];
            if *looks == 0 {
                return true;
            }
            *looks -= 1;
            page.is_present()
                && (!self.leaves(child, page, outlook)
                    || page.is(Mark::Touched)
                    || self.does_child_stay(child, outlook, looks))
        })
    }

    /// Whether the page is on an SSD only, held by nobody, in a segment that will be emptied soon.
    fn leaves(&self, id: PageId, page: &Page, outlook: &Outlook) -> bool {
        let Some(extent) = self.record_of(page).filter(|_| page.dram == Dram::None) else {
            return false;
        };
        let leaving = outlook.leaving[usize::from(extent.device.0)];
        leaving.is_some_and(|newest| Age::of(extent) <= newest) && !self.must_stay(id)
    }
}
