use super::break_even::{BreakEven, LoadTime};
use super::model::Model;
use super::recompute::{Gpu, Recompute};
use super::scale::Scale;
use crate::limits::Machine;
use serde::Serialize;

/// What long contexts gain on this machine. Serializes as the JSON of schema 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LongctxReport {
    /// Version of this layout: 1.
    pub schema: u32,
    /// Bytes restored that were not the context's; 0 or something is broken.
    pub wrong_bytes: u64,
    /// A row for each context and tier, in the order asked for.
    pub rows: Vec<LongctxRow>,
    /// For each tier, from which length on a load takes no longer than its recompute.
    pub break_even: Vec<TierBreakEven>,
    /// What was measured on.
    pub machine: Machine,
    /// What contexts were restored into, in words.
    pub device: String,
    /// Whose KV cache it was.
    pub model: Model,
    /// Ranks of the model; one of them was measured.
    pub tp: u32,
    /// Tokens of a page.
    pub page_tokens: u32,
    /// Bytes of a page of one rank.
    pub page_bytes: u32,
    /// Contexts restored at once.
    pub concurrency: u32,
    /// Threads that copied into a device made of memory.
    pub copy_threads: u32,
    /// Whose peak and power the recompute was reckoned with.
    pub gpu: Gpu,
    /// What computing a context anew was taken to cost.
    pub recompute: Recompute,
    /// What was assumed and by which formulas figures were made, one sentence each.
    pub assumptions: Vec<String>,
    /// What could not be had or found out, one line each.
    pub notes: Vec<String>,
    /// The whole run, seconds.
    pub wall_s: f64,
}

/// A context restored from a tier. Times are of one context on one rank; where less than all of
/// it was measured (`scaled`), they are what all of it would take at the same speed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LongctxRow {
    /// Its length, tokens.
    pub context: u64,
    /// `dram` or `ssd`.
    pub tier: &'static str,
    /// All of its cache on one rank, bytes.
    pub bytes: u64,
    /// From the lookup until the first layer of all pages was in place: the median, milliseconds.
    pub first_layer_ms: f64,
    /// As [`LongctxRow::first_layer_ms`], of the last layer.
    pub last_layer_ms: f64,
    /// The median over all restores of their speed by the limit's beside them; `None` where there
    /// was no limit.
    pub ratio: Option<f64>,
    /// What computing it anew would take, milliseconds.
    pub recompute_ms: f64,
    /// How much less than all of it was measured.
    pub scaled: Scale,
    /// What was measured, tokens.
    pub measured_tokens: u64,
    /// What was measured, bytes.
    pub measured_bytes: u64,
    /// Of what was measured, milliseconds.
    pub measured_first_layer_ms: f64,
    /// Of what was measured, milliseconds.
    pub measured_last_layer_ms: f64,
    /// The shortest and the longest of the measured restores, milliseconds.
    pub last_layer_spread_ms: [f64; 2],
    /// How many restores.
    pub repeats: u32,
    /// The speed of all contexts restored at once: the median, bytes a second.
    pub bytes_per_s: f64,
    /// The limit's: the median, bytes a second.
    pub limit_bytes_per_s: Option<f64>,
    /// What the limit is.
    pub limit: String,
    /// The speed at which it was offloaded, once, bytes a second.
    pub offload_bytes_per_s: f64,
    /// Seconds of GPUs that a load leaves free, for each token; negative if recompute is faster.
    pub gpu_s_saved_per_token: f64,
    /// The same in joules of the GPUs' boards.
    pub joules_saved_per_token: f64,
    /// Bytes restored that were not the context's.
    pub wrong_bytes: u64,
}

/// From which length on a tier's loads take no longer than their recompute.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TierBreakEven {
    /// `dram` or `ssd`.
    pub tier: &'static str,
    /// That length: a number of tokens, `always` or `never`.
    pub tokens: BreakEven,
    /// The line through the measured restores that it was reckoned with.
    pub load: LoadTime,
}

impl LongctxReport {
    /// Whether every byte was right.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.wrong_bytes == 0
    }
}
