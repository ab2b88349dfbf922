//! Answers calls whose arguments lie in memory, where no filter can look: a process of its own that
//! is asked about each of them.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use nix::{errno::Errno, libc};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

/// The argument by which this program becomes a tracer.
pub(crate) const WORD: &str = "--trace";

/// Rings that do their work when their thread asks for it: Linux 6.0 and 6.1.
const DEFER_TASKRUN: &str = "defer-taskrun";
const DEFER_FLAGS: i64 = (1 << 12) | (1 << 13);
/// Pidfds that say which process they are of: Linux 6.9.
const PIDFS: &str = "pidfs";

pub(crate) fn knows(name: &str) -> bool {
    [DEFER_TASKRUN, PIDFS].contains(&name)
}

/// Has a tracer attached to this process; the calls it wants to be asked about.
pub(crate) fn start(names: &[&str]) -> Result<Vec<i64>> {
    ensure!(cfg!(target_arch = "x86_64"), "calls can be traced on x86-64 only");
    let own = std::env::current_exe()?;
    let mut command = Command::new(own);
    command.arg(WORD).arg(std::process::id().to_string()).stdin(Stdio::null());
    let mut tracer = command.stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(tracer.stdout.take().context("it is piped")?).read_line(&mut line)?;
    ensure!(line == "attached\n", "no tracer could be attached");
    let call = |name: &&str| if *name == PIDFS { libc::SYS_fstatfs } else { 425 };
    Ok(names.iter().map(call).collect())
}

/// Traces a process until it is gone.
pub(crate) fn run(pid: Option<&OsStr>) -> Result<()> {
    let pid: i32 = pid.and_then(OsStr::to_str).context("whom to trace")?.parse()?;
    let options = Options::PTRACE_O_TRACESECCOMP | Options::PTRACE_O_TRACECLONE;
    ptrace::seize(Pid::from_raw(pid), options)?;
    println!("attached");
    std::io::stdout().flush()?;
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::PtraceEvent(pid, _, libc::PTRACE_EVENT_SECCOMP)) => {
                answer(pid)?;
                go_on(pid, None)?;
            }
            Ok(WaitStatus::PtraceEvent(pid, ..)) => go_on(pid, None)?,
            Ok(WaitStatus::Stopped(pid, signal)) => go_on(pid, Some(signal))?,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Err(errno) => bail!("nothing to be traced any more: {errno}"),
        }
    }
}

fn go_on(pid: Pid, signal: Option<Signal>) -> Result<()> {
    match ptrace::cont(pid, signal) {
        // It was killed meanwhile.
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Refuses the call that this thread is about to make, if it is one that is not to be there.
#[cfg(target_arch = "x86_64")]
fn answer(pid: Pid) -> Result<()> {
    let mut registers = match ptrace::getregs(pid) {
        Err(Errno::ESRCH) => return Ok(()),
        other => other?,
    };
    let errno = if registers.orig_rax as i64 == libc::SYS_fstatfs {
        let link = std::fs::read_link(format!("/proc/{pid}/fd/{}", registers.rdi));
        let is_pidfd = link.is_ok_and(|link| link.to_string_lossy().contains("pidfd"));
        is_pidfd.then_some(libc::ENOSYS)
    } else {
        // `flags` is the third number of `io_uring_params`.
        let word = ptrace::read(pid, (registers.rsi + 8) as ptrace::AddressType)?;
        (word & DEFER_FLAGS != 0).then_some(libc::EINVAL)
    };
    if let Some(errno) = errno {
        registers.orig_rax = u64::MAX;
        registers.rax = (-i64::from(errno)) as u64;
        ptrace::setregs(pid, registers)?;
    }
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn answer(_pid: Pid) -> Result<()> {
    bail!("calls can be traced on x86-64 only")
}
