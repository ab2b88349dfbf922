//! The page log's file: superblocks, segment headers, tables and records, damaged in any way,
//! plain and encrypted.

use crossbeam_channel::{Receiver, unbounded};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;
use undercroft_arena::{Memory, Span, checksum_bytes};
use undercroft_ssd_tier::{
    AppendOutcome, Completion, EngineChoice, Inspector, LogConfig, Op, PageLog, ReadOutcome,
    RecoveredRecord, StoreKey,
};
use undercroft_wire::{DomainId, JobId, PageIdentity, PageKey, SpaceDigest, frame_bytes};

const BLOCK: usize = 4096;
const PAGE_BYTES: u32 = 4096;
/// Pages in the undamaged file: more than one segment's worth.
const PAGES: u8 = 10;
/// Room for the largest page that is read back, bytes.
const FRAME_BYTES: usize = 64 << 10;
/// Longer than any answer may take.
const PATIENCE: Duration = Duration::from_secs(8);
/// An edit of this block cuts the file instead.
const CUT: u16 = u16::MAX;

/// What was read of an edit: which block, where in it, whether its checksum is made right again.
struct Edit<'a> {
    block: u16,
    at: u16,
    reseal: bool,
    bytes: &'a [u8],
}

/// Edits of a well-formed file: block (2 bytes), offset (2 bytes, the top bit reseals the block),
/// length (1 byte), that many bytes; and again.
///
/// Opening never panics and never hangs, and whoever looks from outside sees the same records. A
/// record that proves itself is one of those written, byte by byte: as long as no checksum was
/// forged and, in an encrypted store, even then.
pub fn page_log(input: &[u8]) {
    for encrypted in [false, true] {
        damaged_log(input, encrypted);
    }
}

fn damaged_log(input: &[u8], encrypted: bool) {
    let mut file = template(encrypted).clone();
    let edits = edits(input);
    let resealed = edits.iter().any(|edit| edit.reseal);
    edits.iter().for_each(|edit| apply(edit, &mut file));

    let directory = directory();
    let path = directory.path().join("pages.log");
    std::fs::write(&path, &file).expect("a temporary file can be written");
    let seen = inspect(&path);
    let (sender, answers) = unbounded();
    let sink = Box::new(move |completion| drop(sender.send(completion)));
    match PageLog::open(config(&path, encrypted), Vec::new(), sink) {
        Ok((log, recovery)) => {
            if let Some(aside) = &log.facts().set_aside {
                std::fs::remove_file(aside).expect("it was put there a moment ago");
            } else if !resealed && !recovery.created {
                let seen = seen.expect("what can be opened can be looked at");
                assert_eq!(
                    seen.records,
                    recovery.records.len() as u64,
                    "records seen from outside"
                );
            }
            for record in &recovery.records {
                check(&log, &answers, record, resealed && !encrypted);
            }
            // With every segment taken it waits for one to be freed: closing answers it then.
            append(&log, &answers, PAGES, PATIENCE / 2000);
            log.close();
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// What is seen of a log from outside.
struct Seen {
    /// Records that a daemon would find.
    records: u64,
}

fn inspect(path: &Path) -> Option<Seen> {
    let mut inspector = match Inspector::open(path) {
        Ok(inspector) => inspector,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return None;
        }
    };
    let unlocked = inspector.use_key_file(key_file()).expect("the key file is in order");
    let mut records = 0;
    for facts in inspector.segments().expect("a little memory can be had") {
        let contents = inspector.segment(facts.segment).expect("it is one of those listed");
        records += contents.records.iter().filter(|record| record.inside && !record.void).count();
    }
    let verified = inspector.verify(|| {}).expect("a little memory can be had");
    assert!(!unlocked || verified.locked_segments == 0);
    assert!(verified.records <= records as u64, "what proves itself is named somewhere");
    Some(Seen { records: records as u64 })
}

fn edits(mut input: &[u8]) -> Vec<Edit<'_>> {
    let mut edits = Vec::new();
    while let [b0, b1, a0, a1, length, rest @ ..] = input {
        let (bytes, left) = rest.split_at(rest.len().min(usize::from(*length)));
        let at = u16::from_le_bytes([*a0, *a1]);
        let block = u16::from_le_bytes([*b0, *b1]);
        edits.push(Edit { block, at: at & 0x7fff, reseal: at & 0x8000 != 0, bytes });
        input = left;
    }
    edits
}

fn apply(edit: &Edit<'_>, file: &mut Vec<u8>) {
    let blocks = file.len() / BLOCK;
    if edit.block == CUT || blocks == 0 {
        file.truncate(usize::from(edit.at) * 64);
        return;
    }
    let block = usize::from(edit.block) % blocks * BLOCK;
    let block = &mut file[block..block + BLOCK];
    let at = usize::from(edit.at) % BLOCK;
    let length = edit.bytes.len().min(BLOCK - at);
    block[at..at + length].copy_from_slice(&edit.bytes[..length]);
    if edit.reseal {
        let (content, sum) = block.split_at_mut(BLOCK - 8);
        sum.copy_from_slice(&checksum_bytes(content).to_le_bytes());
    }
}

/// Reads a recovered record back.
fn check(log: &PageLog, answers: &Receiver<Completion>, record: &RecoveredRecord, forged: bool) {
    let identity = record.identity;
    let room = frame_bytes(identity.page_bytes) as usize;
    if room > FRAME_BYTES {
        assert!(forged, "a page of {} bytes was never written", identity.page_bytes);
        return;
    }
    let into = frame(room);
    let job = JobId(1);
    let extent = record.extent;
    let read = Op::Read { job, identity, extent, into };
    assert!(log.submit(read).is_ok(), "an empty queue takes one operation");
    let answer = answers.recv_timeout(PATIENCE).expect("every read is answered");
    let Completion::Read { into, outcome, .. } = answer else {
        panic!("a read is answered as one: {answer:?}");
    };
    if let ReadOutcome::Verified { .. } = outcome
        && !forged
    {
        let number = identity.key.0[0];
        assert_eq!(identity, identity_of(number), "nobody wrote such a page");
        into.read(|bytes| assert!(bytes == content(number), "wrong bytes proved themselves"));
    }
}

/// Whatever was found, the log takes a page or says that it cannot. `None` if it does not say so
/// in time.
fn append(
    log: &PageLog,
    answers: &Receiver<Completion>,
    number: u8,
    patience: Duration,
) -> Option<AppendOutcome> {
    let payload = frame(PAGE_BYTES as usize);
    payload.copy_from_slice(&content(number));
    let payload_crc = checksum_bytes(&content(number));
    let identity = identity_of(number);
    let job = JobId(2);
    let append = Op::Append {
        job,
        identity,
        origin: undercroft_wire::Origin::default(),
        payload,
        payload_crc,
    };
    assert!(log.submit(append).is_ok(), "an empty queue takes one operation");
    match answers.recv_timeout(patience) {
        Ok(Completion::Appended { outcome, .. }) => Some(outcome),
        Ok(other) => panic!("an append is answered as one: {other:?}"),
        Err(_) => None,
    }
}

fn frame(bytes: usize) -> Span {
    let memory = Memory::new(bytes as u64, 0).expect("a few pages of memory can be had");
    memory.span(0, bytes).expect("the whole memory is in range")
}

/// The page numbered `number`: every field follows from it.
fn identity_of(number: u8) -> PageIdentity {
    let key = |number: u8| PageKey(std::array::from_fn(|index| number.wrapping_add(index as u8)));
    PageIdentity {
        domain: DomainId([7; 16]),
        space: SpaceDigest([8; 32]),
        key: key(number),
        parent: number.checked_sub(1).map(key),
        depth: u32::from(number),
        page_bytes: PAGE_BYTES,
    }
}

fn content(number: u8) -> Vec<u8> {
    (0..PAGE_BYTES).map(|index| (index as u8).wrapping_mul(31) ^ number).collect()
}

const KEY: [u8; 32] = [0x5a; 32];

fn config(path: &Path, encrypted: bool) -> LogConfig {
    LogConfig {
        key: encrypted.then(|| StoreKey::from(KEY)),
        segment_bytes: Some(16 << 10),
        engine: EngineChoice::Threads,
        queue_depth: 2,
        ..LogConfig::new(path, 64 << 10)
    }
}

fn directory() -> &'static TempDir {
    static DIRECTORY: OnceLock<TempDir> = OnceLock::new();
    // In memory where that is possible: the log flushes, and a disk would be most of the time.
    let make = || TempDir::new_in("/dev/shm").or_else(|_| TempDir::new());
    DIRECTORY.get_or_init(|| make().expect("the temporary directory can be written"))
}

