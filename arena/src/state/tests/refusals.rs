//! Files that are not what they should be.

use super::cut::{file_of, words_of_file};
use super::*;
use rustix::fs::{MemfdFlags, SealFlags};

fn full() -> State {
    let mut state = tiny();
    for op in SETTLED {
        apply(&mut state, op).unwrap();
    }
    apply(&mut state, Op::Space { space: 1 }).unwrap();
    for (index, unit) in [(0, 1), (1, 7)] {
        apply(&mut state, Op::Leased { session: 1, lease: 0, index, part: 0, unit }).unwrap();
    }
    state
}

fn words(state: &State) -> Vec<u64> {
    (0..state.layout.bytes as usize / 8).map(|at| state.words.load(at)).collect()
}

fn sealed(bytes: &[u8], size: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("undercroft-test", flags).unwrap();
    rustix::io::pwrite(&fd, bytes, 0).unwrap();
    rustix::fs::ftruncate(&fd, size).unwrap();
    rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
    fd
}

const ALL: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

#[test]
fn a_file_of_another_size_or_that_could_change_it_is_refused() {
    let words = words(&full());
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let size = bytes.len() as u64;
    assert!(State::adopt(sealed(&bytes, size, ALL)).is_ok());
    for other in [64, 4096, size - 4096, size - 1, size + 1, size + 4096] {
        let refused = State::adopt(sealed(&bytes, other, ALL)).unwrap_err();
        let expected = ArenaError::WrongSize { found: other, expected: size };
        assert_eq!(refused.to_string(), StateError::from(expected).to_string());
    }
    for missing in [SealFlags::SHRINK, SealFlags::GROW, SealFlags::SEAL] {
        let refused = State::adopt(sealed(&bytes, size, ALL - missing));
        assert!(matches!(refused, Err(StateError::Arena(ArenaError::NotSealed))));
    }
    let refused = State::adopt(sealed(&bytes[..63], 63, ALL));
    assert!(matches!(refused, Err(StateError::NotState { .. })), "{refused:?}");
}

#[test]
fn something_else_than_a_state_file_is_refused() {
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let read_only = std::fs::File::open("/proc/self/exe").unwrap();
    for fd in
        [pipe, null.into(), read_only.into(), sealed(&[], 0, ALL), sealed(&[9; 4096], 8192, ALL)]
    {
        let refused = State::adopt(fd);
        assert!(matches!(refused, Err(StateError::NotState { .. })), "{refused:?}");
    }
    // Readable only: what it holds is right, but it cannot be taken over.
    let read_only = memfd::reopen_read_only(full().words.fd(), 0).unwrap();
    let refused = State::adopt(read_only);
    assert!(matches!(refused, Err(StateError::Arena(ArenaError::System { .. }))), "{refused:?}");
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
    if let Ok(huge) = rustix::fs::memfd_create("undercroft-test", flags) {
        let refused = State::adopt(huge).unwrap_err().to_string();
        assert_eq!(refused, "not a state file: it is not ordinary shared memory");
    }
}

#[test]
fn another_version_is_refused_by_its_number() {
    let mut words = words(&full());
    for version in [0, 2, u64::MAX] {
        words[1] = version;
        let refused = State::adopt(file_of(&words));
        assert!(matches!(refused, Err(StateError::Version { found, .. }) if found == version));
    }
}

#[test]
fn a_head_with_impossible_limits_is_refused_though_it_proves_itself() {
    let good = words(&full());
    let limits = |change: &dyn Fn(&mut StateLimits)| {
        let mut limits = TINY;
        change(&mut limits);
        let mut words = good.clone();
        words[..FORM_WORDS].copy_from_slice(&Form { epoch: Epoch(1), limits }.encode());
        State::adopt(file_of(&words))
    };
    assert!(limits(&|_| ()).is_ok());
    for refused in [
        limits(&|l| l.max_parts = 0),
        limits(&|l| l.max_parts = u32::MAX),
        limits(&|l| l.max_part_bytes = 0),
        limits(&|l| l.max_part_bytes = u64::MAX),
        limits(&|l| (l.max_parts, l.max_part_bytes) = (4096, 8 << 40)),
        limits(&|l| l.max_slabs = 0),
        limits(&|l| l.max_spaces = u32::MAX),
        limits(&|l| l.max_sessions = 0),
        limits(&|l| l.max_leased_pages = u32::MAX),
        // Possible, but not of this file's size.
        limits(&|l| l.max_leased_pages = 65),
    ] {
        assert!(matches!(refused, Err(StateError::Arena(_))), "{refused:?}");
    }
}

