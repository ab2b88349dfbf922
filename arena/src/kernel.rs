use crate::mapping::{HUGE_BYTES, Mapping};
use crate::memfd;
use rustix::io::Errno;
use undercroft_wire::Fallback;

/// Calls of this crate that the kernel does not have or refuses, and what is done without them.
/// It finds out by calling each once, on memory that is thrown away.
#[must_use]
pub fn fallbacks() -> Vec<Fallback> {
    let mut fallbacks = Vec::new();
    if memfd::is_refused_noexec() {
        let (call, since) = ("MFD_NOEXEC_SEAL", "Linux 6.3");
        let cost = "who may write a file of the daemon's could also mark it as a program";
        fallbacks.push(Fallback::new(call, since, "files in memory are made without it", cost));
    }
    if is_refused_collapse() {
        let (call, since) = ("MADV_COLLAPSE", "Linux 6.1");
        let instead = "huge pages where the system's settings give them to shared memory";
        let cost = "with pages of 4 KiB a start takes longer, and so does each copy";
        fallbacks.push(Fallback::new(call, since, instead, cost));
    }
    fallbacks
}

fn is_refused_collapse() -> bool {
    // Of a machine without room for a huge page it is not known: nothing is said.
    let Ok(memory) = Mapping::anonymous(HUGE_BYTES) else { return false };
    if memory.populate(&(0..4096), true).is_err() {
        return false;
    }
    matches!(memory.collapse(&(0..HUGE_BYTES)), Err(Errno::INVAL | Errno::PERM | Errno::NOSYS))
}
