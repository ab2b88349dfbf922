use crate::traffic::{Seat, Wrong};
use fastrand::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use undercroft_client::FetchFrom;
use undercroft_client::wire::Stamp;

/// It holds its pages for up to so long, as a device with many copies in flight does.
const SLOW_MS: u64 = 400;
/// How long a fetch may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a slow reader saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) wrong: Wrong,
    /// Times that it looked at a page it had leased.
    pub(super) looks: u64,
    /// Whether it did not find back to a daemon.
    pub(super) is_lost: bool,
}

/// Leases pages, and looks at them again and again for a while before it lets go: what a device
/// does whose copies wait behind others.
#[derive(Debug)]
pub(super) struct SlowReader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Seen, Seat)>,
}

impl SlowReader {
    pub(super) fn start(seat: Seat, chains: Vec<(u32, u32)>, random: Rng) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let seen = read_slowly(&seat, &chains, random, &stopped);
            (seen, seat)
        });
        Self { stop, thread }
    }

    /// What it saw; its client may take `patience` to be connected again.
    pub(super) fn stop(self, patience: Duration) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let (seen, seat) = self.thread.join().expect("a slow reader panicked");
        Seen { is_lost: !seat.client.wait_connected(patience), ..seen }
    }
}

fn read_slowly(seat: &Seat, chains: &[(u32, u32)], mut random: Rng, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) {
        let Some((id, pages)) = random.choice(chains) else { break };
        let keys = seat.engine.keys(*id, *pages);
        let mut fetch = seat.engine.space().fetch(FetchFrom::Keys(&keys), Stamp(0), PATIENCE);
        let mut leased = Vec::new();
        while let Some(run) = fetch.next_ready() {
            leased.extend(run.pages);
        }
        let until = Instant::now() + Duration::from_millis(random.u64(..SLOW_MS));
        while Instant::now() < until {
            for (key, page) in keys.iter().zip(&leased) {
                seen.looks += 1;
                if let Err(wrong) = seat.engine.look_at(key, page) {
                    let first = Some(format!("chain {id}, {key:?}, leased: {wrong}"));
                    seen.wrong.add(Wrong { bytes: wrong.count, first });
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if leased.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    seen
}
