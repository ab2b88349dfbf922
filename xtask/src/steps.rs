use anyhow::Result;
use std::fmt;
use std::time::{Duration, Instant};

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It passed; what is worth telling about it.
    Passed(String),
    /// A tool it needs is not installed.
    Skipped(String),
    /// It failed.
    Failed,
    /// An earlier step failed.
    NotRun,
}

/// What a step reports when it did not fail.
pub(crate) type Ended = Result<Outcome>;

/// A named step of a run.
pub(crate) struct Step<'a> {
    /// Its name in the summary.
    pub(crate) name: &'static str,
    /// What it does.
    pub(crate) action: Box<dyn FnOnce() -> Ended + 'a>,
}

/// One line of the summary.
#[derive(Debug)]
struct Line {
    name: &'static str,
    took: Duration,
    outcome: Outcome,
}

/// What the steps came to.
#[derive(Debug)]
pub(crate) struct Summary {
    lines: Vec<Line>,
    error: Option<anyhow::Error>,
}

impl<'a> Step<'a> {
    pub(crate) fn new(name: &'static str, action: impl FnOnce() -> Ended + 'a) -> Self {
        Self { name, action: Box::new(action) }
    }
}

/// Runs the steps in order until one fails.
pub(crate) fn run(steps: Vec<Step<'_>>) -> Summary {
    let mut summary = Summary { lines: Vec::with_capacity(steps.len()), error: None };
    for Step { name, action } in steps {
        if summary.error.is_some() {
            let took = Duration::ZERO;
            summary.lines.push(Line { name, took, outcome: Outcome::NotRun });
            continue;
        }
        println!("==> {name}");
        let start = Instant::now();
        let outcome = action().unwrap_or_else(|error| {
            println!("==> {name} failed: {error:#}");
            summary.error = Some(error.context(format!("step {name} failed")));
            Outcome::Failed
        });
        summary.lines.push(Line { name, took: start.elapsed(), outcome });
    }
    summary
}

impl Summary {
    /// The failure, if there was one.
    pub(crate) fn into_result(self) -> Result<()> {
        self.error.map_or(Ok(()), Err)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed(note) if note.is_empty() => write!(f, "passed"),
            Self::Passed(note) => write!(f, "passed: {note}"),
            Self::Skipped(why) => write!(f, "SKIPPED: {why}"),
            Self::Failed => write!(f, "FAILED"),
            Self::NotRun => write!(f, "not run"),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<12} {:>8}  outcome", "step", "seconds")?;
        for Line { name, took, outcome } in &self.lines {
            writeln!(f, "{name:<12} {:>8.1}  {outcome}", took.as_secs_f64())?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_failure_ends_the_run_and_names_its_step() {
        let reached = Cell::new(false);
        let summary = run(vec![
            Step::new("first", || Ok(Outcome::Passed("3 things".to_owned()))),
            Step::new("second", || anyhow::bail!("no luck")),
            Step::new("third", || {
                reached.set(true);
                Ok(Outcome::Passed(String::new()))
            }),
        ]);
        assert!(!reached.get());
        let text = summary.to_string();
        assert!(text.contains("passed: 3 things"), "{text}");
        assert!(text.contains("FAILED"), "{text}");
        assert!(text.contains("not run"), "{text}");
        let error = summary.into_result().unwrap_err();
        assert_eq!(format!("{error:#}"), "step second failed: no luck");
    }

    #[test]
    fn a_skipped_step_is_named_and_does_not_fail() {
        let summary = run(vec![Step::new("deny", || {
            Ok(Outcome::Skipped("cargo-deny is not installed".to_owned()))
        })]);
        assert!(summary.to_string().contains("SKIPPED: cargo-deny is not installed"));
        summary.into_result().unwrap();
    }
}
