use super::*;
use proptest::prelude::*;

/// A number that looks drawn.
fn mixed(number: u64) -> u64 {
    let mixed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ number.rotate_left(40)
}

#[test]
fn every_age_lies_in_one_bin() {
    for bin in 0..BINS - 1 {
        assert_eq!((bin_of(start_of(bin)), bin_of(start_of(bin + 1) - 1)), (bin, bin));
    }
    assert_eq!((bin_of(u64::MAX), start_of(BINS - 1)), (BINS - 1, 7 << 30));
}

#[test]
fn kinds_are_told_apart_by_use_and_by_powers_of_two() {
    let kinds = [0, 1, 3, 7, 255, 511, u32::MAX].map(|behind| Kind::new(false, behind).at());
    assert_eq!(kinds, [0, 1, 2, 3, 8, 9, 9]);
    assert_eq!((Kind::new(true, 0).at(), Kind::new(true, 600).at()), (10, 19));
}

#[test]
fn large_rooms_are_followed_by_a_sample_of_bounded_size() {
    for room in [0, 1, 16, 3_133, 1 << 20, u64::MAX] {
        let (slots, rate) = Learner::size(room);
        assert!((WAYS..=MOST_SLOTS).contains(&slots) && slots.is_power_of_two());
        let followed = room.clamp(1, 1 << 40) * HORIZON / rate;
        assert!(followed <= slots as u64 / 2 || rate == 1, "{room}: {followed}");
    }
    assert_eq!(Learner::size(3_133), (1 << 15, 1));
    assert_eq!(Learner::size(1 << 20), (1 << 15, 256));
}

/// Traffic of pages that come back once, `gap` later, with a chance of `percent`, and of which
/// there is one in every `every` pages of the clock.
struct Stream {
    kind: Kind,
    gap: u64,
    percent: u64,
    every: u64,
}

impl Stream {
    fn share(&self) -> f64 {
        1.0 / self.every as f64
    }

    fn density(&self) -> f64 {
        self.percent as f64 / self.gap as f64
    }
}

fn learnt_from(streams: &[Stream], room: u64) -> Learner {
    let mut learner = Learner::new(room, 0);
    // What has come back is of a kind that never does.
    let over = Kind::new(true, 600);
    for clock in 1..room * 60 {
        for (number, stream) in (0_u64..).zip(streams) {
            let name = |at: u64| mixed(at * 8 + number);
            if clock % stream.every == number % stream.every {
                learner.observe(name(clock), clock, stream.kind);
            }
            let before = clock.saturating_sub(stream.gap);
            let came = before > 0 && before % stream.every == number % stream.every;
            if came && mixed(before ^ 77) % 100 < stream.percent {
                learner.observe(name(before), clock, over);
            }
        }
        if learner.is_due(room, clock) {
            learner.learn(room, clock);
        }
    }
    learner.audit(room * 60);
    learner
}

/// The room goes to the densest streams first, as the greedy solution of the knapsack has it: what
/// waits for `gap` takes that much of the room for each page that comes.
#[test]
fn the_room_goes_to_what_is_worth_most() {
    let kinds = [1, 3, 7, 15].map(|behind| Kind::new(false, behind));
    let room = 2000;
    let stream = |at: usize, gap, percent, every| Stream { kind: kinds[at], gap, percent, every };
    let streams = [
        stream(0, 300, 90, 2),
        stream(1, 1200, 90, 2),
        stream(2, 1000, 20, 2),
        stream(3, 4000, 95, 4),
    ];
    let mut order: Vec<usize> = (0..streams.len()).collect();
    order.sort_by(|a, b| streams[*b].density().total_cmp(&streams[*a].density()));
    let learner = learnt_from(&streams, room);
    let mut left = room as f64 * PROMISED;
    for at in order {
        let stream = &streams[at];
        let credit = learner.credit(stream.kind).expect("it has learnt");
        left -= stream.share() * stream.gap as f64;
        if left >= 0.0 {
            let most = stream.gap + stream.gap / 2;
            assert!((stream.gap..most).contains(&credit), "{at} is kept for {credit}");
        } else {
            assert!(credit < stream.gap / 2, "{at} has no room and is kept for {credit}");
        }
    }
    assert_eq!(learner.credit(Kind::new(true, 600)), Some(0), "what never comes back");
}

#[test]
fn where_there_is_room_for_all_every_kind_is_kept_until_it_comes() {
    let kinds = [1, 3].map(|behind| Kind::new(false, behind));
    let stream = |kind, gap| Stream { kind, gap, percent: 70, every: 2 };
    let learner = learnt_from(&[stream(kinds[0], 400), stream(kinds[1], 900)], 4000);
    for (kind, gap) in kinds.into_iter().zip([400, 900]) {
        assert!(learner.credit(kind) >= Some(gap));
    }
}

#[test]
fn a_request_counts_once_however_often_it_names_a_page() {
    let mut learner = Learner::new(100, 0);
    let kind = Kind::new(false, 0);
    for _ in 0..5 {
        learner.observe(mixed(1), 7, kind);
        learner.observe(mixed(1), 5, kind);
    }
    let past = &learner.pasts[kind.at()];
    assert_eq!((past.came, past.again.iter().sum::<f64>()), (1.0, 0.0));
    learner.observe(mixed(1), 20, kind);
    assert_eq!(learner.pasts[kind.at()].again[bin_of(13)], 1.0);
}

proptest! {
    #[test]
    fn whatever_it_is_told_it_stays_sound(
        told in prop::collection::vec((any::<u64>(), any::<u64>(), any::<(bool, u32)>()), 0..200),
        room in 1_u64..1 << 50,
        shift in 0_u32..64,
    ) {
        let mut learner = Learner::new(room.min(1 << 20), 0);
        let mut clock = 0;
        for (hash, stamp, (is_again, behind)) in told {
            let stamp = (stamp >> shift) & ((1 << KIND_SHIFT) - 1);
            clock = clock.max(stamp);
            learner.observe(hash, stamp, Kind::new(is_again, behind));
            if learner.is_due(room, clock) {
                learner.learn(room, clock);
            }
        }
        learner.learn(room, clock);
        learner.audit(clock);
        let most = Learner::most_credit(room);
        prop_assert!(learner.credits.is_some_and(|all| all.iter().all(|one| *one <= most)));
    }
}
