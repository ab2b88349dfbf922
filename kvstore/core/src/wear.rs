use crate::devices::{Device, DeviceSet};
use crate::page::{Dram, OnSsd, PageId};
use crate::{Core, Micros, WriteBudget};
use undercroft_wire::DeviceId;

/// Into how many slots a window is cut, beside the one that is being filled and one more: between
/// being counted and being written some time passes.
const SLOTS: u64 = 128;
const KEPT_SLOTS: usize = SLOTS as usize + 2;
const MINUTE_US: u64 = 60_000_000;
const DAY_US: u64 = 24 * 60 * MINUTE_US;

/// What shares of a budget are counted in.
const PARTS: u64 = 32;

/// How many ancestors are looked at to tell what a chain takes. Of a longer one the rest is taken to
/// be unwritten.
const WALK: u32 = 256;

/// In each slot of a minute one part in two to the power of this is let go of what is promised.
const FADING: u32 = 6;

/// What was written in the last while, and how much may be: never more in any stretch of time as long
/// as the window.
#[derive(Debug, Clone)]
struct Window {
    slot_us: u64,
    /// Bytes.
    most: u64,
    written: Vec<u64>,
    sum: u64,
    /// The slot that is being filled; at the time 0 there are as many before it as are kept.
    at: u64,
}

impl Window {
    fn new(length_us: u64, most: u64) -> Self {
        let written = vec![0; KEPT_SLOTS];
        Self { slot_us: length_us / SLOTS, most, written, sum: 0, at: KEPT_SLOTS as u64 }
    }

    /// As if so much as may be had been written evenly before the time 0. Nobody knows what an
    /// earlier daemon wrote.
    fn spent(length_us: u64, most: u64) -> Self {
        let each = most / KEPT_SLOTS as u64;
        let written = vec![each; KEPT_SLOTS];
        Self { written, sum: each * KEPT_SLOTS as u64, ..Self::new(length_us, most) }
    }

    fn slot(&mut self, at: u64) -> &mut u64 {
        &mut self.written[(at % KEPT_SLOTS as u64) as usize]
    }

    /// Forgets what was written longer ago.
    fn pass(&mut self, now: Micros) {
        let to = now.0 / self.slot_us + KEPT_SLOTS as u64;
        let passed = to.saturating_sub(self.at).min(KEPT_SLOTS as u64);
        for at in to - passed..to {
            self.sum -= std::mem::take(self.slot(at + 1));
        }
        self.at = to;
    }

    fn write(&mut self, bytes: u64) {
        let at = self.at;
        *self.slot(at) += bytes;
        self.sum += bytes;
    }

    /// So much was not written after all. The oldest are forgotten for it: what was written later
    /// counts for longer.
    fn give_back(&mut self, bytes: u64) {
        let mut left = bytes;
        for age in (0..KEPT_SLOTS as u64).rev() {
            let slot = self.slot(self.at - age);
            let taken = left.min(*slot);
            *slot -= taken;
            self.sum -= taken;
            left -= taken;
        }
    }

    /// What is left of so many parts of it.
    fn left(&self, parts: u64) -> u64 {
        let most = u128::from(self.most) * u128::from(parts) / u128::from(PARTS);
        (most as u64).saturating_sub(self.sum)
    }
}

/// What a page is worth to be written for. The dearer it is the more of the budget it may use up, so
/// that while that is short the cheaper wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Worth {
    /// Used once.
    Once,
    /// Used again.
    Again,
    /// On SSD already, and to be moved.
    Moved,
    /// What lies on an SSD hangs from it, or somebody holds it.
    Needed,
}

impl Worth {
    /// Of the budget, in parts of which it has [`PARTS`].
    fn parts(self) -> u64 {
        match self {
            Self::Once => PARTS - 4,
            Self::Again => PARTS - 2,
            Self::Moved => PARTS - 1,
            Self::Needed => PARTS,
        }
    }
}

/// What was written to a device, against what may be.
#[derive(Debug)]
pub(crate) struct Wear {
    budgets: Vec<Window>,
    day: Window,
}

impl Wear {
    pub(crate) fn new(budget: WriteBudget) -> Self {
        let minute = budget.bytes_per_s.map(|rate| (MINUTE_US, rate.saturating_mul(60)));
        let day = budget.bytes_per_day.map(|bytes| (DAY_US, bytes));
        let budgets = minute.into_iter().chain(day);
        let budgets = budgets.map(|(length_us, most)| Window::spent(length_us, most)).collect();
        Self { budgets, day: Window::new(DAY_US, u64::MAX) }
    }

    fn pass(&mut self, now: Micros) {
        self.windows().for_each(|window| window.pass(now));
    }

    fn windows(&mut self) -> impl Iterator<Item = &mut Window> {
        self.budgets.iter_mut().chain([&mut self.day])
    }

    fn left(&self, worth: Worth) -> u64 {
        let left = self.budgets.iter().map(|window| window.left(worth.parts()));
        left.min().unwrap_or(u64::MAX)
    }

    /// Bytes written in the last day, as of the last step.
    pub(crate) fn written_in_a_day(&self) -> u64 {
        self.day.sum
    }
}

