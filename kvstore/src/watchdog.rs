//! Telling the service manager that the control thread gets on with its work.

use std::future::pending;
use std::time::Duration;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// What ends a daemon that hangs (`WatchdogSec=`), as long as nobody tells it otherwise. It is told by
/// the control thread alone, between one thing and the next: no other thread can know that this one
/// still gets anything done.
#[derive(Debug)]
pub(crate) struct Watchdog {
    beat: Option<Interval>,
}

impl Watchdog {
    /// The one that waits for this process, if there is one. Needs the runtime's clock.
    pub(crate) fn of_this_process() -> Self {
        let mut patience_us = 0;
        // The environment stays as it is: WATCHDOG_PID names this process, and no child of it.
        let waits = sd_notify::watchdog_enabled(false, &mut patience_us);
        let patience = Duration::from_micros(patience_us);
        Self { beat: beat_for(patience).filter(|_| waits).map(every) }
    }

    /// Waits until it is to be told again: for ever where there is none.
    pub(crate) async fn is_due(&mut self) {
        match &mut self.beat {
            Some(beat) => {
                let _now = beat.tick().await;
            }
            None => pending().await,
        }
    }
}

/// Tells it.
pub(crate) fn pet() {
    if let Err(error) = sd_notify::notify(false, &[sd_notify::NotifyState::Watchdog]) {
        tracing::warn!(%error, "the service manager cannot be told that all is well");
    }
}

/// How often to tell it: twice as often as has to be. `None` for no patience at all.
fn beat_for(patience: Duration) -> Option<Duration> {
    let beat = patience / 2;
    (!beat.is_zero()).then_some(beat)
}

fn every(beat: Duration) -> Interval {
    let mut interval = interval_at(Instant::now(), beat);
    // One that comes late makes none of the next come sooner.
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_twice_in_its_patience() {
        assert_eq!(beat_for(Duration::from_secs(10)), Some(Duration::from_secs(5)));
        assert_eq!(beat_for(Duration::ZERO), None);
        assert_eq!(beat_for(Duration::from_nanos(1)), None);
    }
}
