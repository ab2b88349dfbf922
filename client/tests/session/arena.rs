//! The arena belongs to the client: what stays mapped over connections, and for how long.

use crate::shelf::Shelf;
use crate::world::*;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use undercroft_client::{Client, ClientState, FetchFrom, PartView, PartWatcher, StagingView};
use undercroft_wire::{
    Epoch, FetchEnd, FetchReady, Mode, PagePlace, PartId, PartRetired, Reply, Request, RequestId,
    SessionId, Stamp,
};

const FIRST: PartId = PartId(3);
const LATER: PartId = PartId(4);

fn in_session(client: &Client, number: u64) -> bool {
    let session = SessionId(number);
    matches!(client.state(), ClientState::Connected { session: now, .. } if now == session)
}

fn retired(part: PartId) -> Reply {
    Reply::PartRetired(PartRetired { part })
}

#[test]
fn mappings_stay_over_a_restart_with_the_same_arena() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    shelf.lock().unwrap().put(key(0), 1);
    let daemon = world.daemon(&shelf);
    let (client, space) = world.open();
    let mut leased = space.fetch(FetchFrom::Keys(&keys(1)), Stamp(1), LONG);
    let page = leased.next_ready().unwrap().pages.remove(0);
    drop(daemon);
    soon("the loss is noticed", || matches!(client.state(), ClientState::Connecting { .. }));
    assert_eq!(shelf.lock().unwrap().mappings(FIRST), 2, "without a daemon it stays, too");
    let _daemon = world.daemon(&shelf);
    soon("a new session", || in_session(&client, 42));
    let mut again = space.fetch(FetchFrom::Keys(&keys(1)), Stamp(1), LONG);
    let same = again.next_ready().unwrap().pages.remove(0);
    assert_eq!(page.as_ptr(), same.as_ptr());
    assert_eq!(shelf.lock().unwrap().mappings(FIRST), 2);
    page.read(|bytes| assert!(bytes.iter().all(|byte| *byte == 1)));
}

#[test]
fn another_file_for_a_part_of_the_same_arena_is_not_believed() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    shelf.lock().unwrap().put(key(0), 1);
    let daemon = world.daemon(&shelf);
    let (client, space) = world.open();
    let mut fetch = space.fetch(FetchFrom::Keys(&keys(1)), Stamp(1), LONG);
    let page = fetch.next_ready().unwrap().pages.remove(0);
    drop(daemon);
    let _other = shelf.lock().unwrap().grow(FIRST);
    let _daemon = world.daemon(&shelf);
    soon("it is refused", || {
        matches!(client.state(), ClientState::Connecting { failure: Some(text) }
            if text.contains("not what it was"))
    });
    assert_eq!(shelf.lock().unwrap().mappings(FIRST), 1, "only the shelf maps the new one");
    page.read(|bytes| assert!(bytes.iter().all(|byte| *byte == 1)));
}

#[test]
fn after_a_cold_start_the_old_arena_goes_with_its_last_page() {
    let world = World::new();
    let old = Shelf::new(1, Mode::ZeroCopy, 4);
    old.lock().unwrap().put(key(0), 1);
    let daemon = world.daemon(&old);
    let (client, space) = world.open();
    let mut fetch = space.fetch(FetchFrom::Keys(&keys(1)), Stamp(1), LONG);
    let page = fetch.next_ready().unwrap().pages.remove(0);
    let other = old.lock().unwrap().grow(LATER);
    daemon.say(&other.0, Some(other.1.as_fd()));
    client.ping(LONG).unwrap();
    assert_eq!(old.lock().unwrap().mappings(LATER), 2);
    drop(daemon);
    let new = Shelf::new(2, Mode::ZeroCopy, 4);
    let _daemon = world.daemon(&new);
    soon("the new arena", || {
        matches!(client.state(), ClientState::Connected { epoch: Epoch(2), .. })
    });
    soon("its page tables are filled", || old.lock().unwrap().mappings(LATER) == 1);
    assert_eq!(old.lock().unwrap().mappings(FIRST), 2, "a page of it is still in use");
    page.read(|bytes| assert!(bytes.iter().all(|byte| *byte == 1)));
    drop((page, fetch));
    soon("the last page is gone", || old.lock().unwrap().mappings(FIRST) == 1);
    assert_eq!(new.lock().unwrap().mappings(FIRST), 2);
}

#[test]
fn a_part_that_comes_later_is_delivered_from() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let daemon = world.daemon(&shelf);
    let (_client, space) = world.open();
    let (added, fd) = shelf.lock().unwrap().grow(LATER);
    shelf.lock().unwrap().put_in(LATER, key(0), 7);
    daemon.say(&added, Some(fd.as_fd()));
    let mut fetch = space.fetch(FetchFrom::Keys(&keys(1)), Stamp(1), LONG);
    let page = fetch.next_ready().unwrap().pages.remove(0);
    assert_eq!(page.part_offset(), Some((LATER, 0)));
    page.read(|bytes| assert!(bytes.iter().all(|byte| *byte == 7)));
}