/// What is to be written because of what was: pages in DRAM that lead to one on an SSD. It is kept
/// back for them, and fades where they stay in DRAM.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    bytes: u64,
    /// The slots of minutes in which it has faded.
    slots: u64,
}

impl Promises {
    const SLOT_US: u64 = MINUTE_US / SLOTS;

    fn pass(&mut self, now: Micros) {
        let slots = now.0 / Self::SLOT_US;
        for _ in 0..(slots - self.slots).min(SLOTS) {
            self.bytes -= self.bytes.div_ceil(1 << FADING);
        }
        self.slots = slots;
    }
}

/// The write budget: so much and no more is written to each device, in any minute and in any day.
impl Core {
    /// To be called first in each step.
    pub(crate) fn pass_wear(&mut self) {
        let now = self.now;
        if now.0 / Promises::SLOT_US > self.promises.slots {
            self.promises.pass(now);
            self.devices.iter_mut().for_each(|device| device.wear.pass(now));
        }
    }

    /// What a page takes of a budget.
    fn wear_of(&self, id: PageId) -> u64 {
        self.frame_bytes(self.class_of(id)) + self.config.write_budget.bytes_per_record
    }

    fn worth_of(&self, id: PageId) -> Worth {
        let page = &self.index[id];
        if self.index.keeps(page) > 0 || self.leads_on(id) {
            Worth::Needed
        } else if page.was_used_again() {
            Worth::Again
        } else {
            Worth::Once
        }
    }

    /// Whether the page and what leads to it can be paid for. What leads to it is written later, and
    /// it is worth nothing without.
    pub(crate) fn has_budget(&self, id: PageId) -> bool {
        if !self.config.write_budget.is_set() {
            return true;
        }
        let (own, worth) = (self.wear_of(id), self.worth_of(id));
        let left = |device: &&Device| device.takes_appends() && device.wear.left(worth) >= own;
        let mut devices = self.devices.iter().filter(left).peekable();
        if worth == Worth::Needed || devices.peek().is_none() {
            return devices.peek().is_some();
        }
        let left = devices.fold(0_u64, |sum, device| sum.saturating_add(device.wear.left(worth)));
        let promised = self.promises.bytes.saturating_add(own);
        left >= promised && left - promised >= self.wear_before(id)
    }

    /// What the unwritten pages before this one take, down from the first that one on an SSD hangs
    /// from: that one's share was kept back before.
    fn wear_before(&self, id: PageId) -> u64 {
        let each = self.wear_of(id);
        let mut next = self.index[id].parent;
        for before in 0..u64::from(WALK) {
            let Some(id) = next else {
                return before * each;
            };
            let page = &self.index[id];
            let unwritten = page.dram == Dram::Resident && page.on_ssd() == OnSsd::None;
            if !unwritten || self.leads_on(id) {
                return before * each;
            }
            next = page.parent;
        }
        each.saturating_mul(u64::from(self.index[id].depth))
    }

    /// Devices that the page is too much for now.
    pub(crate) fn spent_devices(&self, id: PageId) -> DeviceSet {
        if !self.config.write_budget.is_set() {
            return DeviceSet::default();
        }
        let (own, worth) = (self.wear_of(id), self.worth_of(id));
        let spent = self.devices.iter().filter(|device| device.wear.left(worth) < own);
        spent.fold(DeviceSet::default(), |set, device| set.with(device.id))
    }

    /// A page that [`Core::has_budget`] is about to be written.
    pub(crate) fn promise_before(&mut self, id: PageId) {
        if !self.config.write_budget.is_set() {
            return;
        }
        if self.leads_on(id) {
            self.promises.bytes = self.promises.bytes.saturating_sub(self.wear_of(id));
        } else {
            let before = self.wear_before(id);
            self.promises.bytes = self.promises.bytes.saturating_add(before);
        }
    }

    /// How many of these records can be paid for to be moved.
    pub(crate) fn movable(&self, device: DeviceId, pages: &[PageId]) -> u64 {
        let dearest = pages.iter().map(|id| self.wear_of(*id)).max();
        dearest.map_or(0, |bytes| self.devices.get(device).wear.left(Worth::Moved) / bytes)
    }

    /// Whether a record may be moved: one that somebody holds, or another.
    pub(crate) fn has_budget_to_move(&self, id: PageId, device: DeviceId, is_held: bool) -> bool {
        let worth = if is_held { Worth::Needed } else { Worth::Moved };
        self.devices.get(device).wear.left(worth) >= self.wear_of(id)
    }

    /// The device was told to write the page.
    pub(crate) fn spend(&mut self, id: PageId, device: DeviceId) {
        let bytes = self.wear_of(id);
        self.devices.get_mut(device).wear.windows().for_each(|window| window.write(bytes));
    }

    /// It was not written after all.
    pub(crate) fn unspend(&mut self, id: PageId, device: DeviceId) {
        let bytes = self.wear_of(id);
        self.devices.get_mut(device).wear.windows().for_each(|window| window.give_back(bytes));
    }
}
