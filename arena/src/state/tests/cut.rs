#![expect(unsafe_code, reason = "a child is forked, stepped and killed")]

//! Death at any instruction.

use super::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::collections::HashSet;
use std::io::Write;

/// A word of the first page that means nothing: how many operations the child has done.
const PROGRESS: usize = 64;

/// Runs `child` in a fork, which ends with it.
fn fork(child: impl FnOnce()) -> Pid {
    // SAFETY: the child calls nothing but `child`, which works on memory of its own and on the
    // state file; the allocator's locks are in order after a fork.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).is_ok();
        // SAFETY: ends the process at once; the parent's buffers are not written twice.
        unsafe { libc::_exit(i32::from(!fine)) };
    }
    Pid::from_raw(pid).unwrap()
}

fn ptrace(request: libc::c_uint, pid: i32) -> libc::c_long {
    // SAFETY: none of the requests used here reads or writes through its address or data.
    unsafe { libc::ptrace(request, pid, 0usize, 0usize) }
}

pub(super) fn words_of_file(state: &State) -> Vec<u64> {
    (0..state.layout.bytes as usize / 8).map(|at| state.words.load(at)).collect()
}

/// A state file with these words, as a daemon finds it.
pub(super) fn file_of(words: &[u64]) -> OwnedFd {
    let fd = memfd::create(words.len() as u64 * 8, false).unwrap();
    for (page, words) in words.chunks(512).enumerate() {
        if words.iter().any(|word| *word != 0) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            assert_eq!(rustix::io::pwrite(&fd, &bytes, page as u64 * 4096).unwrap(), bytes.len());
        }
    }
    fd
}

/// Between two moments every row is as at one of them; those that are the same at both are there.
/// Only a frame whose page is replaced may be said to have none.
fn between<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    found: &BTreeMap<K, V>,
    [before, after]: [&BTreeMap<K, V>; 2],
    is_none: impl Fn(&V) -> bool,
) {
    for (key, value) in found {
        let was = [before.get(key), after.get(key)];
        let replaced = was[0] != was[1] && is_none(value);
        assert!(replaced || was.contains(&Some(value)), "{key:?}: {value:?} never was: {was:?}");
    }
    for (key, value) in before {
        if after.get(key) == Some(value) {
            assert_eq!(found.get(key), Some(value), "{key:?} was not touched");
        }
    }
}

fn check_moment(found: &Snapshot, before: &Snapshot, after: &Snapshot) {
    between(&found.parts, [&before.parts, &after.parts], |_| false);
    between(&found.spaces, [&before.spaces, &after.spaces], |_| false);
    between(&found.slabs, [&before.slabs, &after.slabs], |_| false);
    between(&found.frames, [&before.frames, &after.frames], |row| row.page.is_none());
    between(&found.sessions, [&before.sessions, &after.sessions], |_| false);
    between(&found.leases, [&before.leases, &after.leases], |_| false);
}

const LEASED: [Op; 5] = [
    Op::Leased { session: 1, lease: 1, index: 0, part: 0, unit: 1 },
    Op::Leased { session: 1, lease: 1, index: 1, part: 0, unit: 7 },
    Op::Released { session: 1, lease: 1, upto: 1 },
    Op::Leased { session: 1, lease: 0, index: 5, part: 0, unit: 7 },
    Op::Released { session: 1, lease: 1, upto: u32::MAX },
];

/// A sequence in which everything happens, and what is true after each of its steps.
fn story(seed: u8) -> (Vec<Op>, Vec<Snapshot>) {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut random = || ops().new_tree(&mut runner).unwrap().current();
    let mut story = (Vec::new(), vec![Snapshot::default()]);
    let probed = |round: u8| {
        let space = u32::from(round % 2);
        [Op::Space { space }, Op::SpaceProbed { space, probe: round }]
    };
    let round = |round| {
        let random = [(); 16].map(|()| random());
        SETTLED.into_iter().chain(LEASED).chain(probed(round)).chain(random)
    };
    for op in (0..24).flat_map(round) {
        let now = story.1.last().unwrap();
        // What is refused changes nothing, and takes as long to step through.
        if let Some(next) = now.after(op).filter(|next| next != now) {
            story.0.push(op);
            story.1.push(next);
        }
    }
    story
}

