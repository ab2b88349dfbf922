//! A Llama of seeded random weights: the same in every process.

use anyhow::Result;
use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama2_c::{Cache, Config, Llama};
use std::collections::HashMap;
use undercroft_client::wire::{Dtype, Family, Geometry, Rank, Space};

const CONFIG: Config = Config {
    dim: 128,
    hidden_dim: 256,
    n_layers: 4,
    n_heads: 8,
    n_kv_heads: 4,
    vocab_size: 1000,
    seq_len: 512,
    norm_eps: 1e-5,
};
const SEED: u64 = 0x5eed;

/// What is read so far, and what reads.
pub struct Engine {
    model: Llama,
    /// candle's own: for each layer K and V, `[1, tokens, heads, elements]`.
    pub cache: Cache,
    digest: [u8; 32],
    page_tokens: usize,
}

impl Engine {
    pub fn new(page_tokens: usize) -> Result<Self> {
        let (weights, digest) = weights()?;
        let variables = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
        let cache = Cache::new(true, &CONFIG, variables.pp("rotary"))?;
        Ok(Self { model: Llama::load(variables, CONFIG)?, cache, digest, page_tokens })
    }

    /// Heads of the cache and elements of each.
    pub fn shape(&self) -> (usize, usize) {
        (CONFIG.n_kv_heads, CONFIG.dim / CONFIG.n_heads)
    }

    /// Under what its pages are kept: a digest of the very weights, and their shape.
    pub fn space(&self) -> Result<Space> {
        let (heads, elements) = self.shape();
        let family = Family {
            model: self.digest,
            adapter: [0; 32],
            dtype: Dtype::F32,
            quantization: "none".into(),
            attention: "rope 10000".into(),
            layout: "thd".into(),
            layers: CONFIG.n_layers as u32,
            kv_heads: heads as u32,
            page_tokens: self.page_tokens as u32,
        };
        let fragment = self.page_tokens * heads * elements * size_of::<f32>();
        let geometry = Geometry::new(CONFIG.n_layers as u32, 2, fragment as u32)?;
        Ok(Space { family, rank: Rank::Shared, group: 0, geometry })
    }

    /// Reads tokens that stand at `at`. Gives the logits after the last one.
    pub fn read(&mut self, tokens: &[u32], at: usize) -> Result<Vec<f32>> {
        let tokens = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let logits = self.model.forward(&tokens, at, &mut self.cache)?;
        let last = logits.dim(1)? - 1;
        Ok(logits.i((0, last))?.to_vec1()?)
    }

    /// Reads the prompt from `at` on and goes on with the likeliest tokens. With a checksum of the bits of all logits.
    pub fn generate(&mut self, prompt: &[u32], at: usize, count: usize) -> Result<(Vec<u32>, u64)> {
        let mut logits = self.read(&prompt[at..], at)?;
        let (mut said, mut bits) = (Vec::new(), 0_u64);
        for at in prompt.len()..prompt.len() + count {
            for logit in &logits {
                bits = (bits.rotate_left(5) ^ u64::from(logit.to_bits()))
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15);
            }
            let best = logits.iter().enumerate().max_by(|one, other| one.1.total_cmp(other.1));
            let token = best.map_or(0, |(token, _)| token as u32);
            said.push(token);
            logits = self.read(&[token], at)?;
        }
        Ok((said, bits))
    }
}

/// Weights by name, and their digest.
fn weights() -> Result<(HashMap<String, Tensor>, [u8; 32])> {
    let (dim, hidden, vocabulary) = (CONFIG.dim, CONFIG.hidden_dim, CONFIG.vocab_size);
    let kv = dim / CONFIG.n_heads * CONFIG.n_kv_heads;
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens".into(), vec![vocabulary, dim]),
        ("lm_head".into(), vec![vocabulary, dim]),
        ("model.norm".into(), vec![dim]),
    ];
    for layer in 0..CONFIG.n_layers {
        let parts: [(&str, Vec<usize>); 9] = [
            ("self_attn.q_proj", vec![dim, dim]),
            ("self_attn.k_proj", vec![kv, dim]),
            ("self_attn.v_proj", vec![kv, dim]),
            ("self_attn.o_proj", vec![dim, dim]),
            ("mlp.gate_proj", vec![hidden, dim]),
            ("mlp.up_proj", vec![hidden, dim]),
            ("mlp.down_proj", vec![dim, hidden]),
            ("input_layernorm", vec![dim]),
            ("post_attention_layernorm", vec![dim]),
        ];
        shapes.extend(parts.map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape)));
    }
    let mut state = SEED;
    let mut digest = blake3::Hasher::new();
    let mut weights = HashMap::new();
    for (name, shape) in shapes {
        let scale = if shape.len() == 1 { 0.0 } else { 3.0 / (shape[1] as f32).sqrt() };
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            // Around 0, or 1 where it scales.
            let unit = (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5;
            if scale == 0.0 { 1.0 } else { unit * scale }
        };
        let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| random()).collect();
        digest.update(name.as_bytes());
        values.iter().for_each(|value| {
            digest.update(&value.to_le_bytes());
        });
        weights.insert(format!("{name}.weight"), Tensor::from_vec(values, shape, &Device::Cpu)?);
    }
    Ok((weights, *digest.finalize().as_bytes()))
}
