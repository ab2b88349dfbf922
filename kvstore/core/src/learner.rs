use std::array;

/// Ages are told apart to a quarter of a power of two, up to 2^33.
const BINS: usize = 128;
/// Classes by how far a page lies from the end of its request, by powers of two: the last one is
/// 511 pages or more.
const TAILS: usize = 10;
/// How many classes there are: each of the above, used for the first time or again.
const CLASSES: usize = 2 * TAILS;

/// Ages beyond so many rooms are all one: that DRAM should keep a page for longer, where others
/// want its room, has not been seen.
const HORIZON: u64 = 4;
/// What was seen so many rooms ago counts for a third of what is seen now.
const MEMORY: f64 = 25.0;
/// Each class is believed to be like all others as if so much of a room had been seen of that: the
/// pages of one prefix come back together, so that few of them prove little.
const PRIOR: f64 = 0.1;
/// What share of the room is promised to pages: traffic is uneven, and a promise is kept.
const PROMISED: f64 = 0.8;

/// Pages that are followed, at most: of more, every second, fourth, … is.
const MOST_SLOTS: usize = 1 << 15;
/// Slots that a page may be in.
const WAYS: usize = 4;

/// Which pages are alike in when they are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind(u8);

impl Kind {
    /// That of a page which was used for the first time or again, and behind which there are
    /// `behind` more of its request.
    pub(crate) fn new(is_again: bool, behind: u32) -> Self {
        let tail = (behind.saturating_add(1).ilog2() as usize).min(TAILS - 1);
        Self((if is_again { TAILS } else { 0 } + tail) as u8)
    }

    fn at(self) -> usize {
        usize::from(self.0)
    }
}

/// A page that is followed, in DRAM or not.
#[derive(Debug, Clone, Copy)]
#[repr(C, packed(4))]
struct Seen {
    /// Tells it from others of the same slots.
    tag: u32,
    /// When it was last used, and above that its kind; 0: there is none.
    when: u64,
}

const KIND_SHIFT: u32 = 48;

impl Seen {
    const NONE: Self = Self { tag: 0, when: 0 };

    fn is_none(self) -> bool {
        self.when == 0
    }

    fn stamp(self) -> u64 {
        self.when & ((1 << KIND_SHIFT) - 1)
    }

    fn kind(self) -> Kind {
        Kind((self.when >> KIND_SHIFT) as u8)
    }
}

/// What was seen of one kind, by age: older counts less.
#[derive(Debug, Clone)]
struct Past {
    /// Pages that were used.
    came: f64,
    /// At which ages they were used again.
    again: [f64; BINS],
    /// At which ages they were lost sight of.
    lost: [f64; BINS],
}

/// What keeping the pages of a kind for up to an age wins and takes, for each page of the clock.
#[derive(Debug, Clone)]
struct Curve {
    hits: [f64; BINS],
    pages: [f64; BINS],
}

/// Learns how long it is worth keeping pages of each kind.
///
/// A sample of all pages is followed, whether DRAM keeps them or not, so that what is learnt does
/// not hang on what is kept. From the ages at which those of a kind were used again follows
/// what keeping them all up to some age would win (hits) and take (pages in DRAM at a time). For a
/// price of a page in DRAM, each kind has an age beyond which waiting costs more than it wins; the
/// price is the one at which all of them take what DRAM has room for.
#[derive(Debug)]
pub(crate) struct Learner {
    seen: Vec<Seen>,
    /// Of so many pages one is followed.
    rate: u64,
    pasts: Vec<Past>,
    /// For how long that was watched, in pages of the clock: older counts less.
    span: f64,
    /// When it was last learnt from.
    at: u64,
    credits: Option<[u64; CLASSES]>,
}

fn bin_of(age: u64) -> usize {
    if age < 4 {
        return age as usize;
    }
    let log = age.ilog2();
    let quarter = (age >> (log - 2)) as usize & 3;
    (4 * (log as usize - 1) + quarter).min(BINS - 1)
}

/// The first age of a bin.
fn start_of(bin: usize) -> u64 {
    match bin / 4 {
        0 => bin as u64,
        octave => (4 + bin as u64 % 4) << (octave - 1),
    }
}

