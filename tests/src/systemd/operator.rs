use super::engines::{ENGINES, arena_bytes};
use super::root::{CONFIG, DAEMON, NEXT_DAEMON, PROGRAM, UNITS, run};
use super::unit::{Unit, systemctl};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

const NOBODY: u32 = 65_534;
const DAEMON_LOG: &str = "/run/undercroft-test/daemon.log";

/// What is different here from a machine, and why. Nothing else of the units is touched.
const DROP_IN: (&str, &str) = (
    "undercroft.service.d/sandbox.conf",
    "[Service]\n\
     # There is no journal here.\n\
     StandardOutput=append:/run/undercroft-test/daemon.log\n\
     StandardError=inherit\n",
);

/// Installs the daemon, lets the engines have it, and does to it what they ask for. Their word is
/// ours.
///
/// # Errors
/// Something of that cannot be done, or the engines are not content.
pub fn be_operator() -> Result<()> {
    let tried = install().and_then(|()| serve_engines());
    if tried.is_err() {
        let log = std::fs::read_to_string(DAEMON_LOG).unwrap_or_default();
        println!("--- the daemon's log ---\n{log}");
    }
    tried
}

/// As a package does it, and an administrator after that.
fn install() -> Result<()> {
    run(Command::new("systemd-sysusers").arg("/usr/lib/sysusers.d/undercroft.conf"))?;
    let tmpfiles = ["--create", "/usr/lib/tmpfiles.d/undercroft.conf"];
    run(Command::new("systemd-tmpfiles").args(tmpfiles))?;
    let arena = arena_bytes();
    std::fs::write(CONFIG, format!("[arena]\nsize = {arena}\n[ssd]\nsize = \"256MiB\"\n"))?;
    drop_in(DROP_IN)?;
    systemctl(&["start", "sockets.target", "undercroft.socket"])?;
    ensure!(Unit.main_pid().is_err(), "the daemon runs although nobody has connected");
    Ok(())
}

fn drop_in((name, text): (&str, &str)) -> Result<()> {
    let path = Path::new(UNITS).join(name);
    std::fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
    std::fs::write(path, text)?;
    systemctl(&["daemon-reload"])
}

/// The group whose members may connect.
fn group() -> Result<u32> {
    let groups = std::fs::read_to_string("/etc/group")?;
    let line = groups.lines().find_map(|line| line.strip_prefix("undercroft:"));
    let id = line.and_then(|line| line.split(':').nth(1)?.parse().ok());
    id.context("there is no group undercroft")
}

/// Lines that begin with `@` are orders, each answered by a line; all others are for the reader.
fn serve_engines() -> Result<()> {
    let mut command = Command::new(PROGRAM);
    command.arg(ENGINES).uid(NOBODY).gid(group()?).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut engines = command.spawn().context("the engines do not start")?;
    let mut answers = engines.stdin.take().context("it is piped")?;
    for line in BufReader::new(engines.stdout.take().context("it is piped")?).lines() {
        let line = line?;
        let Some(order) = line.strip_prefix('@') else {
            println!("{line}");
            continue;
        };
        let answer = match obey(order) {
            Ok(()) => "done".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        writeln!(answers, "{}", answer.replace('\n', "; "))?;
    }
    let status = engines.wait()?;
    ensure!(status.success(), "the engines ended with {status}");
    Ok(())
}

fn obey(order: &str) -> Result<()> {
    match order {
        "restart" => {
            systemctl(&["restart", "undercroft.service"])?;
            ensure!(Unit.program()? == DAEMON, "another daemon runs");
            Ok(())
        }
        "kill" => Unit.replace_by(Signal::KILL),
        // Nobody but the watchdog notices.
        "hang" => Unit.replace_by(Signal::STOP),
        "upgrade" => {
            let start =
                format!("[Service]\nExecStart=\nExecStart={NEXT_DAEMON} serve --config {CONFIG}\n");
            drop_in(("undercroft.service.d/upgrade.conf", &start))?;
            systemctl(&["restart", "undercroft.service"])?;
            ensure!(Unit.program()? == NEXT_DAEMON, "the old daemon runs");
            Ok(())
        }
        "stop" => {
            systemctl(&["stop", "undercroft.service"])?;
            ensure!(Unit.main_pid().is_err(), "it still runs");
            Ok(())
        }
        "stop and start" => {
            systemctl(&["stop", "undercroft.service", "undercroft.socket"])?;
            systemctl(&["start", "undercroft.socket", "undercroft.service"])
        }
        other => bail!("no such order: {other}"),
    }
}
