//! The page log's file: superblocks, segment headers, tables and records, damaged in any way.

use crossbeam_channel::{Receiver, unbounded};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;
use undercroft_arena::{Memory, Span, checksum_bytes};
use undercroft_ssd_tier::{
    AppendOutcome, Completion, EngineChoice, LogConfig, Op, PageLog, ReadOutcome, RecoveredRecord,
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
/// Opening never panics and never hangs. As long as no checksum was forged, a record that proves
/// itself is one of those written, byte by byte.
pub fn page_log(input: &[u8]) {
    let mut file = template().clone();
    let edits = edits(input);
    let forged = edits.iter().any(|edit| edit.reseal);
    edits.iter().for_each(|edit| apply(edit, &mut file));

    let directory = directory();
    let path = directory.path().join("pages.log");
    std::fs::write(&path, &file).expect("a temporary file can be written");
    let (sender, answers) = unbounded();
    let sink = Box::new(move |completion| drop(sender.send(completion)));
    match PageLog::open(config(&path), Vec::new(), sink) {
        Ok((log, recovery)) => {
            for record in &recovery.records {
                check(&log, &answers, record, forged);
            }
            // With every segment taken it waits for one to be freed: closing answers it then.
            append(&log, &answers, PAGES, PATIENCE / 2000);
            log.close();
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
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
    let append = Op::Append { job, identity, payload, payload_crc };
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

fn config(path: &Path) -> LogConfig {
    LogConfig {
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

/// A file as the log leaves it after a clean close.
fn template() -> &'static Vec<u8> {
    static TEMPLATE: OnceLock<Vec<u8>> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let path = directory().path().join("template.log");
        let (sender, answers) = unbounded();
        let sink = Box::new(move |completion| drop(sender.send(completion)));
        let (log, _) = PageLog::open(config(&path), Vec::new(), sink).expect("a new log opens");
        for number in 0..PAGES {
            let outcome = append(&log, &answers, number, PATIENCE);
            assert!(matches!(outcome, Some(AppendOutcome::Written(_))), "{outcome:?}");
        }
        log.close();
        std::fs::read(&path).expect("the log's file can be read")
    })
}

/// Edits of every block that holds something, resealed or not; and none at all.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![Vec::new()];
    for (index, block) in template().chunks(BLOCK).enumerate() {
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
