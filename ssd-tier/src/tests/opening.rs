//! What can be found where the log should be.

use super::rig::{Rig, Stored, tiny};
use crate::format::{BLOCK, BLOCK_LEN};
use crate::{EngineChoice, LogConfig, OpenError, PageLog};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

fn config(path: &Path) -> LogConfig {
    tiny(path, EngineChoice::Threads)
}

fn refusal(config: LogConfig) -> OpenError {
    match PageLog::open(config, Vec::new(), Box::new(drop)) {
        Ok(_) => panic!("the log opened"),
        Err(e) => e,
    }
}

#[test]
fn a_file_that_is_not_a_log_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("precious");
    for bytes in [b"precious".to_vec(), vec![1; 100_000], vec![0; 100_000]] {
        fs::write(&path, &bytes).unwrap();
        let error = refusal(config(&path));
        assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn an_empty_file_becomes_a_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    for length in [0, 10, 4096, 65536] {
        fs::write(&path, vec![0; length]).unwrap();
        let rig = Rig::open(config(&path));
        assert!(rig.recovery.created);
        rig.log.close();
    }
}

/// A power cut may leave any sectors of the first block that is ever written. Only the first and
/// the last of them are not zero.
#[test]
fn a_first_format_that_was_torn_is_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    Rig::open(config(&path)).log.close();
    let whole = fs::read(&path).unwrap();
    for lost in [&[][..], &[0], &[7], &[0, 7]] {
        let mut torn = whole[..BLOCK_LEN].to_vec();
        for &sector in lost {
            torn[sector * 512..(sector + 1) * 512].fill(0);
        }
        fs::write(&path, torn).unwrap();
        let rig = Rig::open(config(&path));
        rig.log.close();
    }
    // What is longer was not torn in its first block.
    let mut end = vec![0; 2 * BLOCK_LEN];
    end[BLOCK_LEN - 8..BLOCK_LEN].copy_from_slice(&whole[BLOCK_LEN - 8..BLOCK_LEN]);
    fs::write(&path, end).unwrap();
    let error = refusal(config(&path));
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
}

#[test]
fn other_versions_and_damaged_heads_are_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    Rig::open(config(&path)).log.close();
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    let mut both = [0; 2 * BLOCK_LEN];
    file.read_exact_at(&mut both, 0).unwrap();
    for version in [1, 3] {
        let mut other: [u8; BLOCK_LEN] = both[..BLOCK_LEN].try_into().unwrap();
        other[8] = version;
        let sum = undercroft_arena::checksum_bytes(&other[..BLOCK_LEN - 8]);
        other[BLOCK_LEN - 8..].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&other, 0).unwrap();
        let rig = Rig::open(config(&path));
        assert!(rig.recovery.created, "version {version}");
        let aside = rig.log.facts().set_aside.clone().unwrap();
        rig.log.close();
        assert_eq!(file.metadata().unwrap().ino(), fs::metadata(&aside).unwrap().ino());
        fs::rename(&aside, &path).unwrap();
    }
    // One damaged copy is repaired, two are not.
    file.write_all_at(&both, 0).unwrap();
    file.write_all_at(&[0xff; 8], BLOCK + 100).unwrap();
    let rig = Rig::open(config(&path));
    assert_eq!(rig.recovery.corrupt_superblocks, 1);
    rig.log.close();
    let rig = Rig::open(config(&path));
    assert_eq!(rig.recovery.corrupt_superblocks, 0);
    rig.log.close();
    file.write_all_at(&[0xff; 8], 100).unwrap();
    file.write_all_at(&[0xff; 8], BLOCK + 100).unwrap();
    let rig = Rig::open(config(&path));
    assert!(rig.recovery.created && rig.log.facts().set_aside.is_some());
    rig.log.close();
}

#[test]
fn a_second_opener_is_refused_and_the_first_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut rig = Rig::open(tiny(&path, EngineChoice::Auto));
    let error = refusal(config(&path));
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    let stored = rig.store(1, 4096);
    rig.assert_reads(&stored);
    rig.log.close();
    Rig::open(config(&path)).log.close();
}

