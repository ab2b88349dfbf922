#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use super::*;
use std::os::unix::fs::PermissionsExt;
use undercroft_ssd_tier::EngineChoice;

fn config(directories: &[&Path]) -> SsdConfig {
    let directory = |path: &&Path| SsdDirectory { path: path.to_path_buf(), bytes: 1 << 20 };
    SsdConfig {
        directories: directories.iter().map(directory).collect(),
        key_file: Some(KeyFile::InStore),
        segment_bytes: None,
        write_bytes_per_s: None,
        write_bytes_per_day: None,
        endurance_bytes: None,
        engine: EngineChoice::Threads,
        queue_depth: 1,
        stall: Duration::from_millis(500),
        table_flush_ms: 20,
    }
}

fn is_open(log: &Opening) -> bool {
    matches!(log, Opening::Open(_))
}

/// Disks of which some are sick.
fn disks(
    open: impl Fn(LogConfig) -> Result<PreparedLog, OpenError> + Send + Sync + 'static,
) -> Disks {
    Disks { make: Arc::new(make_directory), open: Arc::new(open) }
}

fn refusal(config: &SsdConfig) -> String {
    prepare(config, false).unwrap_err().to_string()
}

#[test]
fn a_store_that_everybody_may_write_to_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let line = refusal(&config(&[directory.path()]));
    assert!(line.contains("every user") && line.contains("ssd.path"), "{line}");
    assert_eq!(directory.path().read_dir().unwrap().count(), 0, "nothing was made there");
}

#[test]
fn a_store_or_log_of_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        use std::io::Write;
        let line =
            "SKIPPED a_store_or_log_of_another_user_is_refused: only root can give files away\n";
        return std::io::stdout().write_all(line.as_bytes()).unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join(LOG_NAME);
    fs::write(&log, b"").unwrap();
    std::os::unix::fs::chown(&log, Some(65_534), None).unwrap();
    let line = refusal(&config(&[directory.path()]));
    assert!(line.contains(LOG_NAME) && line.contains("65534"), "{line}");
    std::os::unix::fs::chown(directory.path(), Some(65_534), None).unwrap();
    let line = refusal(&config(&[directory.path()]));
    assert!(!line.contains(LOG_NAME) && line.contains("65534"), "{line}");
}

#[test]
fn one_key_serves_all_directories_whatever_their_order() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(prepare(&config(&[one.path(), two.path()]), false).unwrap().len(), 2);
    let key = fs::read(one.path().join(KEY_NAME)).unwrap();
    let mode = fs::metadata(one.path().join(KEY_NAME)).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert!(!two.path().join(KEY_NAME).exists());
    let prepared = prepare(&config(&[two.path(), one.path()]), false).unwrap();
    assert!(prepared.iter().all(|one| is_open(&one.log)));
    assert!(!two.path().join(KEY_NAME).exists());
    assert_eq!(fs::read(one.path().join(KEY_NAME)).unwrap(), key);
}

#[test]
fn a_named_key_is_never_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.key");
    let named =
        SsdConfig { key_file: Some(KeyFile::Named(path.clone())), ..config(&[directory.path()]) };
    let line = refusal(&named);
    assert!(line.contains("a.key") && line.contains("ssd.key_file"), "{line}");
    assert!(!path.exists() && !line.contains('\n'));
    fs::write(&path, [7; 32]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let line = refusal(&named);
    assert!(line.contains("a.key") && line.contains("ssd.key_file"), "{line}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(is_open(&prepare(&named, false).unwrap()[0].log));
}

#[test]
fn a_disk_that_fails_is_told_from_what_cannot_be() {
    let open = |errno: rustix::io::Errno| OpenError::Open {
        path: PathBuf::from("x"),
        source: errno.into(),
    };
    for errno in [Errno::IO, Errno::NODATA, Errno::TIMEDOUT, Errno::ROFS, Errno::NOTCONN] {
        assert!(is_fault_of_device(&open(errno)), "{errno}");
    }
    assert!(!is_fault_of_device(&open(Errno::ACCESS)));
    assert!(!is_fault_of_device(&OpenError::Locked { path: PathBuf::from("x") }));
}

#[test]
fn a_disk_that_hangs_keeps_nobody_waiting_and_is_taken_when_it_answers() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (answer, hanging) = crossbeam_channel::bounded::<()>(0);
    let hangs = disks(move |log| {
        if log.device == DeviceId(0) {
            hanging.recv().unwrap();
        }
        PageLog::prepare(log)
    });
    let both = config(&[one.path(), two.path()]);
    let mut prepared = prepare_on(&hangs, &both, Duration::from_secs(2), false).unwrap();
    assert!(is_open(&prepared[1].log));
    let Opening::Late(late) = &prepared[0].log else { panic!("it has not answered") };
    assert!(late.is_empty());
    answer.send(()).unwrap();
    assert!(late.recv().unwrap().is_ok());
    prepared.clear();

    let (_never, hanging) = crossbeam_channel::bounded::<()>(0);
    let first = one.path().to_owned();
    let make = move |path: &Path| {
        if path == first {
            let _never = hanging.recv();
        }
        make_directory(path)
    };
    let silent = Disks { make: Arc::new(make), ..disks(PageLog::prepare) };
    let prepared = prepare_on(&silent, &both, Duration::from_millis(100), false).unwrap();
    let reason = |at: usize| match &prepared[at].log {
        Opening::Failed(reason) => reason.as_str(),
        other => panic!("{other:?}"),
    };
    // The key is on the first: another one would shut it out for good.
    assert_eq!([reason(0), reason(1)], [SILENT, NO_KEY]);
    assert!(!two.path().join(KEY_NAME).exists());
}

