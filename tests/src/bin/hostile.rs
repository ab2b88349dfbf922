//! `cargo xtask hostile`: clients die at every step of what a client does, by the thousand, and
//! nothing may be left of them.

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use std::process::ExitCode;
use undercroft_benches::Interrupt;
use undercroft_tests::{Deaths, Place};

/// Clients that die
///
/// Processes use the daemon as engines do and kill themselves in the middle of it, four at a time,
/// while a well-behaved engine loads its pages and compares every byte.
#[derive(Debug, Parser)]
#[command(name = "hostile", bin_name = "cargo xtask hostile", version)]
#[command(
    after_help = "Exit codes: 0 all is well, 1 a bound is broken or the run failed, 2 wrong usage."
)]
struct Arguments {
    /// How many clients die
    #[arg(long, default_value_t = 10_000)]
    deaths: u32,
    /// Where they live: with the daemon's user, as another user, or as root in a container
    #[arg(long, value_enum, default_value_t = As::User)]
    r#as: As,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum As {
    /// The daemon's own user
    Own,
    /// An ordinary user; the daemon's own, where that is one
    User,
    /// Root of a user namespace
    UserNamespace,
    /// Root in a container, with the rights that container engines give
    Container,
    /// Root in a container with nearly all rights
    Privileged,
}

impl As {
    fn place(self) -> Place {
        match self {
            Self::Own => Place::Beside,
            Self::User if !rustix::process::geteuid().is_root() => Place::Beside,
            Self::User => Place::User,
            Self::UserNamespace => Place::UserNamespace,
            Self::Container => Place::Container,
            Self::Privileged => Place::Privileged,
        }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hostile: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let interrupt = Interrupt::watch()?;
    let (deaths, place) = (arguments.deaths, arguments.r#as.place());
    if let Some(missing) = place.missing() {
        bail!(missing);
    }
    let report = Deaths { deaths, place }.run(&|| Ok(interrupt.check()?))?;
    println!("{report}");
    report.check()
}
