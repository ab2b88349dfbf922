use super::pages::{Way, content, wrong_in_block};
use super::rate::gb_per_s;
use super::{Findings, GpuChecks};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use undercroft_arena::{HugePages, Part, PartOptions, PartView, Staging, StagingView};
use undercroft_client::wire::{Geometry, PartId};
use undercroft_gpu_shim::cuda::{CudaDevice, CudaOptions};

const PART_BYTES: u64 = 1 << 30;
const QUICK_BYTES: u64 = 16 << 20;
const SLOT_BYTES: u32 = 2 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
/// Two layers, K and V: a page of 16 KiB, for the one load out of each part.
const PAGE: (u32, u32, u32) = (2, 2, 4096);

/// Registers parts of an arena as a client sees them, read-only, and staging, which it may write;
/// loads a page out of each part.
pub(super) fn run(on: &GpuChecks) -> Result<Findings> {
    let columns = ["memory", "pages", "faulted in", "access", "GB/s", "released GB/s", "answer"];
    let mut findings = Findings::with_columns(&columns);
    let geometry = Geometry::new(PAGE.0, PAGE.1, PAGE.2)?;
    let device = CudaDevice::allocate(on.ordinal, geometry, 2, CudaOptions::default())?;
    match device.can_pin_read_only() {
        Ok(can) => findings.note(format!("attribute 113, read-only registration: {can}")),
        Err(error) => findings.wrong(format!("attribute 113: {error}")),
    }
    let bytes = if on.quick { QUICK_BYTES } else { PART_BYTES };
    for (id, huge) in [HugePages::Off, HugePages::Auto].into_iter().enumerate() {
        for faulted_in in [false, true] {
            let id = PartId((2 * id + usize::from(faulted_in)) as u32);
            part(&device, id, bytes, huge, faulted_in, &mut findings)?;
        }
    }
    staging(&device, bytes, &mut findings)?;
    Ok(findings)
}

fn part(
    device: &CudaDevice,
    id: PartId,
    bytes: u64,
    huge: HugePages,
    faulted_in: bool,
    findings: &mut Findings,
) -> Result<()> {
    let options = PartOptions { huge, lock: false, prefault_threads: 4, ..PartOptions::default() };
    let (part, mut facts) = Part::create(id, bytes, &options).context("a part of an arena")?;
    let part = std::sync::Arc::new(part);
    let huge_bytes = Part::huge_bytes(std::slice::from_ref(&part));
    facts.tell(huge_bytes.first().copied().unwrap_or(0), bytes);
    let page_bytes = (PAGE.0 * PAGE.1 * PAGE.2) as usize;
    part.span(0, page_bytes)?.write(|page| content(u64::from(id.0)).fill(0, page));
    let view = PartView::map(part.read_only_fd()?, id, bytes)?;
    if faulted_in {
        view.prefault(4)?;
    }
    let (took, answer) = registered(device, || device.pins().part(&view));
    // Pages of memory that was refused come through the driver's own: they must be right, too.
    let jobs = [(view.span(0, page_bytes)?, id.0 % 2)].into_iter();
    Way::Load.start(device, jobs)?.wait()?;
    let wrong = wrong_in_block(device, id.0 % 2, u64::from(id.0))?;
    if wrong > 0 {
        findings.wrong(format!("{wrong} wrong bytes out of a read-only part"));
    }
    let since = Instant::now();
    device.pins().part_leaves(&view);
    let released = since.elapsed();
    findings.row([
        json!("part"),
        json!(facts.pages.to_string()),
        json!(if faulted_in { "before" } else { "by it" }),
        json!("read-only"),
        speed(bytes, took, &answer),
        speed(bytes, released, &answer),
        json!(answer),
    ]);
    Ok(())
}

fn staging(device: &CudaDevice, bytes: u64, findings: &mut Findings) -> Result<()> {
    let slots = (bytes / u64::from(SLOT_BYTES)).min(64) as u32;
    let area = Staging::create(slots, SLOT_BYTES)?;
    let view = StagingView::map(area.fd(), slots, SLOT_BYTES)?;
    let (took, answer) = registered(device, || device.pins().staging(&view));
    findings.row([
        json!("staging"),
        json!("4k"),
        json!("by it"),
        json!("read-write"),
        speed(u64::from(slots) * u64::from(SLOT_BYTES), took, &answer),
        json!(null),
        json!(answer),
    ]);
    Ok(())
}

/// How long it took, and what the driver said.
fn registered(device: &CudaDevice, ask: impl FnOnce()) -> (Duration, String) {
    let before = device.pins().facts();
    let since = Instant::now();
    ask();
    let settled = device.pins().settle(PATIENCE);
    let (took, facts) = (since.elapsed(), device.pins().facts());
    let answer = if !settled {
        format!("not done after {PATIENCE:?}")
    } else if facts.refused_bytes > before.refused_bytes {
        facts.refusal.map_or_else(|| "refused".to_owned(), |error| error.to_string())
    } else {
        "registered".to_owned()
    };
    (took, answer)
}

fn speed(bytes: u64, took: Duration, answer: &str) -> Value {
    if answer == "registered" { json!(gb_per_s(bytes, took)) } else { json!(null) }
}