/// The rows that are the same in both.
fn missing<K: Ord, V: PartialEq>(found: &BTreeMap<K, V>, truth: &BTreeMap<K, V>) -> usize {
    truth.iter().filter(|(key, value)| found.get(key) != Some(value)).count()
}

#[test]
fn a_flipped_bit_costs_the_row_it_is_in_or_what_lies_in_that() {
    let state = full();
    let (good, truth) = (words(&state), Snapshot::of(&state));
    let mut lost = 0;
    for at in (0..good.len()).filter(|at| good[*at] != 0 || at % 8 < 2) {
        for bit in [0, 1, 7, 31, 32, 40, 63] {
            let mut words = good.clone();
            words[at] ^= 1 << bit;
            let Ok(state) = State::adopt(file_of(&words)) else {
                assert!(at < FORM_WORDS, "only the head decides on the whole");
                continue;
            };
            assert!(at >= FORM_WORDS, "the head proves itself");
            let mut found = Snapshot::of(&state);
            // The heat of a page is not proved: it orders pages and names nothing.
            for (key, frame) in &mut found.frames {
                let was = truth.frames.get(key).and_then(|frame| frame.page);
                if let (Some(page), Some(was)) = (&mut frame.page, was) {
                    page.heat = was.heat;
                }
            }
            // A bit of a state word may make a part retire, and a frame be filled.
            let retires = |part: &PartRow| PartRow { retiring: false, ..*part };
            assert!(
                found
                    .parts
                    .values()
                    .all(|part| truth.parts.get(&part.part.0) == Some(&retires(part)))
            );
            for frame in found.frames.values() {
                let key = (frame.part.0, frame.offset);
                assert!(
                    frame.page.is_none() || truth.frames.get(&key) == Some(frame),
                    "{at} {bit}"
                );
            }
            assert!(found.slabs.iter().all(|(key, slab)| truth.slabs.get(key) == Some(slab)));
            assert!(found.spaces.iter().all(|(key, row)| truth.spaces.get(key) == Some(row)));
            assert!(found.sessions.iter().all(|(key, row)| truth.sessions.get(key) == Some(row)));
            assert!(found.leases.iter().all(|(key, row)| truth.leases.get(key) == Some(row)));
            lost += missing(&found.leases, &truth.leases) + missing(&found.frames, &truth.frames);
        }
    }
    assert!(lost > 100, "{lost} rows were hit");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn garbage_in_the_tables_is_dropped_and_what_is_new_is_kept(
        at in 0..512usize, garbage in proptest::collection::vec(any::<u64>(), 1..4000),
        small in any::<bool>(),
    ) {
        let mut words = words(&full());
        for (word, value) in words[layout::PAGE_WORDS..].iter_mut().skip(at).zip(&garbage) {
            *word = if small { value % 4 } else { *value };
        }
        let mut state = State::adopt(file_of(&words)).unwrap();
        let _read = Snapshot::of(&state);
        for part in 0..3 {
            state.part_gone(PartId(part));
        }
        prop_assert_eq!(state.frames().count(), 0);
        let part = PartRow { part: PartId(77), ..part_row(0, 16) };
        state.part_added(&part).unwrap();
        state.slab(&slab_row(77, 0, 4, 1)).unwrap();
        prop_assert_eq!(state.frames().count(), 0, "an earlier part's rows are not the new one's");
        state.filled(PartId(77), 4096, &page(5)).unwrap();
        let state = again(state);
        prop_assert_eq!(state.odd(), 0);
        prop_assert_eq!(state.frames().map(|row| row.page).collect::<Vec<_>>(), [Some(page(5))]);
    }
}

/// Numbers around every bound there is.
fn numbers() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..4u64,
        4 => (0..20u64).prop_map(|units| units * 4096),
        1 => (0..4u64, 0..4u64).prop_map(|(low, high)| low | high << 32),
        2 => (0..4u64, 0..5u64).prop_map(|(part, units)| part | (units * 4096) << 32),
        1 => any::<u64>(),
        1 => (0..64u32).prop_map(|bit| (1u64 << bit).wrapping_sub(1)),
    ]
}

