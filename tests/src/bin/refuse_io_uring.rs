//! `refuse-io-uring PROGRAM ARGUMENT…` runs a program on a machine that forbids io_uring: a
//! seccomp filter answers every call that would set up a ring with EPERM, as containers do.

use anyhow::{Context, Result};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The numbers are the same on every architecture: io_uring came after they were unified.
const IO_URING_CALLS: [i64; 3] = [425, 426, 427];
const EPERM: u32 = 1;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().context("usage: refuse-io-uring PROGRAM ARGUMENT…")?;
    let rules = IO_URING_CALLS.into_iter().map(|call| (call, Vec::new())).collect();
    let architecture = std::env::consts::ARCH.try_into().context("an architecture with seccomp")?;
    let (allow, refuse) = (SeccompAction::Allow, SeccompAction::Errno(EPERM));
    let filter: BpfProgram = SeccompFilter::new(rules, allow, refuse, architecture)?.try_into()?;
    apply_filter(&filter)?;
    Err(Command::new(&program).args(arguments).exec())
        .with_context(|| format!("cannot run {}", program.display()))
}