fn key_file() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let path = directory().path().join("store.key");
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&path).and_then(|mut file| file.write_all(&KEY));
        file.expect("the temporary directory can be written");
        path
    })
}

/// A file as the log leaves it after a clean close.
fn template(encrypted: bool) -> &'static Vec<u8> {
    static TEMPLATES: [OnceLock<Vec<u8>>; 2] = [const { OnceLock::new() }; 2];
    TEMPLATES[usize::from(encrypted)].get_or_init(|| {
        let path = directory().path().join("template.log");
        let (sender, answers) = unbounded();
        let sink = Box::new(move |completion| drop(sender.send(completion)));
        let opened = PageLog::open(config(&path, encrypted), Vec::new(), sink);
        let (log, _) = opened.expect("a new log opens");
        for number in 0..PAGES {
            let outcome = append(&log, &answers, number, PATIENCE);
            assert!(matches!(outcome, Some(AppendOutcome::Written(_))), "{outcome:?}");
        }
        log.close();
        let file = std::fs::read(&path).expect("the log's file can be read");
        std::fs::remove_file(&path).expect("it is ours");
        file
    })
}

/// Edits of every block that holds something, resealed or not; and none at all.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![Vec::new()];
    for (index, block) in template(false).chunks(BLOCK).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            for at in [0_u16, 0x8008, 0x8010, 0x8020, 0x8030, 0x8040, 0x80c0] {
                let mut seed = (index as u16).to_le_bytes().to_vec();
                seed.extend(at.to_le_bytes());
                seed.extend([8, 0, 1, 2, 3, 4, 5, 6, 7]);
                seeds.push(seed);
            }
        }
    }
    let mut cut = CUT.to_le_bytes().to_vec();
    cut.extend([0, 1, 0]);
    seeds.push(cut);
    seeds
}
