#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use super::*;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use std::sync::atomic::AtomicBool;

const PART: u64 = 1 << 20;

fn board() -> Board {
    Board::create(Epoch(9), 4 * PART).unwrap()
}

fn view(board: &Board) -> BoardView {
    BoardView::map(board.read_only_fd().unwrap()).unwrap()
}

fn again(board: Board) -> Board {
    let fd = rustix::io::dup(board.fd()).unwrap();
    drop(board);
    Board::adopt(fd, None).unwrap()
}

#[test]
fn a_client_sees_what_the_daemon_says() {
    let mut board = board();
    let view = view(&board);
    assert_eq!((view.epoch(), view.heartbeat()), (Epoch(9), 0));
    assert_eq!(view.state(), DaemonState::Serving);
    let place = board.place(PART).unwrap();
    assert_eq!(board.raise(place, 8192), 1);
    assert_eq!(board.raise(place, 8192), 2);
    assert_eq!(board.raise(place, PART - 4096), 1);
    board.beat();
    let seen = [0, 4096, 8192, 12287, 12288, PART - 1].map(|at| view.generation(place, at));
    assert_eq!(seen, [0, 0, 2, 2, 0, 1].map(Some));
    assert_eq!((view.heartbeat(), board.generation(place, 8192)), (1, 2));
    board.stop();
    assert_eq!(view.state(), DaemonState::Stopping);
}

#[test]
fn another_daemon_goes_on_with_it() {
    let mut first = board();
    let view = view(&first);
    let places = [first.place(PART).unwrap(), first.place(PART).unwrap()];
    first.raise(places[1], 4096);
    first.beat();
    first.stop();
    let mut second = again(first);
    assert_eq!((second.epoch(), view.state()), (Epoch(9), DaemonState::Serving));
    assert!(second.take(places[1], PART));
    assert_eq!(second.raise(places[1], 4096), 2);
    second.beat();
    assert_eq!((view.generation(places[1], 4096), view.heartbeat()), (Some(2), 2));
    for (board_offset, bytes) in [
        (places[1], PART),
        (places[1] + 64, 1),
        (places[0] + 4, PART),
        (0, PART),
        (HEAD_BYTES - 4, 1),
        (HEAD_BYTES + 2, 1),
        (HEAD_BYTES, 0),
        (HEAD_BYTES, u64::MAX),
        (u64::MAX - 3, PART),
        (places[1] + 2 * PART, PART),
    ] {
        assert!(!second.take(board_offset, bytes), "{board_offset} {bytes}");
    }
    assert!(second.take(places[0], PART));
}

#[test]
fn places_are_apart_bounded_and_taken_again() {
    let mut board = board();
    let places: Vec<u64> = std::iter::from_fn(|| board.place(PART)).collect();
    assert_eq!(places.len(), 4, "as much as the board is for");
    assert!(places.iter().all(|place| place.is_multiple_of(64)));
    assert!(places.windows(2).all(|two| two[1] - two[0] == PART / 1024));
    board.let_go(places[2]);
    assert_eq!(board.place(PART + 4096), None);
    assert_eq!(board.place(PART / 2), Some(places[2]));
    assert_eq!(board.place(PART / 2), Some(places[2] + PART / 2048));
    assert_eq!((board.place(1), board.place(0), board.place(u64::MAX)), (None, None, None));
    for bytes in [0, MAX_ARENA_BYTES + 1, u64::MAX] {
        assert!(matches!(Board::create(Epoch(1), bytes), Err(ArenaError::Size { .. })));
    }
}

#[test]
fn a_client_cannot_write_it_and_is_not_led_outside() {
    let mut board = board();
    let place = board.place(PART).unwrap();
    let fd = board.read_only_fd().unwrap();
    let mapped = Mapping::shared(fd.as_fd(), board.mapping.len(), true);
    assert_eq!(mapped.unwrap_err(), Errno::ACCESS);
    assert_eq!(rustix::io::write(&fd, b"x"), Err(Errno::BADF));
    let view = view(&board);
    for (board_offset, offset) in [
        (0, 0),
        (4095, 0),
        (place, 1 << 40),
        (place, u64::MAX),
        (u64::MAX, 0),
        (u64::MAX, u64::MAX),
    ] {
        assert_eq!(view.generation(board_offset, offset), None, "{board_offset} {offset}");
    }
}

