//! Parts that an earlier daemon left.

use super::*;
use std::sync::Arc;
use std::time::Instant;

/// What is left of a daemon that died: its descriptor, in the store.
fn left(part: Part) -> OwnedFd {
    let fd = rustix::io::dup(part.fd()).unwrap();
    drop(part);
    fd
}

/// Adopts a part and asks how much of it is in huge pages.
fn adopt_told(
    id: PartId,
    bytes: u64,
    fd: OwnedFd,
    options: &PartOptions,
) -> (Arc<Part>, PartFacts) {
    let (part, mut facts) = Part::adopt(id, bytes, fd, None, options).unwrap();
    let part = Arc::new(part);
    if facts.pages == PageKind::Untold {
        let told = Part::huge_bytes(&[Arc::clone(&part)]);
        facts.tell(told[0], part.len() as u64);
    }
    (part, facts)
}

#[test]
fn an_adopted_part_is_the_same_memory() {
    for options in [SMALL, HUGE] {
        let bytes = (5 << 20) + 4096;
        let first = part(bytes, &options);
        let (id, written) = (first.file_id().unwrap(), pattern(100_000, 3));
        first.span(3 << 20, written.len()).unwrap().copy_from_slice(&written);
        let view = PartView::map(first.read_only_fd().unwrap(), PartId(7), bytes).unwrap();
        let (part, facts) = adopt_told(PartId(7), bytes, left(first), &options);
        assert_eq!((part.len() as u64, part.id(), part.file_id().unwrap()), (bytes, PartId(7), id));
        assert_eq!(bytes_of(&part.span(3 << 20, written.len()).unwrap()), written);
        // Who mapped it before sees what is written now.
        part.span(4096, 4).unwrap().copy_from_slice(b"warm");
        assert_eq!(bytes_of(&view.span(4096, 4).unwrap()), b"warm");
        assert!(rustix::io::write(part.read_only_fd().unwrap(), b"x").is_err());
        if facts.huge_bytes < 4 << 20 && options.huge == HugePages::Auto {
            assert!(!facts.refused.is_empty(), "{facts:?}");
        }
    }
}

#[test]
fn facts_of_an_adopted_part_are_what_the_kernel_says() {
    let bytes = 8 << 20;
    let (small, _) = Part::create(PartId(0), bytes, &SMALL).unwrap();
    // Asked for with huge pages, it still has none: they were not made by adopting it.
    let (_part, facts) = adopt_told(PartId(0), bytes, left(small), &HUGE);
    assert_eq!((facts.pages, facts.huge_bytes), (PageKind::Base, 0));
    let line = format!("huge shared memory: 0 of {bytes} bytes");
    assert!(facts.refused.contains(&line), "{facts:?}");
    let (huge, created) = Part::create(PartId(0), bytes, &HUGE).unwrap();
    let (_part, facts) = adopt_told(PartId(0), bytes, left(huge), &HUGE);
    assert_eq!((facts.pages, facts.huge_bytes), (created.pages, created.huge_bytes));
    assert_eq!(facts.locked, created.locked);
}

#[test]
fn what_is_no_part_is_not_adopted() {
    let adopt = |fd: OwnedFd, bytes| Part::adopt(PartId(0), bytes, fd, None, &SMALL).map(|_| ());
    for bytes in [4096, 12288, 16385, 1 << 40] {
        let refused = adopt(left(part(16384, &SMALL)), bytes);
        assert!(matches!(refused, Err(ArenaError::WrongSize { found: 16384, .. })), "{bytes}");
    }
    let loose = plain_memfd(8192, SealFlags::SHRINK);
    assert!(matches!(adopt(loose, 8192), Err(ArenaError::NotSealed)));
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    assert!(matches!(adopt(pipe, 8192), Err(ArenaError::NotSealed)));
    let read_only = part(8192, &SMALL).read_only_fd().unwrap();
    assert!(matches!(adopt(read_only, 8192), Err(ArenaError::System { .. })));
}

/// Prints how long it takes: `cargo test --release -p undercroft-arena -- --ignored figures`.
#[test]
#[ignore = "prints figures, which only a quiet machine and a release build give"]
fn adopting_figures() {
    let bytes = 2 << 30;
    for options in [SMALL, HUGE] {
        let start = Instant::now();
        let (part, facts) = Part::create(PartId(0), bytes, &options).unwrap();
        println!("created 2 GiB, pages {}, in {:?}", facts.pages, start.elapsed());
        let fd = left(part);
        let start = Instant::now();
        let (_part, facts) = Part::adopt(PartId(0), bytes, fd, None, &options).unwrap();
        println!("adopted: pages {}, in {:?}", facts.pages, start.elapsed());
        println!("  {facts:?}");
    }
}
