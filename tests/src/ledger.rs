use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A chain of pages that the daemon said it stored. Its keys follow from `id`, its bytes from its
/// keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredChain {
    /// Which conversation it is.
    pub id: u32,
    /// Leading pages that are still expected.
    pub pages: u32,
    /// In which round it was stored, counted from 0.
    pub round: u32,
    /// When its store had returned.
    at: Instant,
    /// Pages that had been stored until then, its own included.
    position: u64,
}

/// What a daemon was given to keep, kept outside of it: the half of the oracle that knows *which*
/// pages must come back. What they must contain needs no history.
///
/// A daemon of `dram_frames` frames evicts the least recently used page first, and writes it to
/// SSD before. So a page behind which enough others were stored is on SSD: see
/// [`Ledger::settled`].
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    chains: Vec<StoredChain>,
    stored_pages: u64,
    round: u32,
    begun: u32,
    /// Begun and neither stored nor given up.
    open: BTreeSet<u32>,
}

/// Where in the order of stores a page must lie to be on SSD for certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// The moment at which the daemon or its disk died.
    pub died: Instant,
    /// Only stores that long before count, as writes and tables take a while.
    pub earlier: Duration,
    /// Only pages behind which at least this many were stored by then.
    pub behind: u64,
}

impl Ledger {
    /// A chain nobody has stored before, whose store begins now.
    pub fn begin(&mut self) -> u32 {
        let id = self.begun;
        self.begun += 1;
        self.open.insert(id);
        id
    }

    /// The daemon said that it stored a whole chain.
    pub fn stored(&mut self, id: u32, pages: u32) {
        self.open.remove(&id);
        self.stored_pages += u64::from(pages);
        let (round, position) = (self.round, self.stored_pages);
        self.chains.push(StoredChain { id, pages, round, at: Instant::now(), position });
    }

    /// Ends a round, in most cases because the daemon died. Answers with the chains whose store
    /// was not answered in full: any part of them may be there, and must be right.
    pub fn end_round(&mut self) -> Vec<u32> {
        self.round += 1;
        std::mem::take(&mut self.open).into_iter().collect()
    }

    /// The round that chains stored now belong to.
    #[must_use]
    pub fn round(&self) -> u32 {
        self.round
    }

    /// All chains that are expected or possible, oldest first.
    #[must_use]
    pub fn chains(&self) -> &[StoredChain] {
        &self.chains
    }

    /// Pages stored so far, forgotten ones included.
    #[must_use]
    pub fn stored_pages(&self) -> u64 {
        self.stored_pages
    }

    /// How many of the oldest [`Ledger::chains`] are on SSD for certain.
    ///
    /// The order of stores is that of their returns, which may differ from the daemon's by as
    /// many pages as are stored at once: `behind` should leave room for them.
    #[must_use]
    pub fn settled(&self, when: Settled) -> usize {
        let by_then = |chain: &StoredChain| chain.at + when.earlier <= when.died;
        let in_time = self.chains.partition_point(by_then);
        let Some(last) = in_time.checked_sub(1) else {
            return 0;
        };
        let newest = self.chains[last].position;
        self.chains[..in_time].partition_point(|chain| chain.position + when.behind <= newest)
    }

    /// How many of the oldest [`Ledger::chains`] have more than `pages` pages behind them that are
    /// still expected: a store that has room for fewer may have dropped them.
    #[must_use]
    pub fn buried(&self, pages: u64) -> usize {
        let mut behind = 0;
        let newest_first = self.chains.iter().rev();
        let young = newest_first.take_while(|chain| {
            let fits = behind <= pages;
            behind += u64::from(chain.pages);
            fits
        });
        self.chains.len() - young.count()
    }

    /// Keeps of each chain the pages that are still there: `left[i]` of chain `i`.
    ///
    /// # Panics
    /// If that is not one number per chain.
    pub fn keep(&mut self, left: &[u32]) {
        assert_eq!(left.len(), self.chains.len(), "one number per chain");
        for (chain, left) in self.chains.iter_mut().zip(left) {
            chain.pages = chain.pages.min(*left);
        }
        self.chains.retain(|chain| chain.pages > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn store(ledger: &mut Ledger, chains: u32) {
        for _ in 0..chains {
            let id = ledger.begin();
            ledger.stored(id, 8);
        }
    }

    fn settled(ledger: &Ledger, died: Instant, earlier: Duration, behind: u64) -> usize {
        ledger.settled(Settled { died, earlier, behind })
    }

    #[test]
    fn a_chain_is_settled_when_enough_was_stored_behind_it_in_time() {
        let mut ledger = Ledger::default();
        store(&mut ledger, 10);
        let now = Instant::now();
        assert_eq!(settled(&ledger, now, Duration::ZERO, 0), 10);
        assert_eq!(settled(&ledger, now, Duration::ZERO, 1), 9);
        assert_eq!(settled(&ledger, now, Duration::ZERO, 8), 9);
        assert_eq!(settled(&ledger, now, Duration::ZERO, 9), 8);
        assert_eq!(settled(&ledger, now, Duration::ZERO, 1000), 0);
        assert_eq!(settled(&ledger, now, HOUR, 0), 0, "none is that old");
        assert_eq!(settled(&ledger, now + HOUR, HOUR, 0), 10);
        assert_eq!((ledger.buried(0), ledger.buried(8), ledger.buried(80)), (9, 8, 0));
        assert_eq!((ledger.buried(7), ledger.buried(71), ledger.buried(72)), (9, 1, 0));
        assert_eq!(settled(&Ledger::default(), now, Duration::ZERO, 0), 0);
    }

    #[test]
    fn what_is_gone_is_expected_no_more_and_the_order_stays() {
        let mut ledger = Ledger::default();
        store(&mut ledger, 3);
        assert!(ledger.end_round().is_empty());
        store(&mut ledger, 1);
        assert_eq!((ledger.begin(), ledger.begin()), (4, 5));
        assert_eq!(ledger.end_round(), [4, 5], "never answered");
        ledger.keep(&[8, 0, 5, 9]);
        let left: Vec<_> = ledger.chains().iter().map(|c| (c.id, c.pages, c.round)).collect();
        assert_eq!(left, [(0, 8, 0), (2, 5, 0), (3, 8, 1)]);
        assert_eq!(ledger.stored_pages(), 32);
        assert_eq!(settled(&ledger, Instant::now(), Duration::ZERO, 16), 1);
        assert_eq!(ledger.buried(12), 1, "what is gone takes no room");
    }
}
