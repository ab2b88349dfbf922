use crate::jobs::Job;
use crate::page::{PageId, Ssd};
use crate::stats::DeviceState;
use crate::{Action, Core, ReadOutcome};
use undercroft_wire::{DeviceId, Extent};

/// Records of segments that were not sealed are read once, in the background, before any lookup
/// counts them: their bytes may never have reached the medium.
impl Core {
    /// Has as many records proved as may be under way at once.
    pub(crate) fn prove(&mut self, actions: &mut Vec<Action>) {
        for device in self.devices.ids() {
            self.prove_on(device, actions);
        }
    }

    fn prove_on(&mut self, id: DeviceId, actions: &mut Vec<Action>) {
        while self.devices.answers(id) {
            let device = self.devices.get_mut(id);
            if device.proving >= self.config.limits.max_proofs_per_device {
                return;
            }
            let Some((page, extent)) = device.to_prove.pop_front() else {
                return;
            };
            if self.is_unproved(page, extent) {
                self.start_proof(page, extent, actions);
            }
        }
    }

    /// Whether the page still has this record to prove. No two records have one extent, so a page
    /// that has taken a forgotten one's place is told apart.
    fn is_unproved(&self, page: PageId, extent: Extent) -> bool {
        self.index.get(page).is_some_and(|page| self.ssd_of(page) == Ssd::Unproved(extent))
    }

    fn start_proof(&mut self, page: PageId, extent: Extent, actions: &mut Vec<Action>) {
        let identity = self.identity(page);
        let bytes = self.frame_bytes(self.class_of(page));
        self.begin_reading(extent, bytes);
        self.devices.get_mut(extent.device).proving += 1;
        let job = self.new_job(Job::Prove { page, extent, bytes });
        actions.push(Action::Prove { job, extent, identity });
    }

    pub(crate) fn proved(
        &mut self,
        page: PageId,
        extent: Extent,
        bytes: u64,
        outcome: ReadOutcome,
    ) {
        self.end_reading(extent, bytes);
        let answers = self.devices.answers(extent.device);
        let device = self.devices.get_mut(extent.device);
        let lost = device.state == DeviceState::Lost;
        device.proving -= 1;
        let failed = outcome == ReadOutcome::Failed;
        device.stats.failures += u64::from(!matches!(outcome, ReadOutcome::Ok(_)));
        self.stats.read_failures += u64::from(failed);
        if lost || !self.is_unproved(page, extent) {
            return;
        }
        match outcome {
            ReadOutcome::Ok(_) => {
                self.index[page].set_proved();
                self.devices.get_mut(extent.device).unproved -= 1;
                self.stats.unproved_records -= 1;
                self.stats.proved_records += 1;
                self.settle(page);
            }
            // The device could not be asked: that says nothing of the record.
            ReadOutcome::Failed if !answers => {
                self.devices.get_mut(extent.device).to_prove.push_front((page, extent));
            }
            ReadOutcome::Corrupt | ReadOutcome::Failed => {
                self.stats.disproved_records += 1;
                self.lose_record(page, outcome.miss_cause());
            }
        }
    }
}