/// Writes rows of any content, each with the checksum that makes it good.
fn forge(words: &mut [u64], rows: &[(usize, u32, [u64; 8])]) {
    let layout = TINY.layout().unwrap();
    let tables = [
        (layout.parts, rows::TableId::Parts),
        (layout.spaces, rows::TableId::Spaces),
        (layout.slabs, rows::TableId::Slabs),
        (layout.sessions, rows::TableId::Sessions),
        (layout.leases, rows::TableId::Leases),
    ];
    for (table, row, values) in rows {
        let (place, id) = tables[table % tables.len()];
        let row = row % place.rows;
        let mut covered = [0; 16];
        covered[1..place.row_words.min(8) - 1]
            .copy_from_slice(&values[1..place.row_words.min(8) - 1]);
        covered[0] = u64::from(row) << 32 | id as u64;
        let at = place.at + row as usize * place.row_words;
        words[at..at + place.row_words].fill(0);
        words[at + 1..at + place.row_words - 1].copy_from_slice(&covered[1..place.row_words - 1]);
        words[at + place.row_words - 1] = rows::check(covered);
        words[at] = 1 + values[0] % 2;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn rows_that_prove_themselves_are_believed_no_further_than_they_agree(
        rows in proptest::collection::vec(
            (0..5usize, 0..4u32, proptest::array::uniform8(numbers())), 0..24,
        ),
        then in proptest::collection::vec(ops(), 0..20),
    ) {
        let mut words = words(&full());
        forge(&mut words, &rows);
        let mut state = State::adopt(file_of(&words)).unwrap();
        for round in 0..2 {
            // Read twice under one name, it would have failed.
            let found = Snapshot::of(&state);
            let mut end = (0, 0);
            for (key, slab) in &found.slabs {
                prop_assert!(*key >= end, "slabs do not overlap: {:?}", found.slabs);
                end = (key.0, slab.offset + slab.bytes);
                let part = &found.parts[&slab.part.0];
                prop_assert!(end.1 <= part.bytes && part.bytes <= TINY.max_part_bytes);
            }
            for frame in found.frames.values() {
                let inside = |slab: &&SlabRow| {
                    slab.part == frame.part
                        && slab.frame_bytes == frame.frame_bytes
                        && frame.offset >= slab.offset
                        && frame.offset + u64::from(frame.frame_bytes) <= slab.offset + slab.bytes
                };
                prop_assert_eq!(found.slabs.values().filter(inside).count(), 1);
            }
            for lease in found.leases.values() {
                prop_assert!(found.sessions.contains_key(&lease.session.0));
            }
            if round == 0 {
                for op in &then {
                    let _kept = apply(&mut state, *op);
                }
                state = again(state);
                prop_assert_eq!(state.odd(), 0, "what was odd was dropped for good");
            }
        }
    }
}

#[test]
fn of_two_rows_of_one_space_the_first_is_the_one_that_is_known() {
    let mut words = words(&full());
    let number = words[TINY.layout().unwrap().spaces.at + 1];
    forge(&mut words, &[(1, 1, [0, number, 4096, 0, 0, 0, 0, 0])]);
    let mut state = State::adopt(file_of(&words)).unwrap();
    let spaces = state.spaces().count();
    assert_eq!(spaces, 1, "the other one was dropped");
    let space = state.spaces().next().unwrap();
    state.space_gone(space.space);
    assert_eq!(state.space(&space), Ok(()));
    let state = again(state);
    assert_eq!((state.odd(), state.spaces().count()), (0, 1));
}

#[test]
fn two_daemons_never_have_one_state_file() {
    let mut first = State::create(Epoch(7), &TINY).unwrap();
    let copy = || rustix::io::dup(first.fd()).unwrap();
    let (early, late) = (copy(), copy());
    assert!(matches!(State::adopt(early), Err(StateError::Claimed)));
    assert_eq!(first.starts(), 1, "nothing of it was changed");
    first.let_go();
    let second = State::adopt(late).unwrap();
    let third = rustix::io::dup(second.fd()).unwrap();
    assert!(matches!(State::adopt(third), Err(StateError::Claimed)));
    drop(first);
    let third = rustix::io::dup(second.fd()).unwrap();
    assert!(matches!(State::adopt(third), Err(StateError::Claimed)), "the first has no say in it");
    let third = rustix::io::dup(second.fd()).unwrap();
    drop(second);
    assert_eq!(State::adopt(third).unwrap().starts(), 3);
}

#[test]
fn a_number_that_nothing_can_have_counted_up_to_is_none() {
    let mut state = tiny();
    state.set_next_stamp(Stamp(70));
    state.set_next_session(SessionId(80));
    for broken in [1 << 62, 1 << 63, u64::MAX] {
        for at in [17, 19] {
            let mut words = words_of_file(&state);
            words[at] = broken;
            let found = State::adopt(file_of(&words)).unwrap();
            assert_eq!((found.next_session(), found.next_stamp()), (SessionId(80), Stamp(70)));
        }
    }
}
