use super::{Findings, GpuChecks};
use crate::program;
use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::json;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Contexts that fit a node of little memory; the GPU is not asked for more.
const CONTEXTS: &str = "8k,32k,128k";
/// Lies beside the programs in the bundle.
const PREFILL: &str = "prefill.py";
/// How the script says that it lacks something: see its head.
const LACKS: i32 = 3;

/// The link's rows of the machine's limits.
pub(super) fn limits(on: &GpuChecks) -> Result<Findings> {
    undercroft(on, "limits", &["bench", "limits", "--only", "pcie"])
}

/// What long contexts gain on this device, against what recomputing them costs on it, if that was
/// measured.
pub(super) fn long_context(on: &GpuChecks) -> Result<Findings> {
    let device = format!("cuda:{}", on.ordinal);
    let report = on.results.join("longctx.html").to_string_lossy().into_owned();
    let json = on.results.join("longctx.json").to_string_lossy().into_owned();
    let contexts = if on.quick { "8k" } else { CONTEXTS };
    let mut arguments = vec!["bench", "longctx", "--model", "llama-3.1-8b", "--device", &device];
    arguments.extend([
        "--contexts",
        contexts,
        "--repeats",
        "3",
        "--json",
        &json,
        "--html",
        &report,
    ]);
    // The longest that was measured is in the middle of the contexts.
    let measured = fs::read_to_string(prefill_file(on)).unwrap_or_default();
    let rate = prefills(&measured).last().map(|prefill| prefill.tokens_per_s.to_string());
    if let Some(rate) = &rate {
        arguments.extend(["--prefill-tokens-per-s", rate]);
    }
    undercroft(on, "longctx", &arguments)
}

/// What the script says of one context.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
struct Prefill {
    tokens: u64,
    seconds: f64,
    tokens_per_s: f64,
}

fn prefills(said: &str) -> Vec<Prefill> {
    said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn prefill_file(on: &GpuChecks) -> PathBuf {
    on.results.join("prefill.txt")
}

/// Prefill of a model with random weights, in tokens a second.
pub(super) fn prefill(on: &GpuChecks) -> Result<Findings> {
    let script = std::env::current_exe()?.with_file_name(PREFILL);
    if !script.exists() {
        return Ok(Findings::could_not_run(format!("there is no {PREFILL} beside this program")));
    }
    let mut command = Command::new("python3");
    command.arg(&script).args(["--device", &on.ordinal.to_string()]);
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return Ok(Findings::could_not_run(format!("python3: {error}"))),
    };
    if output.status.code() == Some(LACKS) {
        return Ok(Findings::could_not_run(last_line(&output.stderr)));
    }
    let mut findings = Findings::with_columns(&["context", "seconds", "tokens/s"]);
    keep(&prefill_file(on), &output, &mut findings)?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        match prefills(line).first() {
            Some(Prefill { tokens, seconds, tokens_per_s }) => {
                findings.row([json!(tokens), json!(seconds), json!(tokens_per_s)]);
            }
            None => findings.note(line),
        }
    }
    Ok(findings)
}

fn undercroft(on: &GpuChecks, name: &str, arguments: &[&str]) -> Result<Findings> {
    let output =
        Command::new(program("undercroft")).args(arguments.iter().map(OsStr::new)).output();
    let output = output.context("cannot run undercroft")?;
    let mut findings = Findings::default();
    keep(&on.results.join(format!("{name}.txt")), &output, &mut findings)?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        findings.note(line);
    }
    Ok(findings)
}

/// Keeps what a program said beside the results, and whether it failed.
fn keep(path: &Path, output: &Output, findings: &mut Findings) -> Result<()> {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    fs::write(path, &said).with_context(|| format!("cannot write {}", path.display()))?;
    if !output.status.success() {
        let why = last_line(&output.stderr);
        findings.wrong(format!("it ended with {}: {why}", output.status));
    }
    Ok(())
}

fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_the_script_says_the_measured_lines_are_taken() {
        let said = "PyTorch 2.9, a GPU\n\
            {\"tokens\": 8192, \"seconds\": 0.5, \"tokens_per_s\": 16384.0}\n";
        let expected = Prefill { tokens: 8192, seconds: 0.5, tokens_per_s: 16384.0 };
        assert_eq!(prefills(said), [expected]);
    }
}
