use crate::commits::NOT_OPEN;
use crate::heat::Heat;
use crate::page::{Dram, Mark, Page, PageId};
use crate::sessions::Slot;
use crate::timers::Timer;
use crate::{Action, Core, Micros};
use undercroft_wire::{
    MissCause, Offer, OfferId, OfferOutcome, PageKey, RefusedReason, RequestId, SessionId, SlotId,
    SpaceId,
};

/// Where the next key of an offer hangs.
#[derive(Debug)]
pub(crate) struct Tip {
    pub(crate) session: SessionId,
    pub(crate) space: SpaceId,
    pub(crate) offer: OfferId,
    pub(crate) stamp: u64,
    pub(crate) depth: u32,
    /// The page before it; `None` at the start of a chain and behind a key that was declined.
    pub(crate) above: Option<PageId>,
    /// Why no further key is wanted.
    pub(crate) declined: Option<OfferOutcome>,
}

/// An offer of which slots are neither committed nor returned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenOffer {
    space: SpaceId,
    /// How many.
    pub(crate) slots: u32,
    /// Until when its pages are waited for.
    pub(crate) due: Micros,
}

/// What offers may be waited for.
impl Core {
    pub(crate) fn begin_offer(&mut self, id: (SessionId, OfferId), space: SpaceId, slots: u32) {
        let due = self.now.after_ms(self.config.limits.max_offer_ms);
        self.timers.insert((due, Timer::Offer(id)));
        self.offers.insert(id, OpenOffer { space, slots, due });
    }

    /// A slot of the offer was committed or returned.
    pub(crate) fn slot_answered(&mut self, id: (SessionId, OfferId)) {
        let open = self.offers.get_mut(&id).expect("an offer with slots out is open");
        open.slots -= 1;
        if open.slots == 0 {
            self.timers.remove(&(open.due, Timer::Offer(id)));
            self.offers.remove(&id);
        }
    }

    /// Nobody waits for its pages any more: others may store them.
    pub(crate) fn offer_overdue(&mut self, id: (SessionId, OfferId)) {
        let open = self.offers.remove(&id).expect("only open offers have a timer");
        self.timers.remove(&(open.due, Timer::Offer(id)));
        let (session, offer) = id;
        let staging = self.staging_mut(session, open.space);
        let pages = staging.map(|staging| staging.overdue(offer)).unwrap_or_default();
        for page in pages {
            self.stats.overdue_slots += 1;
            self.drop_offered(page);
        }
    }

    /// The session is gone, and its slots with it.
    pub(crate) fn end_offers_of(&mut self, session: SessionId) {
        let own = (session, OfferId(0))..=(session, OfferId(u64::MAX));
        let open: Vec<_> = self.offers.range(own).map(|(id, open)| (*id, open.due)).collect();
        for (id, due) in open {
            self.timers.remove(&(due, Timer::Offer(id)));
            self.offers.remove(&id);
        }
    }
}

impl Core {
    pub(crate) fn offer(
        &mut self,
        session: SessionId,
        request: RequestId,
        body: &Offer<'_>,
        actions: &mut Vec<Action>,
    ) {
        let (space, keys) = (body.space, body.keys.as_slice());
        if self.staging_mut(session, space).is_none() {
            return self.refuse(session, request, RefusedReason::Unknown, NOT_OPEN, actions);
        }
        let stamp = self.clamp_stamp(session, body.stamp);
        let above = body.parent.and_then(|key| self.index.find(space, &key));
        let above = above.filter(|page| self.may_hang_from(*page));
        let fits = match above {
            Some(page) => self.index[page].depth.checked_add(1) == Some(body.first),
            None => body.parent.is_some() == (body.first > 0),
        };
        if !fits || body.first.checked_add(keys.len() as u32).is_none() {
            let detail = "the offer's parent does not lie right before its first key";
            return self.refuse(session, request, RefusedReason::Invalid, detail, actions);
        }
        if let Some(page) = above {
            self.warm(page, Heat::new(stamp));
            if self.index[page].is_awaited() {
                self.turn_came(page, stamp);
            }
        }
        self.note_length(session, stamp, body.first as usize + keys.len());
        let orphaned = body.parent.is_some() && above.is_none();
        let tip = Tip {
            session,
            space,
            offer: OfferId(0),
            stamp,
            depth: body.first,
            above,
            declined: orphaned.then_some(OfferOutcome::NoParent),
        };
        self.begin_offering(request, tip, keys, actions);
    }

    /// Whether a child may be stored below the page.
    pub(crate) fn may_hang_from(&self, page: PageId) -> bool {
        self.index[page].is_present() && !self.is_gone(page)
    }

    /// How many offers of the session were given slots. What others are given is not to be told from it.
    pub(crate) fn last_offer(&self, session: SessionId) -> u64 {
        self.sessions.get(&session).map_or(0, |state| state.last_offer)
    }

