use super::{Findings, GpuChecks};
use anyhow::Result;
use serde_json::json;
use std::fs;
use std::process::Command;
use undercroft_client::wire::Geometry;
use undercroft_gpu_shim::DeviceError;
use undercroft_gpu_shim::cuda::{CopyMode, CudaDevice, CudaOptions};

/// What `nvidia-smi` is asked.
const ASKED: &[&str] = &[
    "name",
    "driver_version",
    "memory.total",
    "pcie.link.gen.max",
    "pcie.link.gen.current",
    "pcie.link.width.max",
    "pcie.link.width.current",
    "power.draw",
    "clocks.sm",
    "clocks.mem",
];
/// What the machine says of itself, and the lines of it that matter; all where none is named.
const FILES: &[(&str, &[&str])] = &[
    ("/proc/driver/nvidia/version", &["NVRM"]),
    ("/proc/sys/kernel/osrelease", &[]),
    (
        "/proc/meminfo",
        &["MemTotal", "MemAvailable", "HugePages_Total", "HugePages_Free", "Hugepagesize"],
    ),
    ("/sys/kernel/mm/transparent_hugepage/enabled", &[]),
    ("/sys/kernel/mm/transparent_hugepage/shmem_enabled", &[]),
    ("/proc/self/limits", &["Max locked memory"]),
];

/// The name of a device, through a device as small as one can be. The kernel is named so that
/// nothing has to be measured.
pub(super) fn device_name(ordinal: u32) -> Result<String, DeviceError> {
    let geometry = Geometry::new(1, 1, 512).expect("a possible page");
    let mode = Some(CopyMode::Pitched);
    let options = CudaOptions { load: mode, store: mode, ..CudaOptions::default() };
    Ok(CudaDevice::allocate(ordinal, geometry, 1, options)?.name()?)
}

/// What machine this is.
pub(super) fn run(on: &GpuChecks) -> Result<Findings> {
    let mut findings = Findings::with_columns(&["fact", "here"]);
    findings.row([json!("device"), json!(device_name(on.ordinal)?)]);
    nvidia_smi(on.ordinal, &mut findings);
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    findings.row([json!("processors"), json!(processors)]);
    if let Some(model) = line_of("/proc/cpuinfo", "model name") {
        findings.row([json!("processor"), json!(model)]);
    }
    for (file, lines) in FILES {
        let all = lines.is_empty().then_some("");
        for line in lines.iter().copied().chain(all) {
            let name = if line.is_empty() { (*file).to_owned() } else { format!("{file}: {line}") };
            let found = line_of(file, line).unwrap_or_else(|| "not told".to_owned());
            findings.row([json!(name), json!(found)]);
        }
    }
    Ok(findings)
}

/// The rest of the first line of a file that starts so.
fn line_of(file: &str, start: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(start))?;
    Some(line.trim_start_matches([' ', '\t', ':']).trim().to_owned())
}

fn nvidia_smi(ordinal: u32, findings: &mut Findings) {
    let query = format!("--query-gpu={}", ASKED.join(","));
    let asked = Command::new("nvidia-smi")
        .arg(format!("--id={ordinal}"))
        .args([&query, "--format=csv,noheader"])
        .output();
    let said = match &asked {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout),
        _ => {
            findings
                .note("there is no nvidia-smi that answers: what the link is made of is not told");
            return;
        }
    };
    for (name, value) in ASKED.iter().zip(said.trim().split(',')) {
        findings.row([json!(name), json!(value.trim())]);
    }
}
