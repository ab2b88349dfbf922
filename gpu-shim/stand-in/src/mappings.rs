//! What of this process is mapped: memory is registered only where there is some.

use std::fs;

/// What may be done with a range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Some of it is not mapped or not readable.
    None,
    Read,
    Write,
}

/// The least that may be done anywhere in `bytes` from `start`.
pub(crate) fn access(start: u64, bytes: u64) -> Access {
    let text = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    access_in(&text, start, bytes)
}

fn access_in(maps: &str, start: u64, bytes: u64) -> Access {
    let Some(end) = start.checked_add(bytes) else {
        return Access::None;
    };
    let mut reached = start;
    let mut least = Access::Write;
    for line in maps.lines() {
        let Some((first, last, flags)) = mapping(line) else {
            continue;
        };
        if last <= reached {
            continue;
        }
        if first > reached || !flags.starts_with('r') {
            return Access::None;
        }
        if !flags.starts_with("rw") {
            least = Access::Read;
        }
        reached = last;
        if reached >= end {
            return least;
        }
    }
    Access::None
}

/// "7f0000000000-7f0000001000 rw-p …"
fn mapping(line: &str) -> Option<(u64, u64, &str)> {
    let mut words = line.split(' ');
    let (first, last) = words.next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some((number(first)?, number(last)?, words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "1000-2000 rw-p 0 00:00 0\n\
                        2000-3000 r--s 0 00:00 0 /x\n\
                        3000-4000 ---p 0 00:00 0\n\
                        5000-6000 rw-p 0 00:00 0\n";

    #[test]
    fn the_least_of_all_pages_counts() {
        assert_eq!(access_in(MAPS, 0x1800, 0x800), Access::Write);
        assert_eq!(access_in(MAPS, 0x1800, 0x801), Access::Read);
        assert_eq!(access_in(MAPS, 0x2fff, 2), Access::None);
        assert_eq!(access_in(MAPS, 0x4fff, 2), Access::None);
        assert_eq!(access_in(MAPS, 0x5000, 0x1000), Access::Write);
        assert_eq!(access_in(MAPS, 0x5000, 0x1001), Access::None);
        assert_eq!(access_in(MAPS, u64::MAX, 2), Access::None);
    }
}
