//! What waits for a page log's queue: reads before the rest, and appends a few at a time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};
use undercroft_ssd_tier::Op;

/// Reads that may pass what waits before one operation that is none gets its turn.
const READS_IN_A_ROW: u32 = 16;
/// An append that takes longer waits for a segment rather than for others. It holds up nothing in
/// the log's queue, and others may be told as soon as it is that there is none.
const APPEND_PATIENCE: Duration = Duration::from_millis(50);

/// Operations for one page log that are not in its queue yet.
///
/// Its queue keeps their order, and a read behind hundreds of appends would wait for most of them.
/// Reads may pass all that waits here: the core reads only records it was told of, and has a segment
/// freed only after every read of it has ended, so that none is waiting then. The rest keeps its
/// order, a segment's end included, but for appends: they depend on no operation and no operation
/// on them.
///
/// How many may wait is bounded by the core: a read or append has a frame, relocations and proofs
/// have limits of their own, and one segment of a device is freed at a time.
#[derive(Default)]
pub(crate) struct Waiting {
    reads: VecDeque<Op>,
    others: VecDeque<Op>,
    appends: VecDeque<Op>,
    reads_in_a_row: u32,
    /// Appends in the log.
    appending: usize,
    /// When the log last answered one, or was given one while it had none.
    headway: Option<Instant>,
}

impl Waiting {
    pub(crate) fn push(&mut self, op: Op) {
        match op {
            Op::Read { .. } => self.reads.push_back(op),
            Op::Append { .. } => self.appends.push_back(op),
            Op::Relocate { .. } | Op::Prove { .. } | Op::FreeSegment { .. } => {
                self.others.push_back(op);
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.others.is_empty() && self.appends.is_empty()
    }

    /// Hands operations over until `take` gives one back or none may go. Of appends it takes no
    /// more than `appends` at once, while they make headway.
    pub(crate) fn hand_over(
        &mut self,
        appends: usize,
        now: Instant,
        mut take: impl FnMut(Op) -> Option<Op>,
    ) {
        loop {
            let stuck = self.headway.is_some_and(|since| now >= since + APPEND_PATIENCE);
            let may_append = self.appending < appends.max(1) || stuck;
            let any_else = !self.others.is_empty() || (may_append && !self.appends.is_empty());
            let reads =
                !self.reads.is_empty() && (self.reads_in_a_row < READS_IN_A_ROW || !any_else);
            let queue = if reads {
                &mut self.reads
            } else if !self.others.is_empty() {
                &mut self.others
            } else if may_append {
                &mut self.appends
            } else {
                return;
            };
            let Some(op) = queue.pop_front() else { return };
            let is_append = matches!(op, Op::Append { .. });
            if let Some(op) = take(op) {
                queue.push_front(op);
                return;
            }
            self.reads_in_a_row = if reads { self.reads_in_a_row.saturating_add(1) } else { 0 };
            if is_append {
                self.appending += 1;
                self.headway = self.headway.or(Some(now));
            }
        }
    }

    /// The log has answered an append.
    pub(crate) fn appended(&mut self, now: Instant) {
        self.appending = self.appending.saturating_sub(1);
        self.headway = (self.appending > 0).then_some(now);
    }

    /// Takes everything that never reached the log.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Op> + '_ {
        self.reads.drain(..).chain(self.others.drain(..)).chain(self.appends.drain(..))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use undercroft_arena::Memory;
    use undercroft_wire::{
        DeviceId, DomainId, Extent, JobId, PageIdentity, PageKey, SegmentId, SegmentUse,
        SpaceDigest,
    };

    const PLACE: (SegmentId, SegmentUse) = (SegmentId(0), SegmentUse(1));

    fn op(kind: char, memory: &Memory) -> Op {
        let (job, (segment, segment_use)) = (JobId(1), PLACE);
        let extent = Extent { device: DeviceId(0), segment, segment_use, record: 0 };
        let identity = PageIdentity {
            domain: DomainId::named("default"),
            space: SpaceDigest([1; 32]),
            key: PageKey([2; 32]),
            parent: None,
            depth: 0,
            page_bytes: 4096,
        };
        let page = memory.span(0, 4096).unwrap();
        match kind {
            'r' => Op::Read { job, identity, extent, into: page },
            'a' => Op::Append {
                job,
                identity,
                origin: undercroft_wire::Origin::default(),
                payload: page,
                payload_crc: 0,
            },
            'm' => {
                Op::Relocate { job, identity, origin: undercroft_wire::Origin::default(), extent }
            }
            'p' => Op::Prove { job, identity, extent },
            _ => Op::FreeSegment { segment, segment_use },
        }
    }

    fn name(op: &Op) -> char {
        match op {
            Op::Read { .. } => 'r',
            Op::Append { .. } => 'a',
            Op::Relocate { .. } => 'm',
            Op::Prove { .. } => 'p',
            Op::FreeSegment { .. } => 'f',
        }
    }

    /// What goes over if the log's queue takes `room` more.
    fn over(waiting: &mut Waiting, appends: usize, now: Instant, mut room: usize) -> String {
        let mut over = String::new();
        waiting.hand_over(appends, now, |op| {
            if room == 0 {
                return Some(op);
            }
            room -= 1;
            over.push(name(&op));
            None
        });
        over
    }

    fn filled(kinds: &str) -> Waiting {
        let memory = Memory::new(4096, 0).unwrap();
        let mut waiting = Waiting::default();
        kinds.chars().for_each(|kind| waiting.push(op(kind, &memory)));
        waiting
    }

    #[test]
    fn reads_pass_the_rest_and_the_rest_keeps_its_order() {
        let now = Instant::now();
        let mut waiting = filled("aamprfmar");
        assert_eq!(over(&mut waiting, 8, now, 4), "rrmp");
        assert_eq!(over(&mut waiting, 8, now, 0), "", "what is given back waits again");
        assert_eq!(over(&mut waiting, 8, now, 9), "fmaaa");
        assert!(waiting.is_empty());
    }

    #[test]
    fn the_rest_gets_a_turn_among_any_number_of_reads() {
        let mut waiting = filled(&format!("fm{}", "r".repeat(40)));
        let (few, now) = ("r".repeat(16), Instant::now());
        let expected = format!("{few}f{few}m{}", "r".repeat(8));
        assert_eq!(over(&mut waiting, 8, now, 100), expected);
    }

    #[test]
    fn appends_leave_room_for_what_comes_later_unless_they_are_stuck() {
        let now = Instant::now();
        let mut waiting = filled("aaaaaaf");
        assert_eq!(over(&mut waiting, 2, now, 100), "faa", "nothing waits behind an append");
        waiting.appended(now);
        assert_eq!(over(&mut waiting, 2, now, 100), "a");
        assert_eq!(over(&mut waiting, 2, now + APPEND_PATIENCE / 2, 100), "");
        assert_eq!(over(&mut waiting, 2, now + APPEND_PATIENCE, 100), "aaa");
        for _ in 0..5 {
            waiting.appended(now);
        }
        let mut later = filled("aaa");
        std::mem::swap(&mut waiting.appends, &mut later.appends);
        let (idle_since, appends) = (now, 2);
        assert_eq!(over(&mut waiting, appends, idle_since + 9 * APPEND_PATIENCE, 100), "aa");
        assert_eq!(waiting.drain().count(), 1);
    }
}
