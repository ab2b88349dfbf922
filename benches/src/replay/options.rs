use super::ahead::{Ahead, check_speed};
use crate::limits::available_memory;
use crate::{
    BenchError, ByteRate, ByteSize, GeneratorOptions, TierSize, Trace, generate, replay_defaults,
};
use std::path::PathBuf;
use undercroft_core::{Admission, Policy};
use undercroft_wire::{MAX_PAGE_BYTES, MIN_PAGE_BYTES, frame_bytes};

/// The smallest tiers the daemon runs with, bytes.
const MIN_DRAM_BYTES: u64 = 64 << 10;
const MIN_SSD_BYTES: u64 = 1 << 20;
const MAX_CLIENTS: u32 = 64;

/// What `undercroft bench replay` is told.
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// The program that knows `serve --config FILE`: this one.
    pub binary: PathBuf,
    /// The trace, plain or `.zst`; `None`: generated traffic.
    pub trace: Option<PathBuf>,
    /// Only the first so many requests of the trace; of generated traffic, how many there are.
    pub requests: Option<u64>,
    /// Bytes of a page.
    pub page_bytes: ByteSize,
    /// The DRAM tier of the benchmark's own daemon.
    pub dram: TierSize,
    /// The SSD tier of the benchmark's own daemon; 0 pages for none.
    pub ssd: TierSize,
    /// Where its file lies while the benchmark runs; `None`: the system's temporary folder.
    pub ssd_path: Option<PathBuf>,
    /// The order in which pages leave DRAM.
    pub policy: Policy,
    /// What of the pages that leave DRAM is written to SSD.
    pub admission: Admission,
    /// How much of it may be, averaged over a minute.
    pub write_budget: Option<ByteRate>,
    /// How many clients take turns or run side by side.
    pub clients: u32,
    /// One request after another, each waiting for credits and for its stores: exact figures.
    /// Always so with one client.
    pub serial: bool,
    /// Leave the partial last block of each prompt out.
    pub full_pages_only: bool,
    /// Where to write one line per request; `-` for standard output.
    pub csv: Option<PathBuf>,
    /// Where to write the report; `-` for standard output.
    pub json: Option<PathBuf>,
    /// A running daemon to use instead of one's own; its sizes are its own.
    pub socket: Option<PathBuf>,
    /// Seed of generated traffic.
    pub seed: u64,
    /// Others replay at the same time: what a lookup found is held until it is fetched.
    pub in_company: bool,
    /// Requests come when they do in the trace, so many times as fast; `None`: as soon as the one
    /// before is done.
    pub speed: Option<f64>,
    /// What the daemon is told before they come; only with a speed.
    pub ahead: Ahead,
    /// Wait for a line on standard input before each request's loads, and before its stores.
    pub in_step: bool,
}

impl ReplayOptions {
    /// What runs without any argument.
    #[must_use]
    pub fn new(binary: PathBuf) -> Self {
        Self {
            binary,
            trace: None,
            requests: None,
            page_bytes: ByteSize(replay_defaults::PAGE_BYTES.into()),
            dram: TierSize::Bytes(replay_defaults::DRAM_BYTES),
            ssd: TierSize::Bytes(replay_defaults::SSD_BYTES),
            ssd_path: None,
            policy: Policy::default(),
            admission: Admission::default(),
            write_budget: None,
            clients: 1,
            serial: false,
            full_pages_only: false,
            csv: None,
            json: None,
            socket: None,
            seed: replay_defaults::SEED,
            in_company: false,
            in_step: false,
            speed: None,
            ahead: Ahead::Nothing,
        }
    }

    /// Reads or generates the traffic.
    pub(super) fn traffic(&self) -> Result<Trace, BenchError> {
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
        let problem = |problem| BenchError::Option { option: "--full-pages-only", problem };
        trace.full_pages_only().map_err(problem)
    }

    /// Holds the options against each other and against the traffic.
    pub(super) fn check(&self, trace: &Trace) -> Result<Checked, BenchError> {
        let option = |option, problem| Err(BenchError::Option { option, problem });
        if self.requests == Some(0) {
            return option("--requests", "is 0, allowed 1 or more".to_owned());
        }
        if self.clients == 0 || self.clients > MAX_CLIENTS {
            let problem = format!("is {}, allowed 1..={MAX_CLIENTS}", self.clients);
            return option("--clients", problem);
        }
        self.check_page_bytes()?;
        let page_bytes = self.page_bytes.0 as u32;
        let frame = u64::from(frame_bytes(page_bytes));
        // The share is of the whole trace even where only its start is replayed: then a shorter
        // run shows the first lines of a longer one.
        let distinct = trace.stats().distinct;
        let dram_pages = self.dram.pages(distinct, page_bytes);
        let ssd_pages = self.ssd.pages(distinct, page_bytes);
        if self.socket.is_none() {
            let free = available_memory().unwrap_or(u64::MAX);
            if dram_pages.saturating_mul(frame) > free {
                let problem = format!(
                    "{} of {} pages takes {} MiB of memory, free are {} MiB",
                    self.dram,
                    self.page_bytes,
                    dram_pages.saturating_mul(frame) >> 20,
                    free >> 20
                );
                return option("--dram", problem);
            }
            if dram_pages == 0 || dram_pages * frame < MIN_DRAM_BYTES {
                let least = MIN_DRAM_BYTES.div_ceil(frame);
                let problem = format!(
                    "{} is room for {dram_pages} pages of {}, allowed {least} or more",
                    self.dram, self.page_bytes
                );
                return option("--dram", problem);
            }
            if ssd_pages == 0 && self.ssd != TierSize::Bytes(0) && self.ssd != TierSize::Share(0)
                || ssd_pages > 0 && ssd_pages * frame < MIN_SSD_BYTES
            {
                let least = MIN_SSD_BYTES.div_ceil(frame);
                let problem = format!(
                    "{} is room for {ssd_pages} pages of {}, allowed 0 (no SSD tier) or {least} \
                     pages or more",
                    self.ssd, self.page_bytes
                );
                return option("--ssd", problem);
            }
        }
        let requests = self.requests.map_or(trace.len(), |n| trace.len().min(n as usize));
        if let Some(speed) = self.speed {
            check_speed(speed)?;
        }
        let (speed, ahead) = (self.speed, self.ahead);
        let serial = speed.is_none() && (self.serial || self.clients == 1);
        let alone = serial && !self.in_company;
        let in_step = self.in_step;
        Ok(Checked {
            page_bytes,
            frame,
            dram_pages,
            ssd_pages,
            requests,
            serial,
            alone,
            in_step,
            speed,
            ahead,
        })
    }

    fn check_page_bytes(&self) -> Result<(), BenchError> {
        let range = u64::from(MIN_PAGE_BYTES)..=u64::from(MAX_PAGE_BYTES);
        if !range.contains(&self.page_bytes.0) {
            let problem = format!(
                "is {}, allowed {}..={}",
                self.page_bytes,
                ByteSize(*range.start()),
                ByteSize(*range.end())
            );
            return Err(BenchError::Option { option: "--page-bytes", problem });
        }
        Ok(())
    }
}

/// Options as the run needs them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checked {
    pub(super) page_bytes: u32,
    /// Bytes a page takes in a tier.
    pub(super) frame: u64,
    pub(super) dram_pages: u64,
    pub(super) ssd_pages: u64,
    pub(super) requests: usize,
    pub(super) serial: bool,
    /// Nobody else stores or loads meanwhile.
    pub(super) alone: bool,
    pub(super) in_step: bool,
    pub(super) speed: Option<f64>,
    pub(super) ahead: Ahead,
}
