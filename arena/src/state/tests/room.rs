//! What it costs, and what happens when it is full.

use super::*;

/// As a node of some size would have it.
const LARGE: StateLimits = StateLimits {
    max_parts: 8,
    max_part_bytes: 1 << 40,
    max_slabs: 1 << 16,
    max_spaces: 64,
    max_sessions: 1024,
    max_leased_pages: 1 << 20,
};

fn memory_bytes(state: &State) -> u64 {
    rustix::fs::fstat(state.fd()).unwrap().st_blocks as u64 * 512
}

#[test]
fn room_that_is_not_used_costs_nothing_and_what_is_goes_back() {
    let mut state = State::create(Epoch(1), &LARGE).unwrap();
    let least = memory_bytes(&state);
    assert!(least <= 4096, "{least} bytes of an empty file");
    for part in 0..8 {
        state.part_added(&PartRow { bytes: 1 << 40, ..part_row(part, 1) }).unwrap();
    }
    assert_eq!(memory_bytes(&state) - least, 4096, "the table of parts");
    let (slab_bytes, each) = (64 << 20, 2 << 20);
    let before = memory_bytes(&state) + 4096;
    for offset in [0, 1 << 39] {
        let frame_bytes = each as u32;
        state.slab(&SlabRow { part: PartId(3), offset, bytes: slab_bytes, frame_bytes }).unwrap();
        for frame in (0..slab_bytes).step_by(each) {
            state.filled(PartId(3), offset + frame, &page(frame)).unwrap();
        }
    }
    assert_eq!(memory_bytes(&state) - before, 2 * 4096, "32 pages of 2 MiB take a page of rows");
    assert_eq!(state.frames().count(), 64);
    let mut state = again(state);
    assert_eq!(state.frames().count(), 64);
    assert_eq!(memory_bytes(&state) - before, 2 * 4096, "reading back costs nothing");
    state.slab_gone(PartId(3), 0);
    assert_eq!((memory_bytes(&state) - before, state.frames().count()), (4096, 32));
    state.part_gone(PartId(3));
    assert_eq!((memory_bytes(&state), state.frames().count()), (before, 0));
}

#[test]
fn a_full_table_says_so_and_goes_on() {
    let mut state = tiny();
    for op in SETTLED {
        apply(&mut state, op).unwrap();
    }
    let lease = |index| Op::Leased { session: 1, lease: 3, index, part: 0, unit: 7 };
    for index in 0..4 {
        apply(&mut state, lease(index)).unwrap();
    }
    let full = |table, limit| Err(Unkept::Full { table, limit });
    assert_eq!(apply(&mut state, lease(4)), full("leased pages", 4));
    apply(&mut state, Op::Released { session: 1, lease: 3, upto: 2 }).unwrap();
    apply(&mut state, lease(4)).unwrap();
    apply(&mut state, lease(5)).unwrap();
    assert_eq!(apply(&mut state, lease(6)), full("leased pages", 4));
    let indexes = |state: &State| state.leased_pages().map(|page| page.index).collect::<Vec<_>>();
    assert_eq!(indexes(&state), [2, 3, 4, 5]);
    let mut state = again(state);
    assert_eq!(indexes(&state), [2, 3, 4, 5]);
    assert_eq!(apply(&mut state, lease(6)), full("leased pages", 4));
    state.session_gone(SessionId(1));
    apply(&mut state, Op::Session { session: 2 }).unwrap();
    apply(&mut state, Op::Session { session: 3 }).unwrap();
    assert_eq!(apply(&mut state, Op::Session { session: 4 }), full("sessions", 2));
    let part = Op::Part { part: 1, units: 17 };
    assert_eq!(apply(&mut state, part), full("frames of a part, bytes of it", 16 * 4096));
}

#[test]
fn what_is_not_known_is_not_leased() {
    let mut state = tiny();
    for op in SETTLED {
        apply(&mut state, op).unwrap();
    }
    let unknown = |what| Err(Unkept::Unknown { what });
    let mut lease = |session, unit| {
        apply(&mut state, Op::Leased { session, lease: 0, index: 0, part: 0, unit })
    };
    assert_eq!(lease(2, 7), unknown("session"));
    for unit in [0, 4, 8, 13, 99] {
        assert_eq!(lease(1, unit), unknown("page"), "{unit}");
    }
    assert_eq!(lease(1, 7), Ok(()));
    apply(&mut state, Op::Filling { part: 0, unit: 7 }).unwrap();
    let lease = Op::Leased { session: 1, lease: 0, index: 1, part: 0, unit: 7 };
    assert_eq!(apply(&mut state, lease), unknown("page"), "it is being filled");
    assert_eq!(state.filling(PartId(0), 4097), unknown("frame"));
    assert_eq!(state.gone(PartId(9), 0), unknown("frame"));
}

#[test]
fn numbers_are_never_taken_twice() {
    let mut state = tiny();
    assert_eq!((state.next_session(), state.next_part()), (SessionId(1), Some(PartId(0))));
    assert_eq!((state.starts(), state.was_clean(), state.epoch()), (1, false, Epoch(7)));
    apply(&mut state, Op::Part { part: 8, units: 1 }).unwrap();
    state.part_gone(PartId(8));
    apply(&mut state, Op::Session { session: 40 }).unwrap();
    state.set_next_session(SessionId(12));
    state.set_next_stamp(Stamp(500));
    state.set_next_stamp(Stamp(400));
    state.finish();
    let mut state = again(state);
    assert_eq!((state.next_session(), state.next_part()), (SessionId(41), Some(PartId(9))));
    assert_eq!((state.starts(), state.was_clean(), state.epoch()), (2, true, Epoch(7)));
    assert_eq!((state.next_stamp(), state.limits()), (Stamp(500), TINY));
    state.set_next_session(SessionId(90));
    state.set_next_part(PartId(u32::MAX));
    apply(&mut state, Op::Part { part: u32::MAX, units: 1 }).unwrap();
    let state = again(state);
    assert_eq!((state.next_session(), state.next_part()), (SessionId(90), None));
    assert!(!state.was_clean(), "nobody finished it");
}

