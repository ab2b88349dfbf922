use super::bare_copy::BareCopy;
use super::machine::{Machine, available_memory, cores};
use super::pairs::{PAIRS, Pairs};
use super::report::LimitsReport;
use super::{bare_ring, control, dram, pcie, ssd};
use crate::interrupt::Interrupt;
use crate::replay::{Output, json_text};
use crate::{BenchError, progress};
use std::path::{Path, PathBuf};
use std::time::Instant;

const MIB: u64 = 1 << 20;
/// The rows of a whole run before those of the control path, in their order.
const MOVING_ROWS: [&str; 10] = [
    "dram_load_1m",
    "dram_load_2m",
    "store_2m",
    "ssd_read_2m",
    "ssd_write_2m",
    "ssd_read_2m_plain",
    "ssd_write_2m_plain",
    "ssd_read_256k",
    "ssd_mixed_70_30",
    "ssd_mixed_read_p99",
];
/// More threads than this do not make a memory faster.
const MAX_THREADS: u32 = 8;
/// Copy workers a daemon has at most unless configured.
const MAX_COPY_WORKERS: u32 = 4;

/// What `undercroft bench limits` is told.
#[derive(Debug, Clone)]
pub struct LimitsOptions {
    /// The program that knows `serve --config FILE` and `bench echo`: this one.
    pub binary: PathBuf,
    /// Where the SSD tier's file lies meanwhile; `None`: the system's temporary folder.
    pub ssd_path: Option<PathBuf>,
    /// Where to write the report; `-` for standard output.
    pub json: Option<PathBuf>,
    /// Only rows whose names begin so; `None`: all.
    pub only: Option<String>,
}

/// What all rows share.
pub(super) struct Setup<'a> {
    pub(super) options: &'a LimitsOptions,
    pub(super) interrupt: &'a Interrupt,
    /// Where files go.
    pub(super) folder: PathBuf,
    /// Bytes that no cache holds.
    pub(super) working_set: u64,
    /// Threads that copy on the client's side.
    pub(super) threads: usize,
    /// Threads that copy for a store, here and in the daemon.
    pub(super) store_threads: usize,
}

impl Setup<'_> {
    /// Whether a row was asked for.
    pub(super) fn wants(&self, row: &str) -> bool {
        self.options.only.as_ref().is_none_or(|only| row.starts_with(only.as_str()))
    }

    fn wants_any(&self, of: &str) -> bool {
        rows().any(|row| row.starts_with(of) && self.wants(row))
    }
}

fn rows() -> impl Iterator<Item = &'static str> {
    MOVING_ROWS.into_iter().chain(control::ROWS).chain(pcie::ROWS)
}

/// Measures what the daemon reaches beside what this machine could do at best.
///
/// # Errors
/// A daemon that does not start, no room for its files, no such row, Ctrl-C.
pub fn limits(options: &LimitsOptions) -> Result<LimitsReport, BenchError> {
    let since = Instant::now();
    let output = options.json.as_deref().map(Output::open).transpose()?;
    let folder = options.ssd_path.clone().unwrap_or_else(std::env::temp_dir);
    let interrupt = Interrupt::watch()?;
    let mut machine = Machine::facts(&folder);
    let working_set = working_set(&mut machine);
    let cores = cores();
    let threads = (cores / 2).clamp(1, MAX_THREADS);
    let store_threads = cores.min(threads + cores.min(MAX_COPY_WORKERS));
    let setup = Setup {
        options,
        interrupt: &interrupt,
        folder,
        working_set,
        threads: threads as usize,
        store_threads: store_threads as usize,
    };
    let wanted = rows().filter(|row| setup.wants(row)).count() as u64;
    if wanted == 0 {
        let problem =
            format!("no row's name begins so; there are {}", rows().collect::<Vec<_>>().join(", "));
        return Err(BenchError::Option { option: "--only", problem });
    }
    let gpu = gpu(&setup, &mut machine)?;
    let ssd = setup.wants_any("ssd_");
    if ssd {
        check_room(&setup.folder)?;
    }
    let bar = progress::bar(wanted * u64::from(PAIRS), "pairs");
    let pairs = Pairs { interrupt: &interrupt, bar: &bar };
    let mut rows = Vec::new();
    if setup.wants_any("dram_") || setup.wants("store_2m") {
        let mut bare = BareCopy::new(working_set, 2 * MIB)?;
        rows.extend(dram::measure(&setup, &pairs, &mut bare, 1 << 20)?);
        rows.extend(dram::measure(&setup, &pairs, &mut bare, 2 << 20)?);
    }
    if ssd && bare_ring::is_allowed() {
        rows.extend(ssd::measure(&setup, &pairs)?);
    } else if ssd {
        let note = "io_uring is refused here: without it the SSD has no limit to compare with";
        machine.notes.push(note.to_owned());
    }
    if control::ROWS.iter().any(|row| setup.wants(row)) {
        rows.extend(control::measure(&setup, &pairs)?);
    }
    if let Some(gpu) = gpu {
        rows.extend(pcie::measure(&setup, &pairs, &gpu)?);
    }
    bar.finish_and_clear();
    let report = LimitsReport { schema: 1, machine, rows, wall_s: since.elapsed().as_secs_f64() };
    if let Some(output) = output {
        output.write(&json_text(&report))?;
    }
    Ok(report)
}

/// The GPU whose link is measured, if its rows are wanted. Where there is none a note says so, and
/// nothing is measured at all if nothing else was asked for.
fn gpu(setup: &Setup<'_>, machine: &mut Machine) -> Result<Option<pcie::Gpu>, BenchError> {
    if !setup.wants_any("pcie_") {
        return Ok(None);
    }
    match pcie::Gpu::find() {
        Ok(gpu) => Ok(Some(gpu)),
        Err(error) if rows().filter(|row| setup.wants(row)).all(|row| row.starts_with("pcie_")) => {
            let problem = format!("the rows pcie_* need a GPU: {error}");
            Err(BenchError::Option { option: "--only", problem })
        }
        Err(error) => {
            machine.notes.push(format!("no rows pcie_*: {error}"));
            Ok(None)
        }
    }
}

/// Four times the last-level cache, or less where memory is short: then the figures say so.
fn working_set(machine: &mut Machine) -> u64 {
    let wanted = (4 * machine.llc_bytes).max(256 * MIB);
    // Arena, device and both sides of the bare loop; some is left to everybody else.
    let most = available_memory().map_or(wanted, |bytes| bytes / 5 / MIB * MIB);
    if wanted > most {
        let note = format!(
            "memory is short: a working set of {} MiB instead of {} MiB, which caches may help",
            most / MIB,
            wanted / MIB
        );
        machine.notes.push(note);
    }
    wanted.min(most).max(128 * MIB)
}

fn check_room(folder: &Path) -> Result<(), BenchError> {
    let facts = rustix::fs::statvfs(folder)
        .map_err(std::io::Error::from)
        .map_err(BenchError::file("look at", folder))?;
    let room = facts.f_bavail.saturating_mul(facts.f_frsize);
    if room >= ssd::DISK_BYTES {
        return Ok(());
    }
    let problem = format!(
        "{} has room for {} MiB, needed are {} MiB; name another folder",
        folder.display(),
        room / MIB,
        ssd::DISK_BYTES / MIB
    );
    Err(BenchError::Option { option: "--ssd-path", problem })
}
