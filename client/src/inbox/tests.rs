#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use super::*;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use undercroft_wire::{
    CommitReply, Epoch, LookupReply, Mode, OfferReply, PagePlace, PrefetchReply, Refused,
    RefusedReason, SessionId, Stamp, encode_reply,
};

const SPACE: SpaceId = SpaceId(5);

fn arena() -> Arc<Arena> {
    Arc::new(Arena::new(Arc::new(crate::bell::Bell::new().unwrap())))
}

fn inbox() -> Inbox {
    let mut inbox = Inbox::new(Reader::new(), arena(), Arc::default(), Arc::default());
    for _ in 0..3 {
        inbox.expect(Expects::Reply).unwrap();
    }
    inbox.expect(Expects::Slots(SPACE)).unwrap();
    inbox
}

fn found(hold: Option<HoldId>) -> Reply {
    let found = LookupReply { pages: 1, dram: 1, present: 1, worth: 1, ..LookupReply::default() };
    Reply::Lookup(LookupReply { hold, stamp: Stamp(1), ..found })
}

fn offered() -> Reply {
    let (offer, outcomes) = (OfferId(8), vec![0, 0, 1]);
    Reply::Offer(OfferReply { offer, outcomes, slots: vec![SlotId(4), SlotId(6)] })
}

/// Every reply there is that carries no descriptor.
fn replies() -> Vec<Reply> {
    let lease = LeaseId(1);
    let places = vec![PagePlace { part: PagePlace::STAGING, offset: 0 }];
    vec![
        Reply::Welcome(Welcome {
            version: 2,
            session: SessionId(1),
            epoch: Epoch(1),
            mode: Mode::Copy,
            parts: 0,
            domain: "default".into(),
        }),
        found(Some(HoldId(3))),
        Reply::FetchReady(FetchReady { lease, first: 0, places }),
        Reply::FetchEnd(FetchEnd { lease, ready: 1, ssd: 0, outcome: 0 }),
        offered(),
        Reply::Commit(CommitReply { offer: OfferId(8), outcomes: vec![0] }),
        Reply::Prefetch(PrefetchReply { resident: 1, started: 0 }),
        Reply::Status(Box::default()),
        Reply::Refused(Refused { reason: RefusedReason::Busy, detail: "no".into() }),
        Reply::Done,
    ]
}

/// Sorts bytes as if they had come in at once.
fn sort(inbox: &mut Inbox, bytes: &[u8]) -> Result<Vec<Chore>, Lost> {
    sort_with(inbox, bytes, None)
}

/// The same with a descriptor.
fn sort_with(inbox: &mut Inbox, bytes: &[u8], fd: Option<OwnedFd>) -> Result<Vec<Chore>, Lost> {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(bytes).unwrap();
    let mut reader = Reader::new();
    reader.fill(theirs.as_fd())?;
    reader.fds.extend(fd);
    let mut chores = Vec::new();
    inbox.sort(1, &mut reader, &mut chores)?;
    Ok(chores)
}

fn frame(request: u32, reply: &Reply) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_reply(&mut bytes, RequestId(request), reply);
    bytes
}

#[test]
fn mangled_replies_end_the_connection_or_change_nothing_they_should_not() {
    // xorshift: the same bytes in every run.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let (mut understood, mut refused) = (0, 0);
    for _ in 0..4000 {
        let mut bytes = Vec::new();
        for _ in 0..1 + random(4) {
            let all = replies();
            let request = random(6) as u32;
            bytes.extend(frame(request, &all[random(all.len())]));
        }
        for _ in 0..random(4) {
            let at = random(bytes.len());
            bytes[at] = random(256) as u8;
        }
        bytes.truncate(bytes.len() - random(2) * random(bytes.len()));
        let mut inbox = inbox();
        match sort(&mut inbox, &bytes) {
            Ok(_) => understood += 1,
            Err(_) => refused += 1,
        }
        assert!(inbox.mailboxes.len() <= 4 && inbox.parts.is_empty());
    }
    assert!(understood > 100 && refused > 100, "{understood} understood, {refused} refused");
}

