use super::driver::Setup;
use super::limit::{DramLimit, SsdLimit};
use super::report::LongctxRow;
use super::scale::{ContextTokens, Scale};
use super::stage::{Restored, Stage, Tier};
use super::target::Target;
use crate::BenchError;
use crate::daemon::{DaemonPlan, SsdPlan, part_bytes};
use crate::median::{median, sorted};
use undercroft_core::{Admission, LoadPolicy, Policy};
use undercroft_wire::frame_bytes;

const MIB: u64 = 1 << 20;
/// Beyond the contexts' pages, so that none of them has to leave DRAM before its time.
const SPARE_FRAMES: u64 = 64;
const STAGING_BYTES: u64 = 64 * MIB;
/// Pages that the daemon writes ahead of need, by default.
const DEMOTED_AHEAD: u64 = 64;

/// A context, and how much of it is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context {
    pub(super) asked: ContextTokens,
    /// Pages of all of it, and of what is measured.
    pub(super) whole_pages: u64,
    pub(super) pages: u64,
    pub(super) scale: Scale,
}

/// Frames of DRAM for so many pages.
pub(super) fn arena_bytes(pages: u64, page_bytes: u32) -> u64 {
    (pages + (pages / 16).max(SPARE_FRAMES)) * u64::from(frame_bytes(page_bytes))
}

/// Room on SSD for so many pages, those that push them out, and what a log keeps free.
pub(super) fn ssd_bytes(pages: u64, page_bytes: u32) -> u64 {
    let record = u64::from(page_bytes) + 8192;
    let pages = (pages + 2 * DEMOTED_AHEAD) * record;
    (pages + pages / 4).max(16 * MIB)
}

/// What one tier came to, restore by restore.
struct Measured {
    restores: Vec<Restored>,
    /// What the limit came to beside each of them; empty where there is none.
    limits: Vec<f64>,
    limit: String,
    wrong_bytes: u64,
}

/// Offloads a context, and restores it from each tier.
pub(super) fn measure(
    setup: &Setup<'_>,
    target: &dyn Target,
    dram: &mut DramLimit,
    context: Context,
) -> Result<Vec<LongctxRow>, BenchError> {
    let contexts = setup.options.concurrency;
    let plan = plan(setup, context);
    let has_ssd = plan.ssd.is_some();
    let shape = (contexts, context.pages);
    let mut stage = Stage::start(setup.checked, target, shape, plan, setup.interrupt)?;
    setup.tell(context, "offload");
    let offload = stage.offload()?;
    let measured = from_dram(setup, &stage, dram, context)?;
    let mut rows = vec![row(setup, context, Tier::Dram, offload, measured)];
    if has_ssd {
        setup.tell(context, "push out to ssd");
        stage.push_out()?;
        let measured = from_ssd(setup, &mut stage, context)?;
        rows.push(row(setup, context, Tier::Ssd, offload, measured));
    }
    Ok(rows)
}

fn plan(setup: &Setup<'_>, context: Context) -> DaemonPlan {
    let page_bytes = setup.checked.page_bytes();
    let pages = context.pages * u64::from(setup.options.concurrency);
    let frame = u64::from(frame_bytes(page_bytes));
    let bytes = ssd_bytes(pages, page_bytes);
    // The daemon's own choice of segment must hold a few pages.
    let chosen = (bytes / 64).clamp(4 * MIB, 256 * MIB);
    let segment_bytes = (chosen < 4 * frame).then(|| 4 * frame + MIB);
    let has_ssd = setup.ssd_room > 0;
    DaemonPlan {
        binary: setup.options.binary.clone(),
        arena_bytes: arena_bytes(pages, page_bytes),
        part_bytes: part_bytes(frame),
        staging_bytes: (2 * frame).max(STAGING_BYTES.min(pages * frame)),
        policy: Policy::Lru,
        admission: Admission::Demote,
        load: LoadPolicy::default(),
        ssd: has_ssd.then(|| SsdPlan {
            within: setup.folder.clone(),
            bytes,
            segment_bytes,
            depth: None,
            encrypted: true,
            write_budget: None,
        }),
    }
}

