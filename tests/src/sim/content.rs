//! What pages hold, and how they hang together: both follow from their names alone, so that every
//! byte can be checked without a memory of what was stored.

use undercroft_arena::{Span, checksum_bytes};
use undercroft_wire::{DomainId, PageIdentity, PageKey, SpaceDigest};

/// A space of one domain, with pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SpaceSpec {
    pub(super) domain: DomainId,
    pub(super) digest: SpaceDigest,
    pub(super) page_bytes: u32,
}

/// All pages there could be: in each space the same chains of keys. The first pages of every
/// second chain are shared.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) spaces: Vec<SpaceSpec>,
    pub(super) chains: u64,
    pub(super) depth: u32,
    /// So many pages at the head of a chain are shared.
    pub(super) shared: u32,
}

impl Book {
    /// The keys of a chain, in prefix order.
    pub(super) fn chain(&self, number: u64) -> Vec<PageKey> {
        (0..self.depth).map(|depth| self.key(number, depth)).collect()
    }

    fn key(&self, chain: u64, depth: u32) -> PageKey {
        let branch = if depth < self.shared { chain % 2 } else { chain };
        let mut bytes = [0; 32];
        let spread = mix(branch << 32 | u64::from(depth));
        bytes[..8].copy_from_slice(&spread.to_le_bytes());
        bytes[8..16].copy_from_slice(&branch.to_le_bytes());
        bytes[16..20].copy_from_slice(&depth.to_le_bytes());
        PageKey(bytes)
    }

    /// Whose page a key names, in a space.
    pub(super) fn identity(&self, space: &SpaceSpec, key: PageKey) -> PageIdentity {
        let branch = u64::from_le_bytes(key.0[8..16].try_into().expect("eight bytes"));
        let depth = u32::from_le_bytes(key.0[16..20].try_into().expect("four bytes"));
        assert_eq!(self.key(branch, depth), key, "a key that nobody made");
        let parent = depth.checked_sub(1).map(|above| self.key(branch, above));
        let SpaceSpec { domain, digest, page_bytes } = *space;
        PageIdentity { domain, space: digest, key, parent, depth, page_bytes }
    }

    /// Checks that a page is what it says it is: its space, its parent, its depth.
    ///
    /// # Panics
    /// It is not.
    pub(super) fn check(&self, identity: &PageIdentity) {
        let same =
            |space: &&SpaceSpec| space.domain == identity.domain && space.digest == identity.space;
        let space = self.spaces.iter().find(same).expect("a space that there is");
        assert_eq!(self.identity(space, identity.key), *identity, "a page names its place");
    }
}

/// A step of splitmix64.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// The words of a page, from domain, space and key.
fn words(identity: &PageIdentity) -> impl Iterator<Item = u64> {
    let named = identity.domain.0.iter().chain(&identity.space.0).chain(&identity.key.0);
    let bytes: Vec<u8> = named.copied().collect();
    let eights = bytes.chunks_exact(8).map(|word| word.try_into().expect("eight bytes"));
    let seed = eights.map(u64::from_le_bytes).fold(0, |sum, word| mix(sum ^ word));
    (0..).map(move |index: u64| mix(seed ^ index))
}

/// What a page holds.
pub(super) fn content(identity: &PageIdentity) -> Vec<u8> {
    let mut bytes = vec![0; identity.page_bytes.next_multiple_of(8) as usize];
    for (room, word) in bytes.chunks_exact_mut(8).zip(words(identity)) {
        room.copy_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(identity.page_bytes as usize);
    bytes
}

/// CRC-64/NVME of a page.
pub(super) fn checksum(identity: &PageIdentity) -> u64 {
    checksum_bytes(&content(identity))
}

/// Whether a frame holds a page.
pub(super) fn holds(frame: &Span, identity: &PageIdentity) -> bool {
    frame.read(|bytes| bytes[..identity.page_bytes as usize] == content(identity))
}
