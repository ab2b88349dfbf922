//! A bounded table of rows that come and go.

use super::error::Unkept;
use super::layout::Place;
use super::rows::{Row, opened, sealed};
use super::words::{EMPTY, Words};
use std::marker::PhantomData;

/// Which rows of a table are free. The rows themselves are in the file.
#[derive(Debug)]
pub(super) struct Table<const N: usize, R> {
    place: Place,
    /// Rows from here on were never used.
    fresh: u32,
    /// Rows before that are free; the last is taken first.
    free: Vec<u32>,
    row: PhantomData<R>,
}

impl<const N: usize, R: Row<N>> Table<N, R> {
    /// A table without rows.
    pub(super) fn new(place: Place) -> Self {
        debug_assert_eq!(place.row_words, N, "the layout and the rows agree");
        Self { place, fresh: 0, free: Vec::new(), row: PhantomData }
    }

    /// The table as an earlier daemon left it: `keep` sees every row that proves itself and says
    /// whether it stays. Returns also how many did not.
    pub(super) fn adopt(
        place: Place,
        words: &Words,
        mut keep: impl FnMut(u32, &R) -> bool,
    ) -> (Self, u64) {
        let mut table = Self::new(place);
        let (mut odd, mut left) = (0, place.at..place.at + place.rows as usize * N);
        while let Some(present) = words.present(left.clone()) {
            words.populate(&present);
            let rows = (present.start - place.at) / N..(present.end - place.at).div_ceil(N);
            for row in rows.map(|row| row as u32) {
                let found = words.read_row::<N>(table.word(row));
                if found[0] == EMPTY {
                    continue;
                }
                match opened::<N, R>(&found, row) {
                    Some(value) if keep(row, &value) => table.skip_to(row),
                    _ => {
                        words.store(table.word(row), EMPTY);
                        odd += 1;
                    }
                }
            }
            left.start = present.end;
        }
        table.free.reverse();
        (table, odd)
    }

    /// `row` is taken and all before it that were not seen are free.
    fn skip_to(&mut self, row: u32) {
        self.free.extend(self.fresh..row);
        self.fresh = row + 1;
    }

    fn word(&self, row: u32) -> usize {
        assert!(row < self.place.rows, "row {row} of {}", self.place.rows);
        self.place.at + row as usize * N
    }

    /// Writes one more row and returns which it is.
    ///
    /// # Errors
    /// The table is full.
    pub(super) fn put(&mut self, words: &Words, value: &R) -> Result<u32, Unkept> {
        let row = match self.free.pop() {
            Some(row) => row,
            None if self.fresh < self.place.rows => {
                self.fresh += 1;
                self.fresh - 1
            }
            None => return Err(Unkept::Full { table: R::NAME, limit: self.place.rows.into() }),
        };
        words.write_row(self.word(row), EMPTY, &sealed(value, row));
        Ok(row)
    }

    /// Changes the state of a row, and nothing else of it.
    pub(super) fn mark(&self, words: &Words, row: u32, state: u64) {
        words.store(self.word(row), state);
    }

    /// The row is no more.
    pub(super) fn clear(&mut self, words: &Words, row: u32) {
        words.store(self.word(row), EMPTY);
        self.free.push(row);
    }

    /// What a row holds that was put there or adopted.
    pub(super) fn get(&self, words: &Words, row: u32) -> Option<R> {
        opened::<N, R>(&words.read_row::<N>(self.word(row)), row)
    }
}
