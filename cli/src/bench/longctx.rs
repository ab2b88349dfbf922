//! `undercroft bench longctx`.

use super::{failure, this_program};
use crate::outcome::{Failure, Outcome, print};
use clap::Args;
use std::path::{Path, PathBuf};
use undercroft_benches::{
    ByteSize, ContextTokens, DeviceChoice, Gpu, LongctxOptions, Model, UTILISATION, longctx,
};

/// Show what long contexts gain on this machine by being kept instead of computed anew.
///
/// Each context is written into a device, offloaded, dropped there, and restored from DRAM and,
/// when DRAM is empty, from SSD; every byte is compared. Times until the first and the last layer
/// are held against this machine's limits and against the recompute they replace. What does not
/// fit is scaled down and says so. It starts a daemon of its own and removes everything it made.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  undercroft bench longctx
  undercroft bench longctx --contexts 8k,128k --html longctx.html --json longctx.json
  undercroft bench longctx --model llama-3.1-70b --tp 8 --concurrency 8 --gpu h200
  undercroft bench longctx --prefill-tokens-per-s 9500 --ssd-path /mnt/nvme0 --ssd 200GiB
  undercroft bench longctx --model custom:layers=48,latent=576,dtype=bf16,params=20e9,heads=64

Models: llama-3.1-8b, llama-3.1-70b, qwen3-32b, deepseek-v3, or custom:layers=N, kv-heads=N and
head-dim=N (or latent=N), dtype=bf16|f16|f32|fp8-e4m3|fp8-e5m2|int8, params=N, heads=N. SIZE is bytes,
or a number with KiB, MiB or GiB. docs/longctx.md has the formulas and their sources.

Exit codes: 0 every byte was right; 1 not so, or the run failed; 2 it could not start.")]
pub(super) struct Longctx {
    /// Lengths of the contexts in tokens: k is 1024, m 1048576.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "8k,32k,128k,1m")]
    contexts: Vec<ContextTokens>,
    /// Whose KV cache it is.
    #[arg(long, value_name = "NAME", default_value = "llama-3.1-8b")]
    model: Model,
    /// Ranks the model is divided over; one of them is measured.
    #[arg(long, value_name = "N", default_value_t = 1)]
    tp: u32,
    /// What contexts are restored into: host or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "host")]
    device: DeviceChoice,
    /// Tokens of a page.
    #[arg(long, value_name = "N", default_value_t = 16)]
    page_tokens: u32,
    /// Contexts restored at once.
    #[arg(long, value_name = "N", default_value_t = 1)]
    concurrency: u32,
    /// DRAM tier at most [default: a part of what is free].
    #[arg(long, value_name = "SIZE")]
    dram: Option<ByteSize>,
    /// SSD tier at most; 0 for none [default: half of what is free, 64GiB at most].
    #[arg(long, value_name = "SIZE")]
    ssd: Option<ByteSize>,
    /// Where the SSD tier's file lies while the benchmark runs [default: the temporary directory].
    #[arg(long, value_name = "DIR")]
    ssd_path: Option<PathBuf>,
    /// A prefill rate you measured, at these lengths; without it a roofline by --gpu.
    #[arg(long, value_name = "N")]
    prefill_tokens_per_s: Option<f64>,
    /// Whose peak and power the recompute is reckoned with: h100, h200, a100, l40s or mi300x.
    #[arg(long, value_name = "NAME", default_value = "h100")]
    gpu: Gpu,
    /// Share of the GPU's peak that prefill reaches.
    #[arg(long, value_name = "SHARE", default_value_t = UTILISATION)]
    utilisation: f64,
    /// Restores of each context from each tier; figures are their medians.
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeats: u32,
    /// Write the report as JSON (schema 1); - for standard output.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as one HTML page with charts; - for standard output.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl Longctx {
    pub(super) fn run(self) -> Result<Outcome, Failure> {
        let stdout = Some(Path::new("-"));
        let stdout_is_taken = self.json.as_deref() == stdout || self.html.as_deref() == stdout;
        let options = LongctxOptions {
            binary: this_program()?,
            contexts: self.contexts,
            model: self.model,
            tp: self.tp,
            device: self.device,
            page_tokens: self.page_tokens,
            concurrency: self.concurrency,
            dram: self.dram,
            ssd: self.ssd,
            ssd_path: self.ssd_path,
            prefill_tokens_per_s: self.prefill_tokens_per_s,
            gpu: self.gpu,
            utilisation: self.utilisation,
            repeats: self.repeats,
            json: self.json,
            html: self.html,
        };
        let report = longctx(&options).map_err(failure)?;
        // Standard output may carry the report for a machine; people read standard error then.
        if stdout_is_taken {
            eprint!("{}", report.table());
        } else {
            print(&report.table())?;
        }
        Ok(if report.is_good() { Outcome::Good } else { Outcome::Bad })
    }
}
