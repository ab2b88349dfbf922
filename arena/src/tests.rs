#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod address_space;
mod adopted;
mod hostile;
mod mounted;

use super::*;
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use undercroft_wire::{PartId, SlotId};

const SMALL: PartOptions =
    PartOptions { huge: HugePages::Off, lock: false, prefault_threads: 1, numa_node: None };
const HUGE: PartOptions =
    PartOptions { huge: HugePages::Auto, lock: true, prefault_threads: 2, numa_node: None };

fn part(bytes: u64, options: &PartOptions) -> Part {
    Part::create(PartId(7), bytes, options).unwrap().0
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(step).take(len).collect()
}

fn bytes_of(span: &Span) -> Vec<u8> {
    let mut bytes = vec![0; span.len()];
    span.copy_to_slice(&mut bytes);
    bytes
}

fn panics(call: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(call)).is_err()
}

fn plain_memfd(bytes: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("undercroft-test", flags).unwrap();
    rustix::fs::ftruncate(&fd, bytes).unwrap();
    rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
    fd
}

#[test]
fn a_view_shows_what_the_owner_writes() {
    for options in [SMALL, HUGE] {
        let bytes = (5 << 20) + 4096;
        let part = part(bytes, &options);
        assert_eq!((part.len() as u64, part.id()), (bytes, PartId(7)));
        let view = PartView::map(part.read_only_fd().unwrap(), PartId(7), bytes).unwrap();
        view.prefault(2).unwrap();
        let written = pattern(300_000, 1);
        let offset = (2 << 20) - 100_000;
        let target = part.span(offset, written.len()).unwrap();
        target.copy_from_slice(&written);
        let seen = view.span(offset, written.len()).unwrap();
        assert_eq!(bytes_of(&seen), written);
        assert_eq!(seen.part_offset(), Some((PartId(7), offset as usize)));
        assert_eq!(seen.sub(10, 20).unwrap().part_offset().unwrap().1, offset as usize + 10);
        assert!(!seen.is_writable() && target.is_writable());
    }
}

#[test]
fn a_view_cannot_be_written_through() {
    let part = part(8192, &SMALL);
    let view = PartView::map(part.read_only_fd().unwrap(), PartId(7), 8192).unwrap();
    let (mine, theirs) = (part.span(0, 64).unwrap(), view.span(0, 64).unwrap());
    assert!(panics(|| theirs.copy_from(&mine)));
    assert!(panics(|| theirs.copy_from_slice(&[0; 64])));
    assert!(panics(|| theirs.write(|bytes| bytes.fill(1))));
    assert!(panics(|| assert!(!theirs.as_mut_ptr().is_null())));
    // Nor through the descriptor: neither written, nor resized, nor mapped writable.
    let fd = part.read_only_fd().unwrap();
    assert_eq!(rustix::io::write(&fd, b"x"), Err(Errno::BADF));
    assert!(rustix::fs::ftruncate(&fd, 4096).is_err());
    assert_eq!(rustix::fs::fallocate(&fd, punch(), 0, 4096), Err(Errno::BADF));
    let mapped = mapping::Mapping::shared(std::os::fd::AsFd::as_fd(&fd), 8192, true);
    assert_eq!(mapped.unwrap_err(), Errno::ACCESS);
}

fn punch() -> rustix::fs::FallocateFlags {
    rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE
}

#[test]
fn a_part_is_its_owners_alone_and_sealed() {
    let part = part(4096, &SMALL);
    let fd = part.read_only_fd().unwrap();
    let mode = rustix::fs::fstat(&fd).unwrap().st_mode;
    assert_eq!(mode & 0o777, 0o600);
    let seals = rustix::fs::fcntl_get_seals(&fd).unwrap();
    assert!(seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL));
}

