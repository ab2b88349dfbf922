use thiserror::Error;
use undercroft_wire::{DomainId, PageKey, Rank, SpaceDigest};

/// What a page must contain: a pseudo-random function of everything that identifies it, so that
/// a page of another tenant, model, rank or key is as visible as a flipped bit, with no history
/// to keep.
///
/// The identity is hashed once (BLAKE3) into 128 bits; the bytes then come from a counter through
/// one widening multiplication per eight bytes (the round of `wyrand`), so any fragment can be
/// made and checked alone and far faster than memory. It is no cipher and need not be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageContent {
    counter: u64,
    twist: u64,
}

/// A fragment that does not hold what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "{count} wrong bytes, the first at byte {first} of the page: \
     expected {expected:#04x}, found {found:#04x}"
)]
pub struct WrongBytes {
    /// How many bytes of the fragment differ.
    pub count: u64,
    /// Position of the first one, counted from the start of the page.
    pub first: u64,
    /// What should be there.
    pub expected: u8,
    /// What is there.
    pub found: u8,
}

/// Step of the counter: odd, so that every position has its own.
const STEP: u64 = 0xa076_1d64_78bd_642f;
const WORD: usize = 8;
/// Words handled per round of the inner loops; enough to let them overlap.
const LANES: usize = 8;

