//! What is alive, what was done, and what should not have been.

use crate::calls::Call;
use crate::handles::Handle;
use crate::state::State;
use std::collections::HashMap;

/// What the driver counts.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    calls: HashMap<Call, u64>,
    pub(crate) copies_1d: u64,
    pub(crate) copies_2d: u64,
    pub(crate) batches: u64,
    pub(crate) batched_copies: u64,
    pub(crate) kernels: u64,
    pub(crate) most_thread_blocks: u64,
    pub(crate) pageable_copies: u64,
    pub(crate) failed_calls: u64,
    pub(crate) violations: u64,
}

impl Counts {
    pub(crate) fn count_call(&mut self, call: Call) {
        *self.calls.entry(call).or_default() += 1;
    }

    /// How often it was called.
    pub(crate) fn calls(&self, call: Call) -> u64 {
        self.calls.get(&call).copied().unwrap_or_default()
    }
}

/// What is alive in the driver, and what it did since it was loaded or reset.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Report {
    /// Primary contexts that somebody retains.
    pub contexts: u64,
    /// Contexts on the stacks of all threads, of threads that have ended too.
    pub pushed: u64,
    /// Allocations on devices.
    pub allocations: u64,
    /// Their bytes.
    pub allocated_bytes: u64,
    /// Ranges of host memory registered by `cuMemHostRegister`.
    pub registrations: u64,
    /// Their bytes.
    pub registered_bytes: u64,
    /// Allocations by `cuMemHostAlloc`.
    pub host_allocations: u64,
    /// Their bytes.
    pub host_allocated_bytes: u64,
    /// Streams.
    pub streams: u64,
    /// Events.
    pub events: u64,
    /// Modules.
    pub modules: u64,
    /// Operations that were queued and are not over.
    pub pending: u64,
    /// Copies of one range queued or made.
    pub copies_1d: u64,
    /// 2D copies queued.
    pub copies_2d: u64,
    /// Calls of `cuMemcpyBatchAsync` that were taken.
    pub batches: u64,
    /// Copies in them.
    pub batched_copies: u64,
    /// Kernels launched.
    pub kernels: u64,
    /// Thread blocks of the largest launch.
    pub most_thread_blocks: u64,
    /// Of the copies that need not be over when their call returns, those that were: a side of
    /// theirs is in memory that is not pinned.
    pub pageable_copies: u64,
    /// Calls that failed because they were told to.
    pub failed_calls: u64,
    /// Operations that failed because they were told to.
    pub failed_operations: u64,
    /// Breaches of the driver's rules.
    pub violations: u64,
}

impl Report {
    /// What is alive, in words; nothing else is counted by it.
    #[must_use]
    pub fn leaks(&self) -> Vec<String> {
        let mut leaks = self.objects();
        leaks.extend(counted(self.contexts, "contexts"));
        leaks.extend(counted(self.pushed, "contexts on stacks"));
        leaks.extend(counted(self.pending, "operations"));
        leaks
    }

    /// What lives in contexts, in words.
    pub(crate) fn objects(&self) -> Vec<String> {
        let sized = |count, bytes, what: &str| {
            counted(count, what).map(|text| format!("{text} of {bytes} bytes"))
        };
        [
            sized(self.allocations, self.allocated_bytes, "allocations"),
            sized(self.registrations, self.registered_bytes, "registrations"),
            sized(self.host_allocations, self.host_allocated_bytes, "host allocations"),
            counted(self.streams, "streams"),
            counted(self.events, "events"),
            counted(self.modules, "modules"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn counted(count: u64, what: &str) -> Option<String> {
    (count > 0).then(|| format!("{count} {what}"))
}

impl State {
    /// The report, of one context only if one is named.
    pub(crate) fn report_of(&self, context: Option<Handle>) -> Report {
        let meant = |owner: Handle| context.is_none_or(|context| context == owner);
        let mut report = self.tally();
        for (start, end, allocation) in self.memory.device.iter() {
            if meant(allocation.context) {
                report.allocations += 1;
                report.allocated_bytes += end - start;
            }
        }
        for (start, end, pinned) in self.memory.pinned.iter() {
            let (count, bytes) = match pinned.block {
                Some(_) => (&mut report.host_allocations, &mut report.host_allocated_bytes),
                None => (&mut report.registrations, &mut report.registered_bytes),
            };
            if meant(pinned.context) {
                *count += 1;
                *bytes += end - start;
            }
        }
        for (_, stream) in self.streams.iter().filter(|(_, stream)| meant(stream.context)) {
            report.streams += u64::from(!(stream.is_default || stream.destroyed));
            report.pending += stream.pending();
        }
        let count = |owners: &mut dyn Iterator<Item = Handle>| {
            owners.filter(|owner| meant(*owner)).count() as u64
        };
        report.events = count(&mut self.events.iter().map(|(_, event)| event.context));
        report.modules = count(&mut self.modules.iter().map(|(_, module)| module.context));
        report.contexts = count(&mut self.contexts.table.iter().map(|(handle, _)| handle));
        report.pushed = self.contexts.pushed();
        report
    }

    /// What was done.
    fn tally(&self) -> Report {
        Report {
            copies_1d: self.counts.copies_1d,
            copies_2d: self.counts.copies_2d,
            batches: self.counts.batches,
            batched_copies: self.counts.batched_copies,
            kernels: self.counts.kernels,
            most_thread_blocks: self.counts.most_thread_blocks,
            pageable_copies: self.counts.pageable_copies,
            failed_calls: self.counts.failed_calls,
            failed_operations: self.failures.failed_operations,
            violations: self.counts.violations,
            ..Report::default()
        }
    }
}
