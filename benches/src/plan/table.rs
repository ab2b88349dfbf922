use super::report::{PlanReport, PlanRow, Speed};
use crate::longctx::{figures, size, time};
use std::fmt::Write as _;

impl PlanReport {
    /// The report for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        self.write_table(&mut text).expect("a string takes everything");
        text
    }

    fn write_table(&self, text: &mut String) -> std::fmt::Result {
        let Self { traffic, .. } = self;
        writeln!(text, "{}", self.subject())?;
        writeln!(text, "{}\n", traffic.sentence())?;
        writeln!(
            text,
            "{:>7} {:>10} {:>7} {:>10} {:>7} {:>7} {:>7} {:>9} {:>9} {:>9} {:>7} {:>9} {:>7} {:>9}",
            "DRAM",
            "",
            "SSD",
            "",
            "hits %",
            "DRAM",
            "SSD",
            "TTFT p50",
            "TTFT p99",
            "write/s",
            "DWPD",
            "life",
            "GPUs",
            "cost/Mtok",
        )?;
        writeln!(
            text,
            "{:>7} {:>10} {:>7} {:>10} {:>7} {:>7} {:>7} {}",
            "none",
            "",
            "",
            "",
            "0.00",
            "",
            "",
            speed(&self.without, ["", "", ""])
        )?;
        for (at, row) in self.rows.iter().enumerate() {
            writeln!(text, "{}{}", row.line(), self.mark(at))?;
        }
        writeln!(text, "\nknee: {}", self.knee_sentence())?;
        if let Some(cheapest) = self.cheapest_sentence() {
            writeln!(text, "cheapest: {cheapest}")?;
        }
        text.push('\n');
        for line in &self.assumptions {
            writeln!(text, "assumed: {line}")?;
        }
        for note in &self.notes {
            writeln!(text, "note: {note}")?;
        }
        writeln!(
            text,
            "{} replays of {} requests in {:.1} s, {:.1} s of processor time, {} at once",
            self.rows.len(),
            traffic.requests,
            self.wall_s,
            self.cpu_s,
            self.threads
        )
    }

    /// What it is about: whose cache, and which policy.
    pub(super) fn subject(&self) -> String {
        let model = match &self.model {
            Some(model) => model.to_string(),
            None => format!("{} bytes a token", self.token_bytes),
        };
        let budget = self
            .write_budget_bytes_per_s
            .map_or_else(String::new, |bytes| format!(" within {}/s", crate::longctx::size(bytes)));
        format!(
            "{model}; pages leave DRAM by {}, for SSD by {}{budget}",
            self.policy, self.admission
        )
    }

    fn mark(&self, at: usize) -> &'static str {
        match (at == self.knee, Some(at) == self.cheapest) {
            (true, true) => "  knee, cheapest",
            (true, false) => "  knee",
            (false, true) => "  cheapest",
            (false, false) => "",
        }
    }

    pub(super) fn knee_sentence(&self) -> String {
        let row = &self.rows[self.knee];
        let beyond = match self.knee_is_last {
            true => "nothing of twice its price was looked at",
            false => "twice the money for tiers buys less than a point more",
        };
        format!("{}: {:.2} % of the pages are hits; {beyond}", row.sizes(), 100.0 * row.hits.ratio)
    }

    pub(super) fn cheapest_sentence(&self) -> Option<String> {
        let row = &self.rows[self.cheapest?];
        let cost = |speed: &Speed| speed.cost_per_million_tokens.map(|cost| cost.total);
        let (here, without) = (cost(&row.speed)?, cost(&self.without)?);
        Some(format!(
            "{}: {} for a million input tokens, {} without a cache",
            row.sizes(),
            money(here),
            money(without)
        ))
    }
}

impl super::report::Traffic {
    /// What was replayed, in a sentence.
    pub(super) fn sentence(&self) -> String {
        let part = match self.requests == self.all_requests {
            true => String::new(),
            false => format!(" (a sample, the first of {})", self.all_requests),
        };
        format!(
            "{}: {} requests{part} in {:.0} s, {} pages of {} tokens, {} different ones{}; without \
             bounds {:.2} % would be hits",
            self.source,
            self.requests,
            self.duration_s,
            self.pages,
            self.page_tokens,
            self.distinct_pages,
            if self.full_pages_only { " (full ones only)" } else { "" },
            100.0 * self.unbounded_hit_ratio,
        )
    }
}

impl PlanRow {
    /// Both sizes, as asked for and in bytes.
    pub(super) fn sizes(&self) -> String {
        let of = |asked: crate::TierSize, bytes| match asked {
            crate::TierSize::Share(_) => format!("{asked} ({})", size(bytes)),
            crate::TierSize::Bytes(_) => size(bytes),
        };
        format!("DRAM {}, SSD {}", of(self.dram, self.dram_bytes), of(self.ssd, self.ssd_bytes))
    }

    fn line(&self) -> String {
        let percent = |share: f64| format!("{:.2}", 100.0 * share);
        let rate = self.writes.bytes_per_s.map_or_else(dash, rate);
        let has_ssd = self.ssd_pages > 0;
        let per_day = figures(self.writes.wear.drive_writes_per_day);
        let per_day = if has_ssd { per_day } else { dash() };
        let life = self.writes.wear.life_years.map_or_else(dash, years);
        format!(
            "{:>7} {:>10} {:>7} {:>10} {:>7} {:>7} {:>7} {}",
            self.dram.to_string(),
            size(self.dram_bytes),
            self.ssd.to_string(),
            if has_ssd { size(self.ssd_bytes) } else { dash() },
            percent(self.hits.ratio),
            percent(self.hits.dram_ratio),
            percent(self.hits.ssd_ratio),
            speed(&self.speed, [&rate, &per_day, &life]),
        )
    }
}

pub(super) fn dash() -> String {
    "-".to_owned()
}

/// How fast, what is written (three columns), and what it takes.
fn speed(speed: &Speed, writes: [&str; 3]) -> String {
    let [rate, per_day, life] = writes;
    format!(
        "{:>9} {:>9} {rate:>9} {per_day:>7} {life:>9} {:>7} {:>9}",
        time(speed.ttft_p50_ms),
        time(speed.ttft_p99_ms),
        speed.prefill_gpus.map_or_else(dash, figures),
        speed.cost_per_million_tokens.map_or_else(dash, |cost| money(cost.total)),
    )
}

/// Bytes a second, for people.
pub(super) fn rate(bytes_per_s: f64) -> String {
    match bytes_per_s {
        rate if rate >= 1e9 => format!("{} GB", figures(rate / 1e9)),
        rate if rate >= 1e6 => format!("{} MB", figures(rate / 1e6)),
        rate if rate >= 1e3 => format!("{} kB", figures(rate / 1e3)),
        rate => format!("{rate:.0} B"),
    }
}

pub(super) fn years(years: f64) -> String {
    match years {
        years if years >= 1000.0 => ">1000 y".to_owned(),
        years if years < 0.1 => format!("{} d", figures(years * 365.0)),
        years => format!("{} y", figures(years)),
    }
}

/// Four figures that mean something.
pub(super) fn money(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_units_that_suit_them() {
        assert_eq!([rate(1.5e9), rate(89e6), rate(12.0)], ["1.50 GB", "89.0 MB", "12 B"]);
        assert_eq!([years(2.5), years(0.01), years(1e6)], ["2.50 y", "3.65 d", ">1000 y"]);
        assert_eq!([money(123.4), money(1.5), money(0.01234)], ["123", "1.500", "0.0123"]);
    }
}
