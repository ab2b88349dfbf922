use super::break_even::{BreakEven, LoadTime};
use super::context::{Context, arena_bytes, measure, ssd_bytes};
use super::limit::DramLimit;
use super::options::{Checked, DeviceChoice, LongctxOptions};
use super::report::{LongctxReport, LongctxRow, TierBreakEven};
use super::scale::{ContextTokens, Room, scale};
use super::stage::Tier;
use super::target::{Target, target};
use crate::interrupt::Interrupt;
use crate::limits::{Machine, available_memory, cores};
use crate::replay::{Output, json_text};
use crate::{BenchError, ByteSize, progress};
use indicatif::ProgressBar;
use std::path::{Path, PathBuf};
use std::time::Instant;

const MIB: u64 = 1 << 20;
/// More threads than this do not make a memory faster.
const MAX_THREADS: u32 = 8;
/// Unless somebody says more, contexts take no more of a disk.
const MOST_SSD_BYTES: u64 = 64 << 30;

/// What all contexts share.
pub(super) struct Setup<'a> {
    pub(super) options: &'a LongctxOptions,
    pub(super) checked: &'a Checked,
    pub(super) interrupt: &'a Interrupt,
    pub(super) bar: &'a ProgressBar,
    /// Where files go.
    pub(super) folder: PathBuf,
    /// Bytes the SSD tier may take; 0 for none.
    pub(super) ssd_room: u64,
}

impl Setup<'_> {
    pub(super) fn tell(&self, context: Context, what: &str) {
        self.bar.set_message(format!("{}: {what}", context.asked));
    }
}

/// What there is of memory and disk.
struct Means {
    /// Bytes of one side of the bare copies.
    working_set: u64,
    dram: u64,
    ssd: u64,
}

/// Offloads contexts from a device and restores them from each tier, beside the machine's limits
/// and what it would take to compute them anew.
///
/// The recompute of `T` tokens by a roofline takes `2 P T + L W T²` operations: `P` parameters are
/// multiplied and added once for each token, and in each of `L` layers each token attends to itself
/// and those before it, half of all pairs, with `W` multiplications and additions (over all heads,
/// the dimension of a query and that of a value).
///
/// # Errors
/// Contexts that do not fit even when scaled down, a device that is not there, a daemon that does
/// not start, no room for its files, Ctrl-C.
pub fn longctx(options: &LongctxOptions) -> Result<LongctxReport, BenchError> {
    let since = Instant::now();
    let checked = options.check()?;
    let json = options.json.as_deref().map(Output::open).transpose()?;
    let html = options.html.as_deref().map(Output::open).transpose()?;
    let folder = options.ssd_path.clone().unwrap_or_else(std::env::temp_dir);
    let interrupt = Interrupt::watch()?;
    let machine = Machine::facts(&folder);
    let threads = (cores() / 2).clamp(1, MAX_THREADS);
    let means = means(options, &folder, &machine)?;
    let contexts = plan_contexts(options, &checked, &means)?;
    let most = contexts.iter().map(|context| context.pages).max().unwrap_or(0);
    let blocks = most * u64::from(options.concurrency);
    let target = target(options.device, checked.geometry(), blocks as u32, threads as usize)?;
    let mut limit =
        DramLimit::of(&*target, means.working_set, checked.page_bytes(), threads as usize)?;
    let tiers = if means.ssd > 0 { 2 } else { 1 };
    let steps = contexts.len() as u64 * u64::from(options.repeats) * tiers;
    let bar = progress::bar(steps, "restores");
    let setup = Setup {
        options,
        checked: &checked,
        interrupt: &interrupt,
        bar: &bar,
        folder,
        ssd_room: means.ssd,
    };
    let mut rows = Vec::new();
    for context in contexts {
        rows.extend(measure(&setup, &*target, &mut limit, context)?);
    }
    bar.finish_and_clear();
    let mut report = report(options, &checked, &*target, machine, rows);
    report.copy_threads = threads;
    report.wall_s = since.elapsed().as_secs_f64();
    if let Some(output) = json {
        output.write(&json_text(&report))?;
    }
    if let Some(output) = html {
        output.write(report.html().as_bytes())?;
    }
    Ok(report)
}

/// How much of memory and disk the tiers may take: what was asked for must be there.
fn means(options: &LongctxOptions, folder: &Path, machine: &Machine) -> Result<Means, BenchError> {
    let available = available_memory().unwrap_or(u64::MAX);
    let working_set =
        (4 * machine.llc_bytes).clamp(256 * MIB, 1024 * MIB).min(available / 16).max(MIB);
    let left = available.saturating_sub(2 * working_set);
    // A device made of memory takes as much as the DRAM tier; some is left to everybody else.
    let sides = if options.device == DeviceChoice::Host { 2 } else { 1 };
    let dram = match options.dram {
        None => left / (sides + 1),
        Some(size) if size.0.saturating_mul(sides) <= left => size.0,
        Some(size) => {
            let problem = format!(
                "{size}{} does not fit into the {} MiB of memory that are free",
                if sides == 2 { " and a device as large" } else { "" },
                left / MIB
            );
            return Err(BenchError::Option { option: "--dram", problem });
        }
    };
    Ok(Means { working_set, dram, ssd: ssd_means(options, folder)? })
}

fn ssd_means(options: &LongctxOptions, folder: &Path) -> Result<u64, BenchError> {
    let facts = rustix::fs::statvfs(folder)
        .map_err(std::io::Error::from)
        .map_err(BenchError::file("look at", folder))?;
    let free = facts.f_bavail.saturating_mul(facts.f_frsize);
    match options.ssd {
        None => Ok((free / 2).min(MOST_SSD_BYTES)),
        Some(size) if size.0 <= free => Ok(size.0),
        Some(size) => {
            let folder = folder.display();
            let problem = format!("{size} does not fit into {folder}: {} MiB are free", free / MIB);
            Err(BenchError::Option { option: "--ssd", problem })
        }
    }
}

