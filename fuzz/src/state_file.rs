//! The daemon's state file: its head, its tables and its frame rows, damaged or forged in any way.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use undercroft_arena::{
    FileId, PageRow, PartRow, SessionRow, SlabRow, SpaceRow, State, StateLimits, checksum_bytes,
};
use undercroft_wire::{DomainId, Epoch, LeaseId, PageKey, PartId, SessionId, SpaceDigest, SpaceId};

/// So tiny that each table takes one page, and so do the frame rows of each part.
const LIMITS: StateLimits = StateLimits {
    max_parts: 2,
    max_part_bytes: 16 * 4096,
    max_slabs: 3,
    max_spaces: 2,
    max_sessions: 2,
    max_leased_pages: 4,
};
const PAGE_WORDS: usize = 512;
const PAGES: usize = 8;
const EDIT_BYTES: usize = 10;
/// Words of a row of the table in each page; 0: the head has none.
const ROW_WORDS: [usize; PAGES] = [0, 16, 16, 8, 8, 8, 16, 16];

/// Edits of a well-formed file: which word (2 bytes, the top bit makes the checksum of its row
/// right again), what it becomes (8 bytes); and again.
///
/// Adopting never panics. What it keeps agrees with the rest: slabs lie inside their parts and
/// beside each other, frames inside their slabs, leases have a session; and the next one to adopt
/// it finds nothing to drop.
pub fn state_file(input: &[u8]) {
    let mut words = template().clone();
    for edit in input.as_chunks::<EDIT_BYTES>().0 {
        apply(edit, &mut words);
    }
    match State::adopt(file_of(&words)) {
        Ok(mut state) => {
            check(&state);
            act(&mut state);
            let fd = state.fd().try_clone_to_owned().expect("a descriptor can be had");
            let frames = state.frames().count();
            drop(state);
            let again = State::adopt(fd).expect("it was adopted a moment ago");
            assert_eq!((again.odd(), again.frames().count()), (0, frames));
            check(&again);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn check(state: &State) {
    let parts: Vec<_> = state.parts().collect();
    let slabs: Vec<_> = state.slabs().collect();
    for (nth, slab) in slabs.iter().enumerate() {
        let part = parts.iter().find(|part| part.part == slab.part).expect("its part is known");
        assert!(slab.offset + slab.bytes <= part.bytes && part.bytes <= LIMITS.max_part_bytes);
        for other in &slabs[..nth] {
            let apart = other.offset + other.bytes <= slab.offset;
            assert!(other.part != slab.part || apart, "{other:?} lies over {slab:?}");
        }
    }
    for frame in state.frames() {
        let end = frame.offset + u64::from(frame.frame_bytes);
        let inside = |slab: &&SlabRow| {
            let range = slab.offset..=slab.offset + slab.bytes;
            slab.part == frame.part && range.contains(&frame.offset) && range.contains(&end)
        };
        assert!(slabs.iter().any(|slab| inside(&slab)), "{frame:?} lies in no slab");
    }
    let sessions: Vec<_> = state.sessions().map(|row| row.session).collect();
    assert!(state.leased_pages().all(|page| sessions.contains(&page.session)));
    assert!(state.spaces().count() <= LIMITS.max_spaces as usize);
}

/// Some of what a daemon would do next, whether it is refused or not.
fn act(state: &mut State) {
    let frames: Vec<_> = state.frames().collect();
    for frame in frames {
        assert!(state.filled(frame.part, frame.offset, &page()).is_ok());
        let _refused = state.leased(SessionId(1), LeaseId(9), 0, frame.part, frame.offset);
    }
    state.released(SessionId(1), LeaseId(0), 1);
    state.session_gone(SessionId(1));
    state.part_gone(PartId(0));
    let _refused = state.part_added(&PartRow { part: PartId(8), ..part() });
    let _refused = state.slab(&SlabRow { part: PartId(8), ..slab() });
}

fn apply(edit: &[u8; EDIT_BYTES], words: &mut [u64]) {
    let [at @ .., _, _, _, _, _, _, _, _] = *edit;
    let [_, _, value @ ..] = *edit;
    let at = u16::from_le_bytes(at);
    let word = usize::from(at & 0x7fff) % words.len();
    words[word] = u64::from_le_bytes(value);
    if at & 0x8000 != 0 {
        reseal(word, words);
    }
}

/// Makes the checksum of the row that a word belongs to right, as the state file's format says.
fn reseal(word: usize, words: &mut [u64]) {
    let (table, within) = (word / PAGE_WORDS, word % PAGE_WORDS);
    let len = ROW_WORDS[table];
    let mut covered = [0; 16];
    let first = match len {
        0 => 0,
        _ => word - within % len,
    };
    let last = first + if len == 0 { 7 } else { len - 1 };
    covered[..last - first].copy_from_slice(&words[first..last]);
    match table {
        0 => {}
        1..=5 => covered[0] = table as u64 | ((within / len) as u64) << 32,
        _ => {
            covered[0] = 6 | (words[first] >> 32) << 32;
            covered[1] = first as u64;
        }
    }
    let bytes = covered.map(u64::to_le_bytes);
    words[last] = checksum_bytes(bytes.as_flattened());
}

fn part() -> PartRow {
    let file = FileId { device: 1, inode: 2 };
    let (part, domain, bytes) = (PartId(0), DomainId::named("fuzz"), LIMITS.max_part_bytes);
    PartRow { part, domain, bytes, board_offset: 4096, file, retiring: false }
}

fn slab() -> SlabRow {
    SlabRow { part: PartId(0), offset: 4096, bytes: 3 * 8192, frame_bytes: 8192 }
}

fn page() -> PageRow {
    PageRow {
        space: SpaceId(3),
        key: PageKey([4; 32]),
        parent: Some(PageKey([5; 32])),
        depth: 6,
        crc: 7,
        heat: 8,
        generation: 9,
        writer: 10,
        born: 11,
        purged: true,
    }
}

/// A file with something in every table.
fn written() -> State {
    let fine = "the file has room";
    let mut state = State::create(Epoch(1), &LIMITS).expect("a little memory can be had");
    let (digest, domain) = (SpaceDigest([1; 32]), DomainId::named("fuzz"));
    let (space, session) = (SpaceId(3), SessionId(1));
    state.part_added(&part()).expect(fine);
    state.space(&SpaceRow { space, domain, digest, page_bytes: 8192, probe: None }).expect(fine);
    state.slab(&slab()).expect(fine);
    state.filled(PartId(0), 4096, &page()).expect(fine);
    state.filling(PartId(0), 12288).expect(fine);
    state.session(&SessionRow { session, pid: 2, started: 3, domain }).expect(fine);
    state.leased(session, LeaseId(0), 0, PartId(0), 4096).expect(fine);
    state
}

fn template() -> &'static Vec<u64> {
    static TEMPLATE: OnceLock<Vec<u64>> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let fd = written().fd().try_clone_to_owned().expect("a descriptor can be had");
        let mut bytes = vec![0; PAGES * PAGE_WORDS * 8];
        File::from(fd).read_exact_at(&mut bytes, 0).expect("the file is as long");
        bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
    })
}

/// A state file with these words.
fn file_of(words: &[u64]) -> OwnedFd {
    let state = State::create(Epoch(1), &LIMITS).expect("a little memory can be had");
    let fd = state.fd().try_clone_to_owned().expect("a descriptor can be had");
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let file = File::from(fd);
    file.write_all_at(&bytes, 0).expect("the file is as long");
    file.into()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let edit = |word: u16, value: u64| [&word.to_le_bytes()[..], &value.to_le_bytes()].concat();
    let resealed = |word: u16, value: u64| edit(word | 0x8000, value);
    // Row 1 of the table of slabs, over row 0.
    let second = [(1, 8192 << 32), (2, 8192), (3, 16384), (4, 5), (0, 1)];
    let slab = second.map(|(word, value)| resealed(1536 + 8 + word, value)).concat();
    vec![
        Vec::new(),
        edit(1, 2),
        resealed(4, u64::MAX),
        resealed(512 + 4, 4096),
        slab,
        resealed(2048 + 1, 7),
        resealed(2560 + 3, 1 << 63),
        resealed(3072 + 16 + 10, 99),
        edit(20, u64::MAX),
    ]
}
