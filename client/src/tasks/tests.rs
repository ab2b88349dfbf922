#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use super::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(20);

/// A task that goes on until it is told what to say.
struct Held {
    task: Task<u32>,
    say: Sender<u32>,
}

impl Held {
    /// Started, and under way.
    fn new(pool: &TaskPool, lane: Lane) -> Self {
        let (begun, begins): (Sender<()>, Receiver<()>) = channel();
        let (say, said) = channel();
        let work = move |_: &dyn Fn(u32)| {
            begun.send(()).unwrap();
            said.recv().unwrap()
        };
        let task = pool.start(lane, work).unwrap();
        begins.recv_timeout(LONG).unwrap();
        Self { task, say }
    }

    fn end(&self, word: u32) {
        self.say.send(word).unwrap();
        assert_eq!(self.task.wait(Some(LONG)), Some(&Ended::Through(word)));
    }
}

fn start(pool: &TaskPool, lane: Lane, word: u32) -> Result<Task<u32>, MissReason> {
    pool.start(lane, move |_| word)
}

#[test]
fn no_load_waits_behind_a_store() {
    let pool = TaskPool::new(1, 8);
    let store = Held::new(&pool, Lane::Stores);
    let behind = start(&pool, Lane::Stores, 2).unwrap();
    let load = start(&pool, Lane::Loads, 3).unwrap();
    assert_eq!(load.wait(Some(LONG)), Some(&Ended::Through(3)));
    assert_eq!((behind.wait(Some(SHORT)), behind.end()), (None, None), "stores go one by one");
    store.end(1);
    assert_eq!(behind.wait(None), Some(&Ended::Through(2)));
}

#[test]
fn as_many_wait_in_a_lane_as_may() {
    let pool = TaskPool::new(1, 2);
    let load = Held::new(&pool, Lane::Loads);
    let waiting = [(); 2].map(|()| start(&pool, Lane::Loads, 5).unwrap());
    assert_eq!(start(&pool, Lane::Loads, 6).err(), Some(MissReason::Busy));
    assert!(start(&pool, Lane::Stores, 7).is_ok(), "the other lane has room of its own");
    load.end(4);
    assert!(waiting.iter().all(|task| task.wait(Some(LONG)) == Some(&Ended::Through(5))));
    assert!(start(&pool, Lane::Loads, 8).is_ok());
}

#[test]
fn loads_go_on_side_by_side() {
    let pool = TaskPool::new(2, 8);
    let loads = [(); 2].map(|()| Held::new(&pool, Lane::Loads));
    loads.iter().for_each(|load| load.end(1));
}

#[test]
fn what_is_given_up_before_it_begins_is_not_done() {
    let pool = TaskPool::new(1, 8);
    let first = Held::new(&pool, Lane::Loads);
    let was_done = Arc::new(AtomicBool::new(false));
    let done = Arc::clone(&was_done);
    let second = pool.start(Lane::Loads, move |_| done.store(true, Ordering::Relaxed)).unwrap();
    assert!(second.give_up() && second.give_up());
    assert_eq!(second.wait(Some(Duration::ZERO)), Some(&Ended::GivenUp), "at once");
    assert!(!first.task.give_up(), "it is under way");
    first.end(1);
    assert!(!first.task.give_up(), "it is over");
    assert!(pool.wait(LONG));
    assert!(!was_done.load(Ordering::Relaxed));
}

#[test]
fn a_panic_is_the_end_of_the_task_alone() {
    let pool = TaskPool::new(1, 8);
    let task: Task<u32> = pool.start(Lane::Stores, |_| panic!("as the test wants")).unwrap();
    assert_eq!(task.wait(Some(LONG)), Some(&Ended::Panicked));
    let next = start(&pool, Lane::Stores, 2).unwrap();
    assert_eq!(next.wait(Some(LONG)), Some(&Ended::Through(2)));
    assert!(pool.wait(LONG));
}

