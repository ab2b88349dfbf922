use super::model::{Model, ModelError};
use super::recompute::{Gpu, Recompute};
use super::scale::ContextTokens;
use crate::{BenchError, ByteSize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;
use undercroft_wire::{DomainId, Family, Geometry, Rank, Space};

const MAX_CONTEXTS: usize = 32;
const MAX_CONCURRENCY: u32 = 64;
const MAX_REPEATS: u32 = 99;
/// The least tiers the daemon runs with, bytes.
const MIN_DRAM_BYTES: u64 = 64 << 10;
const MIN_SSD_BYTES: u64 = 1 << 20;

/// What a context is restored into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// Ordinary memory.
    Host,
    /// A GPU, by its number.
    Cuda(u32),
}

/// There is no such kind of device.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{found:?} is no device: allowed are host and cuda:N")]
pub struct DeviceChoiceError {
    found: String,
}

impl FromStr for DeviceChoice {
    type Err = DeviceChoiceError;

    fn from_str(text: &str) -> Result<Self, DeviceChoiceError> {
        let ordinal = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
        match (text, ordinal) {
            ("host", _) => Ok(Self::Host),
            (_, Some(ordinal)) => Ok(Self::Cuda(ordinal)),
            _ => Err(DeviceChoiceError { found: text.to_owned() }),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// What `undercroft bench longctx` is told.
#[derive(Debug, Clone)]
pub struct LongctxOptions {
    /// The program that knows `serve --config FILE`: this one.
    pub binary: PathBuf,
    /// Lengths of the contexts.
    pub contexts: Vec<ContextTokens>,
    /// Whose KV cache it is.
    pub model: Model,
    /// Ranks the model is divided over; one of them is measured.
    pub tp: u32,
    /// What contexts are restored into.
    pub device: DeviceChoice,
    /// Tokens of a page.
    pub page_tokens: u32,
    /// Contexts restored at once, each in a session of its own.
    pub concurrency: u32,
    /// The DRAM tier at most; `None`: as the machine allows.
    pub dram: Option<ByteSize>,
    /// The SSD tier at most, 0 for none; `None`: as the disk allows.
    pub ssd: Option<ByteSize>,
    /// Where its file lies while the benchmark runs; `None`: the system's temporary folder.
    pub ssd_path: Option<PathBuf>,
    /// A measured prefill rate, instead of the roofline.
    pub prefill_tokens_per_s: Option<f64>,
    /// Whose peak and power the recompute is reckoned with.
    pub gpu: Gpu,
    /// Share of that peak which prefill is assumed to reach.
    pub utilisation: f64,
    /// Restores of each context from each tier.
    pub repeats: u32,
    /// Where to write the report as JSON; `-` for standard output.
    pub json: Option<PathBuf>,
    /// Where to write the report as a page; `-` for standard output.
    pub html: Option<PathBuf>,
}

/// Options that fit each other.
pub(super) struct Checked {
    pub(super) space: Space,
    pub(super) domain: DomainId,
    pub(super) recompute: Recompute,
}

impl Checked {
    pub(super) fn geometry(&self) -> Geometry {
        self.space.geometry
    }

    pub(super) fn page_bytes(&self) -> u32 {
        self.space.geometry.page_bytes()
    }
}

impl LongctxOptions {
    /// Holds the options against each other.
    pub(super) fn check(&self) -> Result<Checked, BenchError> {
        self.check_numbers()?;
        let geometry = self.model.geometry(self.tp, self.page_tokens).map_err(|error| {
            let option = match error {
                ModelError::Field { .. } => "--tp",
                _ => "--page-tokens",
            };
            BenchError::Option { option, problem: error.to_string() }
        })?;
        let space = self.space(geometry);
        if let Err(error) = space.validate() {
            return Err(BenchError::Option { option: "--model", problem: error.to_string() });
        }
        Ok(Checked { space, domain: DomainId::named("default"), recompute: self.recompute()? })
    }

    fn check_numbers(&self) -> Result<(), BenchError> {
        let option = |option, problem| Err(BenchError::Option { option, problem });
        let within = |name, found: u64, most: u64| match found {
            found if (1..=most).contains(&found) => Ok(()),
            found => option(name, format!("is {found}, allowed 1..={most}")),
        };
        within("--contexts", self.contexts.len() as u64, MAX_CONTEXTS as u64)?;
        within("--concurrency", self.concurrency.into(), MAX_CONCURRENCY.into())?;
        within("--repeats", self.repeats.into(), MAX_REPEATS.into())?;
        within("--page-tokens", self.page_tokens.into(), 1 << 20)?;
        within("--tp", self.tp.into(), 1024)?;
        if !(self.utilisation > 0.0 && self.utilisation <= 1.0) {
            return option("--utilisation", format!("is {}, allowed 0.01..=1", self.utilisation));
        }
        if self.dram.is_some_and(|size| size.0 < MIN_DRAM_BYTES) {
            return option("--dram", format!("is less than {}", ByteSize(MIN_DRAM_BYTES)));
        }
        if self.ssd.is_some_and(|size| size.0 > 0 && size.0 < MIN_SSD_BYTES) {
            let problem = format!("is neither 0 nor {} or more", ByteSize(MIN_SSD_BYTES));
            return option("--ssd", problem);
        }
        Ok(())
    }

    fn space(&self, geometry: Geometry) -> Space {
        let family = Family {
            model: *blake3::hash(self.model.name.as_bytes()).as_bytes(),
            adapter: [0; 32],
            dtype: self.model.dtype(),
            quantization: "none".to_owned(),
            attention: "bench longctx".to_owned(),
            layout: "bench longctx".to_owned(),
            layers: self.model.layers,
            kv_heads: self.model.kv_heads(),
            page_tokens: self.page_tokens,
        };
        let rank = match self.model.is_shared() {
            true => Rank::Shared,
            false => Rank::Of { index: 0, count: self.tp as u16 },
        };
        Space { family, rank, group: 0, geometry }
    }

    fn recompute(&self) -> Result<Recompute, BenchError> {
        if let Some(rate) = self.prefill_tokens_per_s {
            if !(rate.is_finite() && rate > 0.0) {
                let problem = format!("is {rate}, allowed more than 0");
                return Err(BenchError::Option { option: "--prefill-tokens-per-s", problem });
            }
            return Ok(Recompute::at_rate(rate));
        }
        if self.model.params == 0.0 || self.model.attention_width == 0 {
            let problem = "has no params= and heads=, which its recompute is reckoned with; say \
                           both, or give --prefill-tokens-per-s"
                .to_owned();
            return Err(BenchError::Option { option: "--model", problem });
        }
        Ok(Recompute::by_roofline(&self.model, self.gpu, self.tp, self.utilisation))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    fn options() -> LongctxOptions {
        LongctxOptions {
            binary: PathBuf::new(),
            contexts: vec![ContextTokens(8192)],
            model: "llama-3.1-8b".parse().unwrap(),
            tp: 1,
            device: DeviceChoice::Host,
            page_tokens: 16,
            concurrency: 1,
            dram: None,
            ssd: None,
            ssd_path: None,
            prefill_tokens_per_s: None,
            gpu: "h100".parse().unwrap(),
            utilisation: 0.5,
            repeats: 3,
            json: None,
            html: None,
        }
    }

    fn refusal(change: impl FnOnce(&mut LongctxOptions)) -> String {
        let mut options = options();
        change(&mut options);
        match options.check() {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_the_options_name() {
        assert_eq!(refusal(|_| {}), "");
        assert!(refusal(|o| o.contexts.clear()).starts_with("--contexts: is 0"));
        assert!(refusal(|o| o.concurrency = 0).starts_with("--concurrency: is 0"));
        assert!(refusal(|o| o.tp = 3).starts_with("--tp: "));
        assert!(refusal(|o| o.page_tokens = 1 << 16).starts_with("--page-tokens: its pages"));
        assert!(refusal(|o| o.utilisation = 1.5).starts_with("--utilisation: is 1.5"));
        assert!(refusal(|o| o.dram = Some(ByteSize(1))).starts_with("--dram: is less"));
        assert!(refusal(|o| o.ssd = Some(ByteSize(1))).starts_with("--ssd: is neither"));
        let none = |o: &mut LongctxOptions| o.prefill_tokens_per_s = Some(0.0);
        assert!(refusal(none).starts_with("--prefill-tokens-per-s: is 0"));
        let bare = "custom:layers=2,kv-heads=1,head-dim=64,dtype=bf16";
        assert!(refusal(|o| o.model = bare.parse().unwrap()).starts_with("--model: has no params"));
        let with_rate = |o: &mut LongctxOptions| {
            o.model = bare.parse().unwrap();
            o.prefill_tokens_per_s = Some(1e4);
        };
        assert_eq!(refusal(with_rate), "");
    }

    #[test]
    fn devices_are_read_as_they_are_shown() {
        for text in ["host", "cuda:0", "cuda:7"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        for text in ["cuda", "cuda:", "cuda:x", "gpu", ""] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }
}
