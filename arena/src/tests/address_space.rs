//! What is done to the addresses of a process that other threads use as well.

use super::*;
use memmap2::MmapMut;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// Reserved huge pages that are not there are refused after the kernel has made room for them.
#[test]
fn a_part_for_which_there_are_no_reserved_pages_takes_nobodys_memory_away() {
    const NAME: &str = "a_part_for_which_there_are_no_reserved_pages_takes_nobodys_memory_away";
    let facts = std::fs::read_to_string("/proc/meminfo").unwrap();
    if !facts.lines().any(|line| line.starts_with("HugePages_Free:") && line.ends_with(" 0")) {
        println!("SKIPPED {NAME}: this machine has reserved huge pages");
        return;
    }
    const BYTES: usize = 2 << 20;
    let file = memfd::create(BYTES as u64, true).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 1..=2_u8 {
            let over = &over;
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let mut memory = MmapMut::map_anon(BYTES).unwrap();
                    memory[0] = thread;
                    // Somewhere else by now, this ends the process.
                    assert_eq!((memory[0], memory[BYTES - 1]), (thread, 0));
                }
            });
        }
        for _ in 0..50_000 {
            mapping::Mapping::shared(file.as_fd(), BYTES, true).unwrap_err();
        }
        over.store(true, Ordering::Relaxed);
    });
}
