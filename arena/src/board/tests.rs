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