fn from_dram(
    setup: &Setup<'_>,
    stage: &Stage<'_>,
    limit: &mut DramLimit,
    context: Context,
) -> Result<Measured, BenchError> {
    let mut measured = Measured::of(limit.name());
    for _ in 0..setup.options.repeats {
        setup.tell(context, "restore from dram");
        let before = limit.measure();
        measured.add(stage.restore(Tier::Dram)?);
        measured.limits.push(limit.measure().max(before));
        setup.bar.inc(1);
    }
    Ok(measured)
}

fn from_ssd(
    setup: &Setup<'_>,
    stage: &mut Stage<'_>,
    context: Context,
) -> Result<Measured, BenchError> {
    let store = stage.daemon.store().map(std::path::Path::to_owned);
    let store = store.expect("this daemon has an SSD tier");
    let mut limit = SsdLimit::of(&store, setup.checked.page_bytes())?;
    let refused = || "none: io_uring is refused here".to_owned();
    let mut measured = Measured::of(limit.as_ref().map_or_else(refused, SsdLimit::name));
    for _ in 0..setup.options.repeats {
        setup.tell(context, "restore from ssd");
        stage.empty_dram()?;
        let before = limit.as_mut().map(SsdLimit::measure).transpose()?;
        measured.add(stage.restore(Tier::Ssd)?);
        // A daemon that has just begun may still have written when the first look was taken.
        let after = limit.as_mut().map(SsdLimit::measure).transpose()?;
        measured.limits.extend(before.into_iter().chain(after).reduce(f64::max));
        setup.bar.inc(1);
    }
    Ok(measured)
}

impl Measured {
    fn of(limit: String) -> Self {
        Self { restores: Vec::new(), limits: Vec::new(), limit, wrong_bytes: 0 }
    }

    fn add(&mut self, (restored, wrong_bytes): (Restored, u64)) {
        self.restores.push(restored);
        self.wrong_bytes += wrong_bytes;
    }
}

fn row(
    setup: &Setup<'_>,
    context: Context,
    tier: Tier,
    offload: f64,
    measured: Measured,
) -> LongctxRow {
    let of = |each: fn(&Restored) -> f64| sorted(measured.restores.iter().map(each));
    let (first, last) = (of(|one| one.first_s), of(|one| one.last_s));
    let ratios = measured.restores.iter().zip(&measured.limits);
    let ratios = sorted(ratios.map(|(one, limit)| one.bytes_per_s / limit));
    let limits = sorted(measured.limits.iter().copied());
    // What was not measured is taken to take as long, page for page.
    let times = context.whole_pages as f64 / context.pages as f64;
    let page_bytes = u64::from(setup.checked.page_bytes());
    let tokens = context.asked.0 as f64;
    let (first_s, last_s) = (median(&first), median(&last));
    let recompute_s = setup.checked.recompute.seconds(tokens);
    let saved = f64::from(setup.options.tp) * (recompute_s - last_s * times) / tokens;
    LongctxRow {
        context: context.asked.0,
        tier: tier.name(),
        bytes: context.whole_pages * page_bytes,
        first_layer_ms: first_s * times * 1e3,
        last_layer_ms: last_s * times * 1e3,
        ratio: (!ratios.is_empty()).then(|| median(&ratios)),
        recompute_ms: recompute_s * 1e3,
        scaled: context.scale,
        measured_tokens: context.pages * u64::from(setup.options.page_tokens),
        measured_bytes: context.pages * page_bytes,
        measured_first_layer_ms: first_s * 1e3,
        measured_last_layer_ms: last_s * 1e3,
        last_layer_spread_ms: [last[0] * 1e3, last[last.len() - 1] * 1e3],
        repeats: last.len() as u32,
        bytes_per_s: median(&of(|one| one.bytes_per_s)),
        limit_bytes_per_s: (!limits.is_empty()).then(|| median(&limits)),
        limit: measured.limit,
        offload_bytes_per_s: offload,
        gpu_s_saved_per_token: saved,
        joules_saved_per_token: saved * setup.options.gpu.watts,
        wrong_bytes: measured.wrong_bytes,
    }
}
