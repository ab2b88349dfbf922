//! The simulator's share in CI: some seeds, and each transfer of a scripted run failed once.

use undercroft_tests::{Seeds, Sweep, SweptFault};

/// Those of many more are run by `cargo xtask sim`.
const SEEDS: u64 = 300;

#[test]
fn seeds_run_clean_and_meet_what_there_is_to_meet() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let seeds = Seeds { seeds: 0..SEEDS, threads, most_failures: 1 };
    let (report, failures) = seeds.run(&|_| {});
    if let Some(failure) = failures.first() {
        panic!("{failure}\nagain: cargo xtask sim --trace --from {}", failure.seed);
    }
    println!("{report}");
    assert!(report.gaps().is_empty(), "nothing of this happened: {:?}\n{report}", report.gaps());
}

fn sweep(fault: SweptFault) {
    for encrypted in [true, false] {
        for for_good in [false, true] {
            // Interrupted for good is an error like any other.
            if for_good && fault == SweptFault::Interrupted {
                continue;
            }
            let (runs, report) =
                Sweep { fault, for_good, encrypted }.run().unwrap_or_else(|broken| {
                    panic!("{broken}");
                });
            println!("{fault:?}, for good: {for_good}: {runs} transfers\n{report}");
            assert!(runs > 100, "a script of {runs} transfers says little");
        }
    }
}

#[test]
fn each_transfer_fails_once_and_for_good() {
    sweep(SweptFault::Error);
}

#[test]
fn each_transfer_is_short() {
    sweep(SweptFault::Short);
}

#[test]
fn each_transfer_is_interrupted() {
    sweep(SweptFault::Interrupted);
}

#[test]
fn each_transfer_is_lost() {
    sweep(SweptFault::Lost);
}
