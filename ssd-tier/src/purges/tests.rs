#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use super::{KeptPurges, MAX_PARTS_OF_DOMAIN, MAX_PURGES, PurgeList};
use crate::StoreKey;
use proptest::prelude::*;
use undercroft_wire::{DomainId, Origin, PageIdentity, PageKey, PurgeId, PurgeScope, SpaceDigest};

fn identity(domain: u8, space: u8) -> PageIdentity {
    PageIdentity {
        domain: DomainId([domain; 16]),
        space: SpaceDigest([space; 32]),
        key: PageKey([9; 32]),
        parent: None,
        depth: 0,
        page_bytes: 4096,
    }
}

fn scope(domain: Option<u8>, space: Option<u8>, writer: Option<u32>) -> PurgeScope {
    let domain = domain.map(|domain| DomainId([domain; 16]));
    PurgeScope { domain, space: space.map(|space| SpaceDigest([space; 32])), writer }
}

fn origin(writer: u32, purge: u32) -> Origin {
    Origin { writer, born: 7, purge: PurgeId(purge) }
}

fn any_scope() -> impl Strategy<Value = PurgeScope> {
    let one = || proptest::option::of(0..3_u8);
    let named = (one(), one(), one());
    named.prop_map(|(domain, space, writer)| scope(domain, space, writer.map(u32::from)))
}

#[test]
fn numbers_grow_and_follow_the_clock() {
    let mut list = PurgeList::default();
    let of = scope(Some(1), None, None);
    assert_eq!([100, 100, 50, 200].map(|now| list.add(of, now).0), [100, 101, 102, 200]);
    assert_eq!((list.last(), list.purges()), (PurgeId(200), vec![(of, PurgeId(200))]));
}

#[test]
fn a_record_is_purged_by_what_it_had_not_seen() {
    let mut list = PurgeList::default();
    let id = list.add(scope(Some(1), Some(2), Some(1000)), 10);
    assert_eq!(id, PurgeId(10));
    let of = identity(1, 2);
    assert!(list.covers(&of, &origin(1000, 9)));
    assert!(!list.covers(&of, &origin(1000, 10)), "it was stored after the purge");
    assert!(!list.covers(&of, &origin(1001, 9)));
    assert!(!list.covers(&identity(1, 3), &origin(1000, 9)));
    assert!(!list.covers(&identity(2, 2), &origin(1000, 9)));
}

#[test]
fn a_list_that_is_not_the_newest_believes_nothing_older() {
    let mut list = PurgeList::default();
    list.add(scope(Some(1), None, None), 10);
    assert!(!list.doubt(PurgeId(10)));
    assert!(!list.covers(&identity(2, 2), &origin(0, 9)));
    assert!(list.doubt(PurgeId(12)));
    assert!(list.covers(&identity(2, 2), &origin(0, 11)));
    assert!(!list.covers(&identity(1, 2), &origin(0, 12)));
    assert_eq!(list.add(scope(Some(1), None, None), 5), PurgeId(13), "no number comes twice");
}

#[test]
fn many_parts_of_a_domain_become_all_of_it_and_nothing_of_others() {
    let mut list = PurgeList::default();
    for writer in 0..=MAX_PARTS_OF_DOMAIN as u32 {
        list.add(scope(Some(1), None, Some(writer)), 10);
        list.add(scope(Some(2), None, Some(1)), 10);
    }
    assert_eq!(list.purges().len(), 2);
    assert!(list.covers(&identity(1, 2), &origin(5000, 10)));
    assert!(!list.covers(&identity(2, 2), &origin(5000, 10)));
}

#[test]
fn a_full_list_forgets_what_is_older_than_it_remembers() {
    let mut list = PurgeList::default();
    let domain = |number: u32| {
        let mut name = [0; 16];
        name[..4].copy_from_slice(&number.to_le_bytes());
        PurgeScope { domain: Some(DomainId(name)), ..PurgeScope::default() }
    };
    for number in 1..=MAX_PURGES as u32 {
        list.add(domain(number), 0);
    }
    assert_eq!((list.floor(), list.purges().len()), (PurgeId(0), MAX_PURGES));
    list.add(domain(0), 0);
    assert_eq!((list.floor(), list.purges().len()), (PurgeId(1), MAX_PURGES));
    assert!(list.covers(&identity(9, 9), &origin(0, 0)), "the purge it may need is forgotten");
    assert!(!list.covers(&identity(9, 9), &origin(0, 1)));
}

