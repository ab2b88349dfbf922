//! The bytes of version 1, written down by hand from `docs/state-format.md`.

use super::cut::file_of;
use super::*;
use crate::checksum_bytes;

/// CRC over these words and as many zeros as make sixteen of them, little-endian.
fn crc(words: &[u64]) -> u64 {
    let mut words = words.to_vec();
    words.resize(16, 0);
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    checksum_bytes(&bytes)
}

/// Two words of a domain's id.
fn domain_words(number: u32) -> [u64; 2] {
    let id = domain(number).0;
    [&id[..8], &id[8..]].map(|half| u64::from_le_bytes(half.try_into().unwrap()))
}

/// A file with one row of each kind.
fn by_hand() -> Vec<u64> {
    // A head, five tables of a page each, and a page of frame rows for each of two parts.
    let mut file = vec![0; 8 * 512];
    let mut head =
        [u64::from_le_bytes(*b"UCSTATE\0"), 1, 7, 2 | 2 << 32, 65536, 3 | 2 << 32, 4 | 16 << 32, 0];
    head[7] = crc(&head[..7]);
    file[..8].copy_from_slice(&head);
    // Starts, next session, part, stamp and cut; ended in order.
    file[16..22].copy_from_slice(&[3, 9, 1, 500, 6, 1]);
    file[32..37].copy_from_slice(&[3, 9, 1, 500, 6]);
    let mut row = |table: u64, at: usize, row: u64, words: usize, body: &[u64]| {
        let mut all = [&[1], body].concat();
        all.resize(words - 1, 0);
        all.push(crc(&[&[table | row << 32], &all[1..]].concat()));
        file[at + row as usize * words..][..words].copy_from_slice(&all);
    };
    let [low, high] = domain_words(0);
    row(1, 512, 1, 16, &[0, low, high, 65536, 64 + 16, 3, 17]);
    let [low, high] = domain_words(1);
    let digest = 0x0202_0202_0202_0202;
    row(2, 1024, 0, 16, &[1 | 2 << 32, low, high, digest, digest, digest, digest]);
    row(3, 1536, 2, 8, &[8192 << 32, 8192, 16384, 5]);
    let [low, high] = domain_words(8);
    row(4, 2048, 0, 8, &[8, 1008, 17, low, high]);
    row(5, 2560, 3, 8, &[8, 6, 4, 16384, 21 ^ 2]);
    // Part 0 has the second row of its table, so its frames are the second run. Its slab starts
    // at unit 2; of its two frames the first is being filled and the second has a page.
    let at = 3072 + 512 + 2 * 16;
    file[at] = 1 | 5 << 32;
    let at = at + 16;
    let PageRow { key, parent, .. } = page(21);
    assert_eq!(parent, None);
    let key = key.0.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
    let mut frame = vec![2 | 5 << 32, 21];
    frame.extend(key);
    frame.extend([0, 0, 0, 0, 21 | (21 ^ 1) << 32, !21, (21 ^ 2) | (21 ^ 4) << 32, 21 ^ 3, 0]);
    frame.push(crc(&[&[6 | 5 << 32, at as u64], &frame[2..]].concat()));
    file[at..at + 16].copy_from_slice(&frame);
    file
}

#[test]
fn version_1_is_read_and_written_as_documented() {
    let by_hand = by_hand();
    let mut state = State::adopt(file_of(&by_hand)).unwrap();
    assert_eq!((state.odd(), state.was_clean(), state.starts()), (0, true, 4));
    assert_eq!((state.epoch(), state.limits()), (Epoch(7), TINY));
    assert_eq!((state.next_session(), state.next_part()), (SessionId(9), Some(PartId(1))));
    assert_eq!(state.next_stamp(), Stamp(500));
    let frame = |offset, page| FrameRow { part: PartId(0), offset, frame_bytes: 8192, page };
    let lease = LeaseRow {
        session: SessionId(8),
        lease: LeaseId(6),
        index: 4,
        part: PartId(0),
        offset: 16384,
        generation: 21 ^ 2,
    };
    let expected = Snapshot {
        parts: [(0, part_row(0, 16))].into(),
        spaces: [(1, space_row(1))].into(),
        slabs: [((0, 8192), slab_row(0, 2, 2, 2))].into(),
        frames: [((0, 8192), frame(8192, None)), ((0, 16384), frame(16384, Some(page(21))))].into(),
        sessions: [(8, session_row(8))].into(),
        leases: [((8, 6, 4), lease)].into(),
    };
    assert_eq!(Snapshot::of(&state), expected);
    // What is written is what was read: all of it leaves and comes again, from the last row back.
    state.session_gone(SessionId(8));
    state.gone(PartId(0), 8192).unwrap();
    state.filling(PartId(0), 8192).unwrap();
    state.filled(PartId(0), 16384, &page(21)).unwrap();
    state.session(&session_row(8)).unwrap();
    state.leased(SessionId(8), LeaseId(6), 4, PartId(0), 16384).unwrap();
    state.finish();
    let mut written: Vec<u64> = (0..by_hand.len()).map(|at| state.words.load(at)).collect();
    for at in [16, 32] {
        assert_eq!(std::mem::replace(&mut written[at], 3), 4);
    }
    assert_eq!(written, by_hand);
}
