//! The C ABI as people use it: the library that `cargo xtask capi` puts together, its examples
//! compiled with every warning an error, and run against a real daemon under the compiler's own
//! address sanitizer.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;
use undercroft_tests::{DaemonOptions, TestDaemon, program, skip};

const SANITIZED: &[&str] = &["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];

/// What a language is compiled with.
struct Language {
    compiler: &'static str,
    standard: &'static str,
}

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
    let run = |_| {
        let output = Command::new(&program).arg(daemon.socket()).output().expect("it runs");
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
