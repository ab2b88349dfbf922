//! A transfer on its way.

use super::disk::{State, broken, range_of};
use super::faults::Fault;
use super::medium::Effect;
use super::witness::{Sight, sum};
use std::io;
use std::ops::Range;
use undercroft_ssd_tier::{Io, Kind};

/// What the device fills memory with that it was lent to read into: whoever looks too early sees
/// that it is no page.
const GARBAGE: u8 = 0xa7;

/// A transfer between its start and its end.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) io: Io,
    /// When it is over, microseconds.
    pub(super) due: u64,
    /// A write's bytes as it began, or the garbage a read's memory was filled with.
    sum: u64,
    sight: Sight,
    /// What a flush covers: what was over when it began.
    covers: u64,
}

impl Flight {
    /// The memory it was lent.
    pub(super) fn loans(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        self.io.span.as_ref().map(range_of).into_iter()
    }

    pub(super) fn is_write(&self) -> bool {
        self.io.kind == Kind::Write
    }
}

impl State {
    /// Takes a transfer on.
    pub(super) fn depart(&mut self, io: Io) {
        let fresh = io.done == 0 && io.attempts == 0;
        let mut sight = Sight::Other;
        let mut checked = 0;
        if let Some(span) = &io.span {
            self.lender.lend(range_of(span), io.kind == Kind::Read);
            if io.kind == Kind::Read {
                let (_, rest) = io.rest().expect("it has memory");
                rest.write(|bytes| bytes.fill(GARBAGE));
                self.last_read = io.offset;
            } else {
                sight = span.read(|bytes| self.witness.begins(io.offset, bytes, fresh));
            }
            checked = span.read(sum);
        }
        let slow = self.strikes(Fault::Slow, io.offset);
        let takes = if slow { self.slowness.clone() } else { self.latency.clone() };
        let due = self.now + self.rng.u64(takes);
        let covers = self.medium.begin_flush();
        self.flying.push(Flight { io, due, sum: checked, sight, covers });
    }

    /// Ends a transfer: what the log is told of it.
    pub(super) fn arrive(&mut self, flight: Flight) -> (Io, io::Result<usize>) {
        let Flight { io, sum: before, sight, covers, .. } = flight;
        if let Some(span) = &io.span {
            self.lender.give_back(&range_of(span));
            assert_eq!(span.read(sum), before, "memory that is lent is left alone");
        }
        let result = match self.sabotaged() {
            Some(fault) => self.fail(&io, fault),
            None => self.carry_out(&io, covers),
        };
        let over =
            matches!((&result, &io.span), (Ok(moved), Some(span)) if io.done + moved == span.len());
        self.witness.ended(sight, over);
        (io, result)
    }

    fn carry_out(&mut self, io: &Io, covers: u64) -> io::Result<usize> {
        let Some((offset, rest)) = io.rest() else {
            return self.flush(covers).map(|()| 0);
        };
        if io.kind == Kind::Read {
            rest.write(|bytes| self.read(offset, bytes))
        } else {
            rest.read(|bytes| self.write(offset, bytes))
        }
    }

    /// Fails a transfer as it is wanted.
    fn fail(&mut self, io: &Io, fault: Fault) -> io::Result<usize> {
        self.harm(io.offset, io.span.as_ref().map_or(1, undercroft_arena::Span::len));
        let Some((offset, rest)) = io.rest() else {
            return Err(broken());
        };
        match fault {
            Fault::Short if io.kind == Kind::Read => Ok(0),
            Fault::Interrupted => Err(io::ErrorKind::Interrupted.into()),
            Fault::Short => {
                let half = rest.len() / 2;
                rest.read(|bytes| {
                    let half = &bytes[..half.next_multiple_of(512)];
                    self.medium.write(offset as usize, half, Effect::Done);
                });
                // Not a whole block: the medium's strength was at an end.
                Ok(half.saturating_sub(1))
            }
            Fault::Lost if io.kind == Kind::Write => {
                rest.read(|bytes| {
                    let none = vec![false; bytes.len() / 512];
                    self.medium.write(offset as usize, bytes, Effect::SaidOnly(none));
                });
                Ok(rest.len())
            }
            _ => Err(broken()),
        }
    }

    /// A transfer lands whose process is dead: nobody is told.
    pub(super) fn land_late(&mut self, flight: Flight) {
        flight.loans().for_each(|memory| self.lender.give_back(&memory));
        let Some((offset, rest)) = flight.io.rest() else {
            return;
        };
        if flight.is_write() {
            self.tally.count(Fault::LateWrite);
            self.write_quietly(&flight);
        } else {
            self.tally.count(Fault::LateRead);
            rest.write(|bytes| {
                let room = self.medium.len().saturating_sub(offset as usize).min(bytes.len());
                self.medium.read(offset as usize, &mut bytes[..room], |_| false);
            });
        }
    }

    /// Does what a write wants, without any more faults.
    pub(super) fn write_quietly(&mut self, flight: &Flight) {
        let (offset, rest) = flight.io.rest().expect("a write has memory");
        rest.read(|bytes| {
            if offset as usize + bytes.len() <= self.medium.len() {
                self.medium.write(offset as usize, bytes, Effect::Done);
            }
        });
    }
}
