//! How the control thread gets a processor: before threads that only share them, where it may.
#![expect(unsafe_code, reason = "scheduling policies are in no safe interface yet")]

use std::io;
use std::marker::PhantomData;

/// The lowest of the realtime priorities, so that everything else that has one comes first.
const PRIORITY: libc::c_int = 1;

/// That of the control thread.
///
/// Its work is microseconds at a time, and an engine waits for it. Threads of engines spin while
/// they wait for each other, and beside such threads Linux was seen to leave a thread that shares
/// a processor with them waiting for a minute.
#[derive(Debug)]
pub(crate) struct Precedence {
    is_held: bool,
    /// It is the thread's that asked for it.
    _thread: PhantomData<*const ()>,
}

impl Precedence {
    /// None: the thread waits its turn.
    pub(crate) fn none() -> Self {
        Self { is_held: false, _thread: PhantomData }
    }

    /// Asks for it, for this thread. Threads that it starts have none.
    ///
    /// # Errors
    /// The process may not have it.
    pub(crate) fn ask() -> io::Result<Self> {
        schedule(libc::SCHED_RR, PRIORITY)?;
        Ok(Self { is_held: true, ..Self::none() })
    }

    /// Does what takes long and nobody waits for without it.
    pub(crate) fn without<T>(&self, work: impl FnOnce() -> T) -> T {
        let lowered = self.is_held && schedule(libc::SCHED_OTHER, 0).is_ok();
        let done = work();
        if lowered && let Err(error) = schedule(libc::SCHED_RR, PRIORITY) {
            tracing::warn!(%error, "the control thread waits its turn from now on");
        }
        done
    }
}

fn schedule(policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // What has the flag once may not put it down again, so it is there with every policy.
    let policy = policy | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the pointer is to a parameter that lives until the call is over; 0 is this thread.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use std::thread;

    /// The policy of the calling thread, by its number.
    fn policy() -> String {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(38).unwrap().to_owned()
    }

    #[test]
    fn who_has_it_passes_it_on_to_nobody_and_can_do_without() {
        let tried = thread::spawn(|| {
            assert_eq!(policy(), "0");
            let Ok(precedence) = Precedence::ask() else {
                assert_eq!(policy(), "0", "who is refused waits his turn");
                return Precedence::none().without(policy) == "0";
            };
            assert_eq!(policy(), "2");
            assert_eq!(thread::spawn(policy).join().unwrap(), "0");
            assert_eq!(precedence.without(policy), "0");
            assert_eq!(precedence.without(|| thread::spawn(policy).join().unwrap()), "0");
            policy() == "2"
        });
        assert!(tried.join().unwrap());
    }
}