#[test]
fn limits_out_of_range_are_refused() {
    let refused = |limits: StateLimits| State::create(Epoch(1), &limits).is_err();
    assert!(!refused(StateLimits::default()) && !refused(LARGE));
    assert!(refused(StateLimits { max_slabs: 0, ..TINY }));
    assert!(refused(StateLimits { max_part_bytes: u64::MAX, ..TINY }));
    assert!(refused(StateLimits { max_parts: 4096, max_part_bytes: 8 << 40, ..TINY }));
}

/// Processor time of this thread, nanoseconds: what others do on the machine does not count.
fn cpu_ns() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Prints what the calls cost: `cargo test --release -p undercroft-arena -- --ignored figures`.
#[test]
#[ignore = "prints figures, which only a quiet machine and a release build give"]
fn state_figures() {
    const FRAMES: u64 = 1_000_000;
    let frame_bytes = 64 << 10;
    let slab_bytes = 1024 * u64::from(frame_bytes);
    let mut state = State::create(Epoch(1), &LARGE).unwrap();
    state.part_added(&PartRow { bytes: 1 << 40, ..part_row(0, 1) }).unwrap();
    for slab in 0..FRAMES.div_ceil(1024) {
        let offset = slab * slab_bytes;
        state.slab(&SlabRow { part: PartId(0), offset, bytes: slab_bytes, frame_bytes }).unwrap();
    }
    state.session(&session_row(1)).unwrap();
    let pages: Vec<PageRow> = (0..256).map(page).collect();
    let each = |what: &str, count: u64, call: &mut dyn FnMut(u64)| {
        let (start, call) = (cpu_ns(), call);
        (0..count).for_each(call);
        println!("{what}: {:.1} ns", (cpu_ns() - start) as f64 / count as f64);
    };
    // A step that visits every frame once and none beside the one before.
    let place = |i: u64| i * 611_953 % FRAMES * u64::from(frame_bytes);
    let near = |i: u64| i % 4096 * u64::from(frame_bytes);
    let part = PartId(0);
    let mut fill = |i: u64| state.filled(part, place(i), &pages[i as usize % 256]).unwrap();
    each("filled, first time", FRAMES, &mut fill);
    each("filled, far apart", FRAMES, &mut fill);
    each("filled, in order", FRAMES, &mut |i| {
        let offset = i * u64::from(frame_bytes);
        state.filled(part, offset, &pages[i as usize % 256]).unwrap();
    });
    each("filling, far apart", FRAMES, &mut |i| state.filling(part, place(i)).unwrap());
    each("filled, in order", FRAMES, &mut |i| {
        let offset = i * u64::from(frame_bytes);
        state.filled(part, offset, &pages[i as usize % 256]).unwrap();
    });
    each("touched, far apart", FRAMES, &mut |i| state.touched(part, place(i), i).unwrap());
    each("touched, near", FRAMES, &mut |i| state.touched(part, near(i), i).unwrap());
    let far: &dyn Fn(u64) -> u64 = &place;
    for (what, place) in [("far apart", far), ("near", &near)] {
        each(&format!("leased and released, {what}, 64 a lease"), FRAMES, &mut |i| {
            let (lease, index) = (LeaseId(i / 64), (i % 64) as u32);
            state.leased(SessionId(1), lease, index, part, place(i)).unwrap();
            if index == 63 {
                state.released(SessionId(1), lease, u32::MAX);
            }
        });
    }
    println!("memory: {} MiB", memory_bytes(&state) >> 20);
    let fd = rustix::io::dup(state.fd()).unwrap();
    drop(state);
    let start = std::time::Instant::now();
    let state = State::adopt(fd).unwrap();
    let adopted = start.elapsed();
    let read = state.frames_of(part).filter(|row| row.page.is_some()).count();
    println!("adopted in {adopted:?}, {read} pages read in {:?}", start.elapsed());
}

#[test]
fn a_file_that_has_become_too_small_is_made_wider_with_all_that_is_in_it() {
    let mut state = tiny();
    for op in SETTLED {
        apply(&mut state, op).unwrap();
    }
    for op in [
        Op::Space { space: 1 },
        Op::Filling { part: 0, unit: 2 },
        Op::Leased { session: 1, lease: 5, index: 3, part: 0, unit: 7 },
    ] {
        apply(&mut state, op).unwrap();
    }
    state.set_next_stamp(Stamp(900));
    state.replace_devices(5);
    let limits = StateLimits { max_sessions: 9, max_leased_pages: 3, ..TINY };
    assert!(!TINY.cover(&limits) && TINY.with(&limits).cover(&limits));
    let mut wide = state.widened(&limits).unwrap();
    assert_eq!(wide.limits(), StateLimits { max_sessions: 9, ..TINY }, "nothing gets smaller");
    assert_eq!(Snapshot::of(&wide), Snapshot::of(&state));
    let numbers = |state: &State| {
        (state.epoch(), state.starts(), state.next_session(), state.next_part(), state.next_stamp())
    };
    assert_eq!(numbers(&wide), numbers(&state));
    assert_eq!(wide.replace_devices(5), 5);
    let before = wide.sessions().count() as u64;
    for session in 100..109 - before {
        wide.session(&session_row(session)).unwrap();
    }
    let found = again(wide);
    assert_eq!(found.sessions().count(), 9);
    assert_eq!(Snapshot::of(&found).frames, Snapshot::of(&state).frames);
}
