//! `refuse CALL[,CALL…] PROGRAM ARGUMENT…` runs a program on a machine that lacks these calls. A
//! seccomp filter answers them as an older kernel or a container would; calls whose arguments lie in
//! memory are answered by a tracer.

mod tracer;

use anyhow::{Context, Result, ensure};
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What is refused, and how.
struct Refusal {
    /// Its name on the command line.
    name: &'static str,
    errno: i32,
    rules: fn() -> Result<Rules>,
}

/// The numbers are the same on every architecture: io_uring came after they were unified.
const IO_URING_SETUP: i64 = 425;
const IO_URING_ENTER: i64 = 426;
const IO_URING_REGISTER: i64 = 427;
const PIDFD_OPEN: i64 = 434;
const SO_PEERPIDFD: u64 = 77;
const MFD_HUGETLB: u64 = 4;
const MFD_NOEXEC_SEAL: u64 = 8;
const MADV_COLLAPSE: u64 = 25;
const IORING_REGISTER_BUFFERS2: u64 = 15;

const REFUSALS: [Refusal; 8] = [
    // As in containers.
    Refusal {
        name: "io-uring",
        errno: libc::EPERM,
        rules: || Ok([IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER].map(always).into()),
    },
    // Before Linux 6.5.
    Refusal {
        name: "peer-pidfd",
        errno: libc::ENOPROTOOPT,
        rules: || where_is(libc::SYS_getsockopt, 2, SO_PEERPIDFD),
    },
    Refusal { name: "pidfd-open", errno: libc::ENOSYS, rules: || Ok([always(PIDFD_OPEN)].into()) },
    // Before Linux 6.3.
    Refusal {
        name: "noexec-seal",
        errno: libc::EINVAL,
        rules: || where_has(libc::SYS_memfd_create, 1, MFD_NOEXEC_SEAL),
    },
    Refusal {
        name: "hugetlb",
        errno: libc::EINVAL,
        rules: || where_has(libc::SYS_memfd_create, 1, MFD_HUGETLB),
    },
    // Before Linux 6.1.
    Refusal {
        name: "collapse",
        errno: libc::EINVAL,
        rules: || where_is(libc::SYS_madvise, 2, MADV_COLLAPSE),
    },
    // Before Linux 5.19 it cannot be sparse.
    Refusal {
        name: "sparse-buffers",
        errno: libc::EINVAL,
        rules: || where_is(IO_URING_REGISTER, 1, IORING_REGISTER_BUFFERS2),
    },
    Refusal {
        name: "mbind",
        errno: libc::EPERM,
        rules: || Ok([always(libc::SYS_mbind), always(libc::SYS_move_pages)].into()),
    },
];

fn always(call: i64) -> (i64, Vec<SeccompRule>) {
    (call, Vec::new())
}

fn rule(call: i64, argument: u8, operator: SeccompCmpOp, value: u64) -> Result<Rules> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
    Ok([(call, vec![SeccompRule::new(vec![condition])?])].into())
}

fn where_is(call: i64, argument: u8, value: u64) -> Result<Rules> {
    rule(call, argument, SeccompCmpOp::Eq, value)
}

fn where_has(call: i64, argument: u8, flag: u64) -> Result<Rules> {
    rule(call, argument, SeccompCmpOp::MaskedEq(flag), flag)
}

fn main() -> Result<()> {
    const USAGE: &str = "usage: refuse CALL[,CALL…] PROGRAM ARGUMENT…";
    let mut arguments = std::env::args_os().skip(1);
    let calls = arguments.next().and_then(|calls| calls.into_string().ok()).context(USAGE)?;
    if calls == tracer::WORD {
        return tracer::run(arguments.next().as_deref());
    }
    let (program, arguments): (OsString, Vec<_>) =
        (arguments.next().context(USAGE)?, arguments.collect());
    let mut traced = Vec::new();
    for name in calls.split(',') {
        if let Some(refusal) = REFUSALS.iter().find(|refusal| refusal.name == name) {
            install((refusal.rules)()?, SeccompAction::Errno(refusal.errno as u32))?;
        } else {
            ensure!(tracer::knows(name), "{name}: nobody knows how to refuse that");
            traced.push(name);
        }
    }
    if !traced.is_empty() {
        let calls = tracer::start(&traced)?;
        install(calls.into_iter().map(always).collect(), SeccompAction::Trace(0))?;
    }
    Err(Command::new(&program).args(arguments).exec())
        .with_context(|| format!("cannot run {}", program.display()))
}

fn install(rules: Rules, action: SeccompAction) -> Result<()> {
    let architecture = std::env::consts::ARCH.try_into().context("an architecture with seccomp")?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, architecture)?;
    let filter: BpfProgram = filter.try_into()?;
    Ok(apply_filter(&filter)?)
}
