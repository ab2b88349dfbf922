use crate::Core;
use crate::devices::Device;
use crate::jobs::Job;
use crate::page::{PageId, Ssd};
use crate::segments::{Age, Move};
use crate::stats::DeviceState;
use std::collections::BTreeSet;
use undercroft_wire::Extent;

impl Core {
    pub(super) fn audit_devices(&self) {
        let mut listed = BTreeSet::new();
        for device in self.devices.iter() {
            let answers = self.devices.answers(device.id);
            assert_eq!(answers, device.answers(), "which devices answer is known");
            self.audit_segments(device, &mut listed);
            self.audit_load(device);
            self.audit_moves(device);
            self.audit_proofs(device);
        }
        let with_record = self.index.iter().filter(|(_, page)| page.has_record());
        assert_eq!(with_record.count(), listed.len(), "every record is listed in a segment");
        let segments: u64 = self.devices.iter().map(|device| device.segments.count()).sum();
        assert_eq!(segments, self.segments.len() as u64, "segments in use have a number");
        let unproved: u64 = self.devices.iter().map(|device| device.unproved).sum();
        assert_eq!(unproved, self.stats.unproved_records, "unproved records are counted");
    }

    fn audit_segments(&self, device: &Device, listed: &mut BTreeSet<PageId>) {
        let (mut pages, mut bytes, mut appended) = (0, 0, 0);
        let freeing = device.segments.reclaiming.is_some_and(|reclaim| reclaim.freeing);
        let known = device.segments.count() - u64::from(freeing);
        if let Some(total) = device.segments.total.filter(|_| device.state == DeviceState::Ready) {
            let free = u64::from(device.free_segments);
            assert!(known + free <= total, "no segment is both free and in use");
        }
        for (age, segment) in device.segments.iter() {
            let empty = segment.found && segment.records == 0;
            assert_eq!(empty, device.segments.is_empty(age), "what can be freed at once is known");
            let mut records = 0;
            for id in self.segment_pages(device.id, age) {
                records += 1;
                let page = &self.index[id];
                let extent = self.record_of(page).expect("a listed page has a record");
                assert_eq!(extent.device, device.id, "a record is of its device");
                assert_eq!(Age::of(extent), age, "a record is of its use");
                assert!(listed.insert(id), "a page is listed once");
                bytes += self.frame_bytes(self.class_of(id));
            }
            assert_eq!(records, segment.records, "a segment counts its pages");
            let here = |extent: &Extent| extent.device == device.id && Age::of(*extent) == age;
            let reads = |job: &&Job| match job {
                Job::Read { extent, .. }
                | Job::StrayRead { extent, .. }
                | Job::Prove { extent, .. } => here(extent),
                _ => false,
            };
            let moves = |job: &&Job| matches!(job, Job::Relocate { extent, .. } if here(extent));
            assert_eq!(self.jobs.values().filter(reads).count(), segment.reads as usize, "reads");
            let relocating = self.jobs.values().filter(moves).count();
            assert_eq!(relocating, segment.relocating as usize, "relocations are counted");
            pages += u64::from(records);
            appended += u64::from(segment.appended);
        }
        let counted = (device.segments.pages, device.segments.used_bytes);
        assert_eq!((pages, bytes), counted, "a device's fill is counted");
        assert_eq!(appended, device.segments.appended, "what was appended is counted");
    }

    fn audit_moves(&self, device: &Device) {
        let limit = self.config.limits.max_relocations_per_device;
        let Some(reclaim) = device.segments.reclaiming else {
            assert!(device.segments.to_move.is_empty(), "only pages that are reclaimed are moved");
            return;
        };
        let waiting = &device.segments.to_move;
        let here = |next: &Move| Age::of(next.extent) == reclaim.age;
        assert!(waiting.iter().all(here), "only pages that are reclaimed are moved");
        assert!(!reclaim.freeing || waiting.is_empty(), "what is freed was moved");
        let moving = device.segments.get(reclaim.age).map_or(0, |segment| segment.relocating);
        assert!(moving <= limit, "relocations are bounded");
        let idle = device.takes_appends() && moving < limit;
        assert!(!idle || waiting.is_empty(), "relocations are not put off");
    }

    fn audit_load(&self, device: &Device) {
        let jobs = self.jobs.values().filter(|job| job.device() == Some(device.id));
        let bytes = jobs.map(|job| match job {
            Job::Prove { bytes, .. } => *bytes,
            Job::StrayRead { class, .. } => self.frame_bytes(*class),
            Job::Append { page, .. } | Job::Read { page, .. } | Job::Relocate { page, .. } => {
                self.frame_bytes(self.class_of(*page))
            }
            Job::CopyIn(_) | Job::CopyOut(_) => unreachable!("copies are no device's"),
        });
        assert_eq!(bytes.sum::<u64>(), device.load_bytes, "what is under way is counted");
    }

    fn audit_proofs(&self, device: &Device) {
        let unproved = |(_, page): &(_, &crate::page::Page)| matches!(self.ssd_of(page), Ssd::Unproved(extent) if extent.device == device.id);
        let unproved: BTreeSet<_> = self
            .index
            .iter()
            .filter(unproved)
            .map(|(id, page)| (id, self.record_of(page)))
            .collect();
        assert_eq!(unproved.len() as u64, device.unproved, "unproved records are counted");
        let mut known = BTreeSet::new();
        let mut proving = 0;
        for job in self.jobs.values() {
            if let Job::Prove { page, extent, .. } = job
                && extent.device == device.id
            {
                proving += 1;
                known.insert((*page, Some(*extent)));
            }
        }
        assert_eq!(proving, device.proving, "proofs under way are counted");
        assert!(proving <= self.config.limits.max_proofs_per_device, "proofs are bounded");
        for (page, extent) in &device.to_prove {
            assert!(known.insert((*page, Some(*extent))), "a record is proved once");
        }
        let lost = device.state == DeviceState::Lost;
        assert!(lost || unproved.is_subset(&known), "every unproved record will be proved");
        let idle = device.answers() && proving < self.config.limits.max_proofs_per_device;
        assert!(!idle || device.to_prove.is_empty(), "proofs are not put off");
        assert!(!lost || device.to_prove.is_empty(), "nothing is asked of a lost device");
    }
}
