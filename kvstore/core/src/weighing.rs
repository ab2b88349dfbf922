use crate::Core;
use crate::cost::Pace;
use undercroft_wire::{DeviceId, Rival};

/// Which beginning of a run is worth loading, found while the run is: the one that saves most, as
/// computing what is loaded would cost more than loading it by the widest margin; of those that
/// are there by the time they are due.
#[derive(Debug)]
pub(crate) struct Weighing {
    rival: Rival,
    /// What each device reads, behind what it was asked for before.
    queues: Vec<Pace>,
    /// What copying takes the slowest space: once, and for each page.
    copying: (f64, f64),
    /// Bytes to be read from each device so far.
    own_bytes: Vec<u64>,
    pages: u32,
    dram: u32,
    ssd_us: f64,
    best_us: f64,
    best: Worth,
}

/// The beginning of a run that is worth loading, and what loading it takes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Worth {
    pub(crate) pages: u32,
    /// Of these, pages that are in DRAM.
    pub(crate) dram: u32,
    pub(crate) ssd_us: f64,
    pub(crate) copy_us: f64,
}

impl Weighing {
    /// `None` where there is nothing to weigh pages against.
    pub(crate) fn new(
        rival: Rival,
        queues: impl FnOnce() -> Vec<Pace>,
        copying: (f64, f64),
    ) -> Option<Self> {
        if rival.recompute_ns == 0 && rival.due_ms == 0 {
            return None;
        }
        let queues = queues();
        Some(Self {
            rival,
            copying,
            own_bytes: vec![0; queues.len()],
            queues,
            pages: 0,
            dram: 0,
            ssd_us: 0.0,
            best_us: 0.0,
            best: Worth::default(),
        })
    }

    /// As if nothing had been found.
    pub(crate) fn restarted(self) -> Self {
        let Self { rival, queues, copying, .. } = self;
        Self::new(rival, || queues, copying).expect("it had a rival before")
    }

    /// So many more bytes of the next page are to be read; 0 if they are on their way already.
    pub(crate) fn read(&mut self, device: DeviceId, bytes: u64) {
        if self.pages < self.rival.have {
            return;
        }
        let at = usize::from(device.0);
        self.own_bytes[at] += bytes;
        self.ssd_us = self.ssd_us.max(self.queues[at].us(self.own_bytes[at]));
    }

    /// The next page is there.
    pub(crate) fn page(&mut self, in_dram: bool) {
        self.pages += 1;
        self.dram += u32::from(in_dram);
        let loaded = self.pages.saturating_sub(self.rival.have);
        let (once, each) = self.copying;
        let copy_us = if loaded > 0 { once + each * f64::from(loaded) } else { 0.0 };
        // Pages are copied while others are read: but for the last one.
        let last_us = if self.ssd_us > 0.0 { each } else { 0.0 };
        let load_us = copy_us.max(self.ssd_us + last_us);
        let due_us = f64::from(self.rival.due_ms) * 1000.0;
        let in_time = due_us == 0.0 || load_us <= due_us;
        let saved_us = match self.rival.recompute_ns {
            // Whatever arrives in time is better than nothing.
            0 => f64::from(loaded),
            each_ns => f64::from(loaded) * each_ns as f64 / 1000.0 - load_us,
        };
        if loaded == 0 || in_time && saved_us > self.best_us {
            let (pages, dram, ssd_us) = (self.pages, self.dram, self.ssd_us);
            self.best_us = saved_us.max(0.0);
            self.best = Worth { pages, dram, ssd_us, copy_us };
        }
    }

    pub(crate) fn worth(&self) -> Worth {
        self.best
    }
}

impl Core {
    /// What each device is asked for already.
    pub(crate) fn queues(&self) -> Vec<Pace> {
        self.devices.iter().map(|device| device.reading.queue(self.now)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Weighing, Worth};
    use crate::cost::Pace;
    use undercroft_wire::{DeviceId, Rival};

    const PAGE: u64 = 1 << 20;
    const NO_RIVAL: Rival = Rival { recompute_ns: 0, due_ms: 0, have: 0 };

    fn rival(recompute_us: u64) -> Rival {
        Rival { recompute_ns: recompute_us * 1000, ..NO_RIVAL }
    }

    /// What is worth loading of pages in DRAM, then on one device where each takes so long.
    fn weighed(rival: Rival, dram: u32, ssd: u32, page_us: u64) -> Worth {
        let device = Pace { latency_us: 100.0, us_per_byte: page_us as f64 / PAGE as f64 };
        let mut weighing = Weighing::new(rival, || vec![device], (50.0, 10.0)).expect("a rival");
        for _ in 0..2 {
            weighing = weighing.restarted();
            (0..dram).for_each(|_| weighing.page(true));
            for _ in 0..ssd {
                weighing.read(DeviceId(0), PAGE);
                weighing.page(false);
            }
        }
        weighing.worth()
    }

    #[test]
    fn all_of_what_is_read_faster_than_computed_is_worth_it() {
        let worth = weighed(rival(1_000), 10, 90, 500);
        assert_eq!((worth.pages, worth.dram, worth.ssd_us), (100, 10, 45_100.0));
    }

    #[test]
    fn of_what_is_read_slower_than_computed_the_part_in_dram_is_worth_it() {
        let worth = weighed(rival(1_000), 10, 90, 1_500);
        assert_eq!((worth.pages, worth.dram, worth.ssd_us), (10, 10, 0.0));
        assert_eq!(worth.copy_us, 150.0);
        assert_eq!(weighed(rival(1_000), 0, 90, 1_500).pages, 0);
    }

    #[test]
    fn a_read_that_goes_on_while_pages_are_copied_costs_nothing() {
        // One page of 5 ms behind 600 that are copied meanwhile.
        assert_eq!(weighed(rival(100), 600, 1, 4_900).pages, 601);
        assert_eq!(weighed(rival(100), 300, 1, 4_900).pages, 300);
    }

    #[test]
    fn only_what_arrives_in_time_is_worth_it() {
        let due = |recompute_us| Rival { due_ms: 10, ..rival(recompute_us) };
        for recompute_us in [0, 1_000] {
            // 100 us, 500 for each page, and 10 for copying the last.
            assert_eq!(weighed(due(recompute_us), 0, 90, 500).pages, 19, "{recompute_us}");
        }
        assert!(Weighing::new(NO_RIVAL, Vec::new, (0.0, 0.0)).is_none());
    }

    #[test]
    fn what_the_engine_has_costs_nothing_and_gains_nothing() {
        let have = |pages, recompute_us| Rival { have: pages, ..rival(recompute_us) };
        assert_eq!(weighed(have(50, 1_000), 0, 90, 500).ssd_us, 20_100.0);
        assert_eq!(weighed(have(50, 400), 0, 90, 500).pages, 50);
        assert_eq!(weighed(have(100, 1_000), 0, 90, 500).pages, 90);
    }

    #[test]
    fn the_slowest_device_decides() {
        let fast = Pace { latency_us: 100.0, us_per_byte: 100.0 / PAGE as f64 };
        let slow = Pace { latency_us: 100.0, us_per_byte: 3_000.0 / PAGE as f64 };
        let queues = || vec![fast, slow];
        let mut weighing = Weighing::new(rival(1_000), queues, (0.0, 0.0)).expect("one");
        for at in 0..40 {
            // All of the second half lies on the slow one.
            weighing.read(DeviceId(u8::from(at >= 20)), PAGE);
            weighing.page(false);
        }
        assert_eq!(weighing.worth().pages, 20);
    }
}