#[test]
fn what_is_not_a_board_is_refused() {
    let board = board();
    let bytes = board.mapping.len() as u64;
    let mut good = vec![0; bytes as usize];
    rustix::io::pread(board.fd(), &mut good, 0).unwrap();
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    let file = |change: &dyn Fn(&mut Vec<u8>), seals| {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("undercroft-test", flags).unwrap();
        let mut bytes = good.clone();
        change(&mut bytes);
        rustix::io::write(&fd, &bytes).unwrap();
        rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
        fd
    };
    assert!(Board::adopt(file(&|_| (), all), None).is_ok());
    for at in 0..FORM_WORDS * 8 {
        let fd = file(&|bytes| bytes[at] ^= 1, all);
        assert!(matches!(BoardView::map(&fd), Err(ArenaError::NotBoard)), "{at}");
        assert!(matches!(Board::adopt(fd, None), Err(ArenaError::NotBoard)), "{at}");
    }
    for len in [0, 39, 4096, bytes - 1, bytes + 4096] {
        let fd = file(&|bytes| bytes.resize(len as usize, 0), all);
        assert!(BoardView::map(&fd).is_err() && Board::adopt(fd, None).is_err(), "{len}");
    }
    let fd = file(&|_| (), SealFlags::SHRINK);
    assert!(matches!(BoardView::map(&fd), Err(ArenaError::NotSealed)));
    assert!(matches!(Board::adopt(fd, None), Err(ArenaError::NotSealed)));
}

/// A page is eight words of one value; a reader that finds the generation unchanged has copied
/// one value eight times.
#[test]
fn an_unchanged_generation_means_an_unmixed_copy() {
    let mut board = board();
    let place = board.place(PART).unwrap();
    let view = view(&board);
    let page: [AtomicU64; 8] = Default::default();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for value in 1..2_000_000 {
                board.raise(place, 0);
                page.iter().for_each(|word| word.store(value, Ordering::Relaxed));
                // Filled is told to the reader; here by a generation that is even.
                board.raise(place, 0);
            }
            stop.store(true, Ordering::Release);
        });
        let mut copies = 0;
        loop {
            let last = stop.load(Ordering::Acquire);
            let before = view.generation(place, 0).unwrap();
            let copy = page.each_ref().map(|word| word.load(Ordering::Relaxed));
            if before.is_multiple_of(2) && view.generation(place, 0) == Some(before) {
                assert!(copy.iter().all(|word| *word == copy[0]), "{copy:?}");
                copies += 1;
            }
            if last {
                break;
            }
        }
        assert!(copies > 0, "nothing was copied whole");
    });
}

mod first_pages {
    use super::*;
    use proptest::prelude::*;
    use undercroft_wire::PageKey;

