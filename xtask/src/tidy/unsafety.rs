//! Where `unsafe` may stand.

use super::Finding;
use super::sources::{Source, each_ident};

/// Files whose path starts so may hold unsafe code: the mappings, the ring, its bare twin, the
/// foreign edges, the driver that tests have in a GPU's place, a client that forks, and the engine in
/// little that decodes beside copies.
const ALLOWED: &[&str] = &[
    "arena/src/",
    "ssd-tier/src/ring",
    "benches/src/limits/bare_ring",
    "gpu-shim/src/buffers.rs",
    "gpu-shim/src/cuda",
    "gpu-shim/src/host.rs",
    "gpu-shim/src/tests/cuda",
    "gpu-shim/src/tests/lent.rs",
    "gpu-shim/stand-in/",
    "kvstore/src/inherited.rs",
    "kvstore/src/peer.rs",
    "kvstore/src/precedence.rs",
    "client/ffi/",
    "python/src/",
    "tests/src/bin/hostile_client/fork.rs",
    "tests/src/gpu_checks/decode.rs",
    "tests/src/gpu_checks/driver.rs",
];
const LIMIT: &str = "the modules listed in xtask/src/tidy/unsafety.rs";

pub(super) fn check(source: &Source) -> Vec<Finding> {
    if ALLOWED.iter().any(|allowed| source.path.starts_with(allowed)) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    each_ident(&source.tokens, &mut |word, line| {
        if word == "unsafe" {
            findings.push(Finding::new(&source.path, line, "unsafe code", LIMIT));
        }
    });
    findings
}