#[test]
fn a_retired_part_is_let_go_when_its_last_page_is() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let daemon = world.daemon(&shelf);
    let _told_in_the_greeting = shelf.lock().unwrap().grow(LATER);
    shelf.lock().unwrap().put_in(LATER, key(0), 7);
    let (client, space) = world.open();
    let mut fetch = space.fetch(FetchFrom::Keys(&keys(1)), Stamp(1), LONG);
    let page = fetch.next_ready().unwrap().pages.remove(0);
    daemon.say(&retired(LATER), None);
    client.ping(LONG).unwrap();
    std::thread::sleep(SHORT);
    drop(fetch);
    std::thread::sleep(SHORT);
    page.read(|bytes| assert!(bytes.iter().all(|byte| *byte == 7)));
    assert!(shelf.lock().unwrap().let_go.is_empty(), "a page of it is still in use");
    drop(page);
    soon("it is let go", || !shelf.lock().unwrap().let_go.is_empty());
    let shelf = shelf.lock().unwrap();
    assert_eq!(shelf.let_go, [LATER]);
    assert_eq!((shelf.mappings(LATER), shelf.mappings(FIRST)), (1, 2));
}

/// The daemon may have chosen pages for a fetch before it said that their part retires.
#[test]
fn a_retired_part_waits_for_the_fetches_under_way() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let waiting = Mutex::new(None);
    let _daemon = world.daemon_with(&shelf, move |peer, id, request| match request {
        Request::Fetch(fetch) => {
            peer.reply(RequestId(0), &retired(FIRST));
            *waiting.lock().unwrap() = Some(fetch.lease);
            true
        }
        Request::Ping => {
            peer.reply(id, &Reply::Done);
            let lease = waiting.lock().unwrap().take().unwrap();
            let places = vec![PagePlace { part: FIRST, offset: 0 }];
            peer.reply(id, &Reply::FetchReady(FetchReady { lease, first: 0, places }));
            peer.reply(id, &Reply::FetchEnd(FetchEnd { lease, ready: 1, ssd: 0, outcome: 0 }));
            true
        }
        _ => false,
    });
    shelf.lock().unwrap().put(key(0), 5);
    let (client, space) = world.open();
    let mut fetch = space.fetch(FetchFrom::Keys(&keys(1)), Stamp(1), LONG);
    assert!(fetch.try_ready().is_none());
    std::thread::sleep(SHORT);
    client.ping(LONG).unwrap();
    let page = fetch.next_ready().expect("the session goes on").pages.remove(0);
    page.read(|bytes| assert!(bytes.iter().all(|byte| *byte == 5)));
    drop((page, fetch));
    soon("it is let go", || shelf.lock().unwrap().let_go == [FIRST]);
}

#[test]
fn a_fetch_that_has_ended_holds_no_part_but_those_of_its_pages() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let daemon = world.daemon(&shelf);
    let _told_in_the_greeting = shelf.lock().unwrap().grow(LATER);
    shelf.lock().unwrap().put(key(0), 5);
    let (_client, space) = world.open();
    let mut fetch = space.fetch(FetchFrom::Keys(&keys(1)), Stamp(1), LONG);
    let page = fetch.next_ready().unwrap().pages.remove(0);
    assert!(fetch.next_ready().is_none(), "its end was heard");
    daemon.say(&retired(LATER), None);
    soon("it is let go", || shelf.lock().unwrap().let_go == [LATER]);
    page.read(|bytes| assert!(bytes.iter().all(|byte| *byte == 5)));
    drop(fetch);
}

#[test]
fn a_client_that_calls_nobody_lets_go_too() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let daemon = world.daemon(&shelf);
    let (_client, _space) = world.open();
    daemon.say(&retired(FIRST), None);
    soon("it is let go", || shelf.lock().unwrap().let_go == [FIRST]);
    assert_eq!(shelf.lock().unwrap().mappings(FIRST), 1);
}

/// Writes down what it hears, and who told it.
#[derive(Default)]
struct Diary(Mutex<Vec<(bool, PartId, usize, ThreadId)>>);

impl PartWatcher for Diary {
    fn mapped(&self, part: &PartView) {
        self.note(true, part);
    }

    fn leaving(&self, part: &PartView) {
        self.note(false, part);
    }
}

impl Diary {
    fn note(&self, came: bool, part: &PartView) {
        // Not mapped, this would be the end of the test.
        let _byte = part.span(0, 1).unwrap().read(|bytes| bytes[0]);
        let at = part.base_ptr() as usize;
        self.0.lock().unwrap().push((came, part.id(), at, std::thread::current().id()));
    }

