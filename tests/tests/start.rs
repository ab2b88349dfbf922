//! Starting: on nothing at all it works; on anything wrong it says one clear line and exits 2.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};
use undercroft_tests::{DaemonOptions, TestDaemon, program, run, run_as_ordinary_user, skip};

/// The one line of an `undercroft` that could not start.
fn refusal(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("undercroft: ")).collect();
    assert_eq!(lines.len(), 1, "one line expected:\n{text}");
    assert!(!text.contains("panicked"), "{text}");
    lines[0].to_owned()
}

fn serve_with(config: &str) -> (tempfile::TempDir, Output) {
    let home = tempfile::tempdir().expect("a temporary folder");
    let text = config.replace("HOME", &home.path().display().to_string());
    let path = home.path().join("config.toml");
    std::fs::write(&path, text).expect("a configuration");
    let output = run(&["serve", "--config", &path.display().to_string()]);
    (home, output)
}

const QUIET: &str = "[server]\nmetrics = \"off\"\nsocket = \"HOME/s\"\n[arena]\nsize = \"1MiB\"\n";

/// A daemon that does not outlive its test, which may fail: it has the machine's own port.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn without_configuration_or_environment_an_ordinary_user_gets_a_daemon() {
    let home = tempfile::tempdir().expect("a temporary folder");
    std::fs::set_permissions(home.path(), PermissionsExt::from_mode(0o777)).expect("ours");
    // The build's folder may be closed to other users: the binary goes where they may read it.
    let binary = home.path().join("program");
    std::fs::copy(program("undercroft"), &binary).expect("a copy");
    let mut command = run_as_ordinary_user(&binary);
    command.arg("serve").env("XDG_RUNTIME_DIR", home.path()).env("HOME", home.path());
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = Ending(child.expect("the binary runs"));
    let since = Instant::now();
    let report = loop {
        let mut command = run_as_ordinary_user(&binary);
        command.args(["status", "--json"]).env("XDG_RUNTIME_DIR", home.path());
        let output = command.output().expect("the binary runs");
        if output.status.success() {
            let report: serde_json::Value =
                serde_json::from_slice(&output.stdout).expect("status prints JSON");
            assert_eq!(report["schema"], 1);
            // It answers while it still makes its arena.
            if report["start"]["opening"] == false {
                break report;
            }
        }
        assert!(since.elapsed() < Duration::from_secs(30), "not open within 30 s");
        assert!(child.0.try_wait().expect("our child").is_none(), "it ended");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(report["dram"]["capacity_bytes"].as_u64() > Some(0));
    assert_eq!(report["arena"]["backing"], "memfd", "who may not mount has no mounts");
    let refused = report["refused"].to_string();
    assert!(refused.contains("private mounts for the arena: cannot have mounts"), "{refused}");
    assert!(report["ssd"]["tier"]["capacity_bytes"].as_u64() > Some(0));
    assert!(home.path().join("undercroft/undercroft.sock").exists());
    let pid = rustix::process::Pid::from_raw(child.0.id() as i32).expect("a process number");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("our child");
    assert!(child.0.wait().expect("our child").success(), "an orderly stop is a success");
    assert!(!home.path().join("undercroft/undercroft.sock").exists(), "the socket is removed");
}