/// Which contexts are measured, and how much of each.
fn plan_contexts(
    options: &LongctxOptions,
    checked: &Checked,
    means: &Means,
) -> Result<Vec<Context>, BenchError> {
    let room = room(checked, means);
    let page_tokens = u64::from(options.page_tokens);
    let plan = |asked: &ContextTokens| {
        let whole_pages = asked.0.div_ceil(page_tokens);
        let (scale, pages) =
            scale(whole_pages, options.concurrency.into(), room).map_err(|problem| {
                BenchError::Option {
                    option: "--contexts",
                    problem: format!("{asked} of {} {problem}", options.model.name),
                }
            })?;
        Ok(Context { asked: *asked, whole_pages, pages, scale })
    };
    options.contexts.iter().map(plan).collect()
}

/// The most pages for which both tiers have room.
fn room(checked: &Checked, means: &Means) -> Room {
    let page_bytes = checked.page_bytes();
    let most = |bytes: u64, takes: &dyn Fn(u64, u32) -> u64| {
        // What a number of pages takes grows with it.
        let (mut fits, mut not) = (0, bytes / u64::from(page_bytes) + 1);
        while fits + 1 < not {
            let middle = fits + (not - fits) / 2;
            let fits_too = takes(middle, page_bytes) <= bytes;
            if fits_too { fits = middle } else { not = middle }
        }
        fits
    };
    let dram = most(means.dram, &arena_bytes);
    let ssd = if means.ssd > 0 { most(means.ssd, &ssd_bytes) } else { u64::MAX };
    if dram <= ssd {
        Room { pages: dram, tightest: "DRAM" }
    } else {
        Room { pages: ssd, tightest: "the SSD" }
    }
}

fn report(
    options: &LongctxOptions,
    checked: &Checked,
    target: &dyn Target,
    mut machine: Machine,
    rows: Vec<LongctxRow>,
) -> LongctxReport {
    let mut notes = std::mem::take(&mut machine.notes);
    notes.extend(rows.iter().filter(|row| row.ratio.is_some_and(|ratio| ratio > 1.05)).map(
        |row| {
            let (context, tier) = (ContextTokens(row.context), row.tier);
            format!(
                "{context} from {tier} beats its limit: the machine was busy, or the limit is wrong"
            )
        },
    ));
    let break_even = [Tier::Dram, Tier::Ssd].into_iter().filter_map(|tier| {
        let of_tier = rows.iter().filter(|row| row.tier == tier.name());
        let measured: Vec<(f64, f64)> = of_tier
            .map(|row| (row.measured_tokens as f64, row.measured_last_layer_ms / 1e3))
            .collect();
        let load = (!measured.is_empty()).then(|| LoadTime::fit(&measured))?;
        let tokens = BreakEven::of(load, &checked.recompute, options.page_tokens);
        Some(TierBreakEven { tier: tier.name(), tokens, load })
    });
    LongctxReport {
        schema: 1,
        wrong_bytes: rows.iter().map(|row| row.wrong_bytes).sum(),
        break_even: break_even.collect(),
        rows,
        machine,
        device: format!("{} ({})", options.device, target.name()),
        model: options.model.clone(),
        tp: options.tp,
        page_tokens: options.page_tokens,
        page_bytes: checked.page_bytes(),
        concurrency: options.concurrency,
        copy_threads: 0,
        gpu: options.gpu,
        recompute: checked.recompute.clone(),
        assumptions: assumptions(options, checked),
        notes,
        wall_s: 0.0,
    }
}

fn assumptions(options: &LongctxOptions, checked: &Checked) -> Vec<String> {
    let LongctxOptions { gpu, tp, .. } = options;
    let mut all = vec![
        checked.recompute.source.clone(),
        "first and last layer: from the lookup until that layer of all pages lies in the device, \
         the median of the restores"
            .to_owned(),
        format!(
            "GPU-seconds saved per token = {tp} GPUs × (recompute − last layer) / tokens: GPUs wait \
             for the whole load, which an engine that begins on the first layer does not"
        ),
        format!(
            "joules saved per token = GPU-seconds saved × {} W, the whole board of {gpu} at its \
             limit, computing or waiting; the host's energy is left out",
            gpu.watts
        ),
        "break-even: where a line through the measured restores meets the recompute; scaled rows \
         count with what was measured of them"
            .to_owned(),
        "scaled 1/N: one Nth of the context was measured, and its times are N times the measured \
         ones"
            .to_owned(),
    ];
    if *tp > 1 {
        all.push(format!(
            "one of {tp} ranks was measured, alone; the others load at the same time from the same \
             DRAM and SSD (--concurrency {tp} restores as much at once)"
        ));
    }
    if options.device == DeviceChoice::Host {
        all.push(
            "the device is host memory: a GPU's link may be slower, and its copies take no core"
                .to_owned(),
        );
    }
    all
}

/// For people: how much.
pub(crate) fn size(bytes: u64) -> String {
    let (value, unit) = match bytes {
        bytes if bytes >= 1 << 40 => (bytes as f64 / (1_u64 << 40) as f64, "TiB"),
        bytes if bytes >= 1 << 30 => (bytes as f64 / f64::from(1 << 30), "GiB"),
        bytes if bytes >= MIB => (bytes as f64 / MIB as f64, "MiB"),
        bytes => return ByteSize(bytes).to_string(),
    };
    format!("{value:.1} {unit}")
}