#[test]
fn layers_are_waited_for_one_by_one() {
    let pool = TaskPool::new(1, 8);
    let (next, goes_on) = channel::<()>();
    let work = move |arrived: &dyn Fn(u32)| {
        for pages in [4, 3] {
            arrived(pages);
            goes_on.recv().unwrap();
        }
        2
    };
    let task = pool.start(Lane::Loads, work).unwrap();
    let some = |pages| Some(Arrived { pages: Some(pages), end: None });
    assert_eq!(task.wait_layer(0, Some(LONG)), some(4));
    assert_eq!(task.wait_layer(1, Some(SHORT)), None);
    next.send(()).unwrap();
    assert_eq!(task.wait_layer(1, None), some(3));
    next.send(()).unwrap();
    let end = Some(&Ended::Through(2));
    assert_eq!(task.wait_layer(2, Some(LONG)), Some(Arrived { pages: None, end }));
    assert_eq!(task.wait_layer(0, Some(LONG)), Some(Arrived { pages: Some(4), end }));
}

#[test]
fn a_pool_that_is_closed_does_what_it_took() {
    let pool = TaskPool::new(1, 8);
    let store = Held::new(&pool, Lane::Stores);
    let waiting = start(&pool, Lane::Stores, 2).unwrap();
    pool.close();
    assert_eq!(start(&pool, Lane::Loads, 3).err(), Some(MissReason::Disconnected));
    assert!(!pool.wait(SHORT), "two are not through");
    store.end(1);
    assert!(pool.wait(LONG));
    assert_eq!(waiting.end(), Some(&Ended::Through(2)));
}

#[test]
fn a_pool_that_is_gone_does_what_it_took() {
    let pool = TaskPool::new(1, 8);
    let store = Held::new(&pool, Lane::Stores);
    let waiting = start(&pool, Lane::Stores, 2).unwrap();
    drop(pool);
    store.end(1);
    assert_eq!(waiting.wait(Some(LONG)), Some(&Ended::Through(2)));
}

/// What is under way is waited for, so that no block is touched after it.
#[test]
fn a_pool_that_is_given_up_drops_what_waits() {
    let pool = Arc::new(TaskPool::new(1, 8));
    let store = Held::new(&pool, Lane::Stores);
    let kept = Arc::new(());
    let with_it = Arc::clone(&kept);
    let waiting = pool.start(Lane::Stores, move |_| drop(with_it)).unwrap();
    let giving_up = Arc::clone(&pool);
    let giver = thread::spawn(move || giving_up.give_up());
    assert_eq!(waiting.wait(Some(LONG)), Some(&Ended::GivenUp));
    assert_eq!(start(&pool, Lane::Stores, 3).err(), Some(MissReason::Disconnected));
    assert!(!giver.is_finished() && !pool.wait(SHORT), "one is under way");
    store.end(1);
    giver.join().unwrap();
    assert_eq!(Arc::strong_count(&kept), 1, "with a task go its devices");
    pool.give_up();
}

#[test]
fn a_task_may_give_its_own_pool_up() {
    let pool = Arc::new(TaskPool::new(1, 8));
    let own = Arc::clone(&pool);
    let task = pool.start(Lane::Loads, move |_| own.give_up()).unwrap();
    assert_eq!(task.wait(Some(LONG)), Some(&Ended::Through(())));
}

/// In a child of the process there are no threads, and locks may be held by nobody.
#[test]
fn a_forked_childs_pool_takes_nothing_and_waits_for_nobody() {
    let mut pool = TaskPool::new(1, 8);
    pool.process = 0;
    let held = pool.shared.lock();
    assert_eq!(start(&pool, Lane::Loads, 1).err(), Some(MissReason::Forked));
    assert!(pool.wait(LONG));
    pool.close();
    pool.give_up();
    let task: Task<u32> = Task { progress: Arc::new(Progress::new(0)) };
    let locked = task.progress.lock();
    assert!(task.is_foreign() && !task.give_up());
    assert_eq!((task.wait(None), task.wait_layer(0, None)), (None, None));
    drop(locked);
    task.progress.end(Ended::Through(9));
    let locked = task.progress.lock();
    assert_eq!(task.wait(None), Some(&Ended::Through(9)), "what was over is over there too");
    drop((locked, held));
}
