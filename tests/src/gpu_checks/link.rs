use super::{Findings, GpuChecks};
use anyhow::Result;
use serde_json::json;
use undercroft_gpu_shim::cuda::{LinkCeiling, link_ceiling};

/// Large copies between pinned memory and the device, in both directions.
pub(super) fn run(on: &GpuChecks) -> Result<Findings> {
    let mut findings = Findings::with_columns(&["direction", "GB/s"]);
    let LinkCeiling { load_bytes_per_s, store_bytes_per_s, .. } = link_ceiling(on.ordinal)?;
    findings.row([json!("load (host to device)"), json!(load_bytes_per_s / 1e9)]);
    findings.row([json!("store (device to host)"), json!(store_bytes_per_s / 1e9)]);
    Ok(findings)
}
