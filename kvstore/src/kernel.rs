//! What this machine's kernel does not have, and what the daemon does without it. Everything works
//! from Linux 6.6 on; all the way back to 5.15 there is a way around, and `status` names it.

use crate::peer;
use crate::process;
use undercroft_wire::Fallback;

/// Calls of the daemon itself and of its arena that the kernel does not have or refuses. Those of
/// page logs are each log's own.
pub(crate) fn fallbacks() -> Vec<Fallback> {
    let mut fallbacks = undercroft_arena::fallbacks();
    let own = process::watch(std::process::id());
    if !peer::has_pidfd() {
        let (instead, cost) = match own {
            Some(_) => (
                "pidfd_open by the number that SO_PEERCRED tells, and the time that process began",
                "a client that ends before it is accepted, and whose number is used again by then, \
                 is taken for the process that has it now",
            ),
            None => ("nothing, as pidfd_open is refused, too", "sessions are served in copy mode"),
        };
        fallbacks.push(Fallback::new("SO_PEERPIDFD", "Linux 6.5", instead, cost));
    }
    match own {
        None => {
            let instead = "leases of an earlier daemon are kept until it is seen that no process \
                           has their number";
            let cost = "their frames may stay taken for long after a restart";
            fallbacks.push(Fallback::new("pidfd_open", "Linux 5.3", instead, cost));
        }
        Some(own) if !process::is_pidfs(&own) => {
            let instead = "a process is told from another of the same number by when it began";
            let cost = "two that begin within 10 ms and have one number are taken for the same";
            let call = "the inode numbers of pidfds";
            fallbacks.push(Fallback::new(call, "Linux 6.9", instead, cost));
        }
        Some(_) => {}
    }
    fallbacks
}
