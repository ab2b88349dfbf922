use crate::bell::from_now;
use crate::connection::{Connection, Lost};
use crate::handshake::shake_hands;
use crate::shared::Shared;
use crate::space::{ask, open};
use crate::{ConnectError, MissReason, OpenError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The pause before the first attempt, and after each failure twice the last one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a daemon may take to greet when nobody waits for it.
const GREETING: Duration = Duration::from_secs(10);
/// How long a daemon may take to open one space when nobody waits for it.
const OPENING: Duration = Duration::from_secs(5);
/// A connection that lived this long was a good one: the next attempt comes soon.
const GOOD_LIFE: Duration = Duration::from_secs(1);
/// Without a call for this long, the keeper hears what the daemon says unasked. Before, it would
/// be woken by every reply.
const QUIET: Duration = Duration::from_secs(1);
/// The pause before it is looked again whether a part is still in use, and the longest one: each
/// is twice the last.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LONGEST_LOOK: Duration = Duration::from_secs(1);
/// How often the daemon hears how far a GPU's memory is registered.
const TELL_AGAIN: Duration = Duration::from_millis(200);
/// The pause before the daemon hears of lookups that its board answered where nothing else is said,
/// and the longest one: each is twice the last, unless there were such.
const FIRST_TALLY: Duration = Duration::from_secs(1);
const LONGEST_TALLY: Duration = Duration::from_secs(64);
/// How often spaces that are not open are asked for again.
const RETRY_SPACES: Duration = Duration::from_secs(1);

/// Starts the thread that keeps a client connected.
pub(crate) fn start(
    shared: &Arc<Shared>,
    connection: Option<Arc<Connection>>,
) -> Result<(), std::io::Error> {
    let keeper = Keeper { shared: Arc::clone(shared), pause: FIRST_PAUSE };
    std::thread::Builder::new()
        .name("undercroft-keeper".into())
        .spawn(move || keeper.run(connection))
        .map(drop)
}

/// Watches the connection and makes a new one when it ends. Sleeps in the kernel otherwise.
#[derive(Debug)]
struct Keeper {
    shared: Arc<Shared>,
    pause: Duration,
}

impl Keeper {
    fn run(mut self, mut connection: Option<Arc<Connection>>) {
        while !self.shared.is_stopped() {
            match connection.take() {
                Some(connection) => self.watch(&connection),
                None => connection = self.reconnect(),
            }
        }
        self.shared.gpu.end();
        self.shared.arena.end();
        self.shared.end();
    }

    fn watch(&mut self, connection: &Arc<Connection>) {
        let began = Instant::now();
        let mut retry_at = None;
        let mut look = FIRST_LOOK;
        let (mut tally, mut tally_at) = (FIRST_TALLY, None);
        let mut requests = 0;
        while !connection.is_closed() && !self.shared.is_stopped() {
            let unopened = self.shared.unopened_spaces(connection.generation);
            if unopened.is_empty() {
                retry_at = None;
            } else if *retry_at.get_or_insert_with(|| from_now(RETRY_SPACES)) <= Instant::now() {
                // Without waiting: who sends on what the callers' socket did not take, if not we?
                unopened.iter().for_each(|space| ask(connection, space));
                retry_at = Some(from_now(RETRY_SPACES));
            }
            let look_at = if self.shared.arena.tend(Some(connection)) {
                look = (look * 2).min(LONGEST_LOOK);
                Some(from_now(look))
            } else {
                look = FIRST_LOOK;
                None
            };
            let tell_at = self.shared.gpu.tell(connection).then(|| from_now(TELL_AGAIN));
            let in_use = connection.is_in_use(&mut requests);
            let quiet_at = in_use.then(|| from_now(QUIET));
            if in_use || !connection.has_firsts() {
                tally_at = None;
            } else if *tally_at.get_or_insert_with(|| from_now(tally)) <= Instant::now() {
                let more = connection.tell_missed();
                tally = if more { FIRST_TALLY } else { (tally * 2).min(LONGEST_TALLY) };
                tally_at = Some(from_now(tally));
            }
            let next = [retry_at, look_at, tell_at, quiet_at, tally_at].into_iter().flatten().min();
            connection.watch(next.unwrap_or_else(|| from_now(Duration::MAX)), !in_use);
        }
        self.shared.lost(connection);
        if began.elapsed() >= GOOD_LIFE {
            self.pause = FIRST_PAUSE;
        }
    }

    fn reconnect(&mut self) -> Option<Arc<Connection>> {
        let pause = jittered(self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        let until = from_now(pause);
        loop {
            let _seen_to_again_soon = self.shared.arena.tend(None);
            if !self.shared.bell.wait(until) {
                break;
            }
            if self.shared.is_stopped() {
                return None;
            }
        }
        match self.try_once() {
            Ok(connection) => Some(connection),
            Err(error) => {
                self.shared.failed(error.to_string());
                None
            }
        }
    }

    fn try_once(&self) -> Result<Arc<Connection>, ConnectError> {
        let connection = shake_hands(&self.shared, GREETING)?;
        publish(&self.shared, &connection)?;
        Ok(connection)
    }
}

/// Opens every known space in a new session, then hands it to the callers.
pub(crate) fn publish(shared: &Shared, connection: &Arc<Connection>) -> Result<(), ConnectError> {
    let path = || shared.options.socket.clone();
    while let Err(unasked) = shared.publish(connection) {
        for space in unasked {
            match open(connection, &space, from_now(OPENING)) {
                Ok(()) | Err(OpenError::Refused { .. } | OpenError::Space(_)) => {}
                Err(OpenError::Unanswered(MissReason::Deadline)) => {
                    connection.close(Lost::NotReading);
                    return Err(ConnectError::Silent { path: path(), waited: OPENING });
                }
                Err(OpenError::Unanswered(reason)) => {
                    let reason = connection.end().unwrap_or_else(|| reason.to_string());
                    return Err(ConnectError::Closed { path: path(), reason });
                }
            }
        }
    }
    Ok(())
}

/// A random time around `pause`, so that many engines do not all come at once.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    pause.mul_f64(0.5 + (random % 1024) as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_near_what_was_asked() {
        for _ in 0..1000 {
            let pause = jittered(Duration::from_secs(1));
            assert!(pause >= Duration::from_millis(500) && pause < Duration::from_millis(1500));
        }
    }
}
