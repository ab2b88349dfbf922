use crate::Span;
use crc_fast::{CrcAlgorithm, Digest};

const ALGORITHM: CrcAlgorithm = CrcAlgorithm::Crc64Nvme;
/// Bytes copied before they are summed: small enough to lie in the second-level cache still.
const CHUNK_BYTES: usize = 128 << 10;

/// Copies `source` to `target` in one pass and returns the CRC-64/NVME of what arrived: of the
/// target's bytes, never of the source's, which its owner may change at any moment.
///
/// # Panics
/// On a read-only target, on one that another process may change, or on spans of two lengths.
#[must_use]
pub fn copy_checked(source: &Span, target: &Span) -> u64 {
    assert_eq!(
        source.len(),
        target.len(),
        "source and destination are of one length"
    );
    let mut digest = Digest::new(ALGORITHM);
    let mut at = 0;
    while at < target.len() {
        let len = CHUNK_BYTES.min(target.len() - at);
        target.copy_within(at, source, at, len);
        target.read_at(at, len, |bytes| digest.update(bytes));
        at += len;
    }
    digest.finalize()
}

/// CRC-64/NVME of a span.
///
/// # Panics
/// As [`Span::read`].
#[must_use]
pub fn checksum(span: &Span) -> u64 {
    span.read(checksum_bytes)
}

/// CRC-64/NVME of bytes.
#[must_use]
pub fn checksum_bytes(bytes: &[u8]) -> u64 {
    crc_fast::crc64_nvme(bytes)
}

/// The checksum of `a` and `b` put one after the other, from the checksums of both and the length
/// of `b`, bytes.
#[must_use]
pub fn combine(a: u64, b: u64, len_b: u64) -> u64 {
    crc_fast::checksum_combine(ALGORITHM, a, b, len_b)
}
