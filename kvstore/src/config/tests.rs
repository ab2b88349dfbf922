#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use super::{Config, ConfigError, KEYS, KeyFile, SsdDirectory, human, reference};
use std::path::Path;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("test.toml"))
}

#[test]
fn an_empty_file_is_the_embedded_default() {
    let config = parse("").unwrap();
    assert!(config.arena_bytes() <= 1 << 30);
    assert_eq!(config.part_bytes, 1 << 30);
    assert!(config.metrics.unwrap().ip().is_loopback());
}

#[test]
fn sizes_are_bytes_or_text() {
    let config = parse("[arena]\nsize = \"64MiB\"\nstaging = 8192\n[ssd]\nsize = 0\n").unwrap();
    assert_eq!(config.arena_bytes(), 64 << 20);
    assert_eq!(config.staging_bytes, 8192);
    assert!(config.ssd.is_none());
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let error = parse("[arena]\nsizes = 5\n").unwrap_err().to_string();
    assert!(error.contains("test.toml") && error.contains("sizes"), "{error}");
    assert!(error.contains("line 2") && !error.contains('\n'), "{error}");
}

#[test]
fn a_value_out_of_range_names_key_value_and_range() {
    for (text, key, found) in [
        ("[arena]\nsize = \"12\"", "arena.size", "\"12\""),
        ("[arena]\nsize = \"8TiB\"", "arena.size", "\"8TiB\""),
        ("[arena]\nsize = \"lots\"", "arena.size", "\"lots\""),
        ("[ssd]\nqueue_depth = 0", "ssd.queue_depth", "0"),
        ("[ssd]\nsize = 5", "ssd.size", "5"),
        ("[ssd]\nengine = \"magic\"", "ssd.engine", "\"magic\""),
        ("[server]\nmetrics = \"0.0.0.0:1\"", "server.metrics", "0.0.0.0:1"),
        ("[server]\nmax_sessions = 1000000", "server.max_sessions", "1000000"),
        ("[policy]\neviction = \"fifo\"", "policy.eviction", "\"fifo\""),
        ("[policy]\nadmission = \"auto:0\"", "policy.admission", "\"auto:0\""),
        ("[policy]\nload = \"on\"", "policy.load", "\"on\""),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(
            error.contains(key) && error.contains(found) && error.contains("allowed"),
            "{text}: {error}"
        );
    }
}

