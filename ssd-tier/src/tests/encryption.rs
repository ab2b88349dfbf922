//! What encryption promises: nothing of a page or its name is on the medium in the clear, keys and
//! nonces are never used twice, and a store keeps to its key.

use super::rig::{Rig, Setting, Stored, content, identity, key, tiny};
use crate::cipher::Cipher;
use crate::format::StoreId;
use crate::{EngineChoice, KeyError, LogConfig, OpenError, PageLog, ReadOutcome, StoreKey};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use undercroft_wire::{DomainId, SegmentId, SegmentUse};

const SALT_AT: u64 = 48;

fn config(path: &Path, encrypted: bool) -> LogConfig {
    tiny(path, Setting { engine: EngineChoice::Threads, encrypted })
}

fn fill(rig: &mut Rig) -> Vec<Stored> {
    (0..10).map(|number| rig.store(number, 4096)).collect()
}

fn contains(file: &[u8], piece: &[u8]) -> bool {
    file.windows(piece.len()).any(|window| window == piece)
}

#[test]
fn nothing_lies_on_the_medium_in_the_clear() {
    let dir = tempfile::tempdir().unwrap();
    for encrypted in [true, false] {
        let path = dir.path().join(format!("log-{encrypted}"));
        let mut rig = Rig::open(config(&path, encrypted));
        fill(&mut rig);
        rig.log.close();
        let file = fs::read(&path).unwrap();
        for number in 0..10 {
            let name = identity(number, 4096).key.0;
            assert_eq!(contains(&file, &name), !encrypted, "the key of page {number}");
            let bytes = content(number, 4096);
            assert_eq!(contains(&file, &bytes[..64]), !encrypted, "the bytes of page {number}");
        }
        assert!(!contains(&file, &[0x5a; 32]), "the store key");
    }
}

#[test]
fn every_use_of_a_segment_has_a_salt_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut salts = BTreeSet::new();
    for life in 0..3 {
        let mut rig = Rig::open(config(&path, true));
        let segment_bytes = rig.log.facts().segment_bytes;
        for record in rig.recovery.records.clone() {
            rig.free(record.extent.segment, record.extent.segment_use);
        }
        let uses: BTreeSet<_> = fill(&mut rig)
            .iter()
            .map(|stored| (stored.extent.segment.0, stored.extent.segment_use.0))
            .collect();
        rig.log.close();
        let file = fs::File::open(&path).unwrap();
        for (segment, _) in uses {
            let mut salt = [0; 32];
            let at = (64 << 10) + u64::from(segment) * segment_bytes + SALT_AT;
            file.read_exact_at(&mut salt, at).unwrap();
            assert!(salts.insert(salt), "a salt came twice in life {life}");
        }
    }
    assert!(salts.len() >= 6);
}

#[test]
fn a_store_keeps_to_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut rig = Rig::open(config(&path, true));
    let stored = fill(&mut rig);
    rig.log.close();
    let before = fs::read(&path).unwrap();
    let other = LogConfig { key: Some(StoreKey::from([1; 32])), ..config(&path, true) };
    let refused = PageLog::prepare(other).err().unwrap();
    assert!(matches!(refused, OpenError::OtherKey { .. }), "{refused}");
    assert!(before == fs::read(&path).unwrap(), "a refused store is not changed");
    let mut rig = Rig::open(config(&path, true));
    stored.iter().for_each(|stored| rig.assert_reads(stored));
    rig.log.close();
}

#[test]
fn segments_of_the_other_protection_are_given_up_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    for first in [false, true] {
        let path = dir.path().join(format!("log-{first}"));
        for encrypted in [first, !first] {
            let mut rig = Rig::open(config(&path, encrypted));
            assert!(rig.recovery.records.is_empty());
            assert_eq!(rig.recovery.other_protection > 0, !rig.recovery.created);
            let stored = fill(&mut rig);
            stored.iter().for_each(|stored| rig.assert_reads(stored));
            rig.log.close();
            let mut rig = Rig::open(config(&path, encrypted));
            assert_eq!(rig.recovery.records.len(), stored.len());
            stored.iter().for_each(|stored| rig.assert_reads(stored));
            rig.log.close();
        }
    }
}

