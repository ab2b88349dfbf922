use crate::offers::Tip;
use crate::{Action, Core};
use std::collections::VecDeque;
use undercroft_wire::{
    OfferId, OfferOutcome, OfferReply, PageKey, Reply, RequestId, SessionId, SlotId,
};

/// Keys that one turn of one offer looks at.
const TURN_KEYS: u32 = 256;

/// An offer that is being looked at. One that is long takes several steps, as if it had come in as
/// many pieces of which each hangs from the one before.
#[derive(Debug)]
pub(crate) struct OfferInHand {
    request: RequestId,
    tip: Tip,
    /// Empty while they are the message's.
    keys: Vec<PageKey>,
    outcomes: Vec<u8>,
    slots: Vec<SlotId>,
}

/// Offers of which there is more than a step looks at.
#[derive(Debug, Default)]
pub(crate) struct Offering {
    queue: VecDeque<OfferInHand>,
    /// Keys that the step under way may still look at.
    pub(crate) left: u32,
}

impl Offering {
    /// Whether an offer of the session waits for its answer.
    pub(crate) fn has(&self, session: SessionId) -> bool {
        self.queue.iter().any(|hand| hand.tip.session == session)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The offers of a session are not to be answered any more.
    pub(crate) fn forget(&mut self, session: SessionId) {
        self.queue.retain(|hand| hand.tip.session != session);
    }
}

impl Core {
    /// Looks at an offer's keys, as many as the step may, and answers once all are looked at.
    pub(crate) fn begin_offering(
        &mut self,
        request: RequestId,
        tip: Tip,
        keys: &[PageKey],
        actions: &mut Vec<Action>,
    ) {
        let outcomes = Vec::with_capacity(keys.len());
        let mut hand = OfferInHand { request, tip, keys: Vec::new(), outcomes, slots: Vec::new() };
        self.offer_keys(&mut hand, keys, u32::MAX);
        if hand.outcomes.len() == keys.len() {
            return self.answer_offer(hand, actions);
        }
        hand.keys = keys.to_vec();
        self.offering.queue.push_back(hand);
    }

    /// Goes on with the offers under way, as far as the step may.
    pub(crate) fn offer_on(&mut self, actions: &mut Vec<Action>) {
        while self.offering.left > 0
            && let Some(mut hand) = self.offering.queue.pop_front()
        {
            let keys = std::mem::take(&mut hand.keys);
            self.offer_keys(&mut hand, &keys, TURN_KEYS);
            if hand.outcomes.len() == keys.len() {
                self.answer_offer(hand, actions);
            } else {
                hand.keys = keys;
                self.offering.queue.push_back(hand);
            }
        }
    }

    /// Looks at up to `most` more keys.
    fn offer_keys(&mut self, hand: &mut OfferInHand, keys: &[PageKey], most: u32) {
        let at = hand.outcomes.len();
        let turn = most.min(self.offering.left) as usize;
        let end = keys.len().min(at + turn);
        self.offering.left -= (end - at) as u32;
        if let Some(before) = at.checked_sub(1) {
            self.find_tip_again(&mut hand.tip, &keys[before]);
        }
        if hand.slots.is_empty() {
            hand.tip.offer = OfferId(self.last_offer(hand.tip.session) + 1);
        }
        let given = hand.slots.len();
        for key in &keys[at..end] {
            let outcome = self.offer_key(&mut hand.tip, key, &mut hand.slots);
            self.count_offer(outcome);
            hand.outcomes.push(outcome.to_byte());
            hand.tip.depth += 1;
        }
        self.give_slots(&hand.tip, (given, hand.slots.len()));
    }

    /// What lies before the next key may have left since the step before.
    fn find_tip_again(&self, tip: &mut Tip, before: &PageKey) {
        if tip.above.is_none() {
            return;
        }
        let known = self.index.find(tip.space, before);
        tip.above = known.filter(|page| {
            let right_above = self.index[*page].depth.checked_add(1) == Some(tip.depth);
            right_above && self.may_hang_from(*page)
        });
        if tip.above.is_none() {
            tip.declined.get_or_insert(OfferOutcome::NoParent);
        }
    }

    /// The offer had so many slots and has so many now.
    fn give_slots(&mut self, tip: &Tip, (before, now): (usize, usize)) {
        if before == now {
            return;
        }
        if before == 0 {
            let state = self.sessions.get_mut(&tip.session).expect("whoever offers is known");
            state.last_offer += 1;
        }
        let (id, slots) = ((tip.session, tip.offer), (now - before) as u32);
        // In the middle of it the client may have answered, or the slots may be overdue.
        if let Some(open) = self.offers.get_mut(&id) {
            open.slots += slots;
        } else {
            self.begin_offer(id, tip.space, slots);
        }
    }

    fn answer_offer(&mut self, hand: OfferInHand, actions: &mut Vec<Action>) {
        let OfferInHand { request, tip, outcomes, slots, .. } = hand;
        let reply = Reply::Offer(OfferReply { offer: tip.offer, outcomes, slots });
        actions.push(Action::Reply { session: tip.session, request, reply });
    }
}
