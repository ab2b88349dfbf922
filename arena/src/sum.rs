use crate::Span;
use crc_fast::{CrcAlgorithm, Digest};

const ALGORITHM: CrcAlgorithm = CrcAlgorithm::Crc64Nvme;

/// Copies `source` to `target` in one pass and returns the CRC-64/NVME of what was written: every
/// byte of the source is read once, so that its owner, who may change it at any moment, cannot
/// have one value summed and another one copied.
///
/// # Panics
/// On a read-only target, on one that another process may change, on spans of two lengths or
/// overlapping ones.
#[must_use]
pub fn copy_checked(source: &Span, target: &Span) -> u64 {
    assert!(!target.is_foreign(), "what another process may change is not worth a checksum");
    let mut digest = Digest::new(ALGORITHM);
    target.copy_chunks(source, |bytes| digest.update(bytes));
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
/// of `b`, bytes. Takes about a tenth of a microsecond for a page.
///
/// crc-fast can do this too, by squaring 64 × 64 bit matrices: that takes longer than copying
/// the page. So here it is the multiplication by x^(8 × `len_b`) that zlib's `crc32_combine` does.
#[must_use]
pub fn combine(a: u64, b: u64, len_b: u64) -> u64 {
    let mut shifted = a;
    let mut left = len_b;
    while left != 0 {
        shifted = multiply(shifted, SHIFTS[left.trailing_zeros() as usize]);
        left &= left - 1;
    }
    shifted ^ b
}

/// The polynomial of CRC-64/NVME, reflected: the coefficient of x^63 is bit 0.
const POLYNOMIAL: u64 = 0x9a6c_9329_ac4b_c9b5;
/// `SHIFTS[k]` is x^(8 × 2^k): what 2^k bytes more do to a checksum.
const SHIFTS: [u64; 64] = shifts();

const fn shifts() -> [u64; 64] {
    let mut table = [0; 64];
    // x^8: bit 63 is x^0.
    table[0] = 1 << (63 - 8);
    let mut k = 1;
    while k < 64 {
        table[k] = multiply(table[k - 1], table[k - 1]);
        k += 1;
    }
    table
}

/// The product of two polynomials modulo [`POLYNOMIAL`], all three reflected.
const fn multiply(a: u64, mut b: u64) -> u64 {
    let mut product = 0;
    let mut bit = 64;
    while bit > 0 {
        bit -= 1;
        product ^= b & (a >> bit & 1).wrapping_neg();
        b = b >> 1 ^ POLYNOMIAL & (b & 1).wrapping_neg();
    }
    product
}