#[test]
fn facts_say_what_pages_there_are() {
    let bytes = 8 << 20;
    let (_part, facts) = Part::create(PartId(0), bytes, &SMALL).unwrap();
    assert_eq!(facts.pages, PageKind::Base);
    assert_eq!((facts.huge_bytes, facts.locked), (0, false));
    assert_eq!(facts.refused, Vec::<String>::new());

    let (part, facts) = Part::create(PartId(0), bytes, &HUGE).unwrap();
    match facts.pages {
        PageKind::Base => {
            assert_eq!(facts.huge_bytes, 0);
            println!("not tested: this machine gives no huge shared memory: {:?}", facts.refused);
        }
        PageKind::Hugetlb | PageKind::Transparent => assert!(facts.huge_bytes <= bytes),
        PageKind::Untold => panic!("it has just been made: {facts:?}"),
    }
    if facts.huge_bytes < bytes || !facts.locked {
        assert!(!facts.refused.is_empty(), "what is not had was refused: {facts:?}");
    }
    assert_eq!(part.base_ptr().align_offset(2 << 20), 0, "aligned for huge pages");
    let names = [PageKind::Hugetlb, PageKind::Transparent, PageKind::Base].map(|k| k.to_string());
    assert_eq!(names, ["hugetlb", "transparent", "4k"]);
}

#[test]
fn who_cannot_wait_for_huge_pages_has_all_memory_in_small_ones() {
    use crate::prefault::{Fault, prefault};
    let bytes = 8 << 20;
    let made = |fault| {
        let fd = memfd::create(bytes as u64, false).unwrap();
        let mapping = mapping::Mapping::shared(fd.as_fd(), bytes, true).unwrap();
        let huge = prefault(&mapping, fault, 1).unwrap();
        let there = rustix::fs::fstat(&fd).unwrap().st_blocks * 512;
        assert_eq!(there as usize, bytes, "all of it is there");
        huge
    };
    assert_eq!(made(Fault::CollapseWithin(Duration::ZERO)), 0);
    // Where the kernel makes huge pages at all, it has the time for them.
    let patient = made(Fault::CollapseWithin(Duration::from_secs(3600)));
    assert_eq!(patient > 0, made(Fault::Collapse) > 0);
}

#[test]
fn a_part_lies_on_its_node_or_says_so() {
    let create = |node, options: PartOptions| {
        let options = PartOptions { numa_node: Some(node), ..options };
        let (part, facts) = Part::create(PartId(0), 4 << 20, &options).unwrap();
        part.span(0, 4).unwrap().copy_from_slice(b"here");
        let mut lines = facts.refused;
        lines.retain(|line| line.starts_with("NUMA node"));
        lines
    };
    for node in [999, 1 << 20] {
        let lines = create(node, SMALL);
        let line = format!("NUMA node {node}: Invalid argument (os error 22)");
        assert!(lines.contains(&line) || lines[0].contains("not implemented"), "{lines:?}");
        // There is no page that does not lie elsewhere.
        assert!(lines.len() == 2, "{lines:?}");
    }
    if std::path::Path::new("/sys/devices/system/node/node0/meminfo").exists() {
        for options in [SMALL, HUGE, PartOptions { prefault_threads: 0, ..SMALL }] {
            assert_eq!(create(0, options), Vec::<String>::new());
        }
        // What the kernel says the policy is, and that it goes with the file.
        let on = PartOptions { numa_node: Some(0), ..SMALL };
        let (part, facts) = Part::create(PartId(0), 4 << 20, &on).unwrap();
        let (_elsewhere, unasked) = Part::create(PartId(0), 4 << 20, &SMALL).unwrap();
        assert_eq!((facts.numa_node, unasked.numa_node), (Some(0), None));
        let fd = rustix::io::dup(part.fd()).unwrap();
        drop(part);
        let (_part, facts) = Part::adopt(PartId(0), 4 << 20, fd, None, &SMALL).unwrap();
        assert_eq!(facts.numa_node, Some(0));
    }
}