#[test]
fn a_value_of_several_lines_is_named_on_one() {
    for (text, shown) in [
        ("[server]\nmetrics = \"\"\"off\non\"\"\"", r#"server.metrics = "off\non":"#),
        ("[server]\nmetrics = \"off\\r\\u0007\"", r#"server.metrics = "off\r\u{7}":"#),
        ("[arena]\nsize = \"1\\tGiB\"", r#"arena.size = "1\tGiB":"#),
        ("[ssd]\nengine = \"io\\nuring\"", r#"ssd.engine = "io\nuring":"#),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(shown) && !error.contains(char::is_control), "{text}: {error}");
    }
}

#[test]
fn directories_and_sizes_are_one_or_a_list() {
    let ssd = |text: &str| parse(&format!("[ssd]\n{text}\n")).unwrap().ssd.unwrap();
    let one = ssd("path = \"/a\"\nsize = \"2MiB\"");
    assert_eq!(one.directories, [SsdDirectory { path: "/a".into(), bytes: 2 << 20 }]);
    let each = ssd("path = [\"/a\", \"/b\"]\nsize = \"2MiB\"");
    assert_eq!((each.directories.len(), each.bytes()), (2, 4 << 20));
    let own = ssd("path = [\"/a\", \"/b\"]\nsize = [\"2MiB\", 3145728]");
    assert_eq!(own.directories[1], SsdDirectory { path: "/b".into(), bytes: 3 << 20 });
    assert_eq!(ssd("path = [\"/a\", \"/b\"]").directories.len(), 2);
    let none = parse("[ssd]\npath = [\"/a\", \"/b\"]\nsize = 0").unwrap();
    assert!(none.ssd.is_none());
}

#[test]
fn directories_and_sizes_that_do_not_fit_are_refused() {
    for (text, key, words) in [
        ("path = []", "ssd.path", "a list of 0"),
        ("path = \"\"", "ssd.path", "\"\""),
        ("path = [\"/a\", \"/b\", \"/a/\"]", "ssd.path", "\"/a/\", which is in the list"),
        ("path = [\"/\", \"/proc/..\"]", "ssd.path", "\"/proc/..\", which is in the list"),
        ("path = \"/a\"\nsize = [1048576, 1048576]", "ssd.size", "a list of 2"),
        ("path = [\"/a\", \"/b\"]\nsize = [1048576]", "ssd.size", "a list of 2: one for each"),
        ("path = [\"/a\", \"/b\"]\nsize = [1048576, 0]", "ssd.size", "1MiB"),
        ("path = [\"/a\", \"/b\"]\nsize = [\"lots\", 0]", "ssd.size", "\"lots\""),
        ("path = \"/a\"\nsize = 5", "ssd.size", "1MiB"),
        ("encryption = \"yes\"", "ssd.encryption", "\"on\" or \"off\""),
        ("key_file = \"\"", "ssd.key_file", "\"\""),
        ("stall_ms = 1", "ssd.stall_ms", "10..=60000"),
        ("write_budget = \"200MiB\"", "ssd.write_budget", "\"200MiB\""),
        ("write_budget = 1048576", "ssd.write_budget", "1048576"),
        ("write_budget = \"1KiB/s\"", "ssd.write_budget", "\"1KiB/s\""),
        ("write_budget_day = 0", "ssd.write_budget_day", "0"),
        ("endurance = \"all\"", "ssd.endurance", "\"all\""),
    ] {
        let error = parse(&format!("[ssd]\n{text}\n")).unwrap_err().to_string();
        let said = error.contains(key) && error.contains(words) && error.contains("allowed");
        assert!(said && !error.contains('\n'), "{text}: {error}");
    }
}

#[test]
fn a_write_budget_is_a_rate_and_a_size() {
    let ssd = |text: &str| parse(&format!("[ssd]\n{text}\n")).unwrap().ssd.unwrap();
    let none = ssd("");
    assert_eq!((none.write_bytes_per_s, none.write_bytes_per_day), (None, None));
    assert_eq!(ssd("write_budget = \"200MiB/s\"").write_bytes_per_s, Some(200 << 20));
    assert_eq!(ssd("write_budget_day = \"1TiB\"").write_bytes_per_day, Some(1 << 40));
    assert_eq!(ssd("endurance = \"3PiB\"").endurance_bytes, Some(3 << 50));
}

#[test]
fn pages_are_encrypted_unless_somebody_says_otherwise() {
    let key = |text: &str| parse(&format!("[ssd]\n{text}\n")).unwrap().ssd.unwrap().key_file;
    assert!(key("").is_some());
    assert_eq!(key("encryption = \"off\""), None);
    let named = Some(KeyFile::Named("/a.key".into()));
    assert_eq!(key("key_file = \"/a.key\""), named);
    assert_eq!(key("encryption = \"off\"\nkey_file = \"/a.key\""), None);
}

#[test]
fn a_socket_path_that_is_too_long_is_refused_before_anything_is_opened() {
    let error = parse(&format!("[server]\nsocket = \"/{}\"", "x".repeat(120))).unwrap_err();
    assert!(error.to_string().contains("121 bytes"), "{error}");
}

#[test]
fn every_key_of_the_reference_is_accepted_by_the_parser() {
    for key in KEYS {
        let (table, name) = key.name.split_once('.').unwrap();
        // A value of a type no key has: the error must be about the type, not about the name.
        let head = if table == "domain" { "[[domain]]" } else { &format!("[{table}]") };
        let error = parse(&format!("{head}\n{name} = [[1]]\n")).unwrap_err().to_string();
        assert!(!error.contains("unknown field"), "{}: {error}", key.name);
    }
}

#[test]
fn the_written_reference_is_the_generated_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config.md");
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        written,
        reference(),
        "docs/config.md is stale: run `cargo run -- serve --print-config > docs/config.md`"
    );
}

#[test]
fn sizes_for_people() {
    assert_eq!(human(512), "512 B");
    assert_eq!(human(1 << 30), "1 GiB");
    assert_eq!(human(3 << 19), "1.5 MiB");
}

#[test]
fn domains_have_rules_and_arenas_of_their_own() {
    let text = "[[domain]]\nname = \"a\"\nuid = [7, 5]\ndram = \"1MiB\"\nmode = \"copy\"\n\
                [[domain]]\nname = \"b\"\ncgroup = [\"/k/b\"]\ndram = \"2MiB\"\nmax_sessions = 3\n\
                [[domain]]\nname = \"rest\"\ndram = \"4MiB\"\n";
    let config = parse(text).unwrap();
    assert_eq!(config.arena_bytes(), 7 << 20);
    let [a, b, rest] = config.domains.as_slice() else { panic!("{:?}", config.domains) };
    assert_eq!(a.rule.uids.as_deref(), Some(&[5, 7][..]));
    assert!(a.copy_mode && !b.copy_mode && rest.rule.is_open());
    assert_eq!((b.shares.max_sessions, rest.shares.max_sessions), (3, 30));
    assert_ne!(a.id, b.id);
}

#[test]
fn domains_say_what_they_have_of_what_is_shared() {
    let text = "[ssd]\nsize = \"8GiB\"\n\
                [[domain]]\nname = \"a\"\nuid = [7]\ndram = \"1MiB\"\nssd = \"4GiB\"\nssd_floor = \"1GiB\"\n\
                weight = 3\nmax_reads_in_flight = 9\nmax_pages = 99\nmax_spaces = 5\n\
                [[domain]]\nname = \"rest\"\ndram = \"3MiB\"\n";
    let config = parse(text).unwrap();
    let [a, rest] = config.domains.as_slice() else { panic!("{:?}", config.domains) };
    let shares = a.shares;
    assert_eq!((shares.ssd_bytes, shares.ssd_floor_bytes), (Some(4 << 30), 1 << 30));
    assert_eq!((shares.weight, shares.max_reads), (3, 9));
    assert_eq!((shares.max_pages, shares.max_spaces), (Some(99), 5));
    let shares = rest.shares;
    assert_eq!((shares.ssd_bytes, shares.weight, shares.max_spaces), (None, 1, 1019));
    // What the others leave, in equal parts.
    assert_eq!((shares.max_sessions, shares.staging_bytes), (32, 32 * (64 << 20)));
    let limits = crate::bounds::limits(&config);
    let seed_and_stamp = (7, undercroft_wire::Stamp(0));
    let core =
        crate::bounds::core_config(&config, limits, seed_and_stamp, undercroft_wire::PurgeId(0));
    let pages = core.domains.iter().map(|domain| domain.limits.max_pages);
    let share = limits.max_pages as u64 * 3 / 4;
    assert_eq!(pages.collect::<Vec<_>>(), [99, share as u32]);
}

#[test]
fn domains_that_make_no_sense_are_refused_by_name() {
    let a = "[[domain]]\nname = \"a\"\ndram = \"1MiB\"\n";
    let b = "[[domain]]\nname = \"b\"\nuid = [1]\ndram = \"1MiB\"\n";
    for (text, key) in [
        (format!("{a}{b}"), "domain.uid, gid, cgroup"),
        (format!("{b}{b}"), "domain.name"),
        (format!("[arena]\nsize = \"1MiB\"\n{a}"), "arena.size"),
        ("[[domain]]\nname = \"a b\"\ndram = \"1MiB\"".to_owned(), "domain.name"),
        ("[[domain]]\ndram = \"1MiB\"".to_owned(), "domain.name"),
        ("[[domain]]\nname = \"a\"".to_owned(), "domain.dram"),
        (format!("{a}uid = []"), "domain.uid"),
        (format!("{a}gid = [1, 1]"), "domain.gid"),
        (format!("{a}cgroup = [\"relative\"]"), "domain.cgroup"),
        (format!("{a}mode = \"zero\""), "domain.mode"),
        (format!("{a}max_sessions = 65"), "domain.max_sessions"),
        (format!("{a}ssd = \"2MiB\"\nssd_floor = \"3MiB\""), "domain.ssd_floor"),
        (format!("{a}ssd_floor = \"3MiB\"\n[ssd]\nsize = \"5MiB\""), "domain.ssd_floor"),
        (format!("{a}weight = 0"), "domain.weight"),
        (format!("{a}max_reads_in_flight = 0"), "domain.max_reads_in_flight"),
        (format!("{a}max_pages = 0"), "domain.max_pages"),
        (format!("{a}session_leases = 4096"), "domain.session_leases"),
        (format!("{a}max_spaces = 1025"), "domain.max_spaces"),
        (format!("{a}max_spaces = 1024\nuid = [1]\n{b}"), "domain.max_spaces"),
        (format!("{a}max_sessions = 64\nuid = [1]\n{b}"), "domain.max_sessions"),
        (format!("{a}staging_total = \"5GiB\""), "domain.staging_total"),
        (format!("{a}staging_total = \"4GiB\"\nuid = [1]\n{b}"), "domain.staging_total"),
        (format!("{a}max_pages = 67108864\nuid = [1]\n{b}"), "domain.max_pages"),
    ] {
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("allowed"), "{text}: {error}");
    }
}

fn renewed(running: &str, new: &str) -> (Config, super::Renewal) {
    let mut config = parse(running).unwrap();
    let renewal = config.renew(parse(new).unwrap());
    (config, renewal)
}

#[test]
fn at_a_reload_what_may_change_does_and_the_rest_is_named() {
    let running = "[arena]\nsize = \"4MiB\"\npart = \"1MiB\"\n[ssd]\nsize = 0\n";
    let (config, renewal) = renewed(running, running);
    assert_eq!((renewal, config.arena_bytes()), (super::Renewal::default(), 4 << 20));
    let new = "[arena]\nsize = \"8MiB\"\nlock = false\nslab = \"1MiB\"\n[ssd]\nsize = 0\n\
               [server]\nmax_sessions = 3\n[copy]\nmode = \"copy\"\n";
    let (config, renewal) = renewed(running, new);
    assert_eq!((config.arena_bytes(), config.part_bytes, config.lock), (8 << 20, 1 << 30, false));
    assert!(config.domains[0].copy_mode && config.max_sessions == 64);
    let taken = ["arena.part", "arena.lock", "arena.size", "domain.mode of default"];
    assert_eq!(renewal.taken, taken);
    let pending = ["server.max_sessions", "arena.slab", "domain.max_sessions of default"];
    assert_eq!(renewal.pending, pending);
}

#[test]
fn a_size_that_was_fitted_to_the_machine_does_not_change_with_what_is_free() {
    let (mut config, _) = renewed("[arena]\nsize = \"4MiB\"\n", "");
    assert_eq!(config.arena_bytes(), 4 << 20);
    config.domains[0].dram_bytes = 5 << 20;
    assert_eq!(config.renew(parse("").unwrap()), super::Renewal::default());
    assert_eq!(config.arena_bytes(), 5 << 20);
}

#[test]
fn domains_change_at_a_reload_as_far_as_they_are_the_same() {
    let a = "[[domain]]\nname = \"a\"\nuid = [1]\ndram = \"4MiB\"\n";
    let b = "[[domain]]\nname = \"b\"\nuid = [2]\ndram = \"4MiB\"\n";
    let running = format!("{a}{b}");
    let (config, renewal) = renewed(&running, &format!("{}{a}", b.replace('4', "6")));
    let names: Vec<_> = config.domains.iter().map(|domain| domain.name.as_str()).collect();
    assert_eq!((names, config.domains[0].dram_bytes), (vec!["b", "a"], 6 << 20));
    assert_eq!(renewal.taken, ["domain.dram of b"]);

    let (config, renewal) = renewed(&running, &running.replace("[2]", "[2, 3]"));
    assert_eq!(config.domains[1].rule.uids, Some(vec![2, 3]));
    assert_eq!(renewal.taken, ["domain.uid, gid, cgroup of b"]);

    // A rule was written with an eye to the others.
    let other = running.replace("\"a\"", "\"c\"").replace("[2]", "[1, 2]").replace("4M", "2M");
    let (config, renewal) = renewed(&running, &other);
    assert_eq!((&config.domains[0].name[..], config.domains[0].dram_bytes), ("a", 4 << 20));
    assert_eq!((&config.domains[1].rule.uids, config.arena_bytes()), (&Some(vec![2]), 6 << 20));
    assert_eq!(renewal.taken, ["domain.dram of b"]);
    let pending = ["domain c (new)", "domain a (taken away)", "domain.uid, gid, cgroup of b"];
    assert_eq!(renewal.pending, pending);

    // What domains have of what is shared changes for all of them or for none.
    let shares = "ssd = \"2MiB\"\nweight = 3\nmax_reads_in_flight = 5\nmax_pages = 6\n\
                  max_spaces = 7\nstaging_total = \"1GiB\"\nsession_leases = \"1MiB\"\nmax_sessions = 2\n";
    let (config, renewal) = renewed(&running, &format!("{running}{shares}"));
    let now = config.domains[1].shares;
    assert_eq!((now.ssd_bytes, now.weight, now.max_reads), (Some(2 << 20), 3, 5));
    assert_eq!((now.max_pages, now.max_spaces, now.staging_bytes), (Some(6), 7, 1 << 30));
    let keys = ["max_spaces of a", "staging_total of a", "ssd of b", "weight of b"];
    let more = ["max_reads_in_flight of b", "max_pages of b", "max_spaces of b"];
    let taken = keys.iter().chain(&more).chain(&["staging_total of b", "session_leases of b"]);
    assert!(taken.map(|key| format!("domain.{key}")).eq(renewal.taken), "{:?}", config.domains);
    assert_eq!(renewal.pending, ["domain.max_sessions of a", "domain.max_sessions of b"]);
    let (config, renewal) = renewed(&running, &format!("{other}{shares}"));
    assert_eq!(config.domains[1].shares.weight, 1);
    assert!(renewal.pending.contains(&"domain.weight of b".to_owned()), "{renewal:?}");

    // A domain called as where there are none is one like any other.
    let default = "[[domain]]\nname = \"default\"\ndram = \"4MiB\"\n";
    let (config, renewal) = renewed(default, &default.replace('4', "6"));
    assert_eq!((config.arena_bytes(), &renewal.taken[0][..]), (6 << 20, "domain.dram of default"));
}

#[test]
fn more_parts_than_there_can_be_are_refused_with_their_number() {
    let parts = |size: &str, part: &str, more: &str| {
        parse(&format!("[arena]\nsize = \"{size}\"\npart = \"{part}\"\n{more}"))
    };
    assert!(parts("4TiB", "1GiB", "").is_ok());
    for (size, part, more, words) in [
        ("4097GiB", "1GiB", "", ["4097 parts", "4096 parts"]),
        ("300MiB", "64KiB", "", ["4800 parts", "4096 parts"]),
        ("2049GiB", "1GiB", "backing = \"mount\"", ["2049 parts", "2048 parts on mounts"]),
    ] {
        let error = parts(size, part, more).unwrap_err().to_string();
        assert!(error.contains("arena.part"), "{error}");
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    assert!(parts("2048GiB", "1GiB", "backing = \"mount\"").is_ok());
    // Each domain begins with a part of its own.
    let domain =
        |name: &str| format!("[[domain]]\nname = \"{name}\"\nuid = [1]\ndram = \"2048.5GiB\"\n");
    let error = parse(&(domain("a") + &domain("b"))).unwrap_err().to_string();
    assert!(error.contains("4098 parts"), "{error}");
}

#[test]
fn memory_nodes_are_one_or_a_list_that_parts_take_in_turn() {
    if !Path::new("/sys/devices/system/node/node0").exists() {
        println!("SKIPPED memory_nodes_are_one_or_a_list_that_parts_take_in_turn: no nodes here");
        return;
    }
    let nodes = |text: &str| parse(&format!("[arena]\nnuma_node = {text}\n"));
    let on = |config: &Config, part| config.domains[0].numa_node(undercroft_wire::PartId(part));
    assert_eq!(on(&parse("").unwrap(), 5), None);
    assert_eq!(on(&nodes("0").unwrap(), 5), Some(0));
    assert_eq!(on(&nodes("[0]").unwrap(), 5), Some(0));
    let mut both = nodes("0").unwrap();
    both.domains[0].numa_nodes = vec![2, 0];
    assert_eq!([0, 1, 2, 3].map(|part| on(&both, part)), [2, 0, 2, 0].map(Some));
    let missing = nodes("1000").unwrap_err().to_string();
    assert!(
        missing.contains("arena.numa_node") && missing.contains("nodes with memory"),
        "{missing}"
    );
    let domain = "[[domain]]\nname = \"a\"\ndram = \"1MiB\"\n";
    let default = parse(&format!("[arena]\nnuma_node = 0\n{domain}")).unwrap();
    assert_eq!(on(&default, 0), Some(0));
    let own = parse(&format!("{domain}numa_node = 1000\n")).unwrap_err().to_string();
    assert!(own.contains("domain.numa_node"), "{own}");
}
