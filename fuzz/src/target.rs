use crate::{config, page_log, state_file, trace, wire};

/// One decoder under test.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name: also the name of its libFuzzer binary.
    pub name: &'static str,
    /// Decodes the input and checks what comes out.
    pub run: fn(&[u8]),
    /// Well-formed inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// How many times slower than a plain decoder one run is; a driver runs it that much less.
    pub cost: u64,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "wire_request", run: wire::wire_request, seeds: wire::request_seeds, cost: 1 },
    Target { name: "wire_reply", run: wire::wire_reply, seeds: wire::reply_seeds, cost: 1 },
    Target { name: "config", run: config::config, seeds: config::seeds, cost: 4 },
    // Every run writes a file.
    Target { name: "trace", run: trace::trace, seeds: trace::seeds, cost: 40 },
    // Every run makes a file and maps it twice.
    Target { name: "state_file", run: state_file::state_file, seeds: state_file::seeds, cost: 40 },
    // Every run opens two real files.
    Target { name: "page_log", run: page_log::page_log, seeds: page_log::seeds, cost: 300 },
];
