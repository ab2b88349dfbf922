use super::model::Model;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Share of a GPU's peak that prefill is assumed to reach where nobody says.
pub const UTILISATION: f64 = 0.5;

/// A GPU as its data sheet has it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Gpu {
    /// Its name, as it is typed.
    pub name: &'static str,
    /// Peak dense BF16 rate, floating-point operations a second (no sparsity).
    pub flops_per_s: f64,
    /// Power of the whole board at most, watts.
    pub watts: f64,
}

/// From the makers' data sheets: H100 SXM5 and H200 SXM5 989.4 TFLOP/s and 700 W, A100 SXM4 80 GB
/// 312 TFLOP/s and 400 W, L40S 362 TFLOP/s and 350 W, MI300X 1307.4 TFLOP/s and 750 W.
const GPUS: [Gpu; 5] = [
    Gpu { name: "h100", flops_per_s: 989.4e12, watts: 700.0 },
    Gpu { name: "h200", flops_per_s: 989.4e12, watts: 700.0 },
    Gpu { name: "a100", flops_per_s: 312e12, watts: 400.0 },
    Gpu { name: "l40s", flops_per_s: 362e12, watts: 350.0 },
    Gpu { name: "mi300x", flops_per_s: 1307.4e12, watts: 750.0 },
];

/// There is no such GPU in the table.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{found:?} is not in the table: allowed are h100, h200, a100, l40s, mi300x")]
pub struct GpuError {
    found: String,
}

impl FromStr for Gpu {
    type Err = GpuError;

    fn from_str(text: &str) -> Result<Self, GpuError> {
        let found = GPUS.into_iter().find(|gpu| gpu.name == text);
        found.ok_or_else(|| GpuError { found: text.to_owned() })
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// What it takes to compute a context's KV cache anew: seconds that grow with its tokens, and with
/// their square.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recompute {
    /// Where the figures come from, for people.
    pub source: String,
    /// Seconds for each token.
    pub s_per_token: f64,
    /// Seconds for each square of tokens: attention.
    pub s_per_token2: f64,
}

impl Recompute {
    /// As an operator measured it: so many tokens a second, at any length.
    pub(crate) fn at_rate(tokens_per_s: f64) -> Self {
        Self {
            source: format!(
                "--prefill-tokens-per-s {tokens_per_s}: recompute = tokens / {tokens_per_s}/s, at \
                 any length"
            ),
            s_per_token: 1.0 / tokens_per_s,
            s_per_token2: 0.0,
        }
    }

    /// By a roofline: `2 × params` operations for each token, and for each pair of a token and one
    /// at or before it `2 × (query + value dimension)` for each head and layer, on `tp` GPUs at a
    /// share of their peak.
    pub(crate) fn by_roofline(model: &Model, gpu: Gpu, tp: u32, utilisation: f64) -> Self {
        let flops_per_s = gpu.flops_per_s * f64::from(tp) * utilisation;
        let per_token = 2.0 * model.params;
        // A causal mask leaves half of the pairs: 2 × width × tokens² / 2.
        let per_token2 = f64::from(model.layers) * model.attention_width as f64;
        Self {
            source: format!(
                "roofline of {tp} × {gpu}: recompute = (2 × {:.3e} × T + {:.3e} × T²) FLOP / ({tp} × \
                 {:.1} TFLOP/s dense BF16 × {utilisation} utilisation assumed)",
                model.params,
                per_token2,
                gpu.flops_per_s / 1e12,
            ),
            s_per_token: per_token / flops_per_s,
            s_per_token2: per_token2 / flops_per_s,
        }
    }

    /// Seconds for a context of so many tokens.
    #[must_use]
    pub fn seconds(&self, tokens: f64) -> f64 {
        tokens * (self.s_per_token + tokens * self.s_per_token2)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    /// By hand: 2 × 8.03e9 × 8192 = 1.316e14 and 32 × 8192 × 8192² = 1.759e13 operations, of
    /// which an H100 at half its peak does 4.947e14 a second.
    #[test]
    fn a_roofline_is_what_one_computes_by_hand() {
        let model: Model = "llama-3.1-8b".parse().unwrap();
        let gpu: Gpu = "h100".parse().unwrap();
        let one = Recompute::by_roofline(&model, gpu, 1, 0.5);
        let seconds = one.seconds(8192.0);
        assert!((seconds - (1.315_635e14 + 1.759_219e13) / 4.947e14).abs() < 1e-5, "{seconds}");
        let four = Recompute::by_roofline(&model, gpu, 4, 0.5);
        assert!((one.seconds(1e5) / four.seconds(1e5) - 4.0).abs() < 1e-9);
        // Attention outgrows the rest.
        assert!(one.seconds(1048576.0) > 20.0 * one.seconds(131072.0));
        assert!(one.source.contains("989.4") && one.source.contains("0.5"), "{}", one.source);
    }

    #[test]
    fn a_measured_rate_is_taken_as_it_is() {
        let rate = Recompute::at_rate(8000.0);
        assert!((rate.seconds(16_000.0) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn gpus_are_those_of_the_table() {
        assert_eq!("mi300x".parse::<Gpu>().unwrap().watts, 750.0);
        assert!("b300".parse::<Gpu>().unwrap_err().to_string().contains("allowed are h100"));
    }
}