#[test]
fn status_without_a_daemon_is_one_line_and_exit_code_1() {
    let output = run(&["status", "--socket", "/nonexistent/s"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("/nonexistent/s") && text.lines().count() == 1, "{text}");
}

#[test]
fn an_unknown_key_is_refused_by_name() {
    let (_home, output) = serve_with("[arena]\nsiez = 1\n");
    let line = refusal(&output);
    assert!(line.contains("siez") && line.contains("config.toml"), "{line}");
}

#[test]
fn a_missing_configuration_file_is_named() {
    let line = refusal(&run(&["serve", "--config", "/nonexistent.toml"]));
    assert!(line.contains("/nonexistent.toml"), "{line}");
}

#[test]
fn a_socket_path_that_is_too_long_is_refused_with_the_limit() {
    let long = "x".repeat(120);
    let (_home, output) = serve_with(&format!("[server]\nsocket = \"/tmp/{long}\"\n"));
    let line = refusal(&output);
    assert!(line.contains("107") && line.contains("server.socket"), "{line}");
    let output = run(&["status", "--socket", &format!("/tmp/{long}")]);
    assert!(refusal(&output).contains("107"));
}

#[test]
fn a_store_directory_that_cannot_be_written_is_named_with_the_way_out() {
    // A file where the directory should be: refused for root, too.
    let config = format!("{QUIET}[ssd]\nsize = \"1MiB\"\npath = \"HOME/config.toml/store\"\n");
    let (_home, output) = serve_with(&config);
    let line = refusal(&output);
    assert!(line.contains("config.toml/store") && line.contains("ssd.path"), "{line}");
}

#[test]
fn a_disk_that_is_too_small_is_named_before_the_daemon_is_ready() {
    let config = format!("{QUIET}[ssd]\nsize = \"900000GiB\"\npath = \"HOME\"\n");
    let (home, output) = serve_with(&config);
    let line = refusal(&output);
    let path = home.path().display().to_string();
    assert!(line.contains(&path) && line.contains("ssd.size"), "{line}");
}

#[test]
fn an_arena_that_must_lie_on_mounts_is_refused_to_who_cannot_make_any() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(home.path(), open).expect("our own folder");
    let config = home.path().join("config.toml");
    let text = QUIET.replace("HOME", &home.path().display().to_string());
    std::fs::write(&config, text + "backing = \"mount\"\n").expect("a configuration");
    // The build's folder may be closed to other users.
    let binary = home.path().join("program");
    std::fs::copy(program("undercroft"), &binary).expect("a copy");
    let mut command = run_as_ordinary_user(&binary);
    let output = command.arg("serve").arg("--config").arg(&config).output().expect("it runs");
    let line = refusal(&output);
    for words in ["to lie on private mounts", "CAP_SYS_ADMIN", "arena.backing", "undercroft mounts"]
    {
        assert!(line.contains(words), "{words} is not in {line}");
    }
}

#[test]
fn an_arena_that_there_is_no_memory_for_is_refused_before_it_is_taken() {
    let (_home, output) = serve_with(&(QUIET.replace("1MiB", "3TiB") + "[ssd]\nsize = 0\n"));
    let line = refusal(&output);
    assert!(line.contains("the machine has room for") || line.contains("control group"), "{line}");
    assert!(line.contains("set arena.size"), "{line}");
}

#[test]
fn a_full_file_system_is_named() {
    let test = "a_full_file_system_is_named";
    if !rustix::process::geteuid().is_root() {
        return skip(test, "mounting a small tmpfs takes root");
    }
    let home = tempfile::tempdir().expect("a temporary folder");
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
        .arg(home.path())
        .output();
    if !mount.is_ok_and(|m| m.status.success()) {
        return skip(test, "mount is not allowed here");
    }
    let config = home.path().join("config.toml");
    let path = home.path().display();
    let text = format!("{QUIET}[ssd]\nsize = \"64MiB\"\npath = \"HOME\"\n")
        .replace("HOME", &path.to_string());
    std::fs::write(&config, text).expect("a configuration");
    let output = run(&["serve", "--config", &config.display().to_string()]);
    let unmounted = std::process::Command::new("umount").arg(home.path()).status();
    assert!(unmounted.is_ok_and(|u| u.success()));
    let line = refusal(&output);
    assert!(line.contains("ssd.size") && line.contains("pages-0.log"), "{line}");
}

#[test]
fn a_second_daemon_on_the_same_store_or_socket_is_refused() {
    let first = TestDaemon::start(DaemonOptions { ssd: 4 << 20, ..DaemonOptions::default() });
    let home = first.home().display();
    let same_store = format!("{QUIET}[ssd]\nsize = \"4MiB\"\npath = \"{home}\"\n");
    let (_home, output) = serve_with(&same_store);
    let line = refusal(&output);
    assert!(line.contains("pages-0.log"), "{line}");
    let same_socket = format!("[server]\nmetrics = \"off\"\nsocket = \"{home}/s\"\n");
    let (_home, output) = serve_with(&same_socket);
    let line = refusal(&output);
    assert!(line.contains("another daemon") && line.contains("server.socket"), "{line}");
    assert_eq!(first.status().sessions.len(), 1, "the first one did not notice");
}

