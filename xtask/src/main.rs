//! One entry for people and CI: `cargo xtask ci`, `test`, `tidy`, `fuzz-smoke`, `asan`, `gpu`, `ptx`,
//! `python`, `capi`, `header`, `engines`, and
//! the lanes `absence`, `corrupt`, `crash`, `hostile`, `power-cut`, `resting` and `sim`.

mod asan;
mod capi;
mod ci;
mod command;
mod engines;
mod fuzz;
mod gpu;
mod header;
mod lanes;
mod mutants;
mod ptx;
mod python;
mod steps;
mod suite;
mod tidy;
mod tree;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What CI runs, and what people run before they push.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
#[command(after_help = "Exit codes: 0 all is well, 1 a step failed, 2 wrong usage.")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Everything a change must pass: fmt, tidy, clippy, test, Python, docs, fuzz targets, sanitizer, audits
    ///
    /// Steps that need a tool which is not installed (cargo-deny, systemd-analyze) are skipped
    /// and named in the summary. The first failing step ends the run.
    Ci,
    /// Builds the `undercroft` binary, then runs every test of the workspace
    ///
    /// Arguments after `--` go to `cargo test`, such as `cargo xtask test -- -p undercroft-wire`.
    Test {
        /// Passed on to `cargo test` in place of `--workspace`
        #[arg(last = true)]
        cargo_test: Vec<String>,
    },
    /// Checks the house rules: crate arrows, sizes, names, unsafe, manifests
    Tidy,
    /// Runs the tests of the CUDA code and its stand-in driver under an address sanitizer
    ///
    /// With the sanitizer of the stable toolchain, in a target directory of its own. First it is
    /// seen that faults made on purpose are found.
    Asan,
    /// Compiles the CUDA kernels to the PTX that lies checked in beside them
    ///
    /// With NVRTC of CUDA 12.0 from its Python package, which pip fetches once into the target
    /// directory. Needs neither a GPU nor a driver.
    Ptx {
        /// Changes nothing and fails if what is checked in differs
        #[arg(long)]
        check: bool,
    },
    /// Builds the C library: header, shared and static library, pkg-config file
    ///
    /// Into `capi/` beside what cargo builds, or where `--to` says. docs/engines/c.md says how to use it.
    /// Takes a C compiler.
    Capi {
        /// Optimized, for real use
        #[arg(long)]
        release: bool,
        /// Where `include/` and `lib/` go
        #[arg(long, value_name = "DIRECTORY")]
        to: Option<PathBuf>,
    },
    /// Writes client/ffi/undercroft.h from the sources
    Header {
        /// Changes nothing and fails if what is checked in differs
        #[arg(long)]
        check: bool,
    },
    /// Makes a bundle of everything that needs a GPU, for a machine that has one and no Rust
    ///
    /// A folder and an archive in the target directory: programs, a script that runs them all and
    /// prints a table. docs/gpu.md says how to use it. Takes `strip`, `tar` and `getconf`.
    Gpu {
        /// Runs it here as well
        #[arg(long)]
        run: bool,
        /// Passed on to its `run.sh`
        #[arg(last = true, requires = "run")]
        arguments: Vec<String>,
    },
    /// Builds the Python module and puts it into its package, to be used from there
    ///
    /// With `python/` on `PYTHONPATH`, `import undercroft` works. Takes Python 3.11 or later.
    Python {
        /// Optimised
        #[arg(long)]
        release: bool,
        /// Runs the package's tests
        #[arg(long, conflicts_with_all = ["release", "wheel"])]
        test: bool,
        /// Makes a wheel with the module, the connectors and the `undercroft` program
        ///
        /// In the target directory. pip fetches maturin for it.
        #[arg(long)]
        wheel: bool,
    },
    /// Runs real engines in front of a real daemon: by itself the smoke that CI runs
    ///
    /// vLLM on this machine's processor, in an environment outside of the tree that is made once:
    /// docs/testing.md says where. Skipped by name if that cannot be had. Takes CPython 3.11 and
    /// 8 GiB of disk.
    Engines {
        #[command(flatten)]
        wish: engines::Wish,
    },
    /// Builds every fuzz target and runs each for a moment
    ///
    /// The plain driver (seeded, no instrumentation) always runs. libFuzzer runs after it where a
    /// C++ compiler can build it. For real fuzzing use `cargo fuzz run <target>` in `fuzz/`.
    FuzzSmoke {
        /// Inputs per target for the plain driver
        #[arg(long, default_value_t = 100_000)]
        iterations: u64,
        /// Seconds per target for libFuzzer
        #[arg(long, default_value_t = 4)]
        seconds: u64,
        /// Seed of both drivers
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Runs the core and page logs on devices that lie, in virtual time, seed by seed
    ///
    /// `cargo xtask sim --help` says what it takes.
    #[command(disable_help_flag = true)]
    Sim {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Plants bugs in a copy of the sources and sees whether the simulator finds them
    ///
    /// They are listed in `tests/mutants.toml`. Takes some minutes.
    Mutants {
        #[command(flatten)]
        wish: mutants::Wish,
    },
    /// Damages page logs in every way there is, and reads what is left
    ///
    /// `cargo xtask corrupt --help` says what it takes.
    #[command(disable_help_flag = true)]
    Corrupt {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Kills the daemon under load again and again, and looks at every page it should still have
    ///
    /// `cargo xtask crash --help` says what it takes.
    #[command(disable_help_flag = true)]
    Crash {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Kills and stops the daemon under a client and measures how soon the client knows
    ///
    /// `cargo xtask absence --help` says what it takes.
    #[command(disable_help_flag = true)]
    Absence {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Measures the heap and the processor time of a daemon that knows many pages and rests
    ///
    /// `cargo xtask resting --help` says what it takes.
    #[command(disable_help_flag = true)]
    Resting {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Lets thousands of clients die in the middle of what they do; nothing may be left of them
    ///
    /// `cargo xtask hostile --help` says what it takes.
    #[command(disable_help_flag = true)]
    Hostile {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Stops, kills and takes over from the daemon under load; pages in DRAM and leases must outlive it
    ///
    /// `cargo xtask restarts --help` says what it takes.
    #[command(disable_help_flag = true)]
    Restarts {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Boots a real systemd with our units, and does to the daemon there what happens to daemons
    ///
    /// Takes root. `cargo xtask systemd --help` says the rest.
    #[command(disable_help_flag = true)]
    Systemd {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Times one tenant's lookups of what another has stored: they must tell nothing
    ///
    /// `cargo xtask timing --help` says what it takes.
    #[command(disable_help_flag = true)]
    Timing {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Cuts the power of the disk under the daemon again and again, boots, and looks at every page
    ///
    /// Takes root, FUSE, loop devices and e2fsprogs. `cargo xtask power-cut --help` says the rest.
    #[command(disable_help_flag = true)]
    PowerCut {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    let root = tree::workspace_root()?;
    match task {
        Task::Ci => ci::run(&root),
        Task::Test { cargo_test } => {
            let outcome = suite::run(&root, &cargo_test)?;
            println!("{outcome}");
            Ok(())
        }
        Task::Tidy => tidy::run(&root),
        Task::FuzzSmoke { iterations, seconds, seed } => {
            let drivers = fuzz::run(&root, &fuzz::Budget { iterations, seconds, seed })?;
            println!("fuzz-smoke: {drivers}");
            Ok(())
        }
        Task::Asan => match asan::run(&root)? {
            asan::Sanitized::Passed(note) => {
                println!("asan: {note}");
                Ok(())
            }
            asan::Sanitized::Missing(missing) => anyhow::bail!("{missing}"),
        },
        Task::Ptx { check } => match ptx::run(&root, check)? {
            Ok(()) => Ok(()),
            Err(missing) => anyhow::bail!("there is no compiler for the kernels: {missing}"),
        },
        Task::Capi { release, to } => capi::run(&root, release, to).map(|_| ()),
        Task::Header { check } => header::run(&root, check),
        Task::Gpu { run, arguments } => {
            let folder = gpu::bundle(&root)?;
            if run { gpu::run(&folder, &arguments) } else { Ok(()) }
        }
        Task::Python { release, test, wheel } => match (test, wheel) {
            (true, _) => match python::test(&root)? {
                Ok(note) => {
                    println!("python: {note}");
                    Ok(())
                }
                Err(missing) => anyhow::bail!("{missing}"),
            },
            (_, true) => {
                println!("{}", python::wheel(&root)?.display());
                Ok(())
            }
            _ => {
                let profile =
                    if release { python::Profile::Release } else { python::Profile::Debug };
                let (parent, program) = python::place(&root, profile)?;
                println!("PYTHONPATH={} UNDERCROFT_BIN={}", parent.display(), program.display());
                Ok(())
            }
        },
        Task::Engines { wish } => engines::command(&root, &wish),
        Task::Mutants { wish } => mutants::run(&root, &wish),
        Task::Sim { arguments } => lane(&root, "simulate", false, &arguments),
        Task::Corrupt { arguments } => lane(&root, "corrupt", false, &arguments),
        Task::PowerCut { arguments } => lane(&root, "power-cut", true, &arguments),
        Task::Absence { arguments } => lane(&root, "absence", true, &arguments),
        Task::Resting { arguments } => lane(&root, "resting", true, &arguments),
        Task::Hostile { arguments } => lane(&root, "hostile", true, &arguments),
        Task::Restarts { arguments } => lane(&root, "restarts", true, &arguments),
        Task::Systemd { arguments } => lane(&root, "systemd", true, &arguments),
        Task::Timing { arguments } => lane(&root, "timing", true, &arguments),
        Task::Crash { arguments } => lane(&root, "warm-restart", true, &arguments),
    }
}

fn lane(root: &Path, program: &'static str, daemon: bool, arguments: &[OsString]) -> Result<()> {
    match lanes::run(root, lanes::Lane { program, daemon }, arguments)? {}
}
