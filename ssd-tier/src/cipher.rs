//! AES-256-GCM over the records and tables of one use of a segment.
//!
//! Each use has a salt of its own, so each has keys of its own, and a nonce is no more than the
//! number of what is encrypted: nothing has to be remembered over a power cut for a nonce never
//! to be used twice under one key.

use crate::entropy::Entropy;
use crate::format::{Position, StoreId};
use crate::key::StoreKey;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce};
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use std::fmt;
use undercroft_wire::{DomainId, SegmentId, SegmentUse};

/// What authenticates a record or a table: the tag of AES-256-GCM.
pub(crate) const TAG_BYTES: usize = 16;
/// Bytes of a nonce.
pub(crate) const NONCE_BYTES: usize = NONCE_LEN;
/// Bytes of a use's salt.
pub(crate) const SALT_BYTES: usize = 32;
/// The key id of segments whose keys derive from the store key.
pub(crate) const KEY_ID_STORE: u32 = 1;

const RECORD_LABEL: &[u8] = b"undercroft record key v1";
const TABLE_LABEL: &[u8] = b"undercroft table key v1";
const PURGES_LABEL: &[u8] = b"undercroft purges key v1";

/// The keys of one use of a segment.
#[derive(Clone)]
pub(crate) struct Cipher {
    prk: Prk,
    /// Store, segment, use and key id: part of each key's derivation.
    place: [u8; 32],
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher")
    }
}

impl Cipher {
    /// The keys of the use of a segment that `salt` was drawn for.
    pub(crate) fn new(
        key: &StoreKey,
        store: StoreId,
        segment: SegmentId,
        segment_use: SegmentUse,
        salt: &[u8; SALT_BYTES],
    ) -> Self {
        let mut place = [0; 32];
        place[..16].copy_from_slice(&store.0);
        place[16..20].copy_from_slice(&segment.0.to_le_bytes());
        place[20..28].copy_from_slice(&segment_use.0.to_le_bytes());
        place[28..].copy_from_slice(&KEY_ID_STORE.to_le_bytes());
        Self { prk: Salt::new(HKDF_SHA256, salt).extract(key.secret()), place }
    }

    fn key(&self, info: &[&[u8]]) -> LessSafeKey {
        let expanded = self.prk.expand(info, &AES_256_GCM);
        LessSafeKey::new(expanded.expect("a key is shorter than HKDF's limit").into())
    }

    fn record_key(&self, domain: &DomainId) -> LessSafeKey {
        self.key(&[RECORD_LABEL, &self.place, &domain.0])
    }

    fn table_key(&self) -> LessSafeKey {
        self.key(&[TABLE_LABEL, &self.place])
    }

    /// Encrypts a record's payload from `plain` into `sealed`, which is as long.
    pub(crate) fn seal_record(
        &self,
        domain: &DomainId,
        position: &Position,
        bound: &[u8],
        plain: &[u8],
        sealed: &mut [u8],
    ) -> [u8; TAG_BYTES] {
        let mut tag = [0; TAG_BYTES];
        let nonce = Nonce::assume_unique_for_key(nonce(position.record));
        let bound = Aad::from(bound);
        self.record_key(domain)
            .seal_out_of_place_scatter(nonce, bound, plain, sealed, &[], &mut tag)
            .expect("a page is shorter than the cipher's limit");
        tag
    }

    /// Encrypts a record's payload where it lies.
    pub(crate) fn seal_record_in_place(
        &self,
        domain: &DomainId,
        position: &Position,
        bound: &[u8],
        bytes: &mut [u8],
    ) -> [u8; TAG_BYTES] {
        seal(&self.record_key(domain), &nonce(position.record), bound, bytes)
    }

    /// Decrypts a record's payload where it lies. False if it is not what was sealed; then its
    /// bytes mean nothing.
    pub(crate) fn open_record(
        &self,
        domain: &DomainId,
        position: &Position,
        bound: &[u8],
        tag: &[u8; TAG_BYTES],
        bytes: &mut [u8],
    ) -> bool {
        open(&self.record_key(domain), &nonce(position.record), bound, tag, bytes)
    }

