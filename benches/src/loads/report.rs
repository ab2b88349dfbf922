use super::engine::Served;
use serde::Serialize;
use undercroft_core::LoadPolicy;
use undercroft_wire::LoadStatus;

/// No request may be slower than without a cache by more than this part, where the model is enforced.
const MOST_SLOWER: f64 = 0.05;
/// Of what a fast disk gains no more than this part may be given up by the model.
const MOST_GIVEN_UP: f64 = 0.01;

/// What loading cost against computing. Serializes as the JSON of schema 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadsReport {
    /// Version of this layout: 1.
    pub schema: u32,
    /// Size of a page.
    pub page_bytes: u64,
    /// What computing a page cost the engine, microseconds.
    pub recompute_us: u64,
    /// How fast the slow disk was read.
    pub slow_bytes_per_s: u64,
    /// One for each policy and disk.
    pub rows: Vec<LoadsRow>,
}

/// How fast the disk was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disk {
    /// As it is.
    Fast,
    /// Slower than computing.
    Slow,
}

impl Disk {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Slow => "slow",
        }
    }
}

/// Which run it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) policy: LoadPolicy,
    pub(super) disk: Disk,
    pub(super) believed: u64,
}

/// The requests of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadsRow {
    /// `fast` or `slow`.
    pub disk: &'static str,
    /// `off`, `advisory` or `enforced`.
    pub policy: &'static str,
    /// How many.
    pub requests: u64,
    /// Pages of their prefixes.
    pub pages: u64,
    /// Of these, pages that were loaded.
    pub loaded_pages: u64,
    /// Of these, pages that were read from SSD.
    pub ssd_pages: u64,
    /// Time of a request with the cache over its time without: the slowest, the 99th percentile, and
    /// the median.
    pub worst: f64,
    /// See [`LoadsRow::worst`].
    pub p99: f64,
    /// See [`LoadsRow::worst`].
    pub median: f64,
    /// Time that all requests take without a cache, seconds.
    pub computed_s: f64,
    /// Time that the cache saves of that, seconds; less than 0 where it costs time.
    pub gain_s: f64,
    /// What the daemon counted meanwhile: lookups that were trimmed or would have been.
    pub trimmed_lookups: u64,
    /// Fetches that fell behind.
    pub behind_fetches: u64,
    /// How fast the daemon believed the disk to be in the end, bytes per second.
    pub believed_bytes_per_s: u64,
    /// Time saved and lost, as the daemon counts it, seconds.
    pub saved_s: f64,
    /// See [`LoadsRow::saved_s`].
    pub lost_s: f64,
    /// By what part whole fetches from SSD differed from what was expected of them.
    pub error: f64,
}

impl LoadsRow {
    pub(super) fn new(run: Run, served: &[Served], counted: &LoadStatus) -> Self {
        let sum = |of: fn(&Served) -> u64| served.iter().map(of).sum();
        let seconds = |of: fn(&Served) -> f64| served.iter().map(of).sum::<f64>();
        let slower = |one: &Served| one.took.as_secs_f64() / one.computed.as_secs_f64();
        let mut times: Vec<f64> = served.iter().map(slower).collect();
        times.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let last = times.len().saturating_sub(1);
            times.get((last as f64 * part).round() as usize).copied().unwrap_or(0.0)
        };
        let computed_s = seconds(|one| one.computed.as_secs_f64());
        let error = counted.error_us as f64 / counted.taken_us.max(1) as f64;
        Self {
            disk: run.disk.name(),
            policy: run.policy.name(),
            requests: served.len() as u64,
            pages: sum(|one| one.pages),
            loaded_pages: sum(|one| one.loaded),
            ssd_pages: sum(|one| one.from_ssd),
            worst: at(1.0),
            p99: at(0.99),
            median: at(0.5),
            computed_s,
            gain_s: computed_s - seconds(|one| one.took.as_secs_f64()),
            trimmed_lookups: counted.trimmed_lookups,
            behind_fetches: counted.behind_fetches,
            believed_bytes_per_s: run.believed,
            saved_s: counted.saved_us as f64 / 1e6,
            lost_s: counted.lost_us as f64 / 1e6,
            error,
        }
    }
}

impl LoadsReport {
    fn row(&self, disk: Disk, policy: LoadPolicy) -> Option<&LoadsRow> {
        self.rows.iter().find(|row| row.disk == disk.name() && row.policy == policy.name())
    }

    /// The part of what the fast disk gains that the enforced model gives up.
    #[must_use]
    pub fn given_up(&self) -> Option<f64> {
        let off = self.row(Disk::Fast, LoadPolicy::Off)?;
        let enforced = self.row(Disk::Fast, LoadPolicy::Enforced)?;
        Some(1.0 - enforced.gain_s / off.gain_s)
    }

    /// By what part the slowest request was slower than without a cache, where the model is enforced on
    /// the slow disk; less than 0 where even that was faster.
    #[must_use]
    pub fn slower(&self) -> Option<f64> {
        Some(self.row(Disk::Slow, LoadPolicy::Enforced)?.worst - 1.0)
    }

    /// Whether the model kept what it promises.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let given_up = self.given_up().is_some_and(|part| part <= MOST_GIVEN_UP);
        given_up && self.slower().is_some_and(|part| part <= MOST_SLOWER)
    }

    /// The report for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let mut text = format!(
            "pages of {:.2} MiB, computed in {} us each; the slow disk reads {:.0} MiB/s\n\
             times are those of a request over the same without a cache\n\n\
             {:<5} {:<9} {:>8} {:>7} {:>7} {:>7} {:>10} {:>9} {:>13} {:>8} {:>7} {:>6} {:>10}\n",
            mib(self.page_bytes),
            self.recompute_us,
            mib(self.slow_bytes_per_s),
            "disk",
            "policy",
            "requests",
            "worst",
            "p99",
            "median",
            "computed s",
            "saved s",
            "loaded of",
            "trimmed",
            "behind",
            "error",
            "believed",
        );
        for row in &self.rows {
            let loaded = format!("{}/{}", row.loaded_pages, row.pages);
            text.push_str(&format!(
                "{:<5} {:<9} {:>8} {:>7.3} {:>7.3} {:>7.3} {:>10.2} {:>9.2} {:>13} {:>8} {:>7} {:>5.0}% {:>5.0}MiB/s\n",
                row.disk,
                row.policy,
                row.requests,
                row.worst,
                row.p99,
                row.median,
                row.computed_s,
                row.gain_s,
                loaded,
                row.trimmed_lookups,
                row.behind_fetches,
                100.0 * row.error,
                mib(row.believed_bytes_per_s),
            ));
        }
        if let (Some(given_up), Some(slower)) = (self.given_up(), self.slower()) {
            text.push_str(&format!(
                "\nenforced: the slowest request on the slow disk is {:+.1} % slower than without a \
                 cache (at most {:.0} may be); on the fast disk {:.2} % of the gain is given up (at \
                 most {:.0} may be)\n",
                100.0 * slower,
                100.0 * MOST_SLOWER,
                100.0 * given_up,
                100.0 * MOST_GIVEN_UP,
            ));
        }
        text
    }
}
