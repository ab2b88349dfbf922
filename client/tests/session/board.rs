//! What the board says: pages that changed while they were copied, and a daemon that hangs.

use crate::shelf::{Shared, Shelf};
use crate::world::*;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use undercroft_client::{Client, ClientState, FetchFrom, LookupOptions, MissReason, Wait};
use undercroft_gpu_shim::{Device, DeviceError, HostDevice, LoadJob, StoreJob, Transfer};
use undercroft_wire::{BoardAdded, Epoch, Geometry, Mode, Reply, Request, SessionId, Stamp};

const BRIEF: LookupOptions = LookupOptions { hold: None, deadline: SHORT, due: None, have: 0 };
const LATE: Option<MissReason> = Some(MissReason::Deadline);
const HUNG: Option<MissReason> = Some(MissReason::Hung);

/// A device during whose copies a page changes.
struct Meddled {
    device: HostDevice,
    shelf: Shared,
    /// Once the copies of this many pages were started.
    after: usize,
    started: AtomicUsize,
}

impl Device for Meddled {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn blocks(&self) -> u32 {
        self.device.blocks()
    }

    fn load(&self, jobs: Vec<LoadJob>) -> Result<Transfer, DeviceError> {
        let count = jobs.len();
        let transfer = self.device.load(jobs)?;
        let before = self.started.fetch_add(count, Ordering::SeqCst);
        if (before..before + count).contains(&self.after) {
            self.shelf.lock().unwrap().raise(key(self.after as u32));
        }
        Ok(transfer)
    }

    fn store(&self, jobs: Vec<StoreJob>) -> Result<Transfer, DeviceError> {
        self.device.store(jobs)
    }
}

#[test]
fn a_page_that_changed_while_it_was_copied_is_a_miss_and_so_is_what_follows() {
    for after in [0, 1, 3, 6] {
        let world = World::new();
        let shelf = Shelf::with_board(1, Mode::ZeroCopy, 4);
        (0..7).for_each(|at| shelf.lock().unwrap().put(key(at), at as u8));
        let _daemon = world.daemon(&shelf);
        let (client, space) = world.open();
        let (keys, blocks) = (keys(7), blocks(7));
        let device = Meddled { device: device(7), shelf: shelf.clone(), after, started: 0.into() };
        let loaded = space.fetch_into(&device, FetchFrom::Keys(&keys), &blocks, Stamp(1), LONG);
        assert_eq!((loaded.pages, loaded.why), (after as u32, Some(MissReason::Changed)));
        assert_eq!(client.counters().changed_pages, 1);
        soon("the lease ends", || shelf.lock().unwrap().promises().1 == 0);
        // What changed before it was delivered is what it is.
        let whole =
            space.fetch_into(&device.device, FetchFrom::Keys(&keys), &blocks, Stamp(1), LONG);
        assert_eq!((whole.pages, whole.why), (7, None));
    }
}

#[test]
fn pages_kept_over_a_restart_are_held_against_the_same_board() {
    let world = World::new();
    let shelf = Shelf::with_board(1, Mode::ZeroCopy, 4);
    (0..2).for_each(|at| shelf.lock().unwrap().put(key(at), at as u8));
    let daemon = world.daemon(&shelf);
    let (client, space) = world.open();
    let mut fetch = space.fetch(FetchFrom::Keys(&keys(2)), Stamp(1), LONG);
    let run = fetch.next_ready().unwrap();
    drop(daemon);
    let _daemon = world.daemon(&shelf);
    soon("a new session", || {
        let session = SessionId(42);
        matches!(client.state(), ClientState::Connected { session: now, .. } if now == session)
    });
    assert_eq!(run.intact(), 2);
    shelf.lock().unwrap().raise(key(1));
    assert_eq!(run.intact(), 1);
    shelf.lock().unwrap().raise(key(0));
    assert_eq!(run.intact(), 0);
}

#[test]
fn without_a_board_what_was_delivered_is_believed() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    shelf.lock().unwrap().put(key(0), 1);
    let _daemon = world.daemon(&shelf);
    let (_client, space) = world.open();
    let mut fetch = space.fetch(FetchFrom::Keys(&keys(1)), Stamp(1), LONG);
    assert_eq!(fetch.next_ready().unwrap().intact(), 1);
}

