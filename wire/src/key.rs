use crate::FamilyDigest;
use serde::{Deserialize, Serialize};
use std::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The name of a page: 32 bytes derived from the token prefix up to and including the page,
/// inside a family. Never truncated; compared whole on every hit.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
#[serde(transparent)]
pub struct PageKey(pub [u8; 32]);

impl PageKey {
    /// A key from an engine's own hash of the prefix (vLLM's 32-byte `block_hashes`, say), bound
    /// to the family because an engine's hash covers neither model nor layout.
    #[must_use]
    pub fn from_engine_hash(family: &FamilyDigest, hash: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("undercroft page key from engine hash v1");
        hasher.update(&family.0);
        hasher.update(&(hash.len() as u64).to_le_bytes());
        hasher.update(hash);
        Self(*hasher.finalize().as_bytes())
    }

    /// The first eight bytes, to follow it in a log. Never for identity.
    #[must_use]
    pub fn head(&self) -> [u8; 8] {
        let mut head = [0; 8];
        head.copy_from_slice(&self.0[..8]);
        head
    }

    /// The first eight bytes, for choosing a bucket. Never for identity.
    #[must_use]
    pub fn bucket(&self) -> u64 {
        u64::from_le_bytes(self.head())
    }
}

/// The token ids of the probe prefix, one page of it: 1, 2, 3 and so on. What a client's hash makes of
/// them tells whether two clients name pages alike ([`crate::OpenSpace`]).
#[must_use]
pub fn probe_tokens(page_tokens: u32) -> Vec<u32> {
    (1..=page_tokens).collect()
}

impl fmt::Debug for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A whole key names a prompt's prefix; four bytes are enough to follow it in a log.
        write!(f, "PageKey({:02x}{:02x}{:02x}{:02x}..)", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

/// Derives the keys of one token sequence, page by page: each key is the BLAKE3 of its parent's
/// key and of the page's token ids.
#[derive(Debug, Clone)]
pub struct Chain {
    tip: [u8; 32],
    parent: Option<PageKey>,
    depth: u32,
}

impl Chain {
    /// The empty chain of a family. `salt` narrows it further (an engine's `cache_salt`); it can
    /// never widen it, since the family stays bound in.
    #[must_use]
    pub fn new(family: &FamilyDigest, salt: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("undercroft page key chain root v1");
        hasher.update(&family.0);
        hasher.update(&(salt.len() as u64).to_le_bytes());
        hasher.update(salt);
        Self { tip: *hasher.finalize().as_bytes(), parent: None, depth: 0 }
    }

    /// Appends one page's token ids and returns the page's key.
    pub fn push(&mut self, tokens: &[u32]) -> PageKey {
        let mut hasher = blake3::Hasher::new_derive_key("undercroft page key v1");
        hasher.update(&self.tip);
        hasher.update(&(tokens.len() as u64).to_le_bytes());
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        let key = PageKey(*hasher.finalize().as_bytes());
        self.tip = key.0;
        self.parent = Some(key);
        self.depth += 1;
        key
    }

    /// The key of the last page pushed, `None` before the first.
    #[must_use]
    pub fn parent(&self) -> Option<PageKey> {
        self.parent
    }

    /// How many pages have been pushed.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.depth
    }
}
