use super::bare_copy::BareCopy;
use super::driver::Setup;
use super::pairs::{Pairs, Unit};
use super::report::Row;
use super::rig::{DaemonCost, Rig, Run};
use crate::BenchError;
use crate::daemon::{DaemonPlan, part_bytes};
use std::ops::Range;
use std::time::{Duration, Instant};
use undercroft_core::{Admission, LoadPolicy, Policy};

/// Bytes of one fetch or store: a prompt of a thousand tokens or so.
const RUN_BYTES: u64 = 128 << 20;
pub(super) const STAGING_BYTES: u64 = 64 << 20;

/// Page loads out of DRAM and page stores into it, against plain memcpy.
pub(super) fn measure(
    setup: &Setup<'_>,
    pairs: &Pairs<'_>,
    bare: &mut BareCopy,
    page: u32,
) -> Result<Vec<Row>, BenchError> {
    let (load, store) = match page >> 20 {
        1 => ("dram_load_1m", None),
        _ => ("dram_load_2m", Some("store_2m")),
    };
    let store = store.filter(|row| setup.wants(row));
    if !setup.wants(load) && store.is_none() {
        return Ok(Vec::new());
    }
    let per_run = (RUN_BYTES / u64::from(page)) as usize;
    let count = setup.working_set.div_ceil(RUN_BYTES) as usize;
    let bytes = count as u64 * RUN_BYTES;
    let plan = DaemonPlan {
        binary: setup.options.binary.clone(),
        arena_bytes: bytes,
        part_bytes: part_bytes(page.into()),
        staging_bytes: STAGING_BYTES,
        policy: Policy::Lru,
        admission: Admission::Demote,
        load: LoadPolicy::default(),
        ssd: None,
    };
    let blocks = (count * per_run) as u32;
    let rig = Rig::start(load, plan, page, blocks, setup.threads, setup.interrupt)?;
    let place = |index: usize| index * per_run..(index + 1) * per_run;
    let runs: Vec<Run> = (0..count).map(|_| rig.fresh(per_run)).collect();
    for (index, run) in runs.iter().enumerate() {
        setup.interrupt.check()?;
        rig.store(run, place(index))?;
    }
    let mut rows = Vec::new();
    if setup.wants(load) {
        rows.push(load_row(load, setup, pairs, bare, &rig, &runs, &place)?);
    }
    if let Some(store) = store {
        rows.push(store_row(store, setup, pairs, bare, &rig, count, &place)?);
    }
    Ok(rows)
}

fn load_row(
    name: &'static str,
    setup: &Setup<'_>,
    pairs: &Pairs<'_>,
    bare: &mut BareCopy,
    rig: &Rig,
    runs: &[Run],
    place: &dyn Fn(usize) -> Range<usize>,
) -> Result<Row, BenchError> {
    let page = rig.space.space().geometry.page_bytes() as usize;
    let mut cost = DaemonCost::default();
    let mut next = 0;
    let mut ours = |window: Duration| {
        let before = rig.status()?;
        let since = Instant::now();
        let mut bytes = 0;
        while since.elapsed() < window {
            let index = next % runs.len();
            rig.load(&runs[index], place(index))?;
            bytes += (runs[index].len() * page) as u64;
            next += 1;
        }
        let speed = bytes as f64 / since.elapsed().as_secs_f64();
        cost.add(&before, &*rig.status()?, bytes);
        Ok(speed)
    };
    let copies = bare.best_once(page, setup.threads);
    let mut limit = |window| Ok(bare.run(copies, page, setup.threads, window));
    let row = pairs.measure(name, Unit::BytesPerSecond, &mut ours, &mut limit)?;
    Ok(Row {
        bare: copies.name().to_owned(),
        threads: setup.threads as u32,
        daemon_cpu_s_per_gib: cost.per_gib(),
        ..row
    })
}

fn store_row(
    name: &'static str,
    setup: &Setup<'_>,
    pairs: &Pairs<'_>,
    bare: &mut BareCopy,
    rig: &Rig,
    count: usize,
    place: &dyn Fn(usize) -> Range<usize>,
) -> Result<Row, BenchError> {
    let page = rig.space.space().geometry.page_bytes() as usize;
    let mut cost = DaemonCost::default();
    let mut next = 0;
    let mut ours = |window: Duration| {
        let before = rig.status()?;
        let since = Instant::now();
        let mut bytes = 0;
        while since.elapsed() < window {
            let blocks = place(next % count);
            let run = rig.fresh(blocks.len());
            rig.store(&run, blocks)?;
            bytes += (run.len() * page) as u64;
            next += 1;
        }
        let speed = bytes as f64 / since.elapsed().as_secs_f64();
        cost.add(&before, &*rig.status()?, bytes);
        Ok(speed)
    };
    // Gathering here and checking there run side by side: so may both copies of the bare loop.
    let threads = setup.store_threads;
    let copies = bare.best_twice(page, threads);
    let mut limit = |window| Ok(bare.run(copies, page, threads, window));
    let row = pairs.measure(name, Unit::BytesPerSecond, &mut ours, &mut limit)?;
    Ok(Row {
        bare: copies.name().to_owned(),
        threads: threads as u32,
        daemon_cpu_s_per_gib: cost.per_gib(),
        ..row
    })
}
