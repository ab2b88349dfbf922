//! A client whose daemon is killed or stopped never waits past its deadline.

use undercroft_tests::Absence;

#[test]
fn no_call_outlives_its_deadline_whatever_becomes_of_the_daemon() {
    let report = Absence { rounds: 3 }.run(&|| Ok(())).expect("daemons die and come back");
    report.check().unwrap_or_else(|what| panic!("{what:#}\n{report}"));
    println!("{report}");
}
