//! `undercroft plan`.

use crate::outcome::{Failure, Outcome, print};
use clap::Args;
use std::path::{Path, PathBuf};
use undercroft_benches::{
    Admission, BenchError, ByteRate, ByteSize, Gpu, Model, PlanOptions, Policy, Prices, TierSize,
    UTILISATION, plan, replay_defaults,
};

/// Find out how much DRAM and SSD some traffic is worth: replay it through the daemon's own
/// decisions, without a daemon, at many sizes.
///
/// For each pair of sizes it prints hits by tier, the time to first token, what is written to SSD and
/// how long a drive bears that, and what a million input tokens cost; and it names the knee and the
/// cheapest pair. All requests are replayed, exactly.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  undercroft plan --trace conversation.jsonl.zst --html plan.html
  undercroft plan --trace conversation.jsonl.zst --model llama-3.1-70b --tp 8 --gpu h200
  undercroft plan --trace conversation.jsonl.zst --dram 256GiB,512GiB,1024GiB --ssd 0,4096GiB,16384GiB
  undercroft plan --trace conversation.jsonl.zst --token-bytes 70272 --prefill-tokens-per-s 12000
  undercroft plan --trace conversation.jsonl.zst --dram 5% --ssd 0 --csv hits.csv

SIZE is bytes, or a number with KiB, MiB or GiB; N% is a share of the trace's distinct pages. Traces are
those of `undercroft bench replay`. Models are those of `undercroft bench longctx`. Prices are in any one
currency; speeds and prices that are not given are assumptions, and printed with the table.
docs/planning.md has the formulas.

Exit codes: 0 done; 1 the run failed; 2 it could not start.")]
pub(crate) struct Plan {
    /// Trace to replay [default: generated traffic].
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// A sample: replay only the first N requests; of generated traffic, how many there are.
    #[arg(long, value_name = "N")]
    requests: Option<u64>,
    /// Seed of generated traffic.
    #[arg(long, value_name = "N", default_value_t = replay_defaults::SEED)]
    seed: u64,
    /// Leave out the partial last page of each prompt.
    #[arg(long)]
    full_pages_only: bool,
    /// Tokens of a page [default: as the lengths of the trace's prompts say].
    #[arg(long, value_name = "N")]
    page_tokens: Option<u32>,
    /// Order in which pages leave DRAM.
    #[arg(long, value_name = "NAME", default_value = Policy::default().name())]
    policy: Policy,
    /// What of them is written to SSD: through, demote or auto:N.
    #[arg(long, value_name = "NAME", default_value_t)]
    admission: Admission,
    /// How much of it may be, averaged over a minute, such as 100MiB/s [default: no bound].
    #[arg(long, value_name = "SIZE/s")]
    write_budget: Option<ByteRate>,
    /// Sizes of DRAM.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1%,2%,5%,10%,20%")]
    dram: Vec<TierSize>,
    /// Sizes of the SSD tier, each with each of DRAM; 0 for none.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "0,5%,10%,20%,50%,100%"
    )]
    ssd: Vec<TierSize>,
    /// Into how many segments the SSD is cut: a daemon's have 4 to 256 MiB, and it has 64 or more of
    /// them.
    #[arg(long, value_name = "N", default_value_t = 64)]
    ssd_segments: u32,
    /// Whose KV cache it is.
    #[arg(long, value_name = "NAME", default_value = "llama-3.1-8b")]
    model: Model,
    /// Bytes of KV for each token, instead of a model.
    #[arg(long, value_name = "SIZE", conflicts_with = "model", requires = "prefill_tokens_per_s")]
    token_bytes: Option<ByteSize>,
    /// GPUs of one engine.
    #[arg(long, value_name = "N", default_value_t = 1)]
    tp: u32,
    /// Whose peak the recompute is reckoned with: h100, h200, a100, l40s or mi300x.
    #[arg(long, value_name = "NAME", default_value = "h100")]
    gpu: Gpu,
    /// Share of the GPU's peak that prefill reaches.
    #[arg(long, value_name = "SHARE", default_value_t = UTILISATION)]
    utilisation: f64,
    /// A prefill rate of one engine that you measured; without it a roofline by --gpu.
    #[arg(long, value_name = "N")]
    prefill_tokens_per_s: Option<f64>,
    /// How fast pages come from DRAM.
    #[arg(long, value_name = "N", default_value_t = 25e9)]
    dram_bytes_per_s: f64,
    /// How fast pages come from SSD.
    #[arg(long, value_name = "N", default_value_t = 6e9)]
    ssd_bytes_per_s: f64,
    /// Price of a GiB of DRAM.
    #[arg(long, value_name = "PRICE", default_value_t = 5.0)]
    dram_price: f64,
    /// Price of a GiB of SSD.
    #[arg(long, value_name = "PRICE", default_value_t = 0.12)]
    ssd_price: f64,
    /// Price of a GPU for an hour.
    #[arg(long, value_name = "PRICE", default_value_t = 2.5)]
    gpu_hour: f64,
    /// Years over which DRAM and SSD are paid off.
    #[arg(long, value_name = "N", default_value_t = 4.0)]
    years: f64,
    /// How often a day the drive may be written in full for five years, by its data sheet.
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    drive_writes_per_day: f64,
    /// Size pairs looked at side by side [default: as many as there are cores].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Write request,pages,prefix_hit,dram_hit,ssd_hit per request, of one size pair; - for standard
    /// output.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write the report as JSON (schema 1); - for standard output.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as one HTML page with charts; - for standard output.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl Plan {
    pub(crate) fn run(self) -> Result<Outcome, Failure> {
        let stdout = Some(Path::new("-"));
        let outputs = [&self.csv, &self.json, &self.html];
        let stdout_is_taken = outputs.iter().any(|path| path.as_deref() == stdout);
        let options = PlanOptions {
            trace: self.trace,
            requests: self.requests,
            seed: self.seed,
            full_pages_only: self.full_pages_only,
            page_tokens: self.page_tokens,
            policy: self.policy,
            admission: self.admission,
            write_budget: self.write_budget,
            dram: self.dram,
            ssd: self.ssd,
            ssd_segments: self.ssd_segments,
            model: self.model,
            token_bytes: self.token_bytes,
            tp: self.tp,
            gpu: self.gpu,
            utilisation: self.utilisation,
            prefill_tokens_per_s: self.prefill_tokens_per_s,
            dram_bytes_per_s: self.dram_bytes_per_s,
            ssd_bytes_per_s: self.ssd_bytes_per_s,
            prices: Prices {
                dram_per_gib: self.dram_price,
                ssd_per_gib: self.ssd_price,
                gpu_hour: self.gpu_hour,
                years: self.years,
                drive_writes_per_day: self.drive_writes_per_day,
            },
            threads: self.threads,
            csv: self.csv,
            json: self.json,
            html: self.html,
        };
        let report = plan(&options).map_err(failure)?;
        // Standard output may carry the report for a machine; people read standard error then.
        if stdout_is_taken {
            eprint!("{}", report.table());
            return Ok(Outcome::Good);
        }
        print(&report.table())
    }
}

fn failure(error: BenchError) -> Failure {
    if error.is_start() { Failure::start(error) } else { Failure::run(error) }
}
