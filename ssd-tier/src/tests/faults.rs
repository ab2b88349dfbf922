//! A disk that fails under both engines.

use super::contract::contract;
use super::rig::{Rig, Setting, Stored, tiny};
use crate::engine::{Done, Engine, Io, Kind};
use crate::{AppendOutcome, Completion, Op, ReadOutcome};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

contract!(
    a_failed_write_retires_its_segment,
    a_failed_read_is_a_miss_that_time,
    short_transfers_are_finished,
    a_failed_flush_leaves_the_segment_unsealed,
    failed_tables_lose_nothing_while_the_log_lives,
    a_broken_engine_is_a_lost_device,
    a_panic_is_a_lost_device,
);

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Page transfers of this kind fail.
    Page(Kind),
    /// Flushes fail.
    Flush,
    /// Headers and tables are not written.
    Chores,
    /// Every transfer says that it moved one block only.
    Short,
    /// The engine itself.
    Engine,
    /// The log's thread panics.
    Panic,
}

/// The present fault, if any.
type Switch = Arc<Mutex<Option<Fault>>>;

struct Faulty {
    inner: Box<dyn Engine>,
    fault: Switch,
}

/// Pages in these tests have two blocks, headers and tables one.
const PAGE: u32 = 8192;

impl Engine for Faulty {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn start(&mut self, io: Io) {
        self.inner.start(io);
    }

    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Done>) -> io::Result<()> {
        let first = done.len();
        self.inner.wait(timeout, done)?;
        let broken = || io::Error::from_raw_os_error(5);
        let fault = *self.fault.lock().unwrap();
        for done in &mut done[first..] {
            let page = done.io.span.as_ref().is_some_and(|span| span.len() == PAGE as usize);
            let block = done.io.span.as_ref().is_some_and(|span| span.len() == 4096);
            match fault {
                Some(Fault::Page(kind)) if page && done.io.kind == kind => {
                    done.result = Err(broken());
                }
                Some(Fault::Flush) if done.io.kind == Kind::Flush => done.result = Err(broken()),
                Some(Fault::Chores) if block => done.result = Err(broken()),
                Some(Fault::Short) if page => done.result = Ok(4096),
                _ => {}
            }
        }
        match fault {
            Some(Fault::Engine) => Err(broken()),
            Some(Fault::Panic) => panic!("this test's own panic"),
            _ => Ok(()),
        }
    }
}

fn open(config: crate::LogConfig) -> (Rig, Switch) {
    let switch = Switch::default();
    let fault = Arc::clone(&switch);
    let rig = Rig::open_through(config, |inner| Box::new(Faulty { inner, fault }));
    (rig, switch)
}

fn set(switch: &Switch, fault: impl Into<Option<Fault>>) {
    *switch.lock().unwrap() = fault.into();
}

fn a_failed_write_retires_its_segment(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(&dir.path().join("log"), setting);
    let (mut rig, switch) = open(config.clone());
    let before = rig.store(1, PAGE);
    set(&switch, Fault::Page(Kind::Write));
    assert_eq!(rig.append(2, PAGE), AppendOutcome::Failed);
    set(&switch, None);
    let after = rig.store(3, PAGE);
    assert_ne!(before.extent.segment, after.extent.segment);
    let counters = rig.log.counters();
    assert_eq!((counters.io_errors, counters.written_records), (1, 2));
    rig.assert_reads(&before);
    rig.assert_reads(&after);
    rig.log.close();
    let rig = Rig::open(config);
    assert_eq!(rig.recovered(&[before, after]), [1, 3]);
}

fn a_failed_read_is_a_miss_that_time(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let (mut rig, switch) = open(tiny(&dir.path().join("log"), setting));
    let stored = rig.store(1, PAGE);
    set(&switch, Fault::Page(Kind::Read));
    assert_eq!(rig.read(&stored), ReadOutcome::Failed);
    assert_eq!(rig.relocate(&stored), crate::RelocateOutcome::Failed);
    set(&switch, None);
    rig.assert_reads(&stored);
    assert_eq!(rig.log.counters().io_errors, 2);
    rig.log.close();
}

fn short_transfers_are_finished(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let (mut rig, switch) = open(tiny(&dir.path().join("log"), setting));
    set(&switch, Fault::Short);
    let stored = rig.store(1, PAGE);
    rig.assert_reads(&stored);
    set(&switch, None);
    rig.assert_reads(&stored);
    assert_eq!(rig.log.counters().io_errors, 0);
    rig.log.close();
}

fn a_failed_flush_leaves_the_segment_unsealed(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(&dir.path().join("log"), setting);
    let (mut rig, switch) = open(config.clone());
    let stored: Vec<Stored> = (0..3).map(|n| rig.store(n, PAGE)).collect();
    set(&switch, Fault::Flush);
    rig.log.close();
    let mut rig = Rig::open(config);
    assert_eq!(rig.recovered(&stored), [0, 1, 2]);
    assert!(rig.recovery.records.iter().all(|record| !record.sealed));
    stored.iter().for_each(|stored| rig.assert_reads(stored));
    rig.log.close();
}

fn failed_tables_lose_nothing_while_the_log_lives(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(&dir.path().join("log"), setting);
    let (mut rig, switch) = open(config.clone());
    set(&switch, Fault::Chores);
    let stored: Vec<Stored> = (0..3).map(|n| rig.store(n, PAGE)).collect();
    rig.wait_for_tables();
    stored.iter().for_each(|stored| rig.assert_reads(stored));
    // What could not be listed is freed like anything else.
    let extent = stored[0].extent;
    rig.free(extent.segment, extent.segment_use);
    assert_eq!(rig.read(&stored[0]), ReadOutcome::Corrupt);
    set(&switch, None);
    // So many failures have made it read-only, until a probe gets through.
    let extent = loop {
        match rig.append(9, PAGE) {
            AppendOutcome::Written(extent) => break extent,
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let after = Stored { number: 9, page_bytes: PAGE, extent };
    rig.log.close();
    let mut rig = Rig::open(config);
    let known: Vec<Stored> = stored.iter().copied().chain([after]).collect();
    assert!(rig.recovered(&known).contains(&9));
    rig.assert_reads(&after);
    rig.log.close();
}

fn assert_lost(mut rig: Rig) {
    let mut number = 1;
    // The fault strikes at the next turn of the log's thread.
    loop {
        let (job, payload) = (rig.job(), rig.frame(0, PAGE));
        let identity = super::rig::identity(number, PAGE);
        number += 1;
        match rig.log.submit(Op::Append {
            job,
            identity,
            origin: undercroft_wire::Origin::default(),
            payload,
            payload_crc: 0,
        }) {
            Ok(()) => std::thread::sleep(Duration::from_millis(5)),
            Err(_) => break,
        }
    }
    while !matches!(rig.answer(), Completion::DeviceLost { .. }) {}
    rig.log.close();
}

fn a_broken_engine_is_a_lost_device(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let (mut rig, switch) = open(tiny(&dir.path().join("log"), setting));
    rig.store(0, PAGE);
    set(&switch, Fault::Engine);
    assert_lost(rig);
}

fn a_panic_is_a_lost_device(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let (mut rig, switch) = open(tiny(&dir.path().join("log"), setting));
    rig.store(0, PAGE);
    set(&switch, Fault::Panic);
    assert_lost(rig);
}
