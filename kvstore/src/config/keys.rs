//! The one table of configuration keys: `docs/config.md` is generated from it and tested equal.

use super::renewal::is_live;

/// Where Prometheus text is served unless configured.
pub(super) const DEFAULT_METRICS: &str = "127.0.0.1:9753";

/// One configuration key, for people.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Dotted name: table, then key.
    pub name: &'static str,
    /// The default, as shown to people.
    pub default: &'static str,
    /// What is allowed.
    pub allowed: &'static str,
    /// What it does.
    pub what: &'static str,
}

/// Every key there is, in the order of the file.
pub const KEYS: &[Key] = &[
    Key {
        name: "server.socket",
        default: "`$RUNTIME_DIRECTORY/undercroft.sock`, `$XDG_RUNTIME_DIR/undercroft/undercroft.sock`, `/run/undercroft/undercroft.sock` (root) or `/tmp/undercroft-UID/undercroft.sock`, the first that applies",
        allowed: "a path of 1..=107 bytes",
        what: "Unix socket the daemon listens on. Mode 0660.",
    },
    Key {
        name: "server.metrics",
        default: "\"127.0.0.1:9753\"",
        allowed: "\"off\" or a loopback address with a port (port 0 picks a free one)",
        what: "Where `/metrics` and `/healthz` are served. Never reachable from other machines.",
    },
    Key {
        name: "server.max_sessions",
        default: "64",
        allowed: "1..=4096",
        what: "Connections beyond this are closed at once.",
    },
    Key {
        name: "server.realtime",
        default: "true",
        allowed: "true or false",
        what: "The thread that answers sessions asks for `SCHED_RR`, so that threads of engines that spin cannot keep it waiting. Refused without `RLIMIT_RTPRIO`, which the log says; no error.",
    },
    Key {
        name: "arena.size",
        default: "1 GiB, or a quarter of free memory where that is less",
        allowed: "64KiB..=7TiB; left out where there are `[[domain]]` tables",
        what: "Bytes of host memory for pages. Taken and touched before the daemon is ready. Left out, it stays what it was at the start.",
    },
    Key {
        name: "arena.part",
        default: "\"1GiB\"",
        allowed: "64KiB..=1GiB",
        what: "The arena is a list of parts of this size, one shared-memory object each: the unit in which it grows and shrinks. At most 4096 parts in all, 2048 on mounts. Counts for parts that are made from then on.",
    },
    Key {
        name: "arena.slab",
        default: "\"64MiB\"",
        allowed: "4KiB..=1GiB",
        what: "A part is cut into slabs of about this size; each slab holds pages of one size.",
    },
    Key {
        name: "arena.backing",
        default: "\"auto\"",
        allowed: "\"auto\", \"memfd\" or \"mount\"",
        what: "Where the arena lies: `mount` in files on private mounts, which nobody but the daemon can write, root in a container included; `memfd` in sealed memfds. `auto` is `mount` where the unit hands mounts over or the daemon may make them, else `memfd`, and `status` says why. Counts for parts that are made from then on.",
    },
    Key {
        name: "arena.huge_pages",
        default: "\"auto\"",
        allowed: "\"auto\" or \"off\"",
        what: "`auto` uses 2 MiB pages where the machine has them and says so where it has not.",
    },
    Key {
        name: "arena.lock",
        default: "true",
        allowed: "true or false",
        what: "Try to lock the arena in memory. A refusal is shown by `status`, not an error.",
    },
    Key {
        name: "arena.numa_node",
        default: "wherever the system puts it",
        allowed: "a node with memory of this machine, or a list of different ones; also where there are `[[domain]]` tables, as their default",
        what: "Memory nodes that parts of the arena are put on, with a list in turn. A node that has no memory left is helped out by others. `status` says which nodes, what was refused, and how much of the parts lies elsewhere all the same. Counts for parts that are made from then on.",
    },
    Key {
        name: "arena.staging",
        default: "\"64MiB\"",
        allowed: "4KiB..=4GiB",
        what: "Staging area per session and space: what a store may have in flight. At least one page.",
    },
    Key {
        name: "arena.staging_total",
        default: "64 times `arena.staging`",
        allowed: "4KiB..=1TiB",
        what: "Bytes of all staging areas together. A space whose area would go beyond is not opened.",
    },
    Key {
        name: "ssd.path",
        default: "`$STATE_DIRECTORY`, `$XDG_STATE_HOME/undercroft`, `/var/lib/undercroft` (root), `$HOME/.local/state/undercroft` or `/var/tmp/undercroft-UID`, the first that applies",
        allowed: "a directory the daemon may write to, or a list of 1..=64 different ones",
        what: "Directory of the page log, `pages-0.log`. With a list each directory has a page log of its own, and pages are spread over them by load: name one directory on each SSD.",
    },
    Key {
        name: "ssd.size",
        default: "4 GiB, or half of the free space where that is less, for each directory",
        allowed: "0 (no SSD tier) or 1MiB..=1PiB, or a list of 1MiB..=1PiB with one for each directory",
        what: "Bytes of pages to keep in each directory. Reserved before the daemon is ready, with room for four more segments and the tables.",
    },
    Key {
        name: "ssd.encryption",
        default: "\"on\"",
        allowed: "\"on\" or \"off\"",
        what: "Whether pages and their names are encrypted on SSD (AES-256-GCM). What was written the other way is not used, and written over.",
    },
    Key {
        name: "ssd.key_file",
        default: "`$CREDENTIALS_DIRECTORY/undercroft.store-key` where there is one, else `store.key` in the first directory of `ssd.path` that has one; without any it is made in the first one",
        allowed: "a file of 32 bytes or 64 hexadecimal digits that only its owner may read",
        what: "The store key, one for all directories. A file that is named here, or a credential, is read and never made. Without its key a store cannot be read again.",
    },
    Key {
        name: "ssd.segment",
        default: "a 64th of `ssd.size`, between 4 MiB and 256 MiB",
        allowed: "64KiB..=1GiB",
        what: "Unit of writing and reclaim. Must hold at least one page. Only used when the store is made.",
    },
    Key {
        name: "ssd.write_budget",
        default: "no bound",
        allowed: "a rate of 64KiB/s..=1TiB/s, such as `\"200MiB/s\"`",
        what: "The most that is written to each directory in any minute, as bytes a second: bursts are fine, a minute's worth of them. Pages used once wait first, then those used again, then what reclaim would move; what leads to pages on SSD is written to the last. Beyond it pages are lost when they leave DRAM. Counts table entries; a start begins with a minute that is used up.",
    },
    Key {
        name: "ssd.write_budget_day",
        default: "no bound",
        allowed: "1MiB..=1PiB",
        what: "The most that is written to each directory in any 24 hours, as `ssd.write_budget`. What an earlier daemon wrote is not known: it is taken to have been all of that, evenly.",
    },
    Key {
        name: "ssd.endurance",
        default: "1825 times `ssd.size`: once a day for five years",
        allowed: "1MiB..=1EiB",
        what: "Bytes that may be written to each directory's drive in its life, by its data sheet: for the years that `status` and the metrics tell.",
    },
    Key {
        name: "ssd.engine",
        default: "\"auto\"",
        allowed: "\"auto\", \"io_uring\" or \"threads\"",
        what: "`auto` uses io_uring and falls back to a thread pool where the system refuses it.",
    },
    Key {
        name: "ssd.queue_depth",
        default: "64",
        allowed: "1..=256",
        what: "The most reads and writes in flight on each device. It begins with 16 and finds out how many are of use.",
    },
    Key {
        name: "ssd.stall_ms",
        default: "500",
        allowed: "10..=60000",
        what: "A device whose read takes longer than this is stalled: its pages are misses until it answers again. A write may take 4 times, a flush 20 times that.",
    },
    Key {
        name: "ssd.table_flush_ms",
        default: "20",
        allowed: "1..=10000",
        what: "A written page is named in its segment's table at most this much later; a crash loses what was not.",
    },
    Key {
        name: "copy.workers",
        default: "number of cores, at most 4",
        allowed: "1..=64",
        what: "Threads that copy pages out of staging and check them.",
    },
    Key {
        name: "copy.mode",
        default: "\"auto\"",
        allowed: "\"auto\" or \"copy\"",
        what: "`auto` lets sessions read the arena in place; `copy` delivers pages into their staging area.",
    },
    Key {
        name: "policy.eviction",
        default: "\"depth\"",
        allowed: "\"lru\", \"depth\" or \"density\"",
        what: "Order in which pages leave DRAM, tail of a prefix first in each: `lru` is least recently used; `depth` keeps the beginnings of prefixes, and pages that were used again, for longer, so that some conversations stay whole where not all find room; `density` learns from the traffic for how long pages are worth keeping, and has new ones wait until those before have had that.",
    },
    Key {
        name: "policy.admission",
        default: "\"auto:10\"",
        allowed: "\"through\", \"demote\", or \"auto:N\" with N of 1..=1000",
        what: "What of the pages that leave DRAM is written to SSD: `through` every page as soon as it is stored; `demote` every page when it leaves; `auto:N` when they leave, pages that were used again and what leads to them, and others only while half of the SSD is free or at least one in N of their space comes back while the SSD would keep it. N is the price of a hit in writes.",
    },
    Key {
        name: "policy.load",
        default: "\"advisory\"",
        allowed: "\"off\", \"advisory\" or \"enforced\"",
        what: "What is made of what loading costs: every lookup weighs it against computing the same pages, by how fast each SSD and the engine were lately, what they have to do already, and what the engine says that computing a page costs. `enforced` finds no more than is worth loading, and cuts fetches that fall behind; `advisory` tells and counts it, and loads all the same; `off` weighs nothing. Of an engine that has said nothing everything is worth loading.",
    },
    Key {
        name: "policy.demote_ahead",
        default: "64",
        allowed: "0..=65536",
        what: "How many of the coldest pages are kept written to SSD ahead of their eviction; at most an eighth of DRAM.",
    },
    Key {
        name: "policy.fetch_window",
        default: "32",
        allowed: "1..=4096",
        what: "SSD reads in flight for one fetch.",
    },
    Key {
        name: "policy.max_hold_ms",
        default: "60000",
        allowed: "1..=3600000",
        what: "Longest hold a lookup may ask for.",
    },
    Key {
        name: "policy.silence_ms",
        default: "60000",
        allowed: "10..=86400000",
        what: "A process that holds pages of the arena and has said nothing for this long raises an alarm: in the log, in `status` and in the metrics. The pages stay its own.",
    },
    Key {
        name: "policy.max_offer_ms",
        default: "60000",
        allowed: "1..=3600000",
        what: "How long a page that a client was given room for is waited for. Then others may store it; the room stays the client's until it says what became of it.",
    },
    Key {
        name: "domain.name",
        default: "none: it must be given",
        allowed: "1..=64 letters, digits, `-`, `_` or `.`, different for each domain",
        what: "What the domain is called in `status`, metrics and `purge`. Its pages on SSD belong to the name: another name does not find them.",
    },
    Key {
        name: "domain.uid",
        default: "every user",
        allowed: "a list of 1..=256 user numbers",
        what: "Users whose processes belong to the domain. Where several of `uid`, `gid` and `cgroup` are given, all must fit.",
    },
    Key {
        name: "domain.gid",
        default: "every group",
        allowed: "a list of 1..=256 group numbers",
        what: "Primary groups whose processes belong to the domain.",
    },
    Key {
        name: "domain.cgroup",
        default: "every cgroup",
        allowed: "a list of 1..=256 paths such as `\"/kubepods.slice/tenant-a\"`",
        what: "Control groups (version 2, or the `name=systemd` hierarchy) whose processes, and those of groups below them, belong to the domain. The daemon must be able to read `/proc/PID/cgroup`: not under `ProtectProc=invisible`.",
    },
    Key {
        name: "domain.dram",
        default: "none: it must be given",
        allowed: "64KiB..=7TiB, and 7TiB for all domains together",
        what: "Bytes of the domain's own arena. No other domain takes any of it. Domains themselves come and go at a restart only.",
    },
    Key {
        name: "domain.ssd",
        default: "no bound but `ssd.size`",
        allowed: "1MiB..=1PiB",
        what: "Bytes of the domain's pages on SSD, over all directories. Beyond them its own oldest pages are forgotten, and nobody else's.",
    },
    Key {
        name: "domain.ssd_floor",
        default: "0",
        allowed: "0..=`domain.ssd`, and half of `ssd.size` for all domains together",
        what: "While the domain's pages on SSD have no more bytes than this, making room moves them and drops none, whatever other domains write.",
    },
    Key {
        name: "domain.weight",
        default: "1",
        allowed: "1..=100",
        what: "The domain's share of what SSDs and copy workers do while several domains want more than they can do at once: twice the weight, twice the bytes.",
    },
    Key {
        name: "domain.max_reads_in_flight",
        default: "65536",
        allowed: "1..=65536",
        what: "The most pages that SSDs read for the domain at once.",
    },
    Key {
        name: "domain.max_pages",
        default: "its share, by `dram`, of the pages the daemon can know: one for each 16 KiB of all tiers",
        allowed: "1..=67108864, and as much for all domains together",
        what: "The most pages known of the domain in any tier. Beyond them it stores nothing new.",
    },
    Key {
        name: "domain.max_spaces",
        default: "an equal part of what other domains leave of 1024",
        allowed: "1..=1024, and as much for all domains together",
        what: "The most spaces (models and layouts) known of the domain. One that has no pages and that nobody has open makes room.",
    },
    Key {
        name: "domain.numa_node",
        default: "`arena.numa_node`",
        allowed: "as `arena.numa_node`",
        what: "As `arena.numa_node`, for this domain.",
    },
    Key {
        name: "domain.staging_total",
        default: "an equal part of what other domains leave of `arena.staging_total`",
        allowed: "4KiB..=`arena.staging_total`, and as much for all domains together",
        what: "Bytes of all staging areas of the domain's sessions. A space that would need more is refused.",
    },
    Key {
        name: "domain.session_leases",
        default: "no bound but `domain.dram`",
        allowed: "64KiB..=7TiB",
        what: "Bytes of the domain's arena that the leases of one session may pin, so that a process that is stopped keeps no more. A fetch that wants more goes on as pages are released, until its deadline; a lease that another session hands over must fit whole.",
    },
    Key {
        name: "domain.max_sessions",
        default: "an equal part of what other domains leave of `server.max_sessions`",
        allowed: "1..=`server.max_sessions`, and as much for all domains together",
        what: "Connections of the domain beyond this are refused.",
    },
    Key {
        name: "domain.mode",
        default: "`copy.mode`",
        allowed: "\"auto\" or \"copy\"",
        what: "As `copy.mode`, for this domain.",
    },
    Key {
        name: "domain.max_age",
        default: "none: pages stay as long as there is room",
        allowed: "1s..=36500d: seconds, or a text with `s`, `m`, `h` or `d` such as `\"30d\"`",
        what: "Pages that were stored longer ago are served to nobody, in whatever tier they are, also after a restart; a little later they are dropped. What lies on SSD is overwritten when its segment is used again.",
    },
];

