use rustix::system::{sysinfo, uname};
use serde::Serialize;
use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// Assumed where the machine does not tell its last-level cache.
const LLC_FALLBACK_BYTES: u64 = 32 << 20;

/// What was measured on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Processor, as it calls itself.
    pub cpu: String,
    /// Cores this process may use.
    pub cores: u32,
    /// Last-level cache, bytes.
    pub llc_bytes: u64,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Kernel name and release.
    pub kernel: String,
    /// File system and device under the SSD tier.
    pub disk: String,
    /// What could not be had or found out, one line each.
    pub notes: Vec<String>,
}

impl Machine {
    /// The machine at hand; `disk` is the folder of the SSD tier.
    #[must_use]
    pub fn facts(disk: &Path) -> Self {
        let mut notes = Vec::new();
        let llc_bytes = llc_bytes(Path::new("/sys/devices/system/cpu/cpu0/cache"));
        if llc_bytes.is_none() {
            notes.push("the size of the last-level cache is not known: assumed 32 MiB".to_owned());
        }
        let memory = sysinfo();
        let name = uname();
        let [name, release] = [name.sysname(), name.release()].map(|s| s.to_string_lossy());
        Self {
            cpu: cpu(&read_to_string("/proc/cpuinfo").unwrap_or_default()),
            cores: cores(),
            llc_bytes: llc_bytes.unwrap_or(LLC_FALLBACK_BYTES),
            memory_bytes: memory.totalram.saturating_mul(u64::from(memory.mem_unit)),
            kernel: format!("{name} {release}"),
            disk: disk_of(disk).unwrap_or_else(|| "unknown".to_owned()),
            notes,
        }
    }
}

/// Cores this process may use.
pub(crate) fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

/// Memory that can be had without swapping, bytes.
pub(crate) fn available_memory() -> Option<u64> {
    let text = read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

fn cpu(cpuinfo: &str) -> String {
    let model = cpuinfo.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        ["model name", "Model", "cpu model"].contains(&name.trim()).then(|| value.trim())
    });
    model.unwrap_or(std::env::consts::ARCH).to_owned()
}

/// The largest data or unified cache of the highest level.
fn llc_bytes(caches: &Path) -> Option<u64> {
    let mut found: Option<(u32, u64)> = None;
    for entry in caches.read_dir().ok()?.flatten() {
        let read = |name: &str| read_to_string(entry.path().join(name)).ok();
        let Some(kind) = read("type") else { continue };
        if kind.trim() == "Instruction" {
            continue;
        }
        let level = read("level").and_then(|text| text.trim().parse().ok());
        let bytes = read("size").and_then(|text| kernel_size(text.trim()));
        if let (Some(level), Some(bytes)) = (level, bytes) {
            found = found.max(Some((level, bytes)));
        }
    }
    found.map(|(_, bytes)| bytes)
}

/// `307200K`, as sysfs writes it.
fn kernel_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    let number: u64 = digits.parse().ok()?;
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// The mount that holds `folder`: its file system and source.
fn disk_of(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    let mounts = read_to_string("/proc/self/mountinfo").ok()?;
    // The longest mount point that leads to the folder; of equal ones the last covers the others.
    let best = mounts
        .lines()
        .filter_map(mount)
        .filter(|(point, _)| folder.starts_with(point))
        .max_by_key(|(point, _)| point.components().count())?;
    Some(best.1)
}

/// Mount point and `type on source` of a line of mountinfo (proc(5)).
fn mount(line: &str) -> Option<(PathBuf, String)> {
    let (mount, source) = line.split_once(" - ")?;
    let point = mount.split(' ').nth(4)?.replace("\\040", " ");
    let mut source = source.split(' ');
    let (kind, device) = (source.next()?, source.next()?);
    let mut disk = format!("{kind} on {device}");
    if let Some(name) = device.strip_prefix("/dev/")
        && let Ok(model) = read_to_string(format!("/sys/class/block/{name}/device/model"))
    {
        disk.push_str(&format!(" ({})", model.trim()));
    }
    Some((PathBuf::from(point), disk))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn the_highest_data_cache_counts() {
        let dir = tempfile::tempdir().unwrap();
        for (index, level, kind, size) in
            [(0, 1, "Data", "48K"), (1, 1, "Instruction", "64K"), (2, 3, "Unified", "300M")]
        {
            let cache = dir.path().join(format!("index{index}"));
            std::fs::create_dir(&cache).unwrap();
            std::fs::write(cache.join("level"), format!("{level}\n")).unwrap();
            std::fs::write(cache.join("type"), format!("{kind}\n")).unwrap();
            std::fs::write(cache.join("size"), format!("{size}\n")).unwrap();
        }
        assert_eq!(llc_bytes(dir.path()), Some(300 << 20));
        assert_eq!(llc_bytes(&dir.path().join("none")), None);
    }

    #[test]
    fn this_machine_has_facts() {
        let machine = Machine::facts(&std::env::temp_dir());
        assert!(machine.cores > 0 && machine.memory_bytes > 0 && !machine.cpu.is_empty());
        assert!(machine.kernel.starts_with("Linux "), "{}", machine.kernel);
        assert!(available_memory().is_some_and(|bytes| bytes <= machine.memory_bytes));
    }

    #[test]
    fn mounts_are_read_as_the_kernel_writes_them() {
        let line = "28 1 254:0 / /mnt/a\\040b rw,relatime shared:1 - ext4 /dev/nope rw";
        let (point, disk) = mount(line).unwrap();
        assert_eq!((point.to_str(), disk.as_str()), (Some("/mnt/a b"), "ext4 on /dev/nope"));
    }
}
