//! Two identities never share a digest, two prefixes never share a key.

use crate::samples::{family, key, space};
use proptest::prelude::*;
use std::collections::BTreeSet;
use undercroft_wire::*;

/// The sample with one field changed, for every field.
fn neighbours() -> Vec<Space> {
    let changes: [fn(&mut Space); 24] = [
        |_| {},
        |space| space.family.model[0] ^= 1,
        |space| space.family.model[31] ^= 0x80,
        |space| space.family.adapter[0] ^= 1,
        |space| space.family.adapter = [0; 32],
        |space| space.family.dtype = Dtype::Bf16,
        |space| space.family.dtype = Dtype::Fp8E5m2,
        |space| space.family.quantization.push('x'),
        |space| space.family.quantization.clear(),
        |space| space.family.attention.push('x'),
        |space| space.family.layout = "HND".to_owned(),
        |space| space.family.layers += 1,
        |space| space.family.kv_heads += 1,
        |space| space.family.page_tokens += 1,
        |space| space.rank = Rank::Of { index: 2, count: 4 },
        |space| space.rank = Rank::Of { index: 3, count: 8 },
        |space| space.rank = Rank::Shared,
        |space| space.group += 1,
        |space| space.geometry = Geometry::new(31, 2, 32_768).unwrap(),
        |space| space.geometry = Geometry::new(32, 1, 32_768).unwrap(),
        |space| space.geometry = Geometry::new(32, 2, 32_767).unwrap(),
        |space| space.geometry = Geometry::of_parts(32, &[32_768, 32_767]).unwrap(),
        |space| space.geometry = Geometry::of_parts(32, &[32_767, 32_768]).unwrap(),
        |space| space.geometry = Geometry::of_parts(32, &[32_768, 32_768, 64]).unwrap(),
    ];
    changes
        .iter()
        .map(|change| {
            let mut changed = space();
            change(&mut changed);
            changed
        })
        .collect()
}

#[test]
fn every_field_of_a_space_changes_its_digest() {
    let spaces = neighbours();
    let digests: BTreeSet<SpaceDigest> = spaces.iter().map(Space::digest).collect();
    assert_eq!(digests.len(), spaces.len());
}

#[test]
fn a_family_digest_covers_the_family_and_nothing_else() {
    let spaces = neighbours();
    let families: BTreeSet<FamilyDigest> =
        spaces.iter().map(|space| space.family.digest()).collect();
    let distinct: std::collections::HashSet<&Family> =
        spaces.iter().map(|space| &space.family).collect();
    assert_eq!(families.len(), distinct.len());
    assert_eq!(families.len(), 14);
}

#[test]
fn no_rank_is_taken_for_another() {
    // Shared is written as zeros: `Of` must differ from it for every index and count.
    let ranks = [
        Rank::Shared,
        Rank::Of { index: 0, count: 0 },
        Rank::Of { index: 0, count: 1 },
        Rank::Of { index: 1, count: 0 },
        Rank::Of { index: 256, count: 1 },
        Rank::Of { index: 1, count: 256 },
    ];
    let digests: BTreeSet<SpaceDigest> =
        ranks.iter().map(|rank| Space { rank: *rank, ..space() }.digest()).collect();
    assert_eq!(digests.len(), ranks.len());
}