    /// Encrypts the entries of a table block under its own nonce.
    pub(crate) fn seal_table(
        &self,
        nonce: &[u8; NONCE_BYTES],
        bound: &[u8],
        entries: &mut [u8],
    ) -> [u8; TAG_BYTES] {
        seal(&self.table_key(), nonce, bound, entries)
    }

    /// Decrypts the entries of a table block.
    pub(crate) fn open_table(
        &self,
        nonce: &[u8; NONCE_BYTES],
        bound: &[u8],
        tag: &[u8; TAG_BYTES],
        entries: &mut [u8],
    ) -> bool {
        open(&self.table_key(), nonce, bound, tag, entries)
    }
}

/// The key of a list of purges. Each list that is written draws a salt of its own.
fn purges_key(key: &StoreKey, salt: &[u8; SALT_BYTES]) -> LessSafeKey {
    let prk = Salt::new(HKDF_SHA256, salt).extract(key.secret());
    let info = [PURGES_LABEL];
    let expanded = prk.expand(&info, &AES_256_GCM);
    LessSafeKey::new(expanded.expect("a key is shorter than HKDF's limit").into())
}

/// Encrypts a list of purges where it lies.
pub(crate) fn seal_purges(
    key: &StoreKey,
    salt: &[u8; SALT_BYTES],
    bound: &[u8],
    purges: &mut [u8],
) -> [u8; TAG_BYTES] {
    seal(&purges_key(key, salt), &[0; NONCE_BYTES], bound, purges)
}

/// Decrypts a list of purges where it lies.
pub(crate) fn open_purges(
    key: &StoreKey,
    salt: &[u8; SALT_BYTES],
    bound: &[u8],
    tag: &[u8; TAG_BYTES],
    purges: &mut [u8],
) -> bool {
    open(&purges_key(key, salt), &[0; NONCE_BYTES], bound, tag, purges)
}

/// Makes the keys of each new use of a segment.
pub(crate) struct CipherMaker {
    key: StoreKey,
    entropy: Entropy,
}

impl fmt::Debug for CipherMaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CipherMaker")
    }
}

impl CipherMaker {
    /// Keys derive from `key` and from salts that `entropy` gives.
    pub(crate) fn new(key: StoreKey, entropy: Entropy) -> Self {
        Self { key, entropy }
    }

    /// The keys of a use that begins now, and its salt.
    pub(crate) fn make(
        &mut self,
        store: StoreId,
        segment: SegmentId,
        segment_use: SegmentUse,
    ) -> (Cipher, [u8; SALT_BYTES]) {
        let mut salt = [0; SALT_BYTES];
        (self.entropy)(&mut salt);
        (Cipher::new(&self.key, store, segment, segment_use, &salt), salt)
    }

    /// A nonce for a table block of a use that a former process began. It knows of no number that
    /// is still free there; of so many random ones no two are the same.
    pub(crate) fn late_nonce(&mut self) -> [u8; NONCE_BYTES] {
        let mut nonce = [0; NONCE_BYTES];
        (self.entropy)(&mut nonce);
        nonce
    }
}

/// The nonce of a number.
fn nonce(number: u32) -> [u8; NONCE_BYTES] {
    let mut bytes = [0; NONCE_BYTES];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn seal(
    key: &LessSafeKey,
    nonce: &[u8; NONCE_BYTES],
    bound: &[u8],
    bytes: &mut [u8],
) -> [u8; TAG_BYTES] {
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let tag = key.seal_in_place_separate_tag(nonce, Aad::from(bound), bytes);
    let tag = tag.expect("a page is shorter than the cipher's limit");
    tag.as_ref().try_into().expect("a tag has 16 bytes")
}

fn open(
    key: &LessSafeKey,
    nonce: &[u8; NONCE_BYTES],
    bound: &[u8],
    tag: &[u8; TAG_BYTES],
    bytes: &mut [u8],
) -> bool {
    let nonce = Nonce::assume_unique_for_key(*nonce);
    key.open_in_place_separate_tag(nonce, Aad::from(bound), tag, bytes).is_ok()
}
