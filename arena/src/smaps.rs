/// What `/proc/self/smaps` says of this process's mappings.
pub(crate) struct Smaps(String);

impl Smaps {
    /// What it says now; nothing where it says nothing.
    pub(crate) fn read() -> Self {
        Self(std::fs::read_to_string("/proc/self/smaps").unwrap_or_default())
    }

    /// Bytes of `start..start + len` that are mapped in huge pages.
    pub(crate) fn huge_bytes(&self, start: usize, len: usize) -> usize {
        let (mut inside, mut total) = (false, 0);
        for line in self.0.lines() {
            if let Some((from, to)) = range(line) {
                inside = from >= start && to <= start + len;
            } else if inside {
                total += huge_kib(line) * 1024;
            }
        }
        total
    }
}

/// The addresses of the line that begins a mapping.
fn range(line: &str) -> Option<(usize, usize)> {
    let (from, to) = line.split_once(' ')?.0.split_once('-')?;
    let address = |digits| usize::from_str_radix(digits, 16).ok();
    Some((address(from)?, address(to)?))
}

fn huge_kib(line: &str) -> usize {
    let value = match line.split_once(':') {
        Some(("ShmemPmdMapped" | "FilePmdMapped", value)) => value,
        _ => return 0,
    };
    value.trim().strip_suffix(" kB").and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000400000 rw-s 00000000 00:01 1  /memfd:undercroft-arena (deleted)
Size:               4096 kB
ShmemPmdMapped:     2048 kB
FilePmdMapped:         0 kB
VmFlags: rd wr sh
7f0000400000-7f0000800000 rw-s 00000000 00:01 1  /memfd:undercroft-arena (deleted)
ShmemPmdMapped:     4096 kB
7f0000800000-7f0000a00000 r--s 00000000 00:01 1  /memfd:undercroft-arena (deleted)
ShmemPmdMapped:     2048 kB
";

    #[test]
    fn only_what_lies_inside_is_counted() {
        let smaps = Smaps(SMAPS.to_owned());
        assert_eq!(smaps.huge_bytes(0x7f00_0000_0000, 8 << 20), 6 << 20);
        assert_eq!(smaps.huge_bytes(0x7f00_0040_0000, 4 << 20), 4 << 20);
        assert_eq!(smaps.huge_bytes(0x7e00_0000_0000, 8 << 20), 0);
        assert_eq!(Smaps(String::new()).huge_bytes(0, 8 << 20), 0);
    }
}