/// The digests rebuilt from the words of docs/wire-protocol.md, with nothing but a hash function.
#[test]
fn digests_and_keys_follow_their_documented_layout() {
    let family = family();
    let mut bytes = Vec::new();
    bytes.extend(family.model);
    bytes.extend(family.adapter);
    bytes.push(3);
    for text in [&family.quantization, &family.attention, &family.layout] {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    for number in [32_u32, 8, 16] {
        bytes.extend(number.to_le_bytes());
    }
    let digest = family.digest();
    assert_eq!(digest.0, blake3::derive_key("undercroft family v1", &bytes));

    bytes.extend([1, 3, 0, 4, 0]);
    for number in [2_u32, 32, 2, 32_768, 32_768] {
        bytes.extend(number.to_le_bytes());
    }
    assert_eq!(space().digest().0, blake3::derive_key("undercroft space v1", &bytes));

    let root = [&digest.0[..], &4_u64.to_le_bytes(), b"salt"].concat();
    let root = blake3::derive_key("undercroft page key chain root v1", &root);
    let page = |tip: [u8; 32], tokens: [u32; 2]| {
        let mut bytes = tip.to_vec();
        bytes.extend(2_u64.to_le_bytes());
        bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        blake3::derive_key("undercroft page key v1", &bytes)
    };
    let mut chain = Chain::new(&digest, b"salt");
    assert_eq!((chain.parent(), chain.depth()), (None, 0));
    let first = chain.push(&[70_000, 2]);
    assert_eq!(first.0, page(root, [70_000, 2]));
    let second = chain.push(&[3, 4]);
    assert_eq!(second.0, page(first.0, [3, 4]));
    assert_eq!((chain.parent(), chain.depth()), (Some(second), 2));

    let hash = [&digest.0[..], &32_u64.to_le_bytes(), &key(1).0].concat();
    let wanted = blake3::derive_key("undercroft page key from engine hash v1", &hash);
    assert_eq!(PageKey::from_engine_hash(&digest, &key(1).0).0, wanted);

    let domain = blake3::derive_key("undercroft domain v1", b"tenant-a");
    assert_eq!(DomainId::named("tenant-a").0, domain[..16]);
}

#[test]
fn a_bucket_is_the_first_eight_bytes() {
    assert_eq!(key(1).bucket(), 0x0807_0605_0403_0201);
}

#[test]
fn a_key_in_a_log_shows_four_bytes() {
    assert_eq!(format!("{:?}", key(1)), "PageKey(01020304..)");
    let shown = format!("{:?}", KeyRun::from(vec![key(1), key(2)]));
    assert_eq!(shown, "KeyRun(2 keys)");
}

/// All keys of a sequence cut into pages as given.
fn keys(salt: &[u8], pages: &[Vec<u32>]) -> Vec<PageKey> {
    let mut chain = Chain::new(&family().digest(), salt);
    pages.iter().map(|tokens| chain.push(tokens)).collect()
}

proptest! {
    /// Bytes moved from one text to its neighbour make another identity.
    #[test]
    fn texts_do_not_run_into_each_other(
        text in "[a-c\u{0}]{0,12}", cuts in any::<[prop::sample::Index; 4]>(),
    ) {
        let at = |index: &prop::sample::Index| index.index(text.len() + 1);
        let split = |a: usize, b: usize| {
            let (a, b) = (a.min(b), a.max(b));
            Family {
                quantization: text[..a].to_owned(),
                attention: text[a..b].to_owned(),
                layout: text[b..].to_owned(),
                ..family()
            }
        };
        let one = split(at(&cuts[0]), at(&cuts[1]));
        let other = split(at(&cuts[2]), at(&cuts[3]));
        prop_assert_eq!(one == other, one.digest() == other.digest());
    }

    /// The same tokens cut into other pages have other keys, from the first difference on.
    #[test]
    fn pages_do_not_run_into_each_other(
        tokens in prop::collection::vec(0_u32..3, 1..20),
        cuts in prop::collection::vec(any::<bool>(), 20),
        others in prop::collection::vec(any::<bool>(), 20),
    ) {
        let pages = |cuts: &[bool]| {
            let mut pages = vec![vec![]];
            for (token, cut) in tokens.iter().zip(cuts) {
                pages.last_mut().unwrap().push(*token);
                if *cut {
                    pages.push(vec![]);
                }
            }
            pages
        };
        let (one, other) = (pages(&cuts), pages(&others));
        let same = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
        let pairs: Vec<bool> =
            keys(b"", &one).iter().zip(keys(b"", &other)).map(|(a, b)| *a == b).collect();
        for (index, equal) in pairs.into_iter().enumerate() {
            prop_assert_eq!(equal, index < same);
        }
    }

    /// One token changed changes every key from its page on, and none before.
    #[test]
    fn a_key_covers_its_whole_prefix(
        mut pages in prop::collection::vec(prop::collection::vec(any::<u32>(), 1..5), 1..8),
        at in any::<prop::sample::Index>(), bit in 0_u32..32,
    ) {
        let before = keys(b"", &pages);
        let page = at.index(pages.len());
        pages[page][0] ^= 1 << bit;
        let after = keys(b"", &pages);
        for index in 0..pages.len() {
            prop_assert_eq!(before[index] == after[index], index < page);
        }
    }

    #[test]
    fn a_salt_separates(one in any::<Vec<u8>>(), other in any::<Vec<u8>>()) {
        let page = [vec![1, 2, 3]];
        prop_assert_eq!(keys(&one, &page) == keys(&other, &page), one == other);
    }

    /// A page's tokens are no salt and a salt is no page: bytes that move between them count.
    #[test]
    fn a_salt_is_not_a_page(tokens in prop::collection::vec(any::<u32>(), 1..4)) {
        let salt: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        let salted = keys(&salt, &[vec![1]]);
        let paged = keys(b"", &[tokens, vec![1]]);
        prop_assert!(!paged.contains(&salted[0]));
    }

    #[test]
    fn an_engine_hash_is_bound_to_its_family(hash in any::<[u8; 32]>(), layers in 33_u32..) {
        let other = Family { layers, ..family() };
        let one = PageKey::from_engine_hash(&family().digest(), &hash);
        prop_assert_ne!(one, PageKey::from_engine_hash(&other.digest(), &hash));
        prop_assert_ne!(one, PageKey::from_engine_hash(&family().digest(), &hash[..31]));
        prop_assert_ne!(one, PageKey(hash));
    }
}