impl Learner {
    /// For about `room` pages.
    pub(crate) fn new(room: u64, clock: u64) -> Self {
        let (slots, rate) = Self::size(room);
        let past = Past { came: 0.0, again: [0.0; BINS], lost: [0.0; BINS] };
        Self {
            seen: vec![Seen::NONE; slots],
            rate,
            pasts: vec![past; CLASSES],
            span: 0.0,
            at: clock,
            credits: None,
        }
    }

    /// How many slots, and of how many pages one is followed: half of the slots are enough for all
    /// that is used within the horizon.
    fn size(room: u64) -> (usize, u64) {
        let most = room.clamp(1, 1 << 40) * HORIZON * 2;
        let slots = most.next_power_of_two().clamp(WAYS as u64, MOST_SLOTS as u64);
        (slots as usize, most.div_ceil(slots).next_power_of_two())
    }

    pub(crate) fn fits(&self, room: u64) -> bool {
        (self.seen.len(), self.rate) == Self::size(room)
    }

    /// For how long pages of the kind are to be kept, in pages of the clock; `None` as long as
    /// nothing is learnt.
    pub(crate) fn credit(&self, kind: Kind) -> Option<u64> {
        self.credits.map(|credits| credits[kind.at()])
    }

    pub(crate) fn has_learnt(&self) -> bool {
        self.credits.is_some()
    }

    /// The longest that it says of any.
    pub(crate) fn most_credit(room: u64) -> u64 {
        start_of(bin_of(room.saturating_mul(HORIZON)) + 1)
    }