    fn key(number: u64) -> PageKey {
        let digest = checksum_bytes(&number.to_le_bytes());
        let mixed = (digest ^ digest >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut key = [0; 32];
        key[..8].copy_from_slice(&(mixed ^ mixed >> 29).to_le_bytes());
        PageKey(key)
    }

    /// One whose two places are these.
    fn key_at(places: [u32; 2]) -> PageKey {
        let mut key = [9; 32];
        key[..4].copy_from_slice(&places[0].to_le_bytes());
        key[4..8].copy_from_slice(&places[1].to_le_bytes());
        PageKey(key)
    }

    fn known() -> (Board, BoardView) {
        let board = board();
        board.first_pages_are_known();
        let view = view(&board);
        (board, view)
    }

    #[test]
    fn nothing_is_absent_before_all_is_known() {
        let board = board();
        let view = view(&board);
        assert!(view.may_start(&key(1)));
        board.first_pages_are_known();
        assert!(view.has_firsts() && !view.may_start(&key(1)));
        board.first_came(&key(1));
        assert!(view.may_start(&key(1)) && !view.may_start(&key(2)));
        board.first_pages_are_known();
        board.forget_firsts();
        board.forget_firsts();
        assert!(view.may_start(&key(2)), "it begins anew");
        board.first_pages_are_known();
        assert!(!view.may_start(&key(1)) && !view.may_start(&key(2)));
    }

    #[test]
    fn who_adopts_it_knows_nothing_of_first_pages() {
        let (first, view) = known();
        (0..100).for_each(|number| first.first_came(&key(number)));
        assert!(!view.may_start(&key(100)));
        let second = again(first);
        assert!((0..200).all(|number| view.may_start(&key(number))));
        second.first_came(&key(7));
        second.first_pages_are_known();
        let left: Vec<u64> = (0..200).filter(|number| view.may_start(&key(*number))).collect();
        assert_eq!(left, [7]);
    }

    #[test]
    fn a_counter_that_is_full_stays_so() {
        let (board, view) = known();
        let (many, other) = (key_at([5, 6]), key_at([5, 7]));
        (0..300).for_each(|_| board.first_came(&many));
        board.first_came(&other);
        (0..300).for_each(|_| board.first_went(&many));
        assert!(view.may_start(&many), "nobody knows any more how many there are");
        assert!(view.may_start(&other));
        board.first_went(&other);
        assert!(!view.may_start(&other), "its other counter is as good as ever");
        // What never came takes nothing of others with it.
        board.first_went(&key_at([8, 9]));
        board.first_came(&key_at([8, 9]));
        assert!(view.may_start(&key_at([8, 9])));
        let twice = key_at([11, 11]);
        board.first_came(&twice);
        assert!(view.may_start(&twice));
        board.first_went(&twice);
        assert!(!view.may_start(&twice));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Keys of few places, so that most share theirs with others.
        #[test]
        fn what_came_and_has_not_gone_is_never_absent(
            steps in prop::collection::vec((0..40_u32, any::<bool>()), 1..400),
        ) {
            let (board, view) = known();
            let key = |number: u32| key_at([number % 7, number % 11]);
            let mut there = [0_u32; 40];
            for (number, comes) in steps {
                let count = &mut there[number as usize];
                if comes {
                    board.first_came(&key(number));
                    *count += 1;
                } else if *count > 0 {
                    board.first_went(&key(number));
                    *count -= 1;
                }
                for number in 0..40 {
                    let may = view.may_start(&key(number));
                    prop_assert!(may || there[number as usize] == 0, "{}", number);
                }
            }
            // Counted are the places, so that when all have gone nothing is left.
            for number in 0..40 {
                (0..there[number as usize]).for_each(|_| board.first_went(&key(number)));
            }
            prop_assert!((0..40).all(|number| !view.may_start(&key(number))));
        }
    }

    #[test]
    fn few_of_those_that_are_not_there_seem_to_be() {
        let (board, view) = known();
        (0..100_000).for_each(|number| board.first_came(&key(number)));
        assert!((0..100_000).all(|number| view.may_start(&key(number))));
        let seem = (100_000..200_000).filter(|number| view.may_start(&key(*number))).count();
        assert!((100..400).contains(&seem), "{seem} of 100000; 217 were to be expected");
    }

    #[test]
    fn a_board_of_the_version_before_says_nothing_of_first_pages() {
        let form = Form::of(VERSION_BEFORE, Epoch(9), 4 * PART).unwrap();
        let file = Backing::memfd().create(form.bytes, false, true).unwrap();
        let words = form_words(VERSION_BEFORE, Epoch(9), 4 * PART);
        let head = words.map(u64::to_le_bytes);
        rustix::io::pwrite(file.fd(), head.as_flattened(), 0).unwrap();
        assert_eq!(form.bytes, 4096 + 4096, "a head, and generations rounded up to a page");
        let mut board = Board::adopt(rustix::io::dup(file.fd()).unwrap(), None).unwrap();
        let view = BoardView::map(board.read_only_fd().unwrap()).unwrap();
        board.first_came(&key(1));
        board.first_went(&key(1));
        board.first_pages_are_known();
        assert!(!view.has_firsts() && view.may_start(&key(1)) && view.may_start(&key(2)));
        let place = board.place(PART).unwrap();
        board.raise(place, 0);
        assert_eq!(view.generation(place, 0), Some(1));
    }

    #[test]
    fn places_of_parts_and_the_table_are_apart() {
        let (mut board, view) = known();
        let end = board.form.places_end;
        assert_eq!(board.bytes(), end + firsts::BYTES);
        assert!(!board.take(end, 1) && board.take(end - 64, 1));
        board.first_came(&key_at([0, 1]));
        assert_eq!(view.generation(end - 4, 0), Some(0));
        assert_eq!(view.generation(end, 0), None);
        assert_eq!(view.generation(end - 4, 4096), None);
    }

    /// Each key comes before its number is told and goes after that was taken back, so whoever
    /// knows of the number finds the key, also while the table is made anew.
    #[test]
    fn what_a_reader_was_told_of_is_never_absent() {
        let (board, view) = known();
        let told = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..50_000 {
                    board.first_came(&key(number));
                    told.store(number, Ordering::Release);
                    if number % 1000 == 0 {
                        board.forget_firsts();
                        board.first_came(&key(number));
                        board.first_pages_are_known();
                    } else if number > 1 {
                        board.first_went(&key(number - 1));
                    }
                }
                stop.store(true, Ordering::Release);
            });
            let mut absent = 0_u64;
            while !stop.load(Ordering::Acquire) {
                let number = told.load(Ordering::Acquire);
                let may = number == 0 || view.may_start(&key(number));
                // It may have gone since, but only for a newer one.
                fence(Ordering::Acquire);
                assert!(may || told.load(Ordering::Acquire) > number, "{number}");
                absent += u64::from(!view.may_start(&key(1 << 40)));
            }
            assert!(absent > 0, "it never said that anything is absent");
        });
    }
}
