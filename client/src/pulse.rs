use crate::connection::locked;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use undercroft_arena::BoardView;

/// A daemon whose heartbeat stands still is given so long: a call whose deadline is shorter, or has
/// nearly passed when it is sent, says nothing of it.
const SUSPICION: Duration = Duration::from_millis(10);

/// The heartbeat when a request was about to be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Felt {
    heartbeat: u64,
    at: Instant,
}

/// What the daemon's board says in one session, and what follows from it: whether the daemon still
/// turns. Without a board nothing does.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    board: OnceLock<Arc<BoardView>>,
    /// The first of the calls that missed their deadlines at the heartbeat of the moment.
    suspected: Mutex<Option<Felt>>,
    /// Calls missed their deadlines and the daemon did not turn meanwhile.
    hung: AtomicBool,
    /// The heartbeat of that call.
    hung_at: AtomicU64,
}

impl Pulse {
    /// The board came. `false` if there is one already.
    pub(crate) fn found(&self, board: Arc<BoardView>) -> bool {
        self.board.set(board).is_ok()
    }

    pub(crate) fn board(&self) -> Option<&Arc<BoardView>> {
        self.board.get()
    }

    /// The heartbeat of the moment. To be felt before a request is sent: a daemon that has
    /// received it and only waits for a disk has turned since.
    pub(crate) fn feel(&self) -> Option<Felt> {
        let heartbeat = self.heartbeat()?;
        Some(Felt { heartbeat, at: Instant::now() })
    }

    fn heartbeat(&self) -> Option<u64> {
        self.board.get().map(|board| board.heartbeat())
    }

    /// A call's deadline passed without an answer. What was felt before it was sent says whose
    /// fault it is.
    pub(crate) fn missed(&self, felt: Option<Felt>) {
        let same = |felt: &Felt| self.heartbeat() == Some(felt.heartbeat);
        let Some(felt) = felt.filter(same) else { return };
        let mut suspected = locked(&self.suspected);
        let first = suspected.filter(same).filter(|first| first.at <= felt.at).unwrap_or(felt);
        *suspected = Some(first);
        if first.at.elapsed() >= SUSPICION {
            self.hung_at.store(felt.heartbeat, Ordering::Relaxed);
            self.hung.store(true, Ordering::Release);
        }
    }

    /// Whether the daemon has not turned since a call missed its deadline.
    pub(crate) fn is_hung(&self) -> bool {
        if !self.hung.load(Ordering::Acquire) {
            return false;
        }
        let hung = self.heartbeat() == Some(self.hung_at.load(Ordering::Relaxed));
        if !hung {
            self.hung.store(false, Ordering::Release);
        }
        hung
    }

    /// It said something.
    pub(crate) fn answered(&self) {
        if self.hung.load(Ordering::Relaxed) {
            self.hung.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use undercroft_arena::Board;
    use undercroft_wire::Epoch;

    #[test]
    fn only_a_heartbeat_that_stands_still_is_held_against_a_daemon() {
        let board = Board::create(Epoch(1), 1 << 20).unwrap();
        let pulse = Pulse::default();
        pulse.missed(pulse.feel());
        assert!(!pulse.is_hung(), "without a board nobody can tell");
        let view = Arc::new(BoardView::map(board.read_only_fd().unwrap()).unwrap());
        assert!(pulse.found(Arc::clone(&view)) && !pulse.found(view));
        let long_ago = |felt: Option<Felt>| {
            felt.map(|felt| Felt { at: felt.at.checked_sub(SUSPICION).unwrap(), ..felt })
        };
        let felt = long_ago(pulse.feel());
        board.beat();
        pulse.missed(felt);
        assert!(!pulse.is_hung(), "it was only slow");
        pulse.missed(pulse.feel());
        assert!(!pulse.is_hung(), "it had no time to turn");
        pulse.missed(long_ago(pulse.feel()));
        assert!(pulse.is_hung() && pulse.is_hung());
        board.beat();
        assert!(!pulse.is_hung(), "it turns again");
        pulse.missed(long_ago(pulse.feel()));
        pulse.answered();
        assert!(!pulse.is_hung(), "it answered");
    }

    #[test]
    fn many_short_calls_come_to_a_long_one() {
        let board = Board::create(Epoch(1), 1 << 20).unwrap();
        let pulse = Pulse::default();
        pulse.found(Arc::new(BoardView::map(board.read_only_fd().unwrap()).unwrap()));
        let began = Instant::now();
        while !pulse.is_hung() {
            pulse.missed(pulse.feel());
            assert!(began.elapsed() < 1000 * SUSPICION, "it never counts as hung");
        }
        assert!(began.elapsed() >= SUSPICION);
    }
}