    fn heard(&self) -> Vec<(bool, PartId)> {
        let diary = self.0.lock().unwrap();
        assert!(diary.iter().all(|(.., thread)| *thread != std::thread::current().id()));
        diary.iter().map(|(came, part, ..)| (*came, *part)).collect()
    }
}

#[test]
fn a_watcher_hears_of_every_part_before_it_is_unmapped() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    shelf.lock().unwrap().put(key(0), 1);
    let daemon = world.daemon(&shelf);
    let (client, space) = world.open();
    let diary = Arc::new(Diary::default());
    client.watch_parts(diary.clone());
    soon("it hears what is there", || diary.heard() == [(true, FIRST)]);
    let (added, fd) = shelf.lock().unwrap().grow(LATER);
    daemon.say(&added, Some(fd.as_fd()));
    client.ping(LONG).unwrap();
    soon("it hears what comes", || diary.heard().len() == 2);
    daemon.say(&retired(LATER), None);
    client.ping(LONG).unwrap();
    soon("it hears what retires", || diary.heard().len() == 3);
    soon("and then the daemon does", || shelf.lock().unwrap().let_go == [LATER]);
    // The same arena again: nothing is registered anew.
    daemon.cut();
    soon("a new session", || in_session(&client, 42));
    soon("what was let go comes again", || diary.heard().len() == 4);
    assert_eq!(diary.heard()[1..], [(true, LATER), (false, LATER), (true, LATER)]);
    drop(daemon);
    // Another arena: the old part is unregistered, but not while it may be read.
    let mut fetch = space.fetch(FetchFrom::Keys(&keys(1)), Stamp(1), LONG);
    assert!(fetch.next_ready().is_none());
    drop(fetch);
    let new = Shelf::new(2, Mode::ZeroCopy, 4);
    let _daemon = world.daemon(&new);
    soon("the new part", || diary.heard().len() == 7);
    let last: Vec<_> = diary.heard()[4..].to_vec();
    assert_eq!(last[2], (true, FIRST), "the old ones leave before the new one comes: {last:?}");
    drop((client, space));
    soon("the end", || diary.heard().len() == 8);
    assert_eq!(diary.heard()[7], (false, FIRST));
}

/// Panics whenever it is told anything.
struct Clumsy;

impl PartWatcher for Clumsy {
    fn mapped(&self, _: &PartView) {
        panic!("as the test wants");
    }

    fn leaving(&self, _: &PartView) {
        panic!("as the test wants");
    }
}

#[test]
fn a_watcher_that_panics_is_counted_and_the_others_hear_on() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let daemon = world.daemon(&shelf);
    let (client, _space) = world.open();
    client.watch_parts(Arc::new(Clumsy));
    soon("it is told", || client.counters().watcher_panics == 1);
    let later = shelf.lock().unwrap().grow(LATER);
    daemon.say(&later.0, Some(later.1.as_fd()));
    client.ping(LONG).unwrap();
    soon("it is told again", || client.counters().watcher_panics == 2);
    daemon.say(&retired(LATER), None);
    client.ping(LONG).unwrap();
    soon("the part is let go of", || shelf.lock().unwrap().let_go == [LATER]);
    assert_eq!(client.counters().watcher_panics, 3);
}

/// Keeps the staging areas it is told of, as a device that registers them does.
#[derive(Default)]
struct Keeper(Mutex<Vec<StagingView>>);

impl PartWatcher for Keeper {
    fn mapped(&self, _: &PartView) {}

    fn leaving(&self, _: &PartView) {}

    fn staging(&self, staging: &StagingView) {
        self.0.lock().unwrap().push(staging.clone());
    }
}

impl Keeper {
    fn users(&self) -> Vec<bool> {
        self.0.lock().unwrap().iter().map(|staging| staging.users() > 0).collect()
    }
}

#[test]
fn a_watcher_hears_of_every_staging_area_once_and_sees_who_still_uses_it() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    let daemon = world.daemon(&shelf);
    let (client, space) = world.open();
    let [early, late] = [Arc::new(Keeper::default()), Arc::new(Keeper::default())];
    client.watch_parts(early.clone());
    soon("what is open already", || early.users() == [true]);
    client.watch_parts(late.clone());
    soon("the other one hears it too", || late.users() == [true]);
    assert_eq!(early.users(), [true], "nobody hears it twice");
    daemon.cut();
    soon("a new session", || in_session(&client, 42));
    soon("and its staging", || early.users().len() == 2 && late.users().len() == 2);
    drop((client, space));
    // Each other's clone is a user; without it nobody is.
    late.0.lock().unwrap().clear();
    soon("nobody uses either", || early.users() == [false, false]);
}
