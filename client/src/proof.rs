use std::sync::Arc;
use undercroft_arena::BoardView;

/// The generations that pages had when they were delivered. A page that still has its own after
/// it was copied is what was copied.
#[derive(Debug, Default)]
pub(crate) struct Proof {
    board: Option<Arc<BoardView>>,
    /// One for each page, from the first on, `None` for one in staging; those beyond have nothing
    /// to be held against.
    seen: Vec<Option<Seen>>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Where the part's generations begin on the board, and where the page does in the part.
    board_offset: u64,
    offset: u64,
    /// `None`: the part has none.
    generation: Option<u32>,
}

impl Proof {
    /// Looks at the generation of the next page, in the part that has its generations there.
    pub(crate) fn look(&mut self, board: &Arc<BoardView>, board_offset: u64, offset: u64) {
        let generation = board.generation(board_offset, offset);
        self.board.get_or_insert_with(|| Arc::clone(board));
        self.seen.push(Some(Seen { board_offset, offset, generation }));
    }

    /// The next page is in staging, which is this session's alone and has no generations.
    pub(crate) fn skip(&mut self) {
        self.seen.push(None);
    }

    /// How many leading pages of `pages` are still what was delivered. To be asked after they
    /// were copied, and while the lease lasts.
    pub(crate) fn intact(&self, pages: usize) -> usize {
        let Some(board) = &self.board else {
            return pages;
        };
        let moved =
            |seen: &Seen| board.generation(seen.board_offset, seen.offset) != seen.generation;
        let seen = self.seen.iter().take(pages);
        seen.map(Option::as_ref).position(|seen| seen.is_some_and(moved)).unwrap_or(pages)
    }

    /// The proof of the first `pages` pages, and leaves that of the others.
    pub(crate) fn split_to(&mut self, pages: usize) -> Self {
        if pages >= self.seen.len() {
            return std::mem::take(self);
        }
        let rest = self.seen.split_off(pages);
        let seen = std::mem::replace(&mut self.seen, rest);
        Self { board: self.board.clone(), seen }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use undercroft_arena::Board;
    use undercroft_wire::Epoch;

    #[test]
    fn a_page_whose_generation_moved_ends_what_is_believed() {
        let mut board = Board::create(Epoch(1), 1 << 20).unwrap();
        let place = board.place(1 << 20).unwrap();
        let view = Arc::new(BoardView::map(board.read_only_fd().unwrap()).unwrap());
        let mut proof = Proof::default();
        (0..6).for_each(|at| proof.look(&view, place, at * 8192));
        assert_eq!((proof.intact(6), proof.intact(2)), (6, 2));
        // The second unit of a page is not its first.
        board.raise(place, 3 * 8192 + 4096);
        assert_eq!(proof.intact(6), 6);
        board.raise(place, 3 * 8192);
        assert_eq!((proof.intact(6), proof.intact(3)), (3, 3));
        let first = proof.split_to(2);
        assert_eq!((first.intact(2), proof.intact(4)), (2, 1));
        let rest = proof.split_to(9);
        assert_eq!((rest.intact(4), proof.intact(4)), (1, 4));
    }

    #[test]
    fn pages_in_staging_keep_the_others_in_step() {
        let mut board = Board::create(Epoch(1), 1 << 20).unwrap();
        let place = board.place(1 << 20).unwrap();
        let view = Arc::new(BoardView::map(board.read_only_fd().unwrap()).unwrap());
        let mut proof = Proof::default();
        proof.skip();
        proof.look(&view, place, 0);
        proof.skip();
        proof.look(&view, place, 8192);
        board.raise(place, 8192);
        assert_eq!(proof.intact(4), 3);
        let first = proof.split_to(1);
        assert_eq!((first.intact(1), proof.intact(3)), (1, 2));
    }
}
