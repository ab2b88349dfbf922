//! The C ABI as people use it: the library that `cargo xtask capi` puts together, its examples
//! compiled with every warning an error, and run against a real daemon under the compiler's own
//! address sanitizer.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use tempfile::TempDir;
use undercroft_client::wire::{Chain, Dtype, Family, Geometry, PageKey, Rank, Space, Stamp};
use undercroft_client::{
    Client, ConnectOptions, FetchFrom, LookupOptions, SpaceHandle, StoreOptions, StoreRun, Token,
};
use undercroft_gpu_shim::{BlockId, HostDevice, HostOptions};
use undercroft_tests::{DaemonOptions, TestDaemon, program, skip};

const SANITIZED: &[&str] = &["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];

/// What a language is compiled with.
struct Language {
    compiler: &'static str,
    standard: &'static str,
}

const PATIENCE: Duration = Duration::from_secs(20);

const C: Language = Language { compiler: "cc", standard: "-std=c11" };
const CXX: Language = Language { compiler: "c++", standard: "-std=c++17" };

/// The installed library.
fn library() -> PathBuf {
    program("capi/lib/libundercroft.so").parent().expect("it lies in a folder").to_owned()
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/ffi")
}

fn said(output: &Output) -> String {
    [&*output.stdout, &*output.stderr].map(String::from_utf8_lossy).concat()
}

impl Language {
    /// What is missing to compile it so.
    fn missing(&self, home: &Path, flags: &[&str]) -> Option<String> {
        let (source, to) = (home.join("nothing.c"), home.join("nothing"));
        std::fs::write(&source, "int main(void) { return 0; }\n").expect("a file in a folder");
        let compiled =
            Command::new(self.compiler).args(flags).arg("-o").arg(to).arg(source).output();
        match compiled {
            Err(error) => Some(format!("{}: {error}", self.compiler)),
            Ok(output) if !output.status.success() => {
                Some(format!("{} takes no {flags:?}", self.compiler))
            }
            Ok(_) => None,
        }
    }

    /// Compiles a program with the installed library.
    fn compile(&self, home: &Path, source: &str, flags: &[&str]) -> PathBuf {
        let library = library();
        let to = home.join("program");
        let mut command = Command::new(self.compiler);
        command.args([self.standard, "-Wall", "-Wextra", "-Werror", "-pedantic"]).args(flags);
        command.arg("-I").arg(library.with_file_name("include"));
        command.arg(sources().join(source)).arg("-o").arg(&to);
        command.arg("-L").arg(&library).arg("-lundercroft");
        command.arg(format!("-Wl,-rpath,{}", library.display()));
        let output = command.output().expect("the compiler was there a moment ago");
        assert!(output.status.success(), "{source}: {}", said(&output));
        to
    }
}

fn serve() -> TestDaemon {
    // Two spaces of different pages: each has slabs of its own.
    let options = DaemonOptions { dram: 8 << 20, staging: 1 << 20, ..DaemonOptions::default() };
    TestDaemon::start(DaemonOptions { arena: "slab = 1048576\n".into(), ..options })
}

/// Compiles a program under the sanitizer and runs it `times` against one daemon.
fn runs(test: &str, language: &Language, source: &str, times: usize) -> Vec<String> {
    runs_on(test, language, source, times, |_| Vec::new())
}

/// As [`runs`], with more arguments, which are made once the daemon serves.
fn runs_on(
    test: &str,
    language: &Language,
    source: &str,
    times: usize,
    arguments: impl FnOnce(&TestDaemon) -> Vec<String>,
) -> Vec<String> {
    let home = TempDir::new().expect("a folder of its own");
    let flags = match language.missing(home.path(), SANITIZED) {
        None => SANITIZED,
        Some(why) => {
            skip(&format!("{test} (its sanitizer)"), &why);
            &[]
        }
    };
    if let Some(why) = language.missing(home.path(), flags) {
        skip(test, &why);
        return Vec::new();
    }
    let program = language.compile(home.path(), source, flags);
    let daemon = serve();
    let more = arguments(&daemon);
    let run = |_| {
        let mut command = Command::new(&program);
        let output = command.arg(daemon.socket()).args(&more).output().expect("it runs");
        let said = said(&output);
        assert!(output.status.success(), "{source}: {}: {said}", output.status);
        said
    };
    (0..times).map(run).collect()
}

#[test]
fn the_c_example_computes_once() {
    for (nth, said) in
        runs("the_c_example_computes_once", &C, "examples/engine.c", 2).iter().enumerate()
    {
        let first =
            ["round 1: 0 pages loaded, 20 computed", "round 1: 20 pages loaded, 0 computed"];
        assert!(said.contains(first[nth]), "{said}");
        assert!(said.contains("round 2: 20 pages loaded, 0 computed"), "{said}");
    }
}

/// A tenant that holds as much as it may is given no more holds; what is found can be loaded.
#[test]
fn the_c_example_goes_on_without_a_hold() {
    let test = "the_c_example_goes_on_without_a_hold";
    let mut holds = Vec::new();
    let take_all = |daemon: &TestDaemon| {
        let (space, keys) = kept(daemon);
        let options =
            LookupOptions { hold: Some(PATIENCE), deadline: PATIENCE, ..LookupOptions::default() };
        holds.extend(std::iter::from_fn(|| space.lookup(&keys, options).hold));
        assert!(!holds.is_empty());
        Vec::new()
    };
    for said in runs_on(test, &C, "examples/engine.c", 1, take_all) {
        assert!(said.contains("round 2: 20 pages loaded, 0 computed"), "{said}");
    }
}

#[test]
fn the_cxx_example_hands_a_hold_over() {
    let test = "the_cxx_example_hands_a_hold_over";
    for (nth, said) in runs(test, &CXX, "examples/pages.cpp", 2).iter().enumerate() {
        let stored = ["stored 12, held already 0", "stored 0, held already 12"];
        assert!(said.contains(stored[nth]), "{said}");
        assert!(said.contains("loaded 12 of 12 (ok)"), "{said}");
    }
}

#[test]
fn every_wrong_call_is_answered() {
    let _said = runs("every_wrong_call_is_answered", &C, "tests/edges.c", 1);
}

/// A lease that has fewer pages than its taker asks for, which only a Rust client can give.
#[test]
fn a_lease_of_fewer_pages_is_a_miss() {
    let test = "a_lease_of_fewer_pages_is_a_miss";
    let mut leases = Vec::new();
    let give = |daemon: &TestDaemon| {
        let (space, keys) = kept(daemon);
        let mut tokens = Vec::new();
        for _ in 0..3 {
            let mut lease = space.fetch(FetchFrom::Keys(&keys), Stamp(0), PATIENCE);
            assert_eq!((lease.outcome().pages, keys.len()), (6, 8));
            let Token(bytes) = lease.give(PATIENCE).expect("a token");
            tokens.push(bytes.map(|byte| format!("{byte:02x}")).concat());
            leases.push(lease);
        }
        tokens
    };
    let _said = runs_on(test, &C, "tests/leases.c", 1, give);
}

/// The chain 1 of the programs in C, six of whose eight pages are kept.
fn kept(daemon: &TestDaemon) -> (SpaceHandle, Vec<PageKey>) {
    let client = Client::connect(ConnectOptions::new(daemon.socket())).expect("it serves");
    let family = Family {
        model: [3; 32],
        adapter: [0; 32],
        dtype: Dtype::F16,
        quantization: "none".into(),
        attention: String::new(),
        layout: String::new(),
        layers: 1,
        kv_heads: 1,
        page_tokens: 1,
    };
    let mut chain = Chain::new(&family.digest(), b"");
    let keys: Vec<PageKey> = (1000..1008).map(|token| chain.push(&[token])).collect();
    let geometry = Geometry::of_parts(1, &[4096]).expect("a page");
    let space = Space { family, rank: Rank::Shared, group: 0, geometry };
    let space = client.open_space(&space, PATIENCE).expect("it is opened");
    let device = HostDevice::new(geometry, 6, HostOptions::default()).expect("blocks");
    let blocks: Vec<BlockId> = (0..6).map(BlockId).collect();
    for block in &blocks {
        device.write_block(*block, |_, bytes| bytes.fill(block.0 as u8 + 1)).expect("a block");
    }
    let run = StoreRun { parent: None, first: 0, keys: &keys[..6], stamp: Stamp(0) };
    let options = StoreOptions { deadline: PATIENCE, wait_for_credits: true };
    assert_eq!(space.store(run, &device, &blocks, options).stored, 6);
    (space, keys)
}

/// The header says what is exported, the library exports it under its version, and nothing else.
#[test]
fn the_library_exports_what_the_header_has() {
    let library = library().join("libundercroft.so");
    let output = match Command::new("nm").args(["-D", "--defined-only"]).arg(library).output() {
        Ok(output) => output,
        Err(error) => {
            return skip("the_library_exports_what_the_header_has", &format!("nm: {error}"));
        }
    };
    let text = said(&output);
    let exported: BTreeSet<&str> = text.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    let header = std::fs::read_to_string(sources().join("undercroft.h")).expect("it is checked in");
    let declared = declared(&header);
    assert!(declared.len() > 30, "{declared:?}");
    let mut wanted: BTreeSet<String> =
        declared.iter().map(|name| format!("{name}@@UNDERCROFT_1")).collect();
    wanted.insert("UNDERCROFT_1".to_owned());
    assert_eq!(exported, wanted.iter().map(String::as_str).collect());
}

/// The functions of the header.
fn declared(header: &str) -> BTreeSet<&str> {
    let code = header.split("*/").nth(1).expect("it begins with a comment");
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines
        .filter_map(|line| line.split_once('(')?.0.rsplit([' ', '*']).next())
        .filter(|name| name.starts_with("undercroft_"))
        .collect()
}

/// What programs were compiled with stays where it is, and is what it was.
#[test]
fn version_1_stays_as_it_is() {
    let _said = runs("version_1_stays_as_it_is", &C, "tests/version1.c", 1);
}

/// What `pkg-config` says of the installed library, as arguments.
fn described(arguments: &[&str]) -> Result<Vec<String>, String> {
    let descriptions = library().join("pkgconfig");
    let mut command = Command::new("pkg-config");
    command.args(arguments).env("PKG_CONFIG_PATH", &descriptions);
    let output = command.output().map_err(|error| format!("pkg-config: {error}"))?;
    let said = said(&output);
    assert!(output.status.success(), "{}: {said}", descriptions.display());
    Ok(said.split_whitespace().map(str::to_owned).collect())
}

/// What the dynamic linker is told of a program or a library.
fn dynamic(file: &Path) -> Result<String, String> {
    let output = Command::new("readelf").arg("-dW").arg(file).output();
    output.map(|output| said(&output)).map_err(|error| format!("readelf: {error}"))
}

/// Compiles the example as the documentation says it, in a folder that knows nothing.
fn compile_as_described(home: &Path, package: &str) -> Result<PathBuf, String> {
    C.missing(home, &[]).map_or(Ok(()), Err)?;
    let to = home.join("program");
    let mut command = Command::new(C.compiler);
    command.current_dir(home).arg("-o").arg(&to);
    command.arg(sources().canonicalize().expect("it is here").join("examples/engine.c"));
    command.args(described(&["--cflags", "--libs", package])?);
    let output = command.output().map_err(|error| error.to_string())?;
    assert!(output.status.success(), "{package}: {}", said(&output));
    Ok(to)
}

#[test]
fn programs_are_linked_as_the_packages_say() {
    let home = TempDir::new().expect("a folder of its own");
    for (package, needs_it) in [("undercroft", true), ("undercroft-static", false)] {
        let linked = compile_as_described(home.path(), package)
            .and_then(|program| Ok((dynamic(&program)?, program)));
        let (told, program) = match linked {
            Ok(linked) => linked,
            Err(why) => return skip("programs_are_linked_as_the_packages_say", &why),
        };
        assert_eq!(told.contains("libundercroft.so.1"), needs_it, "{package}: {told}");
        let daemon = serve();
        let mut command = Command::new(&program);
        command.arg(daemon.socket()).env_clear().env("LD_LIBRARY_PATH", library());
        let output = command.output().expect("it runs");
        assert!(output.status.success(), "{package}: {}", said(&output));
    }
}

/// A thread of the library may be ending when its host unloads what had it.
#[test]
fn the_library_is_never_unloaded() {
    match dynamic(&library().join("libundercroft.so.1")) {
        Ok(told) => assert!(told.contains("NODELETE"), "{told}"),
        Err(why) => skip("the_library_is_never_unloaded", &why),
    }
}

/// A program that is linked with the static library needs no other one of ours.
#[test]
fn the_static_library_is_whole() {
    let home = TempDir::new().expect("a folder of its own");
    if let Some(why) = C.missing(home.path(), &[]) {
        return skip("the_static_library_is_whole", &why);
    }
    let (library, to) = (library(), home.path().join("program"));
    let mut command = Command::new(C.compiler);
    command.arg("-I").arg(library.with_file_name("include"));
    command.arg(sources().join("examples/engine.c")).arg("-o").arg(&to);
    command.arg(library.join("libundercroft.a")).args(["-lpthread", "-lm", "-ldl"]);
    let output = command.output().expect("the compiler was there a moment ago");
    assert!(output.status.success(), "{}", said(&output));
    let daemon = serve();
    let output = Command::new(&to).arg(daemon.socket()).env_clear().output().expect("it runs");
    assert!(output.status.success(), "{}", said(&output));
}