#[test]
fn places_that_cannot_hold_a_log() {
    let dir = tempfile::tempdir().unwrap();
    let error = refusal(config(dir.path()));
    assert!(matches!(error, OpenError::NotAFile { .. }), "{error}");
    let error = refusal(config(Path::new("/dev/null")));
    assert!(matches!(error, OpenError::NotAFile { .. }), "{error}");
    let (link, target) = (dir.path().join("link"), dir.path().join("target"));
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let error = refusal(config(&link));
    assert!(matches!(error, OpenError::NotAFile { .. }), "{error}");
    fs::write(&target, b"").unwrap();
    let error = refusal(config(&link));
    assert!(matches!(error, OpenError::NotAFile { .. }), "{error}");
    assert_eq!(fs::metadata(&target).unwrap().len(), 0, "nothing was written through the link");
    let error = refusal(config(&dir.path().join("no").join("log")));
    assert!(matches!(error, OpenError::Open { .. }), "{error}");
    let path = dir.path().join("huge");
    let huge = LogConfig { segment_bytes: None, capacity_bytes: 900 << 40, ..config(&path) };
    let error = refusal(huge);
    let OpenError::NoSpace { needed, available, .. } = error else { panic!("{error}") };
    assert!(needed > available && needed > 900 << 40);
    assert!(!path.exists(), "a log that was refused leaves no file");
}

#[test]
fn a_file_of_another_user_is_refused() {
    use std::io::Write;
    if !rustix::process::geteuid().is_root() {
        let line = "SKIPPED a_file_of_another_user_is_refused: only root can give files away\n";
        std::io::stdout().write_all(line.as_bytes()).unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    Rig::open(config(&path)).log.close();
    std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
    let before = fs::read(&path).unwrap();
    let error = refusal(config(&path));
    assert!(matches!(error, OpenError::Owner { owner: 65_534, .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn configurations_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let wrong = [
        LogConfig { capacity_bytes: 0, ..config(&path) },
        LogConfig { segment_bytes: Some(4096), ..config(&path) },
        LogConfig { segment_bytes: Some(8 << 30), ..config(&path) },
        LogConfig { queue_depth: 0, ..config(&path) },
        LogConfig { queue_depth: 2000, ..config(&path) },
        LogConfig { segment_bytes: Some(16 << 10), capacity_bytes: 1 << 50, ..config(&path) },
    ];
    for wrong in wrong {
        let error = refusal(wrong);
        assert!(matches!(error, OpenError::Config { .. }), "{error}");
        assert!(!path.exists());
    }
}

#[test]
fn the_capacity_may_change() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut rig = Rig::open(config(&path));
    let stored: Vec<Stored> = (0..24).map(|n| rig.store(n, 4096)).collect();
    let before = rig.log.facts().clone();
    rig.log.close();
    let larger = LogConfig { capacity_bytes: 128 << 10, ..config(&path) };
    let mut rig = Rig::open(larger);
    assert_eq!(rig.log.facts().segments, before.segments + 4);
    assert_eq!(rig.recovered(&stored).len(), 24);
    stored.iter().for_each(|stored| rig.assert_reads(stored));
    rig.log.close();
    let length = fs::metadata(&path).unwrap().len();
    let smaller = LogConfig { capacity_bytes: 16 << 10, ..config(&path) };
    let mut rig = Rig::open(smaller);
    assert_eq!(rig.log.facts().segments, 5);
    assert!(fs::metadata(&path).unwrap().len() < length);
    let kept = rig.recovered(&stored);
    assert!(!kept.is_empty() && kept.len() < 24);
    for stored in &stored {
        if kept.contains(&stored.number) {
            rig.assert_reads(stored);
        }
    }
    rig.log.close();
}

#[test]
fn an_interrupted_start_is_finished_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    Rig::open(config(&path)).log.close();
    // As if killed after the superblocks were written and before the length was reserved.
    fs::File::options().write(true).open(&path).unwrap().set_len(2 * BLOCK).unwrap();
    let mut rig = Rig::open(config(&path));
    let stored = rig.store(1, 4096);
    rig.assert_reads(&stored);
    rig.log.close();
}
