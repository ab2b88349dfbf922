#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use super::{Finding, arrows, check_files};
use crate::tree::File;

fn file(path: &str, text: impl Into<String>) -> File {
    File { path: path.to_owned(), text: text.into() }
}

fn findings(path: &str, text: impl Into<String>) -> Vec<Finding> {
    check_files(&[file(path, text)])
}

/// Exactly one finding, at `line`, whose text holds `what`.
#[track_caller]
fn assert_one(found: &[Finding], line: usize, what: &str) {
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].line, line, "{}", found[0]);
    assert!(found[0].to_string().contains(what), "{}", found[0]);
}

fn function(lines: usize) -> String {
    format!("fn long() {{\n{}}}\n", "    work();\n".repeat(lines - 2))
}

const MANIFEST: &str = "[package]\nname = \"undercroft-wire\"\nversion.workspace = true\n\
    edition.workspace = true\nrust-version.workspace = true\nlicense.workspace = true\n\
    publish.workspace = true\n[lints]\nworkspace = true\n";

#[test]
fn a_finding_names_path_line_what_and_limit() {
    let finding = Finding::new("wire/src/key.rs", 7, "fn x of 71 lines", "70 lines");
    assert_eq!(finding.to_string(), "wire/src/key.rs:7: fn x of 71 lines; allowed: 70 lines");
}

#[test]
fn a_function_may_have_70_lines_and_no_more() {
    assert_eq!(findings("wire/src/a.rs", function(70)), []);
    assert_one(
        &findings("wire/src/a.rs", function(71)),
        1,
        "fn long of 71 lines; allowed: 70 lines",
    );
}

#[test]
fn attributes_and_docs_do_not_count() {
    let text = format!("{}#[inline]\n{}", "/// Words.\n".repeat(30), function(70));
    assert_eq!(findings("wire/src/a.rs", text), []);
}

#[test]
fn methods_and_trait_defaults_count_too() {
    let method = format!("struct S;\nimpl S {{\n{}}}\n", function(71));
    assert_one(&findings("wire/src/a.rs", method), 3, "fn long of 71 lines");
    let default = format!("trait T {{\n{}}}\n", function(71));
    assert_one(&findings("wire/src/a.rs", default), 2, "fn long of 71 lines");
}

#[test]
fn test_functions_may_have_150_lines_and_no_more() {
    for path in ["wire/src/tests.rs", "wire/tests/golden.rs", "tests/src/daemon.rs"] {
        assert_eq!(findings(path, function(150)), []);
        assert_one(&findings(path, function(151)), 1, "allowed: 150 lines");
    }
}

#[test]
fn a_file_brought_in_under_cfg_test_is_a_test_file() {
    let declared = file("wire/src/run.rs", "#[cfg(test)]\nmod model;\n");
    let long = file("wire/src/run/model.rs", function(150));
    assert_eq!(check_files(&[declared.clone(), long.clone()]), []);
    let plain = file("wire/src/run.rs", "mod model;\n");
    assert_one(&check_files(&[plain, long]), 1, "allowed: 70 lines");
    let renamed = file("wire/src/run.rs", "#[cfg(test)]\n#[path = \"oracle.rs\"]\nmod model;\n");
    assert_eq!(check_files(&[renamed, file("wire/src/oracle.rs", function(150))]), []);
    let not = file("wire/src/run.rs", "#[cfg(not(test))]\nmod model;\n");
    assert_one(&check_files(&[not, file("wire/src/run/model.rs", function(71))]), 1, "70 lines");
}

#[test]
fn an_inline_test_module_may_have_150_lines_and_no_more() {
    let module = |lines: usize| {
        format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "    const A: u8 = 0;\n".repeat(lines - 2))
    };
    assert_eq!(findings("wire/src/a.rs", module(150)), []);
    assert_one(&findings("wire/src/a.rs", module(151)), 2, "test module tests of 151 lines");
}

#[test]
fn a_file_may_have_800_lines_and_no_more() {
    assert_eq!(findings("wire/src/a.rs", "// a line\n".repeat(800)), []);
    assert_one(&findings("wire/src/a.rs", "// a line\n".repeat(801)), 801, "file of 801 lines");
    assert_eq!(findings("docs/testing.md", "a line\n".repeat(801)), []);
}

#[test]
fn lib_rs_is_a_table_of_contents() {
    let good = "//! What it owns.\n\nmod key;\n#[cfg(test)]\nmod tests;\npub use key::Key;\n";
    assert_eq!(findings("wire/src/lib.rs", good), []);
    assert_one(&findings("wire/src/lib.rs", "//! Docs.\nfn logic() {}\n"), 2, "holds fn logic");
    assert_one(&findings("wire/src/lib.rs", "pub struct S;\n"), 1, "holds an item");
    assert_one(&findings("wire/src/lib.rs", "mod a {}\n"), 1, "module a with its body");
    assert_one(&findings("wire/src/lib.rs", "macro_rules! m { () => {} }\n"), 1, "holds a macro");
}

