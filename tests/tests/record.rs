//! `undercroft record` beside real traffic: what it writes is a trace of that traffic, and of nothing
//! else.

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use undercroft_benches::{GeneratorOptions, Trace, generate};
use undercroft_tests::{DaemonOptions, Engine, TestDaemon, program, run};

/// A recorder that has begun.
struct Recorder {
    child: Child,
    said: BufReader<std::process::ChildStderr>,
}

impl Recorder {
    fn start(daemon: &TestDaemon, out: &Path, more: &[&str]) -> Self {
        let mut child = Command::new(program("undercroft"))
            .arg("record")
            .arg("--socket")
            .arg(daemon.socket())
            .arg("--out")
            .arg(out)
            .args(more)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut said = BufReader::new(child.stderr.take().expect("it was piped"));
        let mut line = String::new();
        said.read_line(&mut line).expect("its words");
        assert!(line.starts_with("recording to "), "{line}");
        Self { child, said }
    }

    /// Ctrl-C; whether it ended well, and what it said.
    fn stop(mut self) -> (bool, String) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("our child");
        kill_process(pid, Signal::INT).expect("it lives");
        self.wait()
    }

    fn wait(&mut self) -> (bool, String) {
        let mut words = String::new();
        self.said.read_to_string(&mut words).expect("its words");
        (self.child.wait().expect("our child").success(), words)
    }
}

fn good(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Generated traffic through the daemon.
fn replay(daemon: &TestDaemon) {
    let socket = daemon.socket().display().to_string();
    let traffic = ["--requests", "120", "--seed", "9", "--page-bytes", "16KiB", "--serial"];
    good(&run(&[&["bench", "replay", "--socket", &socket], &traffic[..]].concat()));
}

fn planned(home: &Path, traffic: &[&str]) -> Vec<String> {
    let csv = home.join("planned.csv");
    let csv_path = csv.display().to_string();
    let sizes = ["--dram", "10%", "--ssd", "0", "--csv", &csv_path];
    good(&run(&[&["plan"], traffic, &sizes[..]].concat()));
    let text = std::fs::read_to_string(&csv).expect("the CSV was written");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_recording_is_planned_with_as_the_traffic_itself() {
    let daemon = TestDaemon::start(DaemonOptions { dram: 4 << 20, ..DaemonOptions::default() });
    let home = tempfile::tempdir().expect("a temporary folder");
    let out = home.path().join("traffic.jsonl.zst");
    let recorder = Recorder::start(&daemon, &out, &[]);
    replay(&daemon);
    let (done, words) = recorder.stop();
    assert!(done && words.contains("120 requests of "), "{words}");
    assert!(!words.contains("missing") && !words.contains("left out"), "{words}");
    let recorded = Trace::open(&out).expect("it is a trace");
    let traffic = generate(&GeneratorOptions { requests: 120, seed: 9 });
    let pages = |trace: &Trace| -> Vec<Vec<u32>> {
        trace.requests().map(|request| request.pages.to_vec()).collect()
    };
    assert_eq!(pages(&recorded), pages(&traffic), "both are numbered as pages come");
    let recording = out.display().to_string();
    assert_eq!(
        planned(home.path(), &["--trace", &recording]),
        planned(home.path(), &["--requests", "120", "--seed", "9"])
    );
}

#[test]
fn recordings_cannot_be_linked_with_keys_or_with_each_other() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    let home = tempfile::tempdir().expect("a temporary folder");
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    let keys = engine.keys(1, 6);
    let outs = ["one", "two"].map(|name| home.path().join(name));
    for out in &outs {
        let recorder = Recorder::start(&daemon, out, &[]);
        assert!(engine.lookup(&keys).pages <= 6);
        engine.try_store(&keys);
        let (done, words) = recorder.stop();
        assert!(done, "{words}");
    }
    for out in &outs {
        let text = std::fs::read_to_string(out).expect("a trace");
        let line = text.lines().next().expect("a request");
        assert!(line.contains(r#""hash_ids":[0,1,2,3,4,5]"#), "{line}");
        assert!(line.contains(r#""domain":0"#), "{line}");
        assert!(!text.contains("model"), "{text}");
    }
}

#[test]
fn it_ends_by_itself_there_is_one_at_a_time_and_errors_say_what() {
    let mut daemon = TestDaemon::start(DaemonOptions::default());
    let home = tempfile::tempdir().expect("a temporary folder");
    let out = home.path().join("out.jsonl");
    let path = out.display().to_string();
    let socket = daemon.socket().display().to_string();
    let mut first = Recorder::start(&daemon, &out, &["--for", "1s"]);
    let other = home.path().join("other").display().to_string();
    let second = run(&["record", "--socket", &socket, "--out", &other]);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("another recording is under way"), "{said}");
    let (done, words) = first.wait();
    assert!(done && words.starts_with("0 requests"), "{words}");
    // The daemon goes away in the middle of one.
    let mut cut = Recorder::start(&daemon, &out, &[]);
    daemon.kill();
    let (done, words) = cut.wait();
    assert!(!done && words.contains("went away"), "{words}");
    for (arguments, expected) in [
        (vec!["--out", &path, "--socket", "/nonexistent/s"], "/nonexistent/s"),
        (vec!["--out", &path, "--for", "soon"], "90s"),
        (vec!["--socket", &socket], "--out"),
    ] {
        let output = run(&[&["record"], &arguments[..]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}
