use super::Machine;
use serde::Serialize;

/// Ours beside the machine's own limit. Serializes as the JSON of schema 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LimitsReport {
    /// Version of this layout: 1.
    pub schema: u32,
    /// What was measured on.
    pub machine: Machine,
    /// One row per measurement.
    pub rows: Vec<Row>,
    /// The whole run, seconds.
    pub wall_s: f64,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Its name, stable over versions.
    pub name: &'static str,
    /// What the daemon reaches: the median over all pairs.
    pub ours: f64,
    /// What the bare loop reaches: the median over all pairs.
    pub limit: f64,
    /// Where these are medians of calls, their 99th percentiles: the medians over all pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ours_p99: Option<f64>,
    /// See [`Row::ours_p99`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_p99: Option<f64>,
    /// Median over the pairs of ours / limit; for times, of limit / ours. 1 is the limit.
    pub ratio: f64,
    /// The lowest and the highest of the pairs' ratios.
    pub spread: [f64; 2],
    /// `B/s`, `1/s` or `us`.
    pub unit: &'static str,
    /// How many pairs.
    pub pairs: u32,
    /// What the limit is.
    pub bare: String,
    /// Threads that move bytes on the bare side.
    pub threads: u32,
    /// Processor time of the daemon for each GiB that went through it, seconds; absent where no
    /// bytes did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daemon_cpu_s_per_gib: Option<f64>,
}

impl LimitsReport {
    /// The report for people.
    #[must_use]
    pub fn table(&self) -> String {
        let machine = &self.machine;
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let mut text = format!(
            "{}, {} cores, LLC {:.0} MiB, {:.1} GiB memory\n{}, {}\n\n\
             {:<22} {:>12} {:>12} {:>6}  {:<13} {:>10} {:>10} {:>13}\n",
            machine.cpu,
            machine.cores,
            gib(machine.llc_bytes) * 1024.0,
            gib(machine.memory_bytes),
            machine.kernel,
            machine.disk,
            "row",
            "ours",
            "limit",
            "ratio",
            "spread",
            "p99 ours",
            "p99 limit",
            "daemon s/GiB",
        );
        for row in &self.rows {
            let cpu =
                row.daemon_cpu_s_per_gib.map_or_else(|| "-".to_owned(), |s| format!("{s:.3}"));
            let p99 =
                |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), |us| row.shown(us));
            text.push_str(&format!(
                "{:<22} {:>12} {:>12} {:>6.2}  {:.2} .. {:.2}  {:>10} {:>10} {:>13}\n",
                row.name,
                row.shown(row.ours),
                row.shown(row.limit),
                row.ratio,
                row.spread[0],
                row.spread[1],
                p99(row.ours_p99),
                p99(row.limit_p99),
                cpu,
            ));
        }
        for row in self.rows.iter().filter(|row| row.ratio > 1.05) {
            text.push_str(&format!("note: {} beats its limit: the limit is wrong\n", row.name));
        }
        for note in &machine.notes {
            text.push_str(&format!("note: {note}\n"));
        }
        text
    }
}

impl Row {
    fn shown(&self, value: f64) -> String {
        match self.unit {
            "B/s" => format!("{:.2} GB/s", value / 1e9),
            "1/s" => format!("{value:.0} 1/s"),
            unit => format!("{value:.1} {unit}"),
        }
    }
}
