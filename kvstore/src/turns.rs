//! Work that waits, taken in turn: domains first, then the sessions of each.

use std::collections::VecDeque;
use undercroft_wire::{DomainId, SessionId};

/// What a domain of weight 1 may have taken in one turn, bytes.
const TURN_BYTES: u64 = 1 << 20;

/// Whose a piece of work is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Whose {
    pub(crate) domain: DomainId,
    /// How many times as much as a domain of weight 1 this one may have taken in a turn.
    pub(crate) weight: u32,
    pub(crate) session: SessionId,
}

/// Work that waits. Domains take turns by bytes (deficit round robin), and sessions of a domain
/// piece by piece: nobody waits behind all that another has queued.
#[derive(Debug)]
pub(crate) struct Turns<T> {
    domains: VecDeque<OfDomain<T>>,
}

#[derive(Debug)]
struct OfDomain<T> {
    domain: DomainId,
    weight: u32,
    /// Bytes that may be taken in this turn.
    credit: u64,
    sessions: VecDeque<OfSession<T>>,
}

#[derive(Debug)]
struct OfSession<T> {
    session: SessionId,
    waiting: VecDeque<(T, u64)>,
}

impl<T> Turns<T> {
    pub(crate) fn new() -> Self {
        Self { domains: VecDeque::new() }
    }

    /// Queues a piece of so many bytes.
    pub(crate) fn push(&mut self, whose: Whose, piece: T, bytes: u64) {
        let Whose { domain, weight, session } = whose;
        let at = self.domains.iter().position(|of| of.domain == domain).unwrap_or_else(|| {
            let sessions = VecDeque::new();
            self.domains.push_back(OfDomain { domain, weight, credit: 0, sessions });
            self.domains.len() - 1
        });
        // As it is configured now.
        self.domains[at].weight = weight;
        let sessions = &mut self.domains[at].sessions;
        match sessions.iter_mut().find(|of| of.session == session) {
            Some(of) => of.waiting.push_back((piece, bytes)),
            None => {
                sessions.push_back(OfSession { session, waiting: [(piece, bytes)].into() });
            }
        }
    }

    /// The next piece, and its bytes.
    pub(crate) fn pop(&mut self) -> Option<(T, u64)> {
        loop {
            let of = self.domains.front_mut()?;
            let next = of.sessions.front().and_then(|of| of.waiting.front());
            let bytes = next.expect("who waits wants something").1;
            if bytes > of.credit {
                of.credit += u64::from(of.weight.max(1)) * TURN_BYTES;
                self.domains.rotate_left(1);
                continue;
            }
            of.credit -= bytes;
            let mut session = of.sessions.pop_front().expect("just seen");
            let piece = session.waiting.pop_front().expect("just seen");
            if !session.waiting.is_empty() {
                of.sessions.push_back(session);
            }
            if of.sessions.is_empty() {
                // Who wants nothing saves nothing up.
                self.domains.pop_front();
            }
            return Some(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whose(domain: &str, weight: u32, session: u64) -> Whose {
        Whose { domain: DomainId::named(domain), weight, session: SessionId(session) }
    }

    fn flooded() -> Turns<(u64, u64)> {
        let mut turns = Turns::new();
        for number in 0..1000 {
            turns.push(whose("a", 1, 1), (1, number), 64 << 10);
        }
        for number in 0..2 {
            turns.push(whose("a", 1, 2), (2, number), 64 << 10);
            turns.push(whose("b", 1, 3), (3, number), 2 << 20);
        }
        turns
    }

    #[test]
    fn a_domain_of_three_times_the_weight_has_three_times_the_bytes() {
        let mut turns = Turns::new();
        for _ in 0..1000 {
            turns.push(whose("a", 1, 1), 1, 256 << 10);
            turns.push(whose("b", 3, 2), 2, 256 << 10);
        }
        let taken: Vec<_> = std::iter::from_fn(|| turns.pop()).map(|(piece, _)| piece).collect();
        let of_b = taken.iter().take(400).filter(|piece| **piece == 2).count();
        assert!((290..=310).contains(&of_b), "{of_b} of 400");
        assert_eq!(taken.len(), 2000);
    }

    /// How many pieces are taken before the last one of a session is.
    fn taken_before_the_last_of(session: u64) -> usize {
        let mut turns = flooded();
        let order: Vec<_> = std::iter::from_fn(|| turns.pop()).map(|(piece, _)| piece).collect();
        assert_eq!(order.len(), 1004);
        let own = |who: u64| order.iter().filter(move |piece| piece.0 == who).map(|piece| piece.1);
        assert!(own(1).eq(0..1000) && own(2).eq(0..2) && own(3).eq(0..2), "in their own order");
        order.iter().rposition(|piece| piece.0 == session).expect("it was there")
    }

    #[test]
    fn a_session_waits_for_one_piece_of_each_other_of_its_domain() {
        assert!(taken_before_the_last_of(2) <= 4);
    }

    #[test]
    fn a_domain_waits_for_as_many_bytes_of_another_as_it_takes_itself() {
        let before = taken_before_the_last_of(3);
        // Two pages of 2 MiB against pages of 64 KiB, and one turn of 1 MiB on top.
        assert!((16..=5 * 16 + 1).contains(&before), "{before}");
    }
}
