use std::io;
use undercroft_wire::Fallback;

/// What the machine did not give a log, and can be done without.
#[derive(Debug, Default)]
pub(crate) struct Lacks {
    /// Means there were not enough of, one line each.
    pub(crate) refused: Vec<String>,
    /// Calls the kernel does not have or refuses.
    pub(crate) fallbacks: Vec<Fallback>,
}

impl Lacks {
    /// No ring could be made.
    pub(crate) fn no_ring(&mut self, error: &io::Error) {
        self.refused.push(format!("io_uring: {error}, threads are used"));
        let instead = "a pool of threads reads and writes";
        let cost = "more processor time for each transfer, and fewer of them a second";
        self.fallbacks.push(Fallback::new("io_uring", "Linux 5.11", instead, cost));
    }

    /// The ring does its work whenever a transfer ends.
    pub(crate) fn no_deferred_work(&mut self) {
        let (call, since) = ("IORING_SETUP_DEFER_TASKRUN", "Linux 6.1");
        let instead = "transfers interrupt their thread as they end";
        let cost = "more processor time for each transfer";
        self.fallbacks.push(Fallback::new(call, since, instead, cost));
    }

    /// Memory can be registered with the ring only once.
    pub(crate) fn no_sparse_buffers(&mut self) {
        let (call, since) = ("IORING_RSRC_REGISTER_SPARSE", "Linux 5.19");
        let instead = "parts of the arena are registered once, at the start";
        let cost = "transfers into parts that are added later pin their memory each time";
        self.fallbacks.push(Fallback::new(call, since, instead, cost));
    }
}