proptest! {
    /// Whatever was purged after a record was written covers it, in every list that knows of the
    /// purge, whatever became of the list since.
    #[test]
    fn what_is_purged_stays_purged(
        scopes in prop::collection::vec((any_scope(), 0..40_u32, any::<bool>()), 1..60),
        (domain, space, writer) in (0..3_u8, 0..3_u8, 0..3_u32),
        seen in 0..60_usize,
        swapped in any::<bool>(),
    ) {
        let (mut here, mut away) = (PurgeList::default(), PurgeList::default());
        let mut ids = Vec::new();
        for (scope, now, both) in &scopes {
            let id = here.add(*scope, *now);
            ids.push((id, *scope));
            if *both {
                away = here.clone();
            }
        }
        let written = ids.get(seen).map_or(here.last(), |(id, _)| *id);
        let of = identity(domain, space);
        let means = |scope: &PurgeScope| scope.means(of.domain, of.space, writer);
        let covered = ids.iter().any(|(id, scope)| *id > written && means(scope));
        let record = origin(writer, written.0);
        if covered {
            prop_assert!(here.covers(&of, &record));
        }
        let mut merged = if swapped { here.clone() } else { away.clone() };
        let learned = merged.merge(if swapped { &away } else { &here });
        prop_assert!(learned.iter().all(|(_, id)| *id <= here.last()));
        if covered {
            prop_assert!(merged.covers(&of, &record));
        }
        prop_assert_eq!(merged.last(), here.last());
        prop_assert!(merged.merge(&here).is_empty(), "it is told once");
    }

    #[test]
    fn it_is_read_as_it_was_written(
        scopes in prop::collection::vec((any_scope(), 0..40_u32), 0..60),
        encrypted in any::<bool>(),
        flipped in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let key = StoreKey::from([3; 32]);
        let key = encrypted.then_some(&key);
        let mut list = PurgeList::default();
        for (scope, now) in &scopes {
            list.add(*scope, *now);
        }
        let mut bytes = list.encode(key, if encrypted { [5; 32] } else { [0; 32] });
        prop_assert_eq!(PurgeList::decode(&bytes, key), Some(list));
        let others = StoreKey::from([4; 32]);
        prop_assert_eq!(PurgeList::decode(&bytes, Some(&others)).is_some(), !encrypted);
        prop_assert!(PurgeList::decode(&bytes[..bytes.len() - 1], key).is_none());
        let at = flipped.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(PurgeList::decode(&bytes, key).is_none());
    }
}

#[test]
fn a_list_outlives_the_process() {
    let home = tempfile::tempdir().unwrap();
    for key in [None, Some(StoreKey::from([3; 32]))] {
        let key = key.as_ref();
        let _ = std::fs::remove_file(home.path().join("purges"));
        let none = PurgeList::load(home.path(), key).unwrap();
        assert_eq!(none, KeptPurges::Known(PurgeList::default()));
        let mut list = PurgeList::default();
        for number in 0..5 {
            list.add(scope(Some(number), None, None), 10);
            list.save(home.path(), key).unwrap();
            let found = PurgeList::load(home.path(), key).unwrap();
            assert_eq!(found, KeptPurges::Known(list.clone()));
        }
        std::fs::write(home.path().join("purges"), b"something else").unwrap();
        assert_eq!(PurgeList::load(home.path(), key).unwrap(), KeptPurges::Unknown);
    }
}

/// The bytes of a list, as `docs/disk-format.md` has them.
#[test]
fn golden_list() {
    let mut list = PurgeList::default();
    list.doubt(PurgeId(3));
    list.add(scope(Some(1), Some(2), None), 5);
    list.add(scope(None, None, Some(1000)), 0x0102);
    let mut expected = Vec::new();
    expected.extend(b"UCROFTPL");
    for number in [2_u32, 0, 0x0102, 3, 2, 0] {
        expected.extend(number.to_le_bytes());
    }
    expected.extend([0; 32]);
    expected.extend([1; 16]);
    expected.extend([2; 32]);
    expected.extend([0, 0, 0, 0, 5, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend([0; 48]);
    expected.extend([0xe8, 3, 0, 0, 2, 1, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend([0; 16]);
    let crc = undercroft_arena::checksum_bytes(&expected);
    expected.extend(crc.to_le_bytes());
    assert_eq!(list.encode(None, [0; 32]), expected);
}
