//! What a record proves: whose bytes they are, where they lie, and that they are whole.

use crate::cipher::{Cipher, TAG_BYTES};
use crate::format::{COMPRESSION_NONE, FORMAT_VERSION, Position, entry_flags};
use undercroft_arena::{checksum_bytes, combine};
use undercroft_wire::PageIdentity;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes, KnownLayout, Unaligned};

const RECORD_MAGIC: [u8; 8] = *b"UCROFTRC";

/// How a record proves itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ProofKind {
    /// CRC-64/NVME over preamble and payload.
    Crc64 = 1,
    /// The tag of AES-256-GCM over the payload, with the preamble bound into it.
    Aes256Gcm = 2,
}

impl ProofKind {
    /// The kind of all records in a use of a segment.
    pub(crate) fn of(cipher: Option<&Cipher>) -> Self {
        if cipher.is_some() { Self::Aes256Gcm } else { Self::Crc64 }
    }
}

/// What the stored bytes of a record must agree with: a tag, or a CRC in the first eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Proof(pub(crate) [u8; TAG_BYTES]);

/// What is bound into a proof beside the payload; see `docs/disk-format.md`.
#[derive(IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPreamble {
    magic: [u8; 8],
    version: U32,
    flags: U16,
    compression: u8,
    proof_kind: u8,
    store: [u8; 16],
    segment: U32,
    record: U32,
    segment_use: U64,
    domain: [u8; 16],
    space: [u8; 32],
    key: [u8; 32],
    parent: [u8; 32],
    depth: U32,
    page_bytes: U32,
    stored_bytes: U32,
    reserved: U32,
    payload_crc: U64,
}

/// Bytes of a preamble.
pub(crate) const PREAMBLE_BYTES: usize = size_of::<RawPreamble>();
const _: () = assert!(PREAMBLE_BYTES == 184);

fn preamble(
    identity: &PageIdentity,
    position: &Position,
    payload_crc: u64,
    kind: ProofKind,
) -> [u8; PREAMBLE_BYTES] {
    let raw = RawPreamble {
        magic: RECORD_MAGIC,
        version: FORMAT_VERSION.into(),
        flags: entry_flags(identity).into(),
        compression: COMPRESSION_NONE,
        proof_kind: kind as u8,
        store: position.store.0,
        segment: position.segment.0.into(),
        record: position.record.into(),
        segment_use: position.segment_use.0.into(),
        domain: identity.domain.0,
        space: identity.space.0,
        key: identity.key.0,
        parent: identity.parent.map_or([0; 32], |parent| parent.0),
        depth: identity.depth.into(),
        page_bytes: identity.page_bytes.into(),
        stored_bytes: identity.page_bytes.into(),
        reserved: 0.into(),
        payload_crc: payload_crc.into(),
    };
    zerocopy::transmute!(raw)
}

/// A record as its proof sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// Whose bytes they are.
    pub(crate) identity: &'a PageIdentity,
    /// Where they lie.
    pub(crate) position: Position,
    /// CRC-64/NVME of the page.
    pub(crate) payload_crc: u64,
}

impl Subject<'_> {
    fn preamble(&self, kind: ProofKind) -> [u8; PREAMBLE_BYTES] {
        preamble(self.identity, &self.position, self.payload_crc, kind)
    }

    /// The proof of a record that is not encrypted: made from the payload's own CRC, which was
    /// born when the page was copied into its frame, without reading the payload again.
    pub(crate) fn crc_proof(&self) -> Proof {
        let preamble = checksum_bytes(&self.preamble(ProofKind::Crc64));
        let crc = combine(preamble, self.payload_crc, u64::from(self.identity.page_bytes));
        let mut proof = Proof::default();
        proof.0[..8].copy_from_slice(&crc.to_le_bytes());
        proof
    }

    /// Encrypts the page from `plain` into `sealed`; `None` if it is not the page any more: a bit
    /// that flipped in memory is as wrong as one that flips on disk, and no tag would tell.
    pub(crate) fn seal(&self, cipher: &Cipher, plain: &[u8], sealed: &mut [u8]) -> Option<Proof> {
        let bound = self.preamble(ProofKind::Aes256Gcm);
        let domain = &self.identity.domain;
        let tag = cipher.seal_record(domain, &self.position, &bound, plain, sealed);
        // Now that it is in the cache.
        (checksum_bytes(plain) == self.payload_crc).then_some(Proof(tag))
    }

    /// Encrypts the page where it lies.
    pub(crate) fn seal_in_place(&self, cipher: &Cipher, bytes: &mut [u8]) -> Proof {
        let bound = self.preamble(ProofKind::Aes256Gcm);
        let domain = &self.identity.domain;
        Proof(cipher.seal_record_in_place(domain, &self.position, &bound, bytes))
    }

    /// Whether stored bytes are the page; if so, they are the plain page afterwards. A tag says
    /// that they are what was encrypted, and nothing is encrypted whose CRC was not compared.
    pub(crate) fn open(&self, cipher: Option<&Cipher>, proof: &Proof, bytes: &mut [u8]) -> bool {
        match cipher {
            None => self.crc_proof() == *proof && checksum_bytes(bytes) == self.payload_crc,
            Some(cipher) => {
                let bound = self.preamble(ProofKind::Aes256Gcm);
                let domain = &self.identity.domain;
                cipher.open_record(domain, &self.position, &bound, &proof.0, bytes)
            }
        }
    }
}
