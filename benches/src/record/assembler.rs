use std::collections::{HashMap, VecDeque};
use undercroft_wire::RecordedRun;

/// A request is over when nothing of it came for so long.
const QUIET_MS: u64 = 60_000;
/// Requests and pages of requests that are not over; beyond them the oldest is taken to be.
const MAX_OPEN: usize = 64 << 10;
const MAX_OPEN_PAGES: usize = 8 << 20;

/// Makes requests of lookups and offers. A request is a lookup, and what is offered behind its last
/// page; where no lookup was sent, as the daemon's board knew that nothing begins so, it is what is
/// offered from the start of a chain on. Pages are numbered anew, in the order of their first use.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    /// Those that are not over, oldest first.
    open: VecDeque<Open>,
    /// The number of the oldest.
    first: u64,
    pages: usize,
    /// The newest open request that has the page.
    newest: HashMap<u64, u64>,
    numbers: HashMap<u64, u64>,
    orphans: u64,
}

#[derive(Debug)]
struct Open {
    at_ms: u64,
    heard_ms: u64,
    domain: u32,
    page_tokens: u32,
    pages: Vec<u64>,
}

/// A request as a trace has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) at_ms: u64,
    pub(super) domain: u32,
    pub(super) page_tokens: u32,
    pub(super) pages: Vec<u64>,
}

impl Assembler {
    /// Takes in what came next.
    pub(super) fn take(&mut self, run: RecordedRun) {
        let Some(head) = run.pages.first() else { return };
        if !run.is_lookup {
            let above = run.parent.as_ref();
            let known = self.newest.get(head).or_else(|| self.newest.get(above?)).copied();
            if let Some(number) = known {
                return self.extend(number, &run);
            }
            if run.first > 0 {
                // What it hangs from was asked for before the recording began, or long ago.
                self.orphans += 1;
                return;
            }
        }
        let number = self.first + self.open.len() as u64;
        self.newest.extend(run.pages.iter().map(|page| (*page, number)));
        self.pages += run.pages.len();
        let RecordedRun { at_ms, domain, page_tokens, pages, .. } = run;
        self.open.push_back(Open { at_ms, heard_ms: at_ms, domain, page_tokens, pages });
    }

    /// Appends what an offer has behind the last page of a request.
    fn extend(&mut self, number: u64, run: &RecordedRun) {
        let open = &mut self.open[(number - self.first) as usize];
        open.heard_ms = run.at_ms;
        let known = open.pages.get(run.first as usize..);
        let Some(more) = known.and_then(|known| run.pages.strip_prefix(known)) else {
            return;
        };
        open.pages.extend(more);
        self.pages += more.len();
        self.newest.extend(more.iter().map(|page| (*page, number)));
    }

    /// The oldest request that is over by then; `None` if it is not.
    pub(super) fn next(&mut self, now_ms: u64) -> Option<Request> {
        let oldest = self.open.front()?;
        let is_full = self.open.len() > MAX_OPEN || self.pages > MAX_OPEN_PAGES;
        let is_quiet = now_ms >= oldest.heard_ms.saturating_add(QUIET_MS);
        if is_full || is_quiet { self.end_oldest() } else { None }
    }

    /// The oldest request, whether or not it is over.
    pub(super) fn end_oldest(&mut self) -> Option<Request> {
        let Open { at_ms, domain, page_tokens, mut pages, .. } = self.open.pop_front()?;
        for page in &mut pages {
            if self.newest.get(page) == Some(&self.first) {
                self.newest.remove(page);
            }
            let next = self.numbers.len() as u64;
            *page = *self.numbers.entry(*page).or_insert(next);
        }
        self.first += 1;
        self.pages -= pages.len();
        Some(Request { at_ms, domain, page_tokens, pages })
    }

    /// Different pages so far.
    pub(super) fn distinct(&self) -> u64 {
        self.numbers.len() as u64
    }

    /// Offers that belonged to no request.
    pub(super) fn orphans(&self) -> u64 {
        self.orphans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(at_ms: u64, is_lookup: bool, first: u32, pages: &[u64]) -> RecordedRun {
        let parent = (first > 0).then(|| 99 + u64::from(first));
        let (domain, page_tokens, pages) = (0, 16, pages.to_vec());
        RecordedRun { at_ms, is_lookup, domain, page_tokens, first, parent, pages }
    }

    fn all(assembler: &mut Assembler) -> Vec<(u64, Vec<u64>)> {
        std::iter::from_fn(|| assembler.end_oldest()).map(|r| (r.at_ms, r.pages)).collect()
    }

    #[test]
    fn offers_belong_to_the_lookup_before_them() {
        let mut assembler = Assembler::default();
        assembler.take(run(5, true, 0, &[100, 101, 102]));
        // Two ranks offer what was missing, and then what was generated.
        for _ in 0..2 {
            assembler.take(run(6, false, 1, &[101, 102]));
            assembler.take(run(7, false, 3, &[103]));
        }
        // The next turn, of which one more page than was generated.
        assembler.take(run(9, true, 0, &[100, 101, 102, 103, 104]));
        assembler.take(run(9, false, 4, &[104]));
        assert_eq!(all(&mut assembler), [(5, vec![0, 1, 2, 3]), (9, vec![0, 1, 2, 3, 4])]);
        assert_eq!((assembler.distinct(), assembler.orphans(), assembler.pages), (5, 0, 0));
        assert!(assembler.newest.is_empty(), "what is over is forgotten");
    }

    #[test]
    fn what_was_only_offered_is_a_request_too() {
        let mut assembler = Assembler::default();
        assembler.take(run(1, false, 0, &[100, 101]));
        assembler.take(run(2, false, 2, &[102, 103]));
        assembler.take(run(3, false, 2, &[102]));
        assembler.take(run(4, false, 7, &[200]));
        assert_eq!(all(&mut assembler), [(1, vec![0, 1, 2, 3])]);
        assert_eq!(assembler.orphans(), 1);
    }

    #[test]
    fn requests_come_in_order_once_they_are_quiet() {
        let mut assembler = Assembler::default();
        assembler.take(run(0, true, 0, &[100]));
        assembler.take(run(1_000, true, 0, &[200]));
        assembler.take(run(30_000, false, 1, &[101]));
        assert_eq!(assembler.next(70_000), None, "the first was heard of 40 s ago");
        let first = assembler.next(90_000).map(|request| request.pages);
        assert_eq!(first, Some(vec![0, 1]));
        assert_eq!(assembler.next(90_000).map(|request| request.at_ms), Some(1_000));
        assert_eq!(assembler.next(90_000), None);
    }
}