/// The text of `docs/config.md`.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(
        "# Configuration\n\n\
         One TOML file, `undercroft serve --config FILE`; every key is optional and unknown keys are\n\
         refused. Sizes are bytes or texts with `KiB`, `MiB`, `GiB`. This page is what\n\
         `undercroft serve --print-config` prints.\n\n\
         SIGHUP (`systemctl reload undercroft`) has the file read again. Keys marked so below count at\n\
         once then, all others at the next start.\n",
    );
    let mut table = "";
    for key in KEYS {
        let (section, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if section != table {
            table = section;
            text.push_str(&heading(section));
        }
        text.push_str(&format!(
            "\n### `{name}`\n\n{}\n\n- default: {}\n- allowed: {}\n",
            key.what, key.default, key.allowed
        ));
        if is_live(key.name) {
            text.push_str("- at a reload: counts at once\n");
        }
    }
    text
}

/// The heading of a table, and what is to be said of it as a whole.
fn heading(section: &str) -> String {
    match section {
        "domain" => "\n## `[[domain]]`\n\n\
             Any number of tables, one for each security boundary (tenant). A connection belongs to the\n\
             first domain whose rules fit the process at its other end, as the kernel names it; one that\n\
             fits none is turned away. Without any table everybody belongs to the domain `default`.\n"
            .to_owned(),
        _ => format!("\n## `[{section}]`\n"),
    }
}