#[test]
fn modules_have_names_that_say_something() {
    for path in ["wire/src/utils.rs", "wire/src/misc/codec.rs", "core/src/v2.rs"] {
        assert_one(&findings(path, ""), 1, "module called");
    }
    assert_one(&findings("wire/src/a.rs", "mod helpers {}\n"), 1, "module called helpers");
    assert_eq!(findings("wire/src/utilization.rs", ""), []);
}

#[test]
fn unsafe_stands_only_where_it_may() {
    let code = "fn f() {\n    unsafe { g() }\n}\n";
    assert_one(&findings("wire/src/a.rs", code), 2, "unsafe code");
    assert_one(&findings("ssd-tier/src/table.rs", code), 2, "unsafe code");
    for path in ["arena/src/mapping.rs", "ssd-tier/src/ring.rs", "ssd-tier/src/ring/submit.rs"] {
        assert_eq!(findings(path, code), []);
    }
    let in_macro = "m! {\n    unsafe impl Send for S {}\n}\n";
    assert_one(&findings("wire/src/a.rs", in_macro), 2, "unsafe code");
    assert_eq!(
        findings("wire/src/a.rs", "//! Holds no unsafe code.\nconst S: &str = \"unsafe\";\n"),
        []
    );
}

#[test]
fn core_names_no_clock_no_io_no_threads_no_chance() {
    for (text, word) in [
        ("use std::time::Instant;\n", "Instant"),
        ("use std::{\n    fs, mem};\n", "std::fs"),
        ("fn f() { std::thread::yield_now() }\n", "std::thread"),
        ("fn f() -> std::net::IpAddr { g() }\n", "std::net"),
        ("fn f() { m!(SystemTime::now()) }\n", "SystemTime"),
        ("use tokio::sync::mpsc;\n", "tokio"),
        ("fn f() -> u8 { rand::random() }\n", "rand"),
    ] {
        let found = findings("kvstore/core/src/index.rs", text);
        assert!(!found.is_empty(), "{text}");
        assert!(found.iter().all(|finding| finding.what.contains(word)), "{found:?}");
        assert_eq!(findings("kvstore/src/daemon.rs", text), []);
    }
    let clean = "use std::collections::BTreeSet;\nuse std::time::Duration;\n// tokio, Instant\n";
    assert_eq!(findings("kvstore/core/src/index.rs", clean), []);
}

#[test]
fn the_tests_of_core_may_use_threads_and_clocks() {
    let text = "#[cfg(test)]\nmod tests {\n    use std::time::Instant;\n}\n";
    assert_eq!(findings("kvstore/core/src/index.rs", text), []);
    assert_eq!(findings("kvstore/core/src/tests.rs", "use std::time::Instant;\n"), []);
}

#[test]
fn paths_of_one_machine_are_found_anywhere() {
    for (directory, extension) in [("work", "rs"), ("home", "md"), ("root", "toml")] {
        let text = format!("first\nsee /{directory}/somewhere\n");
        let path = format!("docs/a.{extension}");
        let found = findings(&path, text);
        assert!(found.iter().any(|f| f.line == 2 && f.what.contains("one machine")), "{found:?}");
    }
    assert_eq!(findings("docs/a.md", "target/home/x ../home/x ~/home/x\n"), []);
}

#[test]
fn what_does_not_parse_is_a_finding() {
    let found = findings("wire/src/a.rs", "fn f( {\n");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].limit, "Rust");
}

#[test]
fn a_manifest_points_at_the_workspace() {
    assert_eq!(findings("wire/Cargo.toml", MANIFEST), []);
    let more = "[dependencies]\nserde.workspace = true\nio-uring = { workspace = true, optional = true }\n";
    assert_eq!(findings("wire/Cargo.toml", format!("{MANIFEST}{more}")), []);
    for own in [
        "serde = \"1\"\n",
        "serde = { path = \"../serde\" }\n",
        "serde = { workspace = true, default-features = false }\n",
    ] {
        for table in ["dependencies", "dev-dependencies", "target.'cfg(unix)'.dependencies"] {
            let text = format!("{MANIFEST}[{table}]\n{own}");
            assert_one(&findings("wire/Cargo.toml", text), 11, "dependency serde");
        }
    }
    let without = MANIFEST.replace("[lints]\nworkspace = true\n", "");
    assert_one(&findings("wire/Cargo.toml", without), 1, "lints are not the workspace's");
    let own_version =
        MANIFEST.replace("version.workspace = true\nedition", "version = \"2\"\nedition");
    assert_one(&findings("wire/Cargo.toml", own_version), 3, "package.version");
    assert_one(&findings("wire/Cargo.toml", "]"), 1, "cannot be read");
}

