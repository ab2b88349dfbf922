use crate::Micros;
use std::collections::VecDeque;

/// Stretches that a turnover is measured in.
const STRETCHES: u64 = 8;

/// How fast a domain's DRAM fills anew: how long as many bytes as it has room for took to come in.
/// Whatever the order in which pages leave, one that is not used stays about as long.
#[derive(Debug, Default)]
pub(crate) struct Turnover {
    /// When each of the last stretches ended, the oldest first.
    marks: VecDeque<Micros>,
    /// Bytes since.
    entered: u64,
}

impl Turnover {
    /// A page came in.
    pub(crate) fn enter(&mut self, bytes: u64, room: u64, now: Micros) {
        self.entered += bytes;
        if self.entered < (room / STRETCHES).max(1) {
            return;
        }
        self.entered = 0;
        self.marks.push_back(now);
        if self.marks.len() as u64 > STRETCHES + 1 {
            self.marks.pop_front();
        }
    }

    /// How long that took the last time, microseconds; longer if less comes in now. `None` while
    /// not as much has come yet.
    pub(crate) fn takes_us(&self, now: Micros) -> Option<u64> {
        let full = self.marks.len() as u64 > STRETCHES;
        full.then(|| now.0.saturating_sub(self.marks[0].0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_how_long_a_whole_dram_took_to_come_in() {
        let mut turnover = Turnover::default();
        for at in 0..8 {
            turnover.enter(100, 800, Micros(at * 10));
            assert_eq!(turnover.takes_us(Micros(at * 10)), None, "not all of it has come");
        }
        turnover.enter(100, 800, Micros(80));
        assert_eq!(turnover.takes_us(Micros(80)), Some(80));
        assert_eq!(turnover.takes_us(Micros(500)), Some(500), "nothing comes any more");
        for at in 0..9 {
            turnover.enter(100, 800, Micros(600 + at));
        }
        assert_eq!(turnover.takes_us(Micros(608)), Some(8), "much comes now");
    }
}
