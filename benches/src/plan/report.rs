use super::money::{Cost, Prices, Wear};
use crate::TierSize;
use crate::longctx::{Gpu, Model, Recompute};
use serde::{Serialize, Serializer};

/// What DRAM and SSD of different sizes would do for some traffic. Serializes as the JSON of
/// schema 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanReport {
    /// Version of this layout: 1.
    pub schema: u32,
    /// What was replayed.
    pub traffic: Traffic,
    /// In which order pages left DRAM.
    pub policy: &'static str,
    /// What of them was written to SSD.
    pub admission: String,
    /// How much of it might be, averaged over a minute; `None` for no bound.
    pub write_budget_bytes_per_s: Option<u64>,
    /// Whose KV cache it is; `None` where only bytes were given.
    pub model: Option<Model>,
    /// Bytes of the cache for each token, all ranks together.
    pub token_bytes: u64,
    /// Bytes of a page, all ranks together.
    pub page_bytes: u64,
    /// GPUs that one engine has.
    pub tp: u32,
    /// Which; `None` where a measured rate was given.
    pub gpu: Option<Gpu>,
    /// What computing tokens was taken to cost.
    pub recompute: Recompute,
    /// How fast one request's pages come from DRAM.
    pub dram_bytes_per_s: f64,
    /// How fast one request's pages come from SSD.
    pub ssd_bytes_per_s: f64,
    /// What things cost.
    pub prices: Prices,
    /// Without any cache.
    pub without: Speed,
    /// A row for each size pair: for each size of DRAM all of the SSD.
    pub rows: Vec<PlanRow>,
    /// Index of the row beyond which twice the money for tiers buys less than a point of hits.
    pub knee: usize,
    /// Whether no pair was looked at that costs twice as much as the knee.
    pub knee_is_last: bool,
    /// Index of the row with the cheapest tokens; `None` where the trace takes no time.
    pub cheapest: Option<usize>,
    /// What was assumed and by which formulas figures were made, one sentence each.
    pub assumptions: Vec<String>,
    /// What is to be known about these figures, one line each.
    pub notes: Vec<String>,
    /// Size pairs looked at side by side.
    pub threads: usize,
    /// The replays, seconds; reading the trace not included.
    pub wall_s: f64,
    /// Processor time of the same, of all threads, seconds.
    pub cpu_s: f64,
}

/// A trace in figures, as far as it was replayed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Traffic {
    /// Where it is from.
    pub source: String,
    /// Requests replayed.
    pub requests: u64,
    /// Requests there are.
    pub all_requests: u64,
    /// Pages they ask for, repeated ones included.
    pub pages: u64,
    /// Different pages of the whole trace: what percentages of sizes are of.
    pub distinct_pages: u64,
    /// Tokens of all prompts.
    pub input_tokens: u64,
    /// From the first to the last arrival, seconds.
    pub duration_s: f64,
    /// Tokens of a page.
    pub page_tokens: u32,
    /// Whether the partial last page of each prompt was left out.
    pub full_pages_only: bool,
    /// Share of the pages asked for that a cache without bounds would hit.
    pub unbounded_hit_ratio: f64,
}

/// How fast requests are, and what they take.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Speed {
    /// Time to first token: the median, milliseconds.
    pub ttft_p50_ms: f64,
    /// Time to first token: the 99th percentile, milliseconds.
    pub ttft_p99_ms: f64,
    /// Mean of what a request waits for pages, milliseconds.
    pub load_mean_ms: f64,
    /// GPUs that prefill keeps busy, on average over the trace; `None` where that takes no time.
    pub prefill_gpus: Option<f64>,
    /// For each million input tokens; `None` where the trace takes no time.
    pub cost_per_million_tokens: Option<Cost>,
}

/// What one size of DRAM and one of SSD do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanRow {
    /// DRAM, as it was asked for.
    #[serde(serialize_with = "as_text")]
    pub dram: TierSize,
    /// SSD, as it was asked for.
    #[serde(serialize_with = "as_text")]
    pub ssd: TierSize,
    /// Room in DRAM, pages; no more than the trace has.
    pub dram_pages: u64,
    /// Room on SSD, pages; no more than the trace has.
    pub ssd_pages: u64,
    /// The same, bytes.
    pub dram_bytes: u64,
    /// The same, bytes.
    pub ssd_bytes: u64,
    /// What both cost to buy.
    pub hardware_price: f64,
    /// Leading pages found, by tier, and of all pages asked for the share that was.
    pub hits: PlanHits,
    /// How fast requests are, and what they take.
    #[serde(flatten)]
    pub speed: Speed,
    /// Written to SSD.
    pub writes: Writes,
    /// Pages on SSD at the end that no lookup can reach because an ancestor is gone.
    pub unreachable_pages: u64,
}

/// Prefix hits of a size pair.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct PlanHits {
    /// Found in DRAM, pages.
    pub dram_pages: u64,
    /// Found on SSD, pages.
    pub ssd_pages: u64,
    /// Of all pages asked for, the share that was found.
    pub ratio: f64,
    /// In DRAM.
    pub dram_ratio: f64,
    /// On SSD.
    pub ssd_ratio: f64,
}

/// What a size pair writes to SSD.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Writes {
    /// Pages, those included that reclaim wrote again.
    pub pages: u64,
    /// Of these, pages that reclaim wrote again.
    pub rewritten_pages: u64,
    /// On average over the trace; `None` where that takes no time.
    pub bytes_per_s: Option<f64>,
    /// In the minute of the trace that had most.
    pub worst_minute_bytes_per_s: f64,
    /// What that does to a drive as large as the tier.
    #[serde(flatten)]
    pub wear: Wear,
}

fn as_text<S: Serializer>(size: &TierSize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(size)
}

impl PlanReport {
    /// The different sizes of DRAM, in the order asked for.
    pub(super) fn dram_sizes(&self) -> Vec<TierSize> {
        sizes(self.rows.iter().map(|row| row.dram))
    }

    /// The different sizes of the SSD, in the order asked for.
    pub(super) fn ssd_sizes(&self) -> Vec<TierSize> {
        sizes(self.rows.iter().map(|row| row.ssd))
    }

    /// The row of these sizes.
    pub(super) fn row(&self, dram: TierSize, ssd: TierSize) -> Option<&PlanRow> {
        self.rows.iter().find(|row| row.dram == dram && row.ssd == ssd)
    }
}

fn sizes(all: impl Iterator<Item = TierSize>) -> Vec<TierSize> {
    let mut found = Vec::new();
    for size in all {
        if !found.contains(&size) {
            found.push(size);
        }
    }
    found
}
