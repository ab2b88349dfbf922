//! A share of `cargo xtask corrupt`: whatever is damaged in a store becomes a miss.

use undercroft_tests::Corruptions;

#[test]
fn every_corruption_is_a_miss_or_hits_nothing() {
    let corruptions = Corruptions { numbers: 0..6000, seed: 1, threads: 2 };
    let report = corruptions.run(&|_| {}, &|| Ok(())).expect("stores can be built");
    println!("{report}");
    report.check().expect("nothing goes wrong");
    let sum = report.sum();
    assert_eq!(sum.injected, 6000);
    assert!(sum.misses > 5000 && sum.harmless > 0, "{report}");
    assert_eq!(report.gaps(), [""; 0], "each kind of corruption makes misses");
}

/// The same numbers are the same corruptions, whoever carries them out.
#[test]
fn a_corruption_follows_from_its_number() {
    let run = |numbers, threads| {
        let corruptions = Corruptions { numbers, seed: 9, threads };
        corruptions.run(&|_| {}, &|| Ok(())).expect("stores can be built").sum()
    };
    let (first, rest, all) = (run(0..300, 1), run(300..700, 2), run(0..700, 2));
    assert_eq!(first.misses + rest.misses, all.misses);
    assert_eq!(first.harmless + rest.harmless, all.harmless);
    assert_eq!(all.wrong, 0);
}