    pub(crate) fn count_offer(&mut self, outcome: OfferOutcome) {
        self.stats.offered += 1;
        match outcome {
            OfferOutcome::Wanted => self.stats.wanted += 1,
            OfferOutcome::Held | OfferOutcome::Coming => self.stats.held += 1,
            OfferOutcome::NoCredit => self.stats.declined_credit += 1,
            OfferOutcome::NoParent => self.stats.declined_parent += 1,
            OfferOutcome::Full | OfferOutcome::NotAdmitted => self.stats.declined_full += 1,
        }
    }

    pub(crate) fn offer_key(
        &mut self,
        tip: &mut Tip,
        key: &PageKey,
        slots: &mut Vec<SlotId>,
    ) -> OfferOutcome {
        let mut known = self.index.find(tip.space, key);
        if known.is_some_and(|page| self.forget_if_expired(page)) {
            known = self.index.find(tip.space, key);
        }
        if let Some(page) = known
            && !self.agrees(page, tip)
        {
            // The key hangs elsewhere already. A chain cannot have two shapes: what was stored
            // first is believed.
            tip.above = None;
            return *tip.declined.insert(OfferOutcome::NoParent);
        }
        if let Some(page) = known
            && self.is_held(page)
        {
            self.adopt(page, tip.above);
            self.touch(page, tip.stamp);
            tip.above = Some(page);
            let is_coming = matches!(self.index[page].dram, Dram::Offered | Dram::Filling);
            let found = !is_coming || self.counts_on_ssd(&self.index[page]);
            return if found { OfferOutcome::Held } else { OfferOutcome::Coming };
        }
        let wanted = match tip.declined {
            Some(outcome) => Err(outcome),
            // Somebody leases it and it must not be found, or it is about to be forgotten.
            None if known.is_some_and(|page| self.is_leaving(page)) => {
                Err(OfferOutcome::NotAdmitted)
            }
            None => self.want(tip, key, known),
        };
        match wanted {
            Ok((page, slot)) => {
                slots.push(slot);
                tip.above = Some(page);
                OfferOutcome::Wanted
            }
            Err(outcome) => {
                if outcome == OfferOutcome::Full {
                    self.note_declined(tip, key);
                }
                let is_gone = known.is_none_or(|page| !self.index[page].is_present());
                if tip.declined.is_none() && is_gone {
                    self.bury_key(tip.space, key, MissCause::NotTaken);
                }
                tip.declined = Some(outcome);
                tip.above = None;
                outcome
            }
        }
    }

    /// Whether a known page can be the next of this chain.
    fn agrees(&self, page: PageId, tip: &Tip) -> bool {
        let page = &self.index[page];
        let same_parent = match (page.parent, tip.above) {
            (Some(known), Some(above)) => known == above,
            // Behind a declined key, or an ancestor that only recovery has named.
            _ => true,
        };
        page.depth == tip.depth && same_parent
    }

    /// Whether the page need not be stored: it is in a tier that answers, or on its way. One that
    /// has not proved itself, or whose device does not answer, is as good as not there.
    fn is_held(&self, id: PageId) -> bool {
        let page = &self.index[id];
        !self.is_leaving(id) && (page.dram != Dram::None || self.counts_on_ssd(page))
    }

    /// Whether it was purged or is too old, and something of it is there yet.
    fn is_leaving(&self, id: PageId) -> bool {
        let page = &self.index[id];
        page.is(Mark::Purged) || (page.is_present() && self.is_gone(id))
    }

    fn adopt(&mut self, page: PageId, above: Option<PageId>) {
        if let (None, Some(above)) = (self.index[page].parent, above) {
            self.link(page, above);
        }
    }

    /// Takes a slot for a page that is in no tier that answers.
    fn want(
        &mut self,
        tip: &Tip,
        key: &PageKey,
        known: Option<PageId>,
    ) -> Result<(PageId, SlotId), OfferOutcome> {
        let class = self.spaces.get(tip.space).class;
        // Standing as the last entry there could be: a tie is settled at the commit.
        let stands = self.index.order_key_of(Heat::new(tip.stamp), tip.depth);
        if !self.may_fit(class, self.bar(class).map_or(stands, |bar| bar.min(stands))) {
            // Pages of another size may be worth less than these.
            self.frames.class_mut(class).starved = true;
            self.wake(class);
            return Err(OfferOutcome::Full);
        }
        let staging = self.staging_mut(tip.session, tip.space);
        if staging.is_none_or(|staging| staging.free.is_empty()) {
            return Err(OfferOutcome::NoCredit);
        }
        if self.number_writer(tip.session).is_none() {
            return Err(OfferOutcome::NotAdmitted);
        }
        let page = match known {
            Some(page) => page,
            None => {
                let page = Page::new(tip.space, *key, tip.depth);
                self.know(page).ok_or(OfferOutcome::Full)?
            }
        };
        self.adopt(page, tip.above);
        self.touch(page, tip.stamp);
        let back = self.is_back(page);
        let entry = &mut self.index[page];
        if back {
            entry.set_used_again();
        }
        entry.dram = Dram::Offered;
        entry.set(Mark::Touched, false);
        self.note_presence(page);
        let used_as = Slot::Assigned { offer: tip.offer, page };
        let staging = self.staging_mut(tip.session, tip.space).expect("found above");
        let slot = staging.take(used_as).expect("a slot was free above");
        Ok((page, slot))
    }
}