#[test]
fn odd_sizes_are_mapped_whole_and_bounded_exactly() {
    for bytes in [1, 4095, 4097, (2 << 20) + 1] {
        let part = part(bytes, &HUGE);
        let view = PartView::map(part.read_only_fd().unwrap(), PartId(0), bytes).unwrap();
        assert_eq!(part.len() as u64, bytes);
        part.span(bytes - 1, 1).unwrap().copy_from_slice(&[9]);
        assert_eq!(bytes_of(&view.span(bytes - 1, 1).unwrap()), [9]);
        for (offset, len) in [(bytes, 1), (0, bytes as usize + 1), (u64::MAX, 1), (1, usize::MAX)] {
            assert!(matches!(part.span(offset, len), Err(ArenaError::OutOfRange { .. })));
            assert!(matches!(view.span(offset, len), Err(ArenaError::OutOfRange { .. })));
        }
        assert!(part.span(bytes, 0).unwrap().is_empty());
    }
    for bytes in [0, u64::MAX, 1 << 50] {
        let refused = Part::create(PartId(0), bytes, &SMALL);
        assert!(matches!(refused, Err(ArenaError::Size { .. })), "{bytes}");
        assert!(matches!(Memory::new(bytes, 0), Err(ArenaError::Size { .. })), "{bytes}");
    }
}

#[test]
fn a_descriptor_of_another_size_is_refused() {
    let part = part(16384, &SMALL);
    for announced in [4096, 12288, 16385, 20480, 1 << 40] {
        let refused = PartView::map(part.read_only_fd().unwrap(), PartId(0), announced);
        assert!(matches!(refused, Err(ArenaError::WrongSize { found: 16384, .. })), "{announced}");
    }
    let staging = Staging::create(2, 4096).unwrap();
    assert!(matches!(
        StagingView::map(staging.fd(), 3, 4096),
        Err(ArenaError::WrongSize { found: 8192, expected: 12288 })
    ));
}

#[test]
fn a_descriptor_that_could_shrink_is_refused() {
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    for missing in [SealFlags::SHRINK, SealFlags::GROW, SealFlags::SEAL, all] {
        let fd = plain_memfd(8192, all - missing);
        assert!(matches!(PartView::map(&fd, PartId(0), 8192), Err(ArenaError::NotSealed)));
        assert!(matches!(StagingView::map(&fd, 2, 4096), Err(ArenaError::NotSealed)));
    }
    let (pipe, _) = rustix::pipe::pipe().unwrap();
    assert!(matches!(PartView::map(&pipe, PartId(0), 8192), Err(ArenaError::NotSealed)));
    assert!(PartView::map(plain_memfd(8192, all), PartId(0), 8192).is_ok());
}

#[test]
fn staging_carries_pages_both_ways() {
    let staging = Staging::create(3, 8192).unwrap();
    let view = StagingView::map(staging.fd(), 3, 8192).unwrap();
    assert_eq!((view.slots(), view.slot_bytes()), (staging.slots(), staging.slot_bytes()));
    let (memory, page) = (Memory::new(8192, 1).unwrap(), pattern(8192, 3));
    let frame = memory.span(0, 8192).unwrap();
    view.slot(SlotId(2)).unwrap().copy_from_slice(&page);
    let sum = copy_checked(&staging.slot(SlotId(2)).unwrap(), &frame);
    assert_eq!((sum, bytes_of(&frame)), (checksum_bytes(&page), page.clone()));
    staging.slot(SlotId(1)).unwrap().copy_from(&frame);
    assert_eq!(bytes_of(&view.slot(SlotId(1)).unwrap()), page);
    assert!(view.slot(SlotId(0)).unwrap().read(|bytes| bytes.iter().all(|b| *b == 0)));
    assert!(matches!(view.slot(SlotId(3)), Err(ArenaError::Slot { slot: 3, slots: 3 })));
    assert!(matches!(staging.slot(SlotId(u32::MAX)), Err(ArenaError::Slot { .. })));
    for slot_bytes in [0, 1, 4095, 4097] {
        assert!(matches!(Staging::create(1, slot_bytes), Err(ArenaError::Size { .. })));
    }
    assert!(matches!(Staging::create(0, 4096), Err(ArenaError::Size { .. })));
}