#[test]
fn a_board_of_another_arena_or_a_second_one_breaks_the_rules() {
    let world = World::new();
    let shelf = Shelf::with_board(1, Mode::ZeroCopy, 4);
    shelf.lock().unwrap().epoch = Epoch(2);
    let daemon = world.daemon(&shelf);
    let error = Client::connect(world.options(Wait::Now(LONG))).unwrap_err();
    assert!(error.to_string().contains("epoch"), "{error}");
    shelf.lock().unwrap().epoch = Epoch(1);
    let client = world.client();
    let fd = shelf.lock().unwrap().board.as_ref().unwrap().read_only_fd().unwrap();
    daemon.say(&Reply::BoardAdded(BoardAdded { bytes: 1 }), Some(fd.as_fd()));
    let _answered_or_not = client.ping(LONG);
    soon("a new session", || daemon.connections.load(Ordering::SeqCst) == 3);
}

/// A daemon that can be stopped in its tracks, and how often it was asked.
fn stoppable(world: &World, shelf: &Shared) -> (crate::fake_daemon::FakeDaemon, Arc<AtomicBool>) {
    let stopped = Arc::new(AtomicBool::new(false));
    let is_stopped = Arc::clone(&stopped);
    let daemon = world.daemon_with(shelf, move |_, _, _| is_stopped.load(Ordering::SeqCst));
    (daemon, stopped)
}

#[test]
fn a_daemon_that_hangs_costs_one_deadline() {
    let world = World::new();
    let shelf = Shelf::with_board(1, Mode::ZeroCopy, 4);
    let (_daemon, stopped) = stoppable(&world, &shelf);
    let (client, space) = world.open();
    let keys = keys(2);
    stopped.store(true, Ordering::SeqCst);
    assert_eq!(in_time(SHORT, || space.lookup(&keys, BRIEF)).why, LATE);
    assert_eq!(client.state(), ClientState::Hung);
    let began = Instant::now();
    for _ in 0..100 {
        assert_eq!(space.lookup(&keys, PLAIN).why, HUNG);
        assert_eq!(space.fetch(FetchFrom::Keys(&keys), Stamp(1), LONG).outcome().why, HUNG);
        assert_eq!(client.ping(LONG).err(), HUNG);
    }
    assert!(began.elapsed() < GRACE, "nobody waits for a daemon that hangs");
    assert_eq!(client.counters().hung_calls, 300);
    // It turns again.
    stopped.store(false, Ordering::SeqCst);
    shelf.lock().unwrap().beat();
    assert_eq!(space.lookup(&keys, PLAIN).why, Some(MissReason::Absent));
    assert!(matches!(client.state(), ClientState::Connected { .. }));
}

#[test]
fn a_fetch_that_is_cut_by_a_hang_marks_it_too() {
    let world = World::new();
    let shelf = Shelf::with_board(1, Mode::ZeroCopy, 4);
    shelf.lock().unwrap().put(key(0), 1);
    let (_daemon, stopped) = stoppable(&world, &shelf);
    let (client, space) = world.open();
    stopped.store(true, Ordering::SeqCst);
    let mut fetch = space.fetch(FetchFrom::Keys(&keys(1)), Stamp(1), SHORT);
    assert!(fetch.try_ready().is_none());
    assert!(matches!(client.state(), ClientState::Connected { .. }), "a glance is no deadline");
    assert_eq!(in_time(SHORT, || fetch.outcome()).why, LATE);
    assert_eq!(space.lookup(&keys(1), PLAIN).why, HUNG);
}