#[test]
fn what_comes_too_late_is_given_back() {
    let mut inbox = inbox();
    assert_eq!(inbox.give_up(RequestId(1)), None);
    assert_eq!(inbox.give_up(RequestId(4)), None);
    let late = [frame(1, &found(Some(HoldId(3)))), frame(4, &offered())].concat();
    let back = sort(&mut inbox, &late).unwrap();
    let slots = vec![SlotId(4), SlotId(6)];
    let returned = Chore::ReturnSlots { space: SPACE, offer: OfferId(8), slots };
    assert_eq!(back, [Chore::DropHold(HoldId(3)), returned]);
    assert_eq!(inbox.mailboxes.len(), 2);
}

#[test]
fn what_came_and_was_not_taken_is_given_back() {
    let mut inbox = inbox();
    let came = [frame(1, &found(Some(HoldId(3)))), frame(4, &offered())].concat();
    assert!(sort(&mut inbox, &came).unwrap().is_empty());
    assert_eq!(inbox.give_up(RequestId(1)), Some(Chore::DropHold(HoldId(3))));
    assert!(matches!(inbox.give_up(RequestId(4)), Some(Chore::ReturnSlots { .. })));
    assert_eq!(inbox.mailboxes.len(), 2);
}

#[test]
fn a_mailbox_goes_with_the_reply_taken_from_it() {
    let mut inbox = inbox();
    let mailboxes = inbox.mailboxes.len();
    assert!(sort(&mut inbox, &frame(4, &offered())).unwrap().is_empty());
    assert!(inbox.take_reply(RequestId(4)).is_some());
    assert_eq!(inbox.give_up(RequestId(4)), None);
    assert_eq!(inbox.mailboxes.len(), mailboxes - 1);
}

#[test]
fn mailboxes_are_bounded_and_their_numbers_never_meet() {
    let mut inbox = Inbox::new(Reader::new(), arena(), Arc::default(), Arc::default());
    inbox.last_request = u32::MAX - 10;
    for _ in 0..MAX_MAILBOXES {
        assert_ne!(inbox.expect(Expects::Reply).unwrap(), RequestId(0));
    }
    assert_eq!(inbox.mailboxes.len(), MAX_MAILBOXES);
    assert_eq!(inbox.expect(Expects::Reply).unwrap_err(), MissReason::Busy);
    inbox.close(Lost::Ended);
    assert_eq!(inbox.expect(Expects::Reply).unwrap_err(), MissReason::Disconnected);
}

#[test]
fn a_second_welcome_and_a_part_without_its_descriptor_break_the_rules() {
    let mut inbox = inbox();
    let welcome = frame(1, &replies()[0]);
    sort(&mut inbox, &welcome).unwrap();
    assert!(sort(&mut inbox, &welcome).is_err());
    let added = PartAdded { part: PartId(0), bytes: 4096, board_offset: 0 };
    assert!(sort(&mut inbox, &frame(0, &Reply::PartAdded(added))).is_err());
}

/// Another connection may have its own by then.
#[test]
fn what_comes_with_descriptors_after_the_end_changes_nothing() {
    let state = Arc::new(crate::space::tests::state());
    let mut inbox = inbox();
    sort(&mut inbox, &frame(1, &replies()[0])).unwrap();
    let request = inbox.expect(Expects::Opening(Arc::clone(&state))).unwrap();
    inbox.enter().unwrap();
    inbox.close(Lost::Ended);
    let staging = undercroft_arena::Staging::create(1, 4096).unwrap();
    let fd = || Some(staging.fd().try_clone_to_owned().unwrap());
    let opened = SpaceOpened { space: SPACE, slots: 1, slot_bytes: 4096 };
    sort_with(&mut inbox, &frame(request.0, &Reply::SpaceOpened(opened)), fd()).unwrap();
    assert!(!state.is_open_in(1));
    let added = PartAdded { part: PartId(0), bytes: 4096, board_offset: 0 };
    sort_with(&mut inbox, &frame(0, &Reply::PartAdded(added)), fd()).unwrap();
    assert!(inbox.parts.is_empty() && inbox.early.is_empty());
}