/// Steps a child through the story and returns at how many moments the file had changed, or
/// `None` where the system does not allow it.
fn step_through(ops: &[Op], truth: &[Snapshot]) -> Option<u32> {
    let mut state = tiny();
    let mut seen = words_of_file(&state);
    let child = fork(|| {
        // SAFETY: stops this process, as its parent expects.
        assert!(ptrace(libc::PTRACE_TRACEME, 0) == 0 && unsafe { libc::raise(libc::SIGSTOP) } == 0);
        for (done, op) in ops.iter().enumerate() {
            state.words.store(PROGRESS, done as u64);
            apply(&mut state, *op).unwrap();
        }
    });
    let state = tiny_again(&state);
    let mut moments = 0;
    let mut stopped = waitpid(Some(child), WaitOptions::empty()).unwrap().unwrap().1;
    if !stopped.stopped() {
        return None;
    }
    while stopped.stopped() {
        let now = words_of_file(&state);
        if now != seen {
            let done = now[PROGRESS] as usize;
            let found = State::adopt(file_of(&now)).unwrap();
            assert_eq!(found.odd(), 0, "in {:?}", ops[done]);
            check_moment(&Snapshot::of(&found), &truth[done], &truth[done + 1]);
            seen = now;
            moments += 1;
        }
        assert_eq!(ptrace(libc::PTRACE_SINGLESTEP, child.as_raw_nonzero().get()), 0);
        stopped = waitpid(Some(child), WaitOptions::empty()).unwrap().unwrap().1;
    }
    assert_eq!(stopped.exit_status(), Some(0), "the child did all it should");
    Some(moments)
}

/// The same file once more, without changing it as adopting would.
fn tiny_again(state: &State) -> State {
    let fd = rustix::io::dup(state.fd()).unwrap();
    State::empty((map(fd, state.layout.bytes).unwrap(), None), state.layout, state.form)
}

#[test]
fn at_any_instruction_each_row_is_whole_or_none() {
    let mut kinds = HashSet::new();
    for seed in [1, 2] {
        let (ops, truth) = story(seed);
        assert!(ops.len() > 100, "{} operations", ops.len());
        kinds.extend(ops.iter().map(std::mem::discriminant));
        let Some(moments) = step_through(&ops, &truth) else {
            let line = "SKIPPED at_any_instruction_each_row_is_whole_or_none: no ptrace here\n";
            return std::io::stdout().write_all(line.as_bytes()).unwrap();
        };
        assert!(moments as usize > 4 * ops.len(), "{moments} moments");
    }
    assert_eq!(kinds.len(), 16, "everything happened");
}

#[test]
fn what_a_killed_daemon_leaves_is_whole() {
    for round in 0..20u64 {
        let mut state = tiny();
        let begun = tiny_again(&state);
        let child = fork(|| {
            for op in SETTLED {
                apply(&mut state, op).unwrap();
            }
            for number in 0.. {
                let unit = 4 + number % 3 * 3;
                apply(&mut state, Op::Filling { part: 0, unit }).unwrap();
                apply(&mut state, Op::Filled { part: 0, unit, page: number }).unwrap();
                let index = number as u32;
                let leased = Op::Leased { session: 1, lease: 5, index, part: 0, unit };
                apply(&mut state, leased).unwrap();
                let upto = index + 1;
                apply(&mut state, Op::Released { session: 1, lease: 5, upto }).unwrap();
                state.words.store(PROGRESS, number + 1);
            }
        });
        while begun.words.load(PROGRESS) < 10 + round * 1009 {
            std::hint::spin_loop();
        }
        kill_process(child, Signal::KILL).unwrap();
        waitpid(Some(child), WaitOptions::empty()).unwrap();
        let done = begun.words.load(PROGRESS);
        drop(state);
        let state = again(begun);
        assert_eq!(state.odd(), 0);
        let found = Snapshot::of(&state);
        assert_eq!(found.frames.len(), 4, "one of the first slab, three of the second");
        for (number, frame) in
            (done - 2..=done).map(|n| (n, &found.frames[&(0, (4 + n % 3 * 3) * 4096)]))
        {
            let possible = [None, Some(page(number)), Some(page(number - 3))];
            assert!(possible.contains(&frame.page), "{number} of {done}: {frame:?}");
            assert!(number == done || frame.page == possible[1], "{number} of {done}: {frame:?}");
        }
        assert!(
            found.leases.len() <= 1 && found.leases.values().all(|page| page.index == done as u32)
        );
    }
}