#[test]
fn a_daemon_that_turns_is_only_slow() {
    let world = World::new();
    let shelf = Shelf::with_board(1, Mode::ZeroCopy, 4);
    let beating = shelf.clone();
    // It reads every request and answers none: as if all of them waited for a disk.
    let waits = Arc::new(AtomicBool::new(false));
    let is_waiting = Arc::clone(&waits);
    let _daemon = world.daemon_with(&shelf, move |_, _, _| {
        beating.lock().unwrap().beat();
        is_waiting.load(Ordering::SeqCst)
    });
    let (client, space) = world.open();
    waits.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(in_time(SHORT, || space.lookup(&keys(2), BRIEF)).why, LATE);
    }
    assert_eq!(client.counters().hung_calls, 0);
}

/// The heartbeat may stand still although an answer comes: what the daemon says counts more.
#[test]
fn an_answer_is_a_sign_of_life() {
    let world = World::new();
    let shelf = Shelf::with_board(1, Mode::ZeroCopy, 4);
    let slow = AtomicBool::new(true);
    let _daemon = world.daemon_with(&shelf, move |_, _, request| {
        if matches!(request, Request::Lookup(_)) && slow.swap(false, Ordering::SeqCst) {
            std::thread::sleep(4 * SHORT);
        }
        false
    });
    let (_client, space) = world.open();
    assert_eq!(in_time(SHORT, || space.lookup(&keys(2), BRIEF)).why, LATE);
    assert_eq!(space.lookup(&keys(2), PLAIN).why, HUNG);
    soon("its late answer", || space.lookup(&keys(2), PLAIN).why == Some(MissReason::Absent));
}

/// Printed for whoever wants to know; what is held is only that no call waits for its deadline.
#[test]
fn death_wakes_whoever_waits() {
    const WAITERS: usize = 8;
    let world = World::new();
    let (mut firsts, mut all) = (Vec::new(), Vec::new());
    for round in 0..20 {
        let shelf = Shelf::with_board(round + 1, Mode::ZeroCopy, 4);
        let (daemon, stopped) = stoppable(&world, &shelf);
        let (client, space) = world.open();
        let device = device(2);
        stopped.store(true, Ordering::SeqCst);
        let waiting = |who: usize| match who % 4 {
            0 => space.lookup(&keys(2), PLAIN).why,
            1 => space.fetch(FetchFrom::Keys(&keys(2)), Stamp(1), LONG).outcome().why,
            2 => client.ping(LONG).err(),
            _ => {
                let from = FetchFrom::Keys(&keys(2));
                space.fetch_into(&device, from, &blocks(2), Stamp(1), LONG).why
            }
        };
        let (died, misses) = std::thread::scope(|scope| {
            let waiters: Vec<_> = (0..WAITERS)
                .map(|who| scope.spawn(move || (waiting(who), Instant::now())))
                .collect();
            std::thread::sleep(SHORT);
            let died = Instant::now();
            daemon.cut();
            (died, waiters.into_iter().map(|w| w.join().unwrap()).collect::<Vec<_>>())
        });
        assert!(misses.iter().all(|(why, _)| *why == Some(MissReason::Disconnected)));
        let took: Vec<_> = misses.into_iter().map(|(_, at)| at - died).collect();
        firsts.extend(took.iter().min().copied());
        all.extend(took);
    }
    for (what, mut took) in [("the first miss", firsts), ("every one's miss", all)] {
        took.sort_unstable();
        let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
        println!("{what} after death: p50 {median:?}, worst of {} {worst:?}", took.len());
        assert!(worst < LONG - Duration::from_secs(1), "{worst:?}: a deadline was waited for");
    }
}

/// A shelf whose board knows of all first pages, and how often its daemon was asked anything; what
/// it is told of lookups that were not sent is no question.
fn counted(world: &World, shelf: &Shared) -> (crate::fake_daemon::FakeDaemon, Arc<AtomicUsize>) {
    shelf.lock().unwrap().board.as_ref().unwrap().first_pages_are_known();
    let asked = Arc::new(AtomicUsize::new(0));
    let asks = Arc::clone(&asked);
    let daemon = world.daemon_with(shelf, move |_, _, request| {
        asks.fetch_add(usize::from(!matches!(request, Request::Missed(_))), Ordering::SeqCst);
        false
    });
    (daemon, asked)
}

