//! Whether there is memory for more: who takes more than there is is killed for it, or others are.

use crate::ArenaError;
use std::fs;
use std::path::Path;

/// Where control groups of version 2 are. Those of version 1 are not looked at.
const GROUPS: &str = "/sys/fs/cgroup";
const NODES: &str = "/sys/devices/system/node";
const RESERVED: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const HUGE_BYTES: u64 = crate::mapping::HUGE_BYTES as u64;
/// Left to everybody else on the machine.
const SPARE_BYTES: u64 = 32 << 20;
/// Page tables take up to so much of what is mapped: 8 bytes of every 4 KiB, in the daemon and in a client.
const TABLES: u64 = 256;

/// Memory that can be taken, and what sets the bound.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Room {
    bytes: u64,
    /// What it would be if nobody had any of it.
    most: u64,
    of: String,
}

/// Checks that so much ordinary memory can be taken without anybody being killed for it. What cannot
/// be told is no obstacle.
pub(crate) fn check(bytes: u64) -> Result<(), ArenaError> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let rooms = group_rooms(Path::new(GROUPS), &own).into_iter().chain(machine());
    check_against(bytes, rooms)
}

fn check_against(bytes: u64, rooms: impl Iterator<Item = Room>) -> Result<(), ArenaError> {
    let needed = bytes.saturating_add(bytes / TABLES).saturating_add(SPARE_BYTES);
    match rooms.min_by_key(|room| room.bytes) {
        Some(Room { bytes: room, most, of }) if bytes > 0 && room < needed => {
            Err(ArenaError::NoRoom { needed, room, most, of })
        }
        _ => Ok(()),
    }
}

/// Bytes of reserved huge pages that nobody has or is promised.
pub(crate) fn reserved_bytes() -> u64 {
    let number = |name| number_of(Path::new(RESERVED), name).unwrap_or(0);
    number("free_hugepages").saturating_sub(number("resv_hugepages")).saturating_mul(HUGE_BYTES)
}

/// What the kernel says can be had without swapping. A service that sees nothing of `/proc` but
/// processes adds up what the memory nodes have.
fn machine() -> Option<Room> {
    let told = fs::read_to_string("/proc/meminfo").ok();
    let told =
        told.and_then(|text| Some((kib_of(&text, "MemAvailable:")?, kib_of(&text, "MemTotal:")?)));
    let (bytes, most) = told.or_else(|| nodes_available(Path::new(NODES)))?;
    Some(Room { bytes, most, of: "the machine".to_owned() })
}

/// What all memory nodes have available, and what they have at all.
fn nodes_available(nodes: &Path) -> Option<(u64, u64)> {
    let nodes = fs::read_dir(nodes).ok()?.filter_map(Result::ok);
    let texts = nodes.filter_map(|node| fs::read_to_string(node.path().join("meminfo")).ok());
    let one = |text: String| {
        // Free, or a page cache that is written back and given up.
        let names = ["MemFree:", "Active(file):", "Inactive(file):", "SReclaimable:"];
        let available = names.iter().filter_map(|name| kib_of(&text, name)).sum::<u64>();
        (available, kib_of(&text, "MemTotal:").unwrap_or(available))
    };
    let all = texts.map(one).fold((0, 0), |all, node| (all.0 + node.0, all.1 + node.1));
    Some(all).filter(|(available, _)| *available > 0)
}

/// The number of KiB behind a name, bytes.
fn kib_of(text: &str, name: &str) -> Option<u64> {
    let (_, rest) = text.split_once(name)?;
    rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1 << 10)
}

/// What the process's control group leaves it, and each one above that. `own` is its
/// `/proc/PID/cgroup`.
fn group_rooms(root: &Path, own: &str) -> Vec<Room> {
    let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return Vec::new();
    };
    let path = Path::new(path);
    let mut rooms: Vec<Room> =
        path.ancestors().filter_map(|group| group_room(root, group)).collect();
    rooms.dedup();
    rooms
}

