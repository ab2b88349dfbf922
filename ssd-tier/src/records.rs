use crate::segment::Record;
use std::ops::{Index, IndexMut};

/// Records whose memory is taken at once.
const RUN: usize = 256;

/// The records of one segment by number. It grows a run at a time and moves none: lists that were
/// copied into larger ones, of many segments, left up to a third as much memory between them unused.
#[derive(Debug, Default)]
pub(crate) struct Records {
    runs: Vec<Box<[Record; RUN]>>,
    len: usize,
}

impl Records {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, record: Record) {
        let (run, place) = (self.len / RUN, self.len % RUN);
        if run == self.runs.len() {
            self.runs.push(Box::new([Record::default(); RUN]));
        }
        self.runs[run][place] = record;
        self.len += 1;
    }

    /// Adds records that cannot be read until there are `len`.
    pub(crate) fn fill(&mut self, len: usize) {
        while self.len < len {
            self.push(Record::default());
        }
    }

    pub(crate) fn get(&self, record: u32) -> Option<&Record> {
        let at = record as usize;
        (at < self.len).then(|| &self.runs[at / RUN][at % RUN])
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.runs.iter().flat_map(|run| run.iter()).take(self.len)
    }
}

impl Index<u32> for Records {
    type Output = Record;

    fn index(&self, record: u32) -> &Record {
        self.get(record).expect("a record of the segment")
    }
}

impl IndexMut<u32> for Records {
    fn index_mut(&mut self, record: u32) -> &mut Record {
        let at = record as usize;
        assert!(at < self.len, "a record of the segment");
        &mut self.runs[at / RUN][at % RUN]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset_blocks: u32) -> Record {
        Record { offset_blocks, page_bytes: 1, ..Record::default() }
    }

    #[test]
    fn records_keep_their_numbers() {
        let mut records = Records::default();
        assert!(records.get(0).is_none() && records.iter().next().is_none());
        let many = 3 * RUN as u32 + 1;
        (0..many).for_each(|number| records.push(record(number)));
        records.fill(4 * RUN);
        records.push(record(7));
        assert_eq!(records.len(), 4 * RUN + 1);
        assert!((0..many).all(|number| records[number] == record(number)));
        assert!((many..4 * RUN as u32).all(|number| !records[number].is_live()));
        records[3].page_bytes = 9;
        assert_eq!((records[3].page_bytes, records[4 * RUN as u32]), (9, record(7)));
        assert!(records.get(4 * RUN as u32 + 1).is_none());
        assert_eq!(records.iter().filter(|record| record.is_live()).count(), many as usize + 1);
        assert_eq!(records.iter().count(), records.len());
    }
}