#[test]
fn what_the_board_says_begins_nothing_needs_no_question() {
    let world = World::new();
    let shelf = Shelf::with_board(1, Mode::ZeroCopy, 4);
    let (_daemon, asked) = counted(&world, &shelf);
    let (client, space) = world.open();
    let before = asked.load(Ordering::SeqCst);
    assert!(
        client.is_connected()
            && (0..100).all(|number| client.may_hold(&key(number)) == Some(false))
    );
    shelf.lock().unwrap().board.as_ref().unwrap().first_came(&key(7));
    assert!(client.may_hold(&key(7)) == Some(true) && client.may_hold(&key(8)) == Some(false));
    assert_eq!(asked.load(Ordering::SeqCst), before, "somebody was asked");
    assert_eq!(space.lookup(&[key(7)], PLAIN).why, Some(MissReason::Absent), "it says maybe");
    shelf.lock().unwrap().board.as_ref().unwrap().first_went(&key(7));
    assert!(client.may_hold(&key(7)) == Some(false));
    shelf.lock().unwrap().board.as_ref().unwrap().forget_firsts();
    assert!(client.may_hold(&key(7)) == Some(true), "the next daemon counts anew");
}

#[test]
fn what_needed_no_question_is_told_with_the_next_one() {
    let world = World::new();
    let shelf = Shelf::with_board(1, Mode::ZeroCopy, 4);
    let (_daemon, asked) = counted(&world, &shelf);
    let (client, space) = world.open();
    let told = || shelf.lock().unwrap().missed.iter().sum::<u32>();
    let before = asked.load(Ordering::SeqCst);
    assert!((0..5).all(|number| client.peek(&key(number)) == Some(false)));
    assert!((0..5).all(|number| client.may_hold(&key(number)) == Some(false)));
    assert_eq!(asked.load(Ordering::SeqCst), before);
    assert!(client.ping(LONG).is_ok());
    assert_eq!((asked.load(Ordering::SeqCst), told()), (before + 1, 5), "in front of it");
    assert!(client.ping(LONG).is_ok());
    assert_eq!(told(), 5, "once");
    assert!(client.may_hold(&key(1)) == Some(false));
    assert_eq!(space.hint(&keys(1), undercroft_wire::HintKind::Active, LONG), Ok(()));
    assert_eq!(told(), 6);
    // Nobody asks anything any more: the keeper tells of it.
    assert!((0..3).all(|number| client.may_hold(&key(number)) == Some(false)));
    soon("it is told", || told() == 9);
    let threads = 4;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                (0..100).for_each(|_| {
                    assert!(client.may_hold(&key(1)) == Some(false));
                    assert!(client.ping(LONG).is_ok());
                })
            });
        }
    });
    assert_eq!(told(), 9 + threads * 100, "none twice, none lost");
}

#[test]
fn without_a_board_or_a_table_whoever_is_connected_is_to_be_asked() {
    for shelf in [Shelf::new(1, Mode::ZeroCopy, 4), Shelf::with_board(1, Mode::ZeroCopy, 4)] {
        let world = World::new();
        let daemon = world.daemon(&shelf);
        let client = world.client();
        assert!(client.is_connected() && client.may_hold(&key(1)) == Some(true));
        drop(daemon);
        soon("it is seen", || !client.is_connected());
        assert!(client.may_hold(&key(1)).is_none());
    }
}

#[test]
fn nothing_is_to_be_had_of_a_daemon_that_hangs() {
    let world = World::new();
    let shelf = Shelf::with_board(1, Mode::ZeroCopy, 4);
    let (_daemon, stopped) = stoppable(&world, &shelf);
    let (client, space) = world.open();
    stopped.store(true, Ordering::SeqCst);
    assert_eq!(in_time(SHORT, || space.lookup(&keys(2), BRIEF)).why, LATE);
    assert!(!client.is_connected());
    assert_eq!((client.may_hold(&key(0)), client.peek(&key(0))), (None, None));
    assert_eq!(client.counters().hung_calls, 0, "nothing was called");
    stopped.store(false, Ordering::SeqCst);
    shelf.lock().unwrap().beat();
    assert!(client.may_hold(&key(0)) == Some(true) && client.is_connected());
}