fn group_room(root: &Path, group: &Path) -> Option<Room> {
    let at = root.join(group);
    let limits = ["memory.max", "memory.high"].map(|name| number_of(&at, name));
    let limit = limits.into_iter().flatten().min()?;
    let stat = fs::read_to_string(at.join("memory.stat")).unwrap_or_default();
    let cached = ["inactive_file", "active_file", "slab_reclaimable"].map(|name| {
        let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0)
    });
    let taken = number_of(&at, "memory.current")?.saturating_sub(cached.iter().sum());
    let of = format!("control group /{}", group.display());
    Some(Room { bytes: limit.saturating_sub(taken), most: limit, of })
}

/// The number that a file holds; `None` for `max`.
fn number_of(directory: &Path, name: &str) -> Option<u64> {
    fs::read_to_string(directory.join(name)).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use std::path::PathBuf;

    const MIB: u64 = 1 << 20;

    struct Files(PathBuf);

    impl Files {
        fn new(name: &str) -> Self {
            let id = std::process::id();
            Self(std::env::temp_dir().join(format!("undercroft-room-{name}-{id}")))
        }

        fn write(&self, at: &str, text: &str) {
            let at = self.0.join(at);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            fs::write(at, text).unwrap();
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _left_behind = fs::remove_dir_all(&self.0);
        }
    }

    fn room(mib: u64, most: u64, of: &str) -> Room {
        Room { bytes: mib * MIB, most: most * MIB, of: of.to_owned() }
    }

    #[test]
    fn the_smallest_bound_decides_and_is_named() {
        let rooms = || [room(500, 900, "the machine"), room(100, 200, "control group /a")];
        let rooms = || rooms().into_iter();
        assert!(check_against(60 * MIB, rooms()).is_ok());
        let refused = check_against(70 * MIB, rooms()).unwrap_err();
        assert!(matches!(refused, ArenaError::NoRoom { most, .. } if most == 200 * MIB));
        let refused = refused.to_string();
        assert!(refused.contains("control group /a") && refused.contains("104857600"), "{refused}");
        assert!(check_against(u64::MAX, rooms()).is_err());
        assert!(check_against(u64::MAX, std::iter::empty()).is_ok(), "nothing is known");
        assert!(check_against(0, [room(0, 0, "x")].into_iter()).is_ok(), "nothing is wanted");
    }

    #[test]
    fn what_a_control_group_caches_is_room_and_its_parents_bound_it_too() {
        let files = Files::new("groups");
        files.write("a/memory.max", &format!("{}\n", 900 * MIB));
        files.write("a/memory.high", "max\n");
        files.write("a/memory.current", &format!("{}\n", 500 * MIB));
        files.write(
            "a/memory.stat",
            &format!("anon 1\ninactive_file {}\nactive_file 0\n", 200 * MIB),
        );
        files.write("a/b/memory.max", "max\n");
        files.write("a/b/memory.high", &format!("{}\n", 300 * MIB));
        files.write("a/b/memory.current", &format!("{}\n", 100 * MIB));
        files.write("a/c/memory.max", "max\n");
        files.write("a/c/memory.current", "5\n");
        let rooms = |own| group_rooms(&files.0, own);
        let (a, b) = (room(600, 900, "control group /a"), room(200, 300, "control group /a/b"));
        assert_eq!(rooms("1:cpu:/x\n0::/a/b\n"), [b, a.clone()]);
        assert_eq!(rooms("0::/a/c\n"), [a], "one without a bound");
        assert_eq!(rooms("0::/\n"), []);
        assert_eq!(rooms("4:memory:/a\n"), [], "version 1");
    }

    #[test]
    fn memory_nodes_are_added_up() {
        let files = Files::new("nodes");
        for node in 0..2 {
            let text = "Node 0 MemTotal: 99 kB\nNode 0 MemFree:    1024 kB\n\
                        Node 0 Inactive(file): 2048 kB\nNode 0 Shmem: 7 kB\n";
            files.write(&format!("node{node}/meminfo"), text);
        }
        assert_eq!(nodes_available(&files.0), Some((6 * MIB, 2 * (99 << 10))));
        assert_eq!(nodes_available(&files.0.join("none")), None);
    }

    #[test]
    fn this_machine_has_room_for_a_little_and_not_for_everything() {
        let machine = machine().unwrap();
        assert!(machine.bytes > MIB, "{machine:?}");
        assert!(matches!(check(1 << 60), Err(ArenaError::NoRoom { .. })));
    }
}