#[test]
fn the_daemon_never_looks_at_staging_in_place() {
    let staging = Staging::create(1, 4096).unwrap();
    let slot = staging.slot(SlotId(0)).unwrap();
    let frame = Memory::new(4096, 0).unwrap().span(0, 4096).unwrap();
    assert!(panics(|| slot.read(|_| ())));
    assert!(panics(|| slot.write(|_| ())));
    assert!(panics(|| assert_eq!(checksum(&slot), 0)));
    assert!(panics(|| assert_eq!(copy_checked(&frame, &slot), 0)));
}

#[test]
fn a_hostile_client_can_spoil_its_page_but_not_the_daemon() {
    let staging = Staging::create(2, 2 << 20).unwrap();
    let view = StagingView::map(staging.fd(), 2, 2 << 20).unwrap();
    let memory = Memory::new(2 << 20, 1).unwrap();
    let frame = memory.span(0, 2 << 20).unwrap();
    view.slot(SlotId(0)).unwrap().write(|bytes| bytes.fill(7));
    assert!(rustix::fs::ftruncate(staging.fd(), 0).is_err(), "sealed against shrinking");
    rustix::fs::fallocate(staging.fd(), punch(), 4096, 1 << 20).unwrap();
    let sum = copy_checked(&staging.slot(SlotId(0)).unwrap(), &frame);
    assert_eq!(sum, frame.read(checksum_bytes), "the sum is that of the copy");
    frame.read(|bytes| {
        assert!(bytes[..4096].iter().all(|b| *b == 7));
        assert!(bytes[4096..(1 << 20) + 4096].iter().all(|b| *b == 0));
    });
    // A client that writes all the time: the sum is still that of what arrived.
    let slot = staging.slot(SlotId(0)).unwrap();
    let theirs = view.slot(SlotId(0)).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let noise = [pattern(2 << 20, 1), pattern(2 << 20, 2)];
            let mut round = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                theirs.copy_from_slice(&noise[round % 2]);
                round += 1;
            }
        });
        for _ in 0..50 {
            assert_eq!(copy_checked(&slot, &frame), checksum(&frame));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_span_outlives_the_handle_it_came_from() {
    let span = {
        let part = part(1 << 20, &HUGE);
        part.span(4096, 4096).unwrap()
    };
    let view = {
        let part = part(4096, &SMALL);
        part.span(0, 4096).unwrap().copy_from_slice(&[5; 4096]);
        PartView::map(part.read_only_fd().unwrap(), PartId(1), 4096).unwrap()
    };
    span.copy_from(&view.span(0, 4096).unwrap());
    assert_eq!(bytes_of(&span), [5; 4096]);
}

#[test]
fn mismatched_copies_are_refused() {
    let memory = Memory::new(8192, 0).unwrap();
    let (short, long) = (memory.span(0, 100).unwrap(), memory.span(4096, 101).unwrap());
    assert!(panics(|| short.copy_from(&long)));
    assert!(panics(|| long.copy_from_slice(&[0; 100])));
    assert!(panics(|| short.copy_to_slice(&mut [0; 99])));
    assert!(panics(|| assert_eq!(copy_checked(&short, &long), 0)));
    let shifted = memory.span(50, 100).unwrap();
    assert!(panics(|| assert_eq!(copy_checked(&short, &shifted), 0)));
    assert!(panics(|| short.copy_at(1, &long, 0, 100)));
    assert!(panics(|| short.copy_at(0, &long, 2, 100)));
    assert!(panics(|| short.copy_at(usize::MAX, &long, 0, 2)));
    assert!(matches!(short.sub(50, 51), Err(ArenaError::OutOfRange { .. })));
    assert!(matches!(short.sub(usize::MAX, 2), Err(ArenaError::OutOfRange { .. })));
}

#[test]
fn checksums_are_crc64_nvme() {
    // The check value of the CRC catalogue.
    assert_eq!(checksum_bytes(b"123456789"), 0xae8b_1486_0a79_9888);
    let (head, tail) = (checksum_bytes(b"1234"), checksum_bytes(b"56789"));
    assert_eq!(combine(head, tail, 5), 0xae8b_1486_0a79_9888);
    assert_eq!(combine(head, checksum_bytes(b""), 0), head);
}

/// What the property tests copy: lengths around every boundary that matters.
fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![
        0..300usize,
        4090..4100usize,
        (128 << 10) - 3..(128 << 10) + 3usize,
        (256 << 10) - 1..(256 << 10) + 2usize,
        0..1_000_000usize,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn copies_arrive_and_are_summed(
        len in lengths(), from in 0..5000u64, to in 0..5000u64, seed: u64,
    ) {
        let memory = Memory::new(2_200_000, 0).unwrap();
        let source = memory.span(from, len).unwrap();
        let target = memory.span(1_100_000 + to, len).unwrap();
        let bytes = pattern(len, seed);
        source.copy_from_slice(&bytes);
        let edges = [memory.span(1_100_000 + to - 1, 1), memory.span(1_100_000 + to + len as u64, 1)];
        let sum = copy_checked(&source, &target);
        prop_assert_eq!(sum, checksum_bytes(&bytes));
        prop_assert_eq!(checksum(&target), sum);
        prop_assert_eq!(bytes_of(&target), bytes);
        for edge in edges {
            prop_assert_eq!(bytes_of(&edge.unwrap()), [0]);
        }
    }

    #[test]
    fn plain_copies_arrive_wherever_they_start(
        len in lengths(), from in 0..5000usize, to in 1..5000usize, seed: u64,
    ) {
        let memory = Memory::new(2_200_000, 0).unwrap();
        let (source, target) = (memory.span(0, 1_100_000), memory.span(1_100_000, 1_100_000));
        let (source, target) = (source.unwrap(), target.unwrap());
        let bytes = pattern(len, seed);
        source.sub(from, len).unwrap().copy_from_slice(&bytes);
        target.copy_at(to, &source, from, len);
        prop_assert_eq!(bytes_of(&target.sub(to, len).unwrap()), bytes);
        let rest = target.sub(to + len, 200).unwrap();
        for edge in [target.sub(0, to).unwrap(), rest] {
            prop_assert!(bytes_of(&edge).iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn overlapping_copies_are_moves(
        len in 1..60_000usize, from in 0..20_000usize, to in 0..20_000usize, seed: u64,
    ) {
        let memory = Memory::new(80_000, 0).unwrap();
        let mut model = pattern(80_000, seed);
        let whole = memory.span(0, 80_000).unwrap();
        whole.copy_from_slice(&model);
        whole.copy_at(to, &whole, from, len);
        model.copy_within(from..from + len, to);
        prop_assert_eq!(bytes_of(&whole), model);
    }

    #[test]
    fn a_piece_of_a_piece_is_the_same_bytes(
        cuts in proptest::collection::vec((0..400usize, 0..400usize), 1..5), seed: u64,
    ) {
        let memory = Memory::new(1000, 0).unwrap();
        let mut span = memory.span(0, 1000).unwrap();
        let mut model = pattern(1000, seed);
        span.copy_from_slice(&model);
        for (offset, len) in cuts {
            match span.sub(offset, len) {
                Ok(piece) => {
                    span = piece;
                    model = model[offset..offset + len].to_vec();
                }
                Err(_) => prop_assert!(offset + len > model.len()),
            }
            prop_assert_eq!(bytes_of(&span), model.clone());
        }
    }

    #[test]
    fn combining_is_concatenating(a: Vec<u8>, b: Vec<u8>) {
        let whole = [a.clone(), b.clone()].concat();
        let (a, b, len) = (checksum_bytes(&a), checksum_bytes(&b), b.len() as u64);
        prop_assert_eq!(combine(a, b, len), checksum_bytes(&whole));
        let theirs = crc_fast::checksum_combine(crc_fast::CrcAlgorithm::Crc64Nvme, a, b, len);
        prop_assert_eq!(combine(a, b, len), theirs);
    }

    #[test]
    fn combining_long_tails_agrees_with_the_library(a: u64, b: u64, len in 0..1u64 << 40) {
        let theirs = crc_fast::checksum_combine(crc_fast::CrcAlgorithm::Crc64Nvme, a, b, len);
        prop_assert_eq!(combine(a, b, len), theirs);
    }
}