#[test]
fn a_directory_on_a_disk_that_fails_costs_only_that_disk() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let second = two.path().to_owned();
    let failing = move |errno: Errno| {
        let second = second.clone();
        move |path: &Path| {
            let (path, doing, source) = (path.to_owned(), "make it", errno.into());
            let failed = StartError::StateDirectory { path: path.clone(), doing, source };
            if path == second { Err(failed) } else { make_directory(&path) }
        }
    };
    let both = SsdConfig { key_file: None, ..config(&[one.path(), two.path()]) };
    let prepare = |errno| {
        let disks = Disks { make: Arc::new(failing(errno)), ..disks(PageLog::prepare) };
        prepare_on(&disks, &both, OPEN_PATIENCE, false)
    };
    let prepared = prepare(Errno::IO).unwrap();
    assert!(is_open(&prepared[0].log));
    assert!(matches!(&prepared[1].log, Opening::Failed(reason) if reason.contains("make it")));
    drop(prepared);
    for errno in [Errno::ACCESS, Errno::ROFS] {
        assert!(prepare(errno).is_err(), "{errno}");
    }
}

#[test]
fn a_locked_log_is_waited_for_beside_others_and_refused_alone() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let both = config(&[one.path(), two.path()]);
    let (free, held) = crossbeam_channel::bounded::<()>(1);
    let holder = disks(move |log| match log.device {
        DeviceId(0) if held.is_empty() => Err(OpenError::Locked { path: log.path }),
        _ => PageLog::prepare(log),
    });
    let prepared = prepare_on(&holder, &both, OPEN_PATIENCE, false).unwrap();
    assert!(is_open(&prepared[1].log));
    let Opening::Late(late) = &prepared[0].log else { panic!("it is locked") };
    assert!(late.is_empty());
    free.send(()).unwrap();
    assert!(late.recv().unwrap().is_ok());
    drop(prepared);
    let all_held = disks(|log| Err(OpenError::Locked { path: log.path }));
    let error = prepare_on(&all_held, &both, OPEN_PATIENCE, false).unwrap_err();
    assert!(error.to_string().contains("in use by another process"), "{error}");
    // Nobody but a dead daemon's transfers can hold what its successor wants.
    let succeeded = prepare_on(&all_held, &both, OPEN_PATIENCE, true).unwrap();
    assert!(succeeded.iter().all(|prepared| matches!(prepared.log, Opening::Late(_))));
}

#[test]
fn the_tier_has_a_name_of_its_own_whatever_the_order_of_its_directories() {
    let of = |paths: &[&str]| {
        let paths: Vec<&Path> = paths.iter().map(Path::new).collect();
        name(Some(&config(&paths)))
    };
    assert_eq!(name(None), 0);
    assert_eq!(of(&["/a", "/b"]), of(&["/b", "/a"]));
    let names = [of(&["/a"]), of(&["/b"]), of(&["/a", "/b"]), of(&["/a/b"]), of(&["/ab"])];
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len());
    assert!(!names.contains(&0));
}
