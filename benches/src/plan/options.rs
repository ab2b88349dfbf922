use super::money::Prices;
use crate::longctx::{Gpu, Model, Recompute};
use crate::{
    BenchError, ByteRate, ByteSize, GeneratorOptions, TierSize, Trace, generate, replay_defaults,
};
use std::path::PathBuf;
use undercroft_core::{Admission, Policy};

const MAX_SIZES: usize = 64;
const MAX_THREADS: usize = 1024;

/// What `undercroft plan` is told.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// The trace or recording, plain or `.zst`; `None`: generated traffic.
    pub trace: Option<PathBuf>,
    /// Only the first so many requests of the trace; of generated traffic, how many there are.
    pub requests: Option<u64>,
    /// Seed of generated traffic.
    pub seed: u64,
    /// Leave the partial last block of each prompt out.
    pub full_pages_only: bool,
    /// Tokens of a page; `None`: as the trace's lengths say.
    pub page_tokens: Option<u32>,
    /// In which order pages leave DRAM.
    pub policy: Policy,
    /// What of them is written to SSD.
    pub admission: Admission,
    /// How much of it may be, averaged over a minute of the trace.
    pub write_budget: Option<ByteRate>,
    /// Sizes of DRAM to look at.
    pub dram: Vec<TierSize>,
    /// Sizes of the SSD tier to look at, each with each of DRAM.
    pub ssd: Vec<TierSize>,
    /// Into how many segments the SSD is cut.
    pub ssd_segments: u32,
    /// Whose KV cache it is.
    pub model: Model,
    /// Bytes of it for each token, instead of the model's.
    pub token_bytes: Option<ByteSize>,
    /// GPUs that one engine has.
    pub tp: u32,
    /// Whose peak the recompute is reckoned with.
    pub gpu: Gpu,
    /// Share of that peak which prefill is assumed to reach.
    pub utilisation: f64,
    /// A measured prefill rate of one engine, instead of the roofline.
    pub prefill_tokens_per_s: Option<f64>,
    /// How fast one request's pages come from DRAM, bytes a second.
    pub dram_bytes_per_s: f64,
    /// How fast one request's pages come from SSD, bytes a second.
    pub ssd_bytes_per_s: f64,
    /// What things cost.
    pub prices: Prices,
    /// Size pairs looked at side by side; `None`: as many as the machine has cores.
    pub threads: Option<usize>,
    /// Where to write one line per request, of one size pair; `-` for standard output.
    pub csv: Option<PathBuf>,
    /// Where to write the report as JSON; `-` for standard output.
    pub json: Option<PathBuf>,
    /// Where to write the report as a page; `-` for standard output.
    pub html: Option<PathBuf>,
}

/// A size of each tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SizePair {
    pub(super) dram: TierSize,
    pub(super) ssd: TierSize,
    pub(super) dram_pages: u64,
    pub(super) ssd_pages: u64,
}

/// Options as the run needs them.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) pairs: Vec<SizePair>,
    pub(super) page_tokens: u32,
    pub(super) token_bytes: u64,
    pub(super) recompute: Recompute,
    /// Of the trace, how many are replayed.
    pub(super) requests: usize,
    pub(super) threads: usize,
}

impl Checked {
    pub(super) fn page_bytes(&self) -> u64 {
        self.token_bytes * u64::from(self.page_tokens)
    }
}

fn refuse<T>(option: &'static str, problem: impl Into<String>) -> Result<T, BenchError> {
    Err(BenchError::Option { option, problem: problem.into() })
}

impl PlanOptions {
    /// Reads or generates the traffic.
    pub(super) fn traffic(&self) -> Result<Trace, BenchError> {
        if self.requests == Some(0) {
            return refuse("--requests", "is 0, allowed 1 or more");
        }
        let trace = match &self.trace {
            Some(path) => Trace::open(path)?,
            None => {
                let requests = self.requests.unwrap_or(replay_defaults::REQUESTS);
                generate(&GeneratorOptions { requests, seed: self.seed })
            }
        };
        if !self.full_pages_only {
            return Ok(trace);
        }
        trace.full_pages_only().or_else(|problem| refuse("--full-pages-only", problem))
    }