#[test]
fn records_prove_themselves_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    for encrypted in [true, false] {
        let mut rig = Rig::open(config(&path, encrypted));
        let stored = fill(&mut rig);
        let segment_bytes = rig.log.facts().segment_bytes;
        for stored in &stored {
            assert!(matches!(rig.prove(stored), ReadOutcome::Verified { .. }));
        }
        let victim = stored[3];
        let file = fs::File::options().write(true).open(&path).unwrap();
        let segment = (64 << 10) + u64::from(victim.extent.segment.0) * segment_bytes;
        let at = segment + 4096 * (1 + u64::from(victim.extent.record)) + 77;
        file.write_all_at(&[0xff; 3], at).unwrap();
        assert_eq!(rig.prove(&victim), ReadOutcome::Corrupt);
        assert_eq!(rig.log.counters().corrupt_records, 1);
        rig.log.close();
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn keys_differ_by_everything_they_derive_from() {
    let sealed =
        |key: [u8; 32], store: u8, segment: u32, segment_use: u64, salt: u8, domain: u8| {
            let store = StoreId([store; 16]);
            let (segment, segment_use) = (SegmentId(segment), SegmentUse(segment_use));
            let cipher = Cipher::new(&key.into(), store, segment, segment_use, &[salt; 32]);
            let position = crate::format::Position { store, segment, segment_use, record: 0 };
            let mut bytes = [0; 64];
            let domain = DomainId([domain; 16]);
            cipher.seal_record_in_place(&domain, &position, b"", &mut bytes);
            let mut table = [0; 64];
            cipher.seal_table(&[0; 12], b"", &mut table);
            (bytes, table)
        };
    let all = [
        sealed([0; 32], 0, 0, 0, 0, 0),
        sealed([1; 32], 0, 0, 0, 0, 0),
        sealed([0; 32], 1, 0, 0, 0, 0),
        sealed([0; 32], 0, 1, 0, 0, 0),
        sealed([0; 32], 0, 0, 1, 0, 0),
        sealed([0; 32], 0, 0, 0, 1, 0),
    ];
    let streams: BTreeSet<_> = all.iter().flat_map(|(record, table)| [record, table]).collect();
    assert_eq!(streams.len(), 2 * all.len(), "each has a key stream of its own");
    assert_ne!(all[0].0, sealed([0; 32], 0, 0, 0, 0, 1).0, "each domain has its key");
}

#[test]
fn secrets_of_domains_are_stable_and_their_own() {
    let secret = key().domain_secret(&DomainId([1; 16]));
    assert_eq!(*secret, *key().domain_secret(&DomainId([1; 16])));
    assert_ne!(*secret, *key().domain_secret(&DomainId([2; 16])));
    assert_ne!(*secret, *StoreKey::from([0; 32]).domain_secret(&DomainId([1; 16])));
}

#[test]
fn a_key_file_is_made_once_and_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.key");
    let made = StoreKey::load_or_create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let again = StoreKey::load_or_create(&path).unwrap();
    let domain = DomainId([0; 16]);
    assert_eq!(*made.domain_secret(&domain), *again.domain_secret(&domain));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left behind");
    let other = StoreKey::load_or_create(&dir.path().join("other.key")).unwrap();
    assert_ne!(*made.domain_secret(&domain), *other.domain_secret(&domain));
}

#[test]
fn key_files_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.key");
    let write = |bytes: &[u8], mode: u32| {
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        StoreKey::load_or_create(&path)
    };
    assert!(write(&[7; 32], 0o600).is_ok());
    assert!(write("AB".repeat(32).as_bytes(), 0o400).is_ok());
    assert!(write(format!("{}\n", "ab".repeat(32)).as_bytes(), 0o600).is_ok());
    for wrong in [&b""[..], &[7; 31], &[7; 33], "ag".repeat(32).as_bytes(), &[7; 5000]] {
        let error = write(wrong, 0o600).unwrap_err();
        assert!(matches!(error, KeyError::NotAKey { .. }), "{error}");
        assert!(error.to_string().contains("store.key"), "{error}");
    }
    for mode in [0o644, 0o602, 0o620] {
        let error = write(&[7; 32], mode).unwrap_err();
        assert!(matches!(error, KeyError::Exposed { .. }), "{mode:o}: {error}");
    }
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(StoreKey::load(&link).unwrap_err(), KeyError::Io { .. }));
    assert!(matches!(StoreKey::load(dir.path()).unwrap_err(), KeyError::Exposed { .. }));
}
