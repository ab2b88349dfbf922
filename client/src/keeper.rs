use crate::bell::from_now;
use crate::connection::{Connection, Lost};
use crate::handshake::shake_hands;
use crate::shared::Shared;
use crate::space::open;
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
/// How often refused spaces are tried again.
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
    }

    fn watch(&mut self, connection: &Arc<Connection>) {
        let began = Instant::now();
        prefault(connection);
        while !connection.is_closed() && !self.shared.is_stopped() {
            let refused = self.shared.refused_spaces(connection.generation);
            if refused.is_empty() {
                connection.watch(from_now(Duration::MAX));
                continue;
            }
            connection.watch(from_now(RETRY_SPACES));
            for space in refused {
                let _still_refused = open(connection, &space, from_now(OPENING));
            }
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
        while self.shared.bell.wait(until) {
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

/// Fills the page tables of the arena's view beside everything else, so that loads do not fault.
fn prefault(connection: &Connection) {
    let parts = connection.mapped_parts();
    if parts.is_empty() {
        return;
    }
    // Without it, or where the kernel refuses, loads fault page by page and work all the same.
    let _thread = std::thread::Builder::new().name("undercroft-prefault".into()).spawn(move || {
        for part in parts {
            let _refused = part.prefault(1);
        }
    });
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