#[test]
fn the_service_manager_is_told_when_clients_can_connect() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let notify = home.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&notify).expect("a socket");
    manager.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    let config = home.path().join("config.toml");
    let text =
        format!("{QUIET}[ssd]\nsize = 0\n").replace("HOME", &home.path().display().to_string());
    std::fs::write(&config, text).expect("a configuration");
    let mut child = std::process::Command::new(program("undercroft"))
        .arg("serve")
        .arg("--config")
        .arg(&config)
        .env("NOTIFY_SOCKET", &notify)
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    // Before it is ready it has its descriptors kept.
    let hear = |word: &str| loop {
        let mut bytes = [0; 256];
        let got = manager.recv(&mut bytes).expect("a word from the daemon");
        let said = String::from_utf8_lossy(&bytes[..got]).into_owned();
        if said.contains(word) {
            return;
        }
        assert!(said.contains("FDSTORE=1"), "{said} before {word}");
    };
    hear("READY=1");
    let connected = std::os::unix::net::UnixStream::connect(home.path().join("s"));
    connected.expect("ready means that clients can connect");
    let pid = rustix::process::Pid::from_raw(child.id() as i32).expect("a process number");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("our child");
    hear("STOPPING=1");
    assert!(child.wait().expect("our child").success());
}

#[test]
fn a_daemon_whose_log_nobody_reads_any_more_goes_on() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let config = home.path().join("config.toml");
    let text =
        format!("{QUIET}[ssd]\nsize = 0\n").replace("HOME", &home.path().display().to_string());
    std::fs::write(&config, text).expect("a configuration");
    let mut child = std::process::Command::new(program("undercroft"))
        .arg("serve")
        .arg("--config")
        .arg(&config)
        .env("RUST_LOG", "debug")
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stderr.take());
    let socket = home.path().join("s").display().to_string();
    let since = Instant::now();
    let mut answers = 0;
    while answers < 3 {
        answers += i32::from(run(&["status", "--socket", &socket]).status.success());
        assert!(child.try_wait().expect("our child").is_none(), "it ended");
        assert!(since.elapsed() < Duration::from_secs(20), "no answer");
    }
    let pid = rustix::process::Pid::from_raw(child.id() as i32).expect("a process number");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("our child");
    assert!(child.wait().expect("our child").success(), "an orderly stop is a success");
}

#[test]
fn metrics_are_served_on_loopback() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    drop(listener);
    let home = tempfile::tempdir().expect("a temporary folder");
    let config = home.path().join("config.toml");
    let text = format!(
        "[server]\nmetrics = \"127.0.0.1:{port}\"\nsocket = \"{0}/s\"\n[arena]\nsize = \"1MiB\"\n[ssd]\nsize = 0\n",
        home.path().display()
    );
    std::fs::write(&config, text).expect("a configuration");
    let mut child = std::process::Command::new(program("undercroft"))
        .arg("serve")
        .arg("--config")
        .arg(&config)
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let ask = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let since = Instant::now();
    // They are served before the arena is made.
    let text = loop {
        match ask() {
            Ok(text) if !text.contains("undercroft_dram_capacity_bytes 0") => break text,
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
        assert!(since.elapsed() < Duration::from_secs(20), "no metrics");
    };
    child.kill().expect("our child");
    child.wait().expect("our child");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(text.contains("undercroft_dram_capacity_bytes 1048576"), "{text}");
}

/// By which policy each thread of a process is given a processor, its first thread before the others.
fn policies(pid: u32) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    let mut numbers: Vec<u32> =
        threads.filter_map(|thread| thread.ok()?.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable_by_key(|number| (*number != pid, *number));
    let policy = |number: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{number}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(38).map(str::to_owned)
    };
    numbers.iter().filter_map(policy).collect()
}

#[test]
fn only_the_thread_that_answers_comes_before_others_and_only_where_it_may() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    let (first, others) = {
        let mut policies = policies(daemon.pid()).into_iter();
        (policies.next().expect("it has a thread"), policies.collect::<Vec<_>>())
    };
    let refused = daemon.says("shares processors as others do");
    assert_eq!(first, if refused { "0" } else { "2" });
    assert!(!others.is_empty() && others.iter().all(|policy| policy == "0"), "{others:?}");

    let mut without = Ending({
        let config = daemon.home().join("without.toml");
        let text = QUIET.replace("HOME/s", &daemon.home().join("without").display().to_string());
        let text = text.replace("[server]", "[server]\nrealtime = false");
        std::fs::write(&config, text).expect("a configuration");
        let mut command = std::process::Command::new(program("undercroft"));
        command.arg("serve").arg("--config").arg(config);
        command.stderr(Stdio::piped()).spawn().expect("the binary runs")
    });
    let said = std::io::BufReader::new(without.0.stderr.take().expect("piped"));
    let ready = std::io::BufRead::lines(said).map_while(Result::ok).any(|l| l.contains("ready"));
    assert!(ready, "it does not come up");
    assert!(policies(without.0.id()).iter().all(|policy| policy == "0"));
}