impl PageContent {
    /// The content of the page called `key`.
    #[must_use]
    pub fn new(domain: &DomainId, space: &SpaceDigest, rank: Rank, key: &PageKey) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("undercroft bench page content v1");
        hasher.update(&domain.0);
        hasher.update(&space.0);
        match rank {
            Rank::Shared => hasher.update(&[0; 5]),
            Rank::Of { index, count } => {
                hasher.update(&[1]);
                hasher.update(&index.to_le_bytes());
                hasher.update(&count.to_le_bytes())
            }
        };
        hasher.update(&key.0);
        let mut seed = [0; 16];
        hasher.finalize_xof().fill(&mut seed);
        let seed = u128::from_le_bytes(seed);
        Self { counter: seed as u64, twist: (seed >> 64) as u64 }
    }

    #[inline(always)]
    fn word(&self, index: u64) -> u64 {
        let position = self.counter.wrapping_add(index.wrapping_mul(STEP));
        let product = u128::from(position) * u128::from(position ^ self.twist);
        product as u64 ^ (product >> 64) as u64
    }

    /// Writes the page's bytes from `offset` on into `out`.
    pub fn fill(&self, offset: u64, out: &mut [u8]) {
        let (head, body, first) = self.align(offset, out.len());
        let (unaligned, rest) = out.split_at_mut(head);
        self.fill_bytes(offset, unaligned);
        let (words, tail) = rest.split_at_mut(body);
        let mut index = first;
        let (blocks, last) = words.as_chunks_mut::<{ LANES * WORD }>();
        for block in blocks {
            let (slots, _) = block.as_chunks_mut::<WORD>();
            for (lane, slot) in slots.iter_mut().enumerate() {
                *slot = self.word(index + lane as u64).to_le_bytes();
            }
            index += LANES as u64;
        }
        for slot in last.as_chunks_mut::<WORD>().0 {
            *slot = self.word(index).to_le_bytes();
            index += 1;
        }
        self.fill_bytes(index * WORD as u64, tail);
    }

    /// Checks that `bytes` are the page's bytes from `offset` on.
    ///
    /// # Errors
    /// How many bytes differ and where the first of them is.
    pub fn verify(&self, offset: u64, bytes: &[u8]) -> Result<(), WrongBytes> {
        if self.matches(offset, bytes) { Ok(()) } else { Err(self.difference(offset, bytes)) }
    }

    fn matches(&self, offset: u64, bytes: &[u8]) -> bool {
        let (head, body, first) = self.align(offset, bytes.len());
        let (unaligned, rest) = bytes.split_at(head);
        let (words, tail) = rest.split_at(body);
        let mut index = first;
        let (blocks, last) = words.as_chunks::<{ LANES * WORD }>();
        let mut wrong = 0;
        for block in blocks {
            let (slots, _) = block.as_chunks::<WORD>();
            for (lane, slot) in slots.iter().enumerate() {
                wrong |= self.word(index + lane as u64) ^ u64::from_le_bytes(*slot);
            }
            index += LANES as u64;
        }
        for slot in last.as_chunks::<WORD>().0 {
            wrong |= self.word(index) ^ u64::from_le_bytes(*slot);
            index += 1;
        }
        wrong == 0
            && self.bytes_match(offset, unaligned)
            && self.bytes_match(index * WORD as u64, tail)
    }

    /// Splits a run of `len` bytes at `offset` into the bytes before the first whole word and the
    /// bytes of whole words; also the index of that first word.
    fn align(&self, offset: u64, len: usize) -> (usize, usize, u64) {
        let first = offset.div_ceil(WORD as u64);
        let head = ((first * WORD as u64 - offset) as usize).min(len);
        (head, (len - head) / WORD * WORD, first)
    }

    fn byte(&self, offset: u64) -> u8 {
        self.word(offset / WORD as u64).to_le_bytes()[(offset % WORD as u64) as usize]
    }

    fn fill_bytes(&self, offset: u64, out: &mut [u8]) {
        for (position, byte) in (offset..).zip(out) {
            *byte = self.byte(position);
        }
    }

    fn bytes_match(&self, offset: u64, bytes: &[u8]) -> bool {
        (offset..).zip(bytes).all(|(position, byte)| self.byte(position) == *byte)
    }

    #[cold]
    fn difference(&self, offset: u64, bytes: &[u8]) -> WrongBytes {
        let mut wrong = (offset..)
            .zip(bytes)
            .map(|(position, found)| (position, self.byte(position), *found))
            .filter(|(_, expected, found)| expected != found);
        let (first, expected, found) = wrong.next().expect("called for bytes that differ");
        WrongBytes { count: 1 + wrong.count() as u64, first, expected, found }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    fn content(key: u8) -> PageContent {
        let domain = DomainId::named("test");
        PageContent::new(&domain, &SpaceDigest([7; 32]), Rank::Shared, &PageKey([key; 32]))
    }

    #[test]
    fn any_run_of_a_page_can_be_made_and_checked_alone() {
        let page = content(1);
        let mut whole = vec![0; 1000];
        page.fill(0, &mut whole);
        for offset in (0..200).chain(900..1000) {
            for len in [0, 1, 7, 8, 9, 63, 64, 65, 100].into_iter().filter(|n| offset + n <= 1000) {
                let mut run = vec![0; len];
                page.fill(offset as u64, &mut run);
                assert_eq!(run, whole[offset..offset + len], "{len} bytes at {offset}");
                page.verify(offset as u64, &run).unwrap();
            }
        }
    }

    #[test]
    fn every_flipped_byte_is_found_where_it_is() {
        let page = content(2);
        let mut bytes = vec![0; 203];
        page.fill(5, &mut bytes);
        for at in 0..bytes.len() {
            bytes[at] ^= 0x10;
            let wrong = page.verify(5, &bytes).unwrap_err();
            assert_eq!((wrong.count, wrong.first), (1, 5 + at as u64));
            assert_eq!(wrong.expected ^ 0x10, wrong.found);
            bytes[at] ^= 0x10;
        }
    }

    #[test]
    fn each_part_of_the_identity_changes_the_content() {
        let domain = DomainId::named("a");
        let (space, key) = (SpaceDigest([1; 32]), PageKey([1; 32]));
        let rank = |index| Rank::Of { index, count: 2 };
        let base = PageContent::new(&domain, &space, rank(0), &key);
        for other in [
            PageContent::new(&DomainId::named("b"), &space, rank(0), &key),
            PageContent::new(&domain, &SpaceDigest([2; 32]), rank(0), &key),
            PageContent::new(&domain, &space, rank(1), &key),
            PageContent::new(&domain, &space, Rank::Shared, &key),
            PageContent::new(&domain, &space, rank(0), &PageKey([2; 32])),
        ] {
            let mut bytes = [0; 4096];
            other.fill(0, &mut bytes);
            let wrong = base.verify(0, &bytes).unwrap_err();
            assert!(wrong.count > 4000, "two pages share {} of 4096 bytes", 4096 - wrong.count);
        }
    }
}
