use super::copies::is_absent;
use super::decode::Decoder;
use super::layouts::Kept;
use super::pages::{Pages, Way};
use super::rate::gb_per_s;
use super::{Findings, GpuChecks, facts};
use anyhow::{Context, Result, anyhow};
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use undercroft_gpu_shim::cuda::{CopyMode, CudaDevice, CudaOptions, Pace, link_ceiling};

/// The layout that has the most work with its copies of those that engines use by default.
const KEPT: Kept = Kept::PartsFirst;
/// Pages of a transfer: 32 MiB.
const PAGES: u32 = 16;
/// Of the link, that pacing leaves to copies.
const PACED_SHARE: f64 = 0.5;
/// The most that a step may take longer beside paced copies by a copy engine.
const MOST_SLOWER: f64 = 0.05;
const LONG_ENOUGH: Duration = Duration::from_secs(1);

/// How much longer a step of decoding takes while pages are loaded as fast as they go, by each
/// mode, with pacing and without.
pub(super) fn run(on: &GpuChecks) -> Result<Findings> {
    let columns = ["mode", "pace", "step ms", "beside a load ms", "slower %", "load GB/s"];
    let mut findings = Findings::with_columns(&columns);
    let is_stand_in = GpuChecks::is_stand_in(&facts::device_name(on.ordinal)?);
    let judged = !on.quick && !is_stand_in;
    let decoder = if is_stand_in {
        findings.missing("steps are slept through: this driver runs no kernel but the copies'");
        Decoder::imitated()
    } else {
        Decoder::new(on.ordinal).context("a step of decoding")?
    };
    let link = link_ceiling(on.ordinal)?.load_bytes_per_s;
    let long_enough = if on.quick { Duration::ZERO } else { LONG_ENOUGH };
    steps(&decoder, long_enough, || {})?;
    let alone = steps(&decoder, long_enough, || {})?;
    if !is_stand_in {
        let gb = gb_per_s(decoder.step_bytes(), alone);
        findings.note(format!("a step reads {} bytes, {gb:.0} GB/s", decoder.step_bytes()));
    }
    let paced = Pace {
        bytes_per_step: (link * PACED_SHARE * alone.as_secs_f64()) as u64,
        // Longer than a step, so that it is the engine that begins one.
        step: alone * 4,
    };
    for mode in CopyMode::ALL {
        for pace in [None, Some(paced)] {
            let options =
                CudaOptions { load: Some(mode), store: Some(mode), pace, ..CudaOptions::default() };
            let beside = match beside(on, &decoder, options, long_enough) {
                Ok(beside) => beside,
                Err(error) if is_absent(&error) => {
                    findings.note(error.to_string());
                    continue;
                }
                Err(error) => return Err(error).with_context(|| mode.to_string()),
            };
            let slower = beside.step.as_secs_f64() / alone.as_secs_f64() - 1.0;
            let is_judged = judged && pace.is_some() && mode != CopyMode::Kernel;
            if is_judged && slower > MOST_SLOWER {
                findings.wrong(format!("{mode}, paced: steps take {:.1} % longer", slower * 100.0));
            }
            findings.row([
                json!(mode.name()),
                json!(if pace.is_some() { "half of the link" } else { "none" }),
                json!(alone.as_secs_f64() * 1e3),
                json!(beside.step.as_secs_f64() * 1e3),
                json!(slower * 100.0),
                json!(beside.load_gb_per_s),
            ]);
        }
    }
    Ok(findings)
}

struct Beside {
    step: Duration,
    load_gb_per_s: f64,
}

/// Decodes while another thread loads the same pages again and again.
fn beside(
    on: &GpuChecks,
    decoder: &Decoder,
    options: CudaOptions,
    long_enough: Duration,
) -> Result<Beside> {
    let device = CudaDevice::allocate_layout(on.ordinal, &KEPT.layout(PAGES)?, options)?;
    let pages = Pages::new(PAGES, KEPT.geometry().page_bytes())?;
    let _pinned = device.register(&pages.whole())?;
    let (over, loaded) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let loader = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                let jobs = (0..PAGES).map(|page| (pages.span(page), page));
                Way::Load.start(&device, jobs)?.wait()?;
                loaded.fetch_add(u64::from(PAGES) * pages.page_bytes as u64, Ordering::Relaxed);
            }
            Ok(())
        });
        while loaded.load(Ordering::Relaxed) == 0 && !loader.is_finished() {
            std::thread::yield_now();
        }
        let (before, since) = (loaded.load(Ordering::Relaxed), Instant::now());
        let step = steps(decoder, long_enough, || device.begin_step());
        let bytes = loaded.load(Ordering::Relaxed) - before;
        let took = since.elapsed();
        over.store(true, Ordering::Relaxed);
        let ended = loader.join().map_err(|_| anyhow!("the thread that loads panicked"))?;
        ended.context("a load beside a step")?;
        Ok(Beside { step: step?, load_gb_per_s: gb_per_s(bytes, took) })
    })
}

/// The median of steps one after another.
fn steps(decoder: &Decoder, long_enough: Duration, begin: impl Fn()) -> Result<Duration> {
    super::rate::median(long_enough, || {
        begin();
        decoder.step()
    })
}
