use super::break_even::BreakEven;
use super::driver::size;
use super::report::{LongctxReport, LongctxRow};
use super::scale::ContextTokens;
use std::fmt::Write as _;

impl LongctxReport {
    /// The report for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        self.write_table(&mut text).expect("a string takes everything");
        text
    }

    fn write_table(&self, text: &mut String) -> std::fmt::Result {
        let Self { machine, model, device, .. } = self;
        writeln!(text, "{model}")?;
        writeln!(
            text,
            "pages of {} tokens, {}; {} at once; device {device}",
            self.page_tokens,
            size(self.page_bytes.into()),
            match self.concurrency {
                1 => "1 context".to_owned(),
                count => format!("{count} contexts"),
            },
        )?;
        writeln!(
            text,
            "{}, {} cores, {} memory; {}; {}\n",
            machine.cpu,
            machine.cores,
            size(machine.memory_bytes),
            machine.kernel,
            machine.disk
        )?;
        writeln!(
            text,
            "{:<8} {:<4} {:>10} {:>12} {:>11} {:>11} {:>7} {:>7} {:>5} {:>3} {:>11} {:>8} {:>9} {:>9}",
            "context",
            "tier",
            "bytes",
            "",
            "first layer",
            "last layer",
            "GB/s",
            "limit",
            "ratio",
            "of",
            "recompute",
            "faster",
            "GPU-us/tok",
            "J/token",
        )?;
        for row in &self.rows {
            write_row(text, row)?;
        }
        text.push('\n');
        for tier in &self.break_even {
            let says = match tier.tokens {
                BreakEven::Always => "a load is never slower than its recompute".to_owned(),
                BreakEven::Tokens(tokens) => {
                    format!("a load is no slower than its recompute from {tokens} tokens on")
                }
                BreakEven::Never => "a load is always slower than its recompute".to_owned(),
            };
            writeln!(text, "break-even {:<4} {}: {says}", tier.tier, tier.tokens)?;
        }
        writeln!(text, "wrong bytes {}", self.wrong_bytes)?;
        text.push('\n');
        for limit in self.limits() {
            writeln!(text, "limit: {limit}")?;
        }
        for line in &self.assumptions {
            writeln!(text, "assumed: {line}")?;
        }
        for note in &self.notes {
            writeln!(text, "note: {note}")?;
        }
        Ok(())
    }

    /// What each tier was held against, once each.
    pub(super) fn limits(&self) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for row in &self.rows {
            let line = format!("{}: {}", row.tier, row.limit);
            if !all.contains(&line) {
                all.push(line);
            }
        }
        all
    }
}

fn write_row(text: &mut String, row: &LongctxRow) -> std::fmt::Result {
    let scaled = match row.scaled.is_scaled() {
        true => format!("scaled {}", row.scaled),
        false => String::new(),
    };
    let dash = || "-".to_owned();
    writeln!(
        text,
        "{:<8} {:<4} {:>10} {:>12} {:>11} {:>11} {:>7.2} {:>7} {:>5} {:>3} {:>11} {:>8} {:>9.1} {:>9.4}",
        ContextTokens(row.context).to_string(),
        row.tier,
        size(row.bytes),
        scaled,
        time(row.first_layer_ms),
        time(row.last_layer_ms),
        row.bytes_per_s / 1e9,
        row.limit_bytes_per_s.map_or_else(dash, |limit| format!("{:.2}", limit / 1e9)),
        row.ratio.map_or_else(dash, |ratio| format!("{ratio:.2}")),
        row.repeats,
        time(row.recompute_ms),
        format!("{}x", figures(row.recompute_ms / row.last_layer_ms)),
        row.gpu_s_saved_per_token * 1e6,
        row.joules_saved_per_token,
    )
}

/// Milliseconds, for people.
pub(crate) fn time(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{} us", figures(ms * 1e3)),
        ms if ms < 1000.0 => format!("{} ms", figures(ms)),
        ms => format!("{} s", figures(ms / 1e3)),
    }
}

/// Three figures that mean something.
pub(crate) fn figures(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_with_a_unit_that_suits_them() {
        assert_eq!(time(0.0512), "51.2 us");
        assert_eq!(time(3.456), "3.46 ms");
        assert_eq!(time(456.7), "457 ms");
        assert_eq!(time(12_345.0), "12.3 s");
        assert_eq!(time(345_600.0), "346 s");
    }
}
