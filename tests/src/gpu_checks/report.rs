use super::{Findings, GpuCheck, GpuChecks, Outcome};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A check that was run.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// Which.
    pub check: GpuCheck,
    /// How long it took.
    pub took: Duration,
    /// What it found.
    pub findings: Findings,
}

/// What all of them found.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct GpuReport {
    /// The device, by its name.
    pub device: String,
    /// The checks that were run.
    pub ran: Vec<Checked>,
}

impl GpuReport {
    /// Whether none failed. What could not run has not failed.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.ran.iter().all(|ran| !matches!(ran.findings.outcome(), Outcome::Failed(_)))
    }

    /// Writes `results.json` and `results.txt`.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let texts: Vec<String> = self.ran.iter().map(ToString::to_string).collect();
        let text = format!("{}\n\n{}{self}\n", self.title(), texts.concat());
        let json = serde_json::to_string_pretty(&self.json()).context("figures are finite")?;
        for (name, content) in [("results.json", json), ("results.txt", text)] {
            let path = directory.join(name);
            fs::write(&path, content)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// What the report is about.
    #[must_use]
    pub fn title(&self) -> String {
        let meaning = if GpuChecks::is_stand_in(&self.device) {
            ": a driver made of host memory, whose speeds mean nothing"
        } else {
            ""
        };
        format!("device {}{meaning}", self.device)
    }

    fn json(&self) -> Value {
        let checks = self.ran.iter().map(|ran| {
            let (outcome, why) = match ran.findings.outcome() {
                Outcome::Passed => ("passed", Vec::new()),
                Outcome::Failed(wrong) => ("failed", wrong),
                Outcome::CouldNotRun(why) => ("could not run", vec![why]),
            };
            let mut json = ran.findings.json();
            json["check"] = json!(ran.check.name());
            json["outcome"] = json!(outcome);
            json["why"] = json!(why);
            json["seconds"] = json!(ran.took.as_secs_f64());
            json
        });
        json!({
            "schema": 1,
            "device": self.device,
            "stand_in": GpuChecks::is_stand_in(&self.device),
            "checks": checks.collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "== {} ({:.1} s): {}",
            self.check,
            self.took.as_secs_f64(),
            self.findings.outcome()
        )?;
        f.write_str(&self.findings.text())
    }
}

/// The summary: a line for each check.
impl fmt::Display for GpuReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<14}{:>8}  outcome", "check", "seconds")?;
        for Checked { check, took, findings } in &self.ran {
            let seconds = took.as_secs_f64();
            writeln!(f, "{:<14}{seconds:>8.1}  {}", check.name(), findings.outcome())?;
        }
        let count = |which: fn(&Outcome) -> bool| {
            self.ran.iter().filter(|ran| which(&ran.findings.outcome())).count()
        };
        write!(
            f,
            "{} passed, {} failed, {} could not run",
            count(|outcome| matches!(outcome, Outcome::Passed)),
            count(|outcome| matches!(outcome, Outcome::Failed(_))),
            count(|outcome| matches!(outcome, Outcome::CouldNotRun(_))),
        )
    }
}
