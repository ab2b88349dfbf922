use super::{Expects, Inbox, Mailbox, violation};
use crate::connection::Lost;
use crate::parts::{MAX_PARTS, Mapped};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use undercroft_wire::{LeaseId, PartAdded, PartId};

/// A part that this connection delivers pages of.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) part: Arc<Mapped>,
    /// Where its generations begin on the board, bytes; 0 without one.
    pub(crate) board_offset: u64,
    /// It retires; fetches up to this one may still be given pages of it.
    retired: Option<LeaseId>,
}

impl Inbox {
    /// Maps the parts that came with the greeting, and from here on each as it comes.
    pub(crate) fn enter(&mut self) -> Result<(), Lost> {
        self.entered = true;
        std::mem::take(&mut self.early).into_iter().try_for_each(|(added, fd, retires)| {
            self.map(added, &fd)?;
            if retires {
                self.retire(added.part);
            }
            Ok(())
        })
    }

    /// Parts that retired and of which nothing is used or will be delivered any more; they are
    /// not delivered from again. Also says whether others are still waited for.
    pub(crate) fn vacated(&mut self) -> (Vec<PartId>, bool) {
        let oldest = self.running().min();
        let gone = |placed: &Placed| {
            let over = |last| oldest.is_none_or(|oldest| oldest > last);
            placed.retired.is_some_and(over) && placed.part.view.users() == 0
        };
        let gone: Vec<PartId> = self.parts.extract_if(|_, p| gone(p)).map(|(id, _)| id).collect();
        (gone, self.parts.values().any(|placed| placed.retired.is_some()))
    }

    /// Fetches that may still be given pages.
    fn running(&self) -> impl Iterator<Item = LeaseId> {
        let ended = |m: &Mailbox| matches!(&m.expects, Expects::Pages(_, d) if d.is_over);
        let runs = move |request| self.mailboxes.get(request).is_some_and(|m| !ended(m));
        self.leases.iter().filter(move |(_, request)| runs(request)).map(|(lease, _)| *lease)
    }

    pub(super) fn add_board(&mut self, fds: &mut VecDeque<OwnedFd>) -> Result<(), Lost> {
        let fd = fds.pop_front().ok_or_else(|| violation("a board without its descriptor"))?;
        let Some(welcome) = &self.welcome else {
            return Err(violation("a board before the welcome"));
        };
        let board = self.arena.board(welcome.epoch, &fd)?;
        if self.pulse.found(board) { Ok(()) } else { Err(violation("a second board")) }
    }

    pub(super) fn add_part(
        &mut self,
        added: PartAdded,
        fds: &mut VecDeque<OwnedFd>,
    ) -> Result<(), Lost> {
        let fd = fds.pop_front().ok_or_else(|| violation("a part without its descriptor"))?;
        if self.welcome.is_none() {
            return Err(violation("a part before the welcome"));
        }
        if self.parts.len() + self.early.len() >= MAX_PARTS {
            return Err(violation("too many parts"));
        }
        if self.entered {
            return self.map(added, &fd);
        }
        self.early.push((added, fd, false));
        Ok(())
    }

    fn map(&mut self, added: PartAdded, fd: &OwnedFd) -> Result<(), Lost> {
        let PartAdded { board_offset, bytes, .. } = added;
        if let Some(board) = self.pulse.board().filter(|_| board_offset != 0) {
            let last = board.generation(board_offset, bytes.saturating_sub(1));
            last.ok_or_else(|| violation("a part whose generations are not on the board"))?;
        }
        let placed = Placed { part: self.arena.add(added, fd)?, board_offset, retired: None };
        match self.parts.insert(added.part, placed) {
            None => Ok(()),
            Some(_) => Err(violation("a part twice")),
        }
    }

    pub(super) fn retire(&mut self, part: PartId) {
        if let Some(placed) = self.parts.get_mut(&part) {
            placed.retired = Some(self.last_lease);
            self.arena.stir();
        }
        let mut early = self.early.iter_mut();
        if let Some((_, _, retires)) = early.find(|(added, ..)| added.part == part) {
            *retires = true;
        }
    }
}