/// A workspace of one default package `cli` and one package with one dependency.
fn workspace(directory: &str, name: &str, dependency: &str) -> Vec<Finding> {
    let json = format!(
        r#"{{"workspace_root": "/r", "workspace_default_members": ["cli"], "packages": [
            {{"name": "undercroft-cli", "id": "cli", "manifest_path": "/r/cli/Cargo.toml",
              "dependencies": []}},
            {{"name": "{name}", "id": "x", "manifest_path": "/r/{directory}/Cargo.toml",
              "dependencies": [{dependency}]}}]}}"#
    );
    let manifest =
        file(&format!("{directory}/Cargo.toml"), "name = 1\n\nundercroft-arena\ntokio\n");
    arrows::check(&arrows::Workspace::parse(json.as_bytes()).unwrap(), &[manifest])
}

fn inside(name: &str, kind: &str, features: &str) -> String {
    format!(
        r#"{{"name": "undercroft-{name}", "kind": {kind}, "features": [{features}], "path": "/r"}}"#
    )
}

#[test]
fn an_arrow_that_is_not_in_the_table_is_found() {
    let arena = inside("arena", "null", "");
    assert_eq!(workspace("ssd-tier", "undercroft-ssd-tier", &arena), []);
    let found = workspace("kvstore/core", "undercroft-core", &arena);
    assert_one(&found, 3, "core depends on arena; allowed: wire");
    assert_eq!(found[0].path, "kvstore/core/Cargo.toml");
    assert_one(&workspace("wire", "undercroft-wire", &arena), 3, "allowed: no crate");
    let core = inside("core", "null", "");
    assert_one(&workspace("ssd-tier", "undercroft-ssd-tier", &core), 1, "ssd-tier depends on core");
    let client = inside("client", "\"dev\"", "");
    assert_one(
        &workspace("kvstore", "undercroft-kvstore", &client),
        1,
        "kvstore depends on client",
    );
    assert_eq!(workspace("tests", "undercroft-tests", &client), []);
}

#[test]
fn the_stand_in_is_for_tests() {
    let stand_in = |kind: &str| inside("stand-in", kind, "");
    let shim = |kind| workspace("gpu-shim", "undercroft-gpu-shim", &stand_in(kind));
    assert_eq!(shim("\"dev\""), []);
    assert_one(&shim("null"), 1, "gpu-shim depends on stand-in");
    assert_one(&shim("\"build\""), 1, "gpu-shim depends on stand-in");
    let client = workspace("client", "undercroft-client", &stand_in("\"dev\""));
    assert_one(&client, 1, "client depends on stand-in");
}

#[test]
fn an_outside_crate_that_would_bring_a_runtime_is_found() {
    let tokio = |kind: &str| format!(r#"{{"name": "tokio", "kind": {kind}, "features": []}}"#);
    for name in ["core", "client", "wire", "ssd-tier"] {
        let package = format!("undercroft-{name}");
        assert_one(&workspace(name, &package, &tokio("null")), 4, "depends on tokio");
        assert_eq!(workspace(name, &package, &tokio("\"dev\"")), []);
    }
    assert_eq!(workspace("kvstore", "undercroft-kvstore", &tokio("null")), []);
}

#[test]
fn a_testing_feature_is_for_dev_dependencies() {
    let arena = |kind: &str| inside("arena", kind, "\"testing\"");
    assert_one(&workspace("client", "undercroft-client", &arena("null")), 3, "feature testing");
    assert_eq!(workspace("client", "undercroft-client", &arena("\"dev\"")), []);
}

#[test]
fn packages_are_named_after_their_directory_and_known() {
    assert_one(&workspace("kvstore/core", "undercroft-kvstore", ""), 1, "undercroft-core");
    let found = workspace("attic", "undercroft-attic", "");
    assert_one(&found, 1, "undercroft-attic has no arrows");
}

#[test]
fn only_the_cli_is_a_default_member() {
    let json = r#"{"workspace_root": "/r", "workspace_default_members": ["w"], "packages": [
        {"name": "undercroft-wire", "id": "w", "manifest_path": "/r/wire/Cargo.toml",
         "dependencies": []}]}"#;
    let root = file("Cargo.toml", "[workspace]\ndefault-members = []\n");
    let found = arrows::check(&arrows::Workspace::parse(json.as_bytes()).unwrap(), &[root]);
    assert_one(&found, 2, "default members are undercroft-wire; allowed: undercroft-cli");
}