    /// Holds the options against each other and against the traffic.
    pub(super) fn check(&self, trace: &Trace) -> Result<Checked, BenchError> {
        self.check_numbers()?;
        let page_tokens = match self.page_tokens {
            Some(tokens) => tokens,
            None => trace.page_tokens().or_else(|problem| {
                refuse(
                    "--page-tokens",
                    format!("is not given, and the trace does not say: {problem}"),
                )
            })?,
        };
        let token_bytes =
            self.token_bytes.map_or_else(|| self.model.token_bytes(), |bytes| bytes.0);
        let Ok(page_bytes) = u32::try_from(token_bytes.saturating_mul(page_tokens.into())) else {
            let problem = format!(
                "{page_tokens} tokens of {token_bytes} bytes each: allowed are pages of less than 4GiB"
            );
            return refuse("--page-tokens", problem);
        };
        let threads = self.threads.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
        });
        let pairs = self.pairs(trace, page_bytes)?;
        let requests = self.requests.map_or(trace.len(), |n| trace.len().min(n as usize));
        Ok(Checked {
            pairs,
            page_tokens,
            token_bytes,
            recompute: self.recompute()?,
            requests,
            threads,
        })
    }

    fn pairs(&self, trace: &Trace, page_bytes: u32) -> Result<Vec<SizePair>, BenchError> {
        let distinct = trace.stats().distinct;
        if distinct == 0 {
            return refuse("--trace", "has no request with a page");
        }
        let mut pairs = Vec::new();
        for &dram in &self.dram {
            // More than all there are hold no more.
            let dram_pages = dram.pages(distinct, page_bytes).min(distinct);
            if dram_pages == 0 {
                let problem = format!(
                    "{dram} is room for no page of {page_bytes} bytes; the trace has {distinct} \
                     distinct ones"
                );
                return refuse("--dram", problem);
            }
            for &ssd in &self.ssd {
                let ssd_pages = ssd.pages(distinct, page_bytes).min(distinct);
                if ssd_pages == 0 && ssd != TierSize::Bytes(0) && ssd != TierSize::Share(0) {
                    let problem = format!(
                        "{ssd} is room for no page of {page_bytes} bytes, allowed 0 (no SSD tier) \
                         or more"
                    );
                    return refuse("--ssd", problem);
                }
                pairs.push(SizePair { dram, ssd, dram_pages, ssd_pages });
            }
        }
        Ok(pairs)
    }

    fn check_numbers(&self) -> Result<(), BenchError> {
        let count = self.dram.len() * self.ssd.len();
        if self.csv.is_some() && count != 1 {
            let problem =
                format!("is of one size pair, and these are {}: give --dram and --ssd", count);
            return refuse("--csv", problem);
        }
        for (option, sizes) in [("--dram", &self.dram), ("--ssd", &self.ssd)] {
            if !(1..=MAX_SIZES).contains(&sizes.len()) {
                return refuse(
                    option,
                    format!("has {} sizes, allowed 1..={MAX_SIZES}", sizes.len()),
                );
            }
        }
        for (option, found, most) in [
            ("--page-tokens", self.page_tokens.unwrap_or(1), 1 << 20),
            ("--ssd-segments", self.ssd_segments, 1 << 16),
            ("--tp", self.tp, 1024),
            (
                "--threads",
                self.threads.unwrap_or(1).min(u32::MAX as usize) as u32,
                MAX_THREADS as u32,
            ),
        ] {
            if !(1..=most).contains(&found) {
                return refuse(option, format!("is {found}, allowed 1..={most}"));
            }
        }
        if self.token_bytes == Some(ByteSize(0)) {
            return refuse("--token-bytes", "is 0, allowed 1 or more");
        }
        let Prices { dram_per_gib, ssd_per_gib, gpu_hour, years, drive_writes_per_day } =
            self.prices;
        for (option, value, most) in [
            ("--utilisation", self.utilisation, 1.0),
            ("--dram-bytes-per-s", self.dram_bytes_per_s, 1e15),
            ("--ssd-bytes-per-s", self.ssd_bytes_per_s, 1e15),
            ("--prefill-tokens-per-s", self.prefill_tokens_per_s.unwrap_or(1.0), 1e15),
            ("--dram-price", dram_per_gib, 1e12),
            ("--ssd-price", ssd_per_gib, 1e12),
            ("--gpu-hour", gpu_hour, 1e12),
            ("--years", years, 100.0),
            ("--drive-writes-per-day", drive_writes_per_day, 1e6),
        ] {
            if !(value > 0.0 && value <= most) {
                return refuse(option, format!("is {value}, allowed more than 0 and up to {most}"));
            }
        }
        Ok(())
    }

    fn recompute(&self) -> Result<Recompute, BenchError> {
        if let Some(rate) = self.prefill_tokens_per_s {
            return Ok(Recompute::at_rate(rate));
        }
        if self.model.params == 0.0 || self.model.attention_width == 0 {
            let problem = "has no params= and heads=, which its recompute is reckoned with; say \
                           both, or give --prefill-tokens-per-s";
            return refuse("--model", problem);
        }
        Ok(Recompute::by_roofline(&self.model, self.gpu, self.tp, self.utilisation))
    }
}