    /// The page of this hash is used by the request `stamp`.
    pub(crate) fn observe(&mut self, hash: u64, stamp: u64, kind: Kind) {
        let mixed = (hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        if mixed >> 32 & (self.rate - 1) != 0 || stamp == 0 {
            return;
        }
        let first = (mixed as usize ^ (mixed >> 47) as usize) % (self.seen.len() / WAYS) * WAYS;
        let (tag, stamp) = ((hash >> 32 ^ hash << 7) as u32, stamp & ((1 << KIND_SHIFT) - 1));
        let ways = &mut self.seen[first..first + WAYS];
        let known = ways.iter_mut().find(|seen| !seen.is_none() && seen.tag == tag);
        if let Some(seen) = known {
            if seen.stamp() >= stamp {
                return;
            }
            let age = stamp - seen.stamp();
            self.pasts[seen.kind().at()].again[bin_of(age)] += 1.0;
            seen.when = stamp | u64::from(kind.0) << KIND_SHIFT;
        } else {
            let oldest =
                ways.iter_mut().min_by_key(|seen| if seen.is_none() { 0 } else { seen.stamp() });
            let oldest = oldest.expect("a page may be in several slots");
            if !oldest.is_none() {
                let age = stamp.saturating_sub(oldest.stamp());
                self.pasts[oldest.kind().at()].lost[bin_of(age)] += 1.0;
            }
            *oldest = Seen { tag, when: stamp | u64::from(kind.0) << KIND_SHIFT };
        }
        self.pasts[kind.at()].came += 1.0;
    }

    /// Whether enough has been seen since it was last learnt from.
    pub(crate) fn is_due(&self, room: u64, clock: u64) -> bool {
        let apart = (room / 4).max(room.clamp(1, 4096));
        clock.saturating_sub(self.at) >= apart
    }

    /// Says anew for how long pages are to be kept where there is room for `room` of them.
    pub(crate) fn learn(&mut self, room: u64, clock: u64) {
        let passed = clock.saturating_sub(self.at) as f64;
        self.at = clock;
        self.span += passed;
        let horizon = bin_of(room.saturating_mul(HORIZON)).min(BINS - 2);
        let curves = self.curves(room, clock, horizon);
        // From a price at which nothing is worth it to one at which everything is.
        let (mut low, mut high) = (1e-4 / room as f64, 1e2 / room as f64);
        for _ in 0..24 {
            let middle = (low * high).sqrt();
            let pages: f64 = curves.iter().map(|curve| curve.best(middle, horizon).1).sum();
            if pages > room as f64 * PROMISED {
                low = middle;
            } else {
                high = middle;
            }
        }
        self.credits = Some(array::from_fn(|kind| curves[kind].best(high, horizon).0));
        let kept = 1.0 - (passed / (MEMORY * room as f64)).min(1.0);
        self.span *= kept;
        for past in &mut self.pasts {
            past.came *= kept;
            past.again.iter_mut().chain(&mut past.lost).for_each(|count| *count *= kept);
        }
    }

    fn curves(&mut self, room: u64, clock: u64, horizon: usize) -> Vec<Curve> {
        let mut waiting = vec![[0.0; BINS]; CLASSES];
        for seen in self.seen.iter_mut().filter(|seen| !seen.is_none()) {
            let (kind, age) = (seen.kind().at(), clock.saturating_sub(seen.stamp()));
            if bin_of(age) > horizon {
                self.pasts[kind].lost[horizon + 1] += 1.0;
                *seen = Seen::NONE;
            } else {
                waiting[kind][bin_of(age)] += 1.0;
            }
        }
        let (mut all_again, mut all_old) = ([0.0; BINS], [0.0; BINS]);
        let olds: Vec<[f64; BINS]> = self.pasts.iter().zip(&waiting).map(Past::as_old).collect();
        for (past, old) in self.pasts.iter().zip(&olds) {
            for bin in 0..BINS {
                all_again[bin] += past.again[bin];
                all_old[bin] += old[bin];
            }
        }
        let prior = PRIOR * room as f64 / self.rate as f64;
        let each = self.rate as f64 / self.span.max(1.0);
        let pasts = self.pasts.iter().zip(&olds);
        let curve = |(past, old): (&Past, &[f64; BINS])| {
            Curve::new(past.came * each, horizon, |bin| {
                let all = if all_old[bin] > 0.0 { all_again[bin] / all_old[bin] } else { 0.0 };
                let old = old[bin] + prior;
                if old > 0.0 { (past.again[bin] + prior * all) / old } else { 0.0 }
            })
        };
        pasts.map(curve).collect()
    }

    /// Checks what it has counted.
    pub(crate) fn audit(&self, clock: u64) {
        for seen in self.seen.iter().filter(|seen| !seen.is_none()) {
            assert!(seen.stamp() <= clock, "no page was seen later than now");
            assert!(seen.kind().at() < CLASSES, "a page is of a kind that there is");
        }
        for past in &self.pasts {
            let mut counts = past.again.iter().chain(&past.lost).chain([&past.came, &self.span]);
            assert!(counts.all(|count| count.is_finite() && *count >= 0.0), "counts are counts");
        }
        assert!(self.at <= clock && self.rate.is_power_of_two(), "what was learnt is of the past");
    }
}

impl Past {
    /// How many pages were seen to be as old as each age, those included that still wait.
    fn as_old((past, waiting): (&Self, &[f64; BINS])) -> [f64; BINS] {
        let mut old = [0.0; BINS];
        let mut sum = 0.0;
        for bin in (0..BINS).rev() {
            sum += past.again[bin] + past.lost[bin] + waiting[bin];
            old[bin] = sum;
        }
        old
    }
}

impl Curve {
    /// Of pages that come at this rate, of those as old as a bin the given share is used again in it
    /// (Kaplan and Meier, 1958).
    fn new(rate: f64, horizon: usize, again: impl Fn(usize) -> f64) -> Self {
        let mut curve = Self { hits: [0.0; BINS], pages: [0.0; BINS] };
        let (mut left, mut hits, mut pages) = (1.0, 0.0, 0.0);
        for bin in 0..=horizon {
            let used = left * again(bin).min(1.0);
            let width = (start_of(bin + 1) - start_of(bin)) as f64;
            hits += used;
            pages += width * (left - used / 2.0);
            left -= used;
            (curve.hits[bin], curve.pages[bin]) = (rate * hits, rate * pages);
        }
        curve
    }

    /// For how long it is best to keep these pages when each one in DRAM has this price, and how many
    /// that are.
    fn best(&self, price: f64, horizon: usize) -> (u64, f64) {
        let (mut best, mut won) = ((0, 0.0), 0.0);
        for bin in 0..=horizon {
            let wins = self.hits[bin] - price * self.pages[bin];
            if wins > won {
                (best, won) = ((start_of(bin + 1), self.pages[bin]), wins);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests;
