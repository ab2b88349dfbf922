//! The stand-in as the driver of a process that knows nothing of it.
#![expect(unsafe_code, reason = "calls a C library")]

use libloading::os::unix::Library;
use std::ffi::c_int;
use std::fs;
use std::process::Command;
use undercroft_stand_in::StandIn;

#[test]
fn another_process_finds_it_by_the_drivers_name() {
    let directory = tempfile::tempdir().unwrap();
    fs::copy(StandIn::path().unwrap(), directory.path().join("libcuda.so")).unwrap();
    let report = directory.path().join("report");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "elsewhere::that_is_the_other_process"])
        .env("LD_LIBRARY_PATH", directory.path())
        .env("UNDERCROFT_STAND_IN", "devices=3,driver_version=12040")
        .env("UNDERCROFT_STAND_IN_REPORT", &report)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let report = fs::read_to_string(report).unwrap();
    let lines: Vec<&str> = report.lines().take(3).collect();
    let pop = "violation: cuCtxPopCurrent_v2: nothing was pushed on this thread";
    assert_eq!(lines, [pop, "still there: 1 contexts", "Report {"]);
}

#[test]
#[ignore = "started by the test above"]
fn that_is_the_other_process() {
    // SAFETY: loading it runs nothing but what any library of Rust runs.
    let driver = unsafe { Library::new("libcuda.so") }.unwrap();
    type Give = unsafe extern "C" fn(*mut c_int) -> i32;
    type Give64 = unsafe extern "C" fn(*mut u64) -> i32;
    let (mut count, mut version, mut context) = (0, 0, 0_u64);
    // SAFETY: these are the functions' types, and what they give has a place.
    unsafe {
        let get = |name: &str| driver.get::<Give>(name).unwrap();
        assert_eq!(driver.get::<unsafe extern "C" fn(u32) -> i32>("cuInit").unwrap()(0), 0);
        assert_eq!(get("cuDeviceGetCount")(&raw mut count), 0);
        assert_eq!(get("cuDriverGetVersion")(&raw mut version), 0);
        type Retain = unsafe extern "C" fn(*mut u64, c_int) -> i32;
        let retain = driver.get::<Retain>("cuDevicePrimaryCtxRetain").unwrap();
        assert_eq!(retain(&raw mut context, 2), 0);
        let pop = driver.get::<Give64>("cuCtxPopCurrent_v2").unwrap();
        assert_eq!(pop(&raw mut context), 201);
    }
    assert_eq!((count, version), (3, 12_040));
    // The driver stays loaded to the process's end.
    std::mem::forget(driver);
}
