use serde::Serialize;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use undercroft_wire::{Dtype, Geometry, GeometryError};

/// Layers, heads and dimensions beyond these are no model's.
const MAX_COUNT: u64 = 1 << 20;

/// A model as far as its KV cache and the cost of its prefill go.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Model {
    /// What it is called.
    pub name: String,
    /// Layers with a KV cache.
    pub layers: u32,
    /// What a layer keeps of a token.
    pub cache: Cache,
    /// Element type of the cache, as it is typed.
    pub dtype: &'static str,
    /// Parameters that take part in each token (of a mixture of experts, the active ones); 0 where
    /// nobody said.
    pub params: f64,
    /// Over all query heads of a layer, the dimension of a query plus that of a value; 0 where
    /// nobody said. See [`crate::longctx`]'s formula of the recompute.
    pub attention_width: u64,
}

/// What a layer keeps of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cache {
    /// K and V of some heads, which tensor parallelism divides.
    Heads {
        /// Heads of the whole model.
        kv_heads: u32,
        /// Elements of one of them.
        head_dim: u32,
    },
    /// One latent vector (MLA), the same on every rank.
    Latent {
        /// Its elements, those for positions included.
        dim: u32,
    },
}

/// Why a model could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ModelError {
    /// No such model.
    #[error(
        "{found:?} is no model: allowed are llama-3.1-8b, llama-3.1-70b, qwen3-32b, deepseek-v3, \
         and custom:layers=N,kv-heads=N,head-dim=N,dtype=bf16 (or latent=N for kv-heads and \
         head-dim), with params=N and heads=N for the recompute"
    )]
    Unknown {
        /// What was typed.
        found: String,
    },
    /// Something in a custom model is not right.
    #[error("{field}: {problem}")]
    Field {
        /// Which part of it.
        field: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// Its pages are not possible.
    #[error("its pages: {0}")]
    Geometry(#[from] GeometryError),
}

fn field(field: &str, problem: impl Into<String>) -> ModelError {
    ModelError::Field { field: field.to_owned(), problem: problem.into() }
}

impl Model {
    /// Bytes of the cache for each token, on all ranks together; a latent counts once.
    #[must_use]
    pub fn token_bytes(&self) -> u64 {
        let elements = match self.cache {
            Cache::Heads { kv_heads, head_dim } => 2 * u64::from(kv_heads) * u64::from(head_dim),
            Cache::Latent { dim } => dim.into(),
        };
        u64::from(self.layers) * elements * u64::from(self.element_bytes())
    }

    fn element_bytes(&self) -> u32 {
        DTYPES.iter().find(|(name, ..)| *name == self.dtype).map_or(2, |(_, _, bytes)| *bytes)
    }

    pub(super) fn dtype(&self) -> Dtype {
        DTYPES.iter().find(|(name, ..)| *name == self.dtype).map_or(Dtype::Bf16, |found| found.1)
    }

    pub(super) fn kv_heads(&self) -> u32 {
        match self.cache {
            Cache::Heads { kv_heads, .. } => kv_heads,
            Cache::Latent { .. } => 1,
        }
    }

    pub(super) fn is_shared(&self) -> bool {
        matches!(self.cache, Cache::Latent { .. })
    }

    /// The shape of a page of so many tokens on one of `tp` ranks.
    ///
    /// # Errors
    /// Ranks that do not divide the heads, or a page of an impossible size.
    pub fn geometry(&self, tp: u32, page_tokens: u32) -> Result<Geometry, ModelError> {
        let (parts, elements) = match self.cache {
            Cache::Heads { kv_heads, head_dim } => {
                if tp == 0 || !kv_heads.is_multiple_of(tp) {
                    let problem = format!("{tp} ranks do not divide {kv_heads} KV heads");
                    return Err(field("--tp", problem));
                }
                (2, u64::from(kv_heads / tp) * u64::from(head_dim))
            }
            Cache::Latent { dim } => (1, u64::from(dim)),
        };
        let bytes = elements * u64::from(page_tokens) * u64::from(self.element_bytes());
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Ok(Geometry::new(self.layers, parts, bytes)?)
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, layers, cache, dtype, .. } = self;
        match cache {
            Cache::Heads { kv_heads, head_dim } => write!(
                f,
                "{name}: {layers} layers, {kv_heads} KV heads of {head_dim}, {dtype}, {} KiB a token",
                self.token_bytes() as f64 / 1024.0
            ),
            Cache::Latent { dim } => write!(
                f,
                "{name}: {layers} layers, a latent of {dim}, {dtype}, {} KiB a token",
                self.token_bytes() as f64 / 1024.0
            ),
        }
    }
}

const DTYPES: [(&str, Dtype, u32); 6] = [
    ("bf16", Dtype::Bf16, 2),
    ("f16", Dtype::F16, 2),
    ("f32", Dtype::F32, 4),
    ("fp8-e4m3", Dtype::Fp8E4m3, 1),
    ("fp8-e5m2", Dtype::Fp8E5m2, 1),
    ("int8", Dtype::Int8, 1),
];

/// Name, layers, KV heads and their dimension, query heads, parameters, as published with the
/// models.
const DENSE: [(&str, u32, u32, u32, u64, f64); 3] = [
    ("llama-3.1-8b", 32, 8, 128, 32, 8.03e9),
    ("llama-3.1-70b", 80, 8, 128, 64, 70.6e9),
    ("qwen3-32b", 64, 8, 128, 64, 32.8e9),
];

impl FromStr for Model {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        if let Some(fields) = text.strip_prefix("custom:") {
            return custom(text, fields);
        }
        if text == "deepseek-v3" {
            return Ok(Self {
                name: text.to_owned(),
                layers: 61,
                // A compressed latent of 512, and 64 that carry the position.
                cache: Cache::Latent { dim: 512 + 64 },
                dtype: "bf16",
                // Of 671e9 parameters these are active for a token.
                params: 37e9,
                // 128 heads, whose queries have 128 + 64 dimensions and whose values have 128.
                attention_width: 128 * (192 + 128),
            });
        }
        let (name, layers, kv_heads, head_dim, heads, params) = DENSE
            .into_iter()
            .find(|dense| dense.0 == text)
            .ok_or_else(|| ModelError::Unknown { found: text.to_owned() })?;
        Ok(Self {
            name: name.to_owned(),
            layers,
            cache: Cache::Heads { kv_heads, head_dim },
            dtype: "bf16",
            params,
            attention_width: heads * 2 * u64::from(head_dim),
        })
    }
}

/// `layers=2,kv-heads=1,head-dim=64,dtype=bf16,params=1e9,heads=8`, in any order.
fn custom(text: &str, fields: &str) -> Result<Model, ModelError> {
    let mut given: Vec<(&str, &str)> = Vec::new();
    for pair in fields.split(',') {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(field(pair, "is not name=value"));
        };
        const KNOWN: [&str; 7] =
            ["layers", "kv-heads", "head-dim", "latent", "dtype", "params", "heads"];
        if !KNOWN.contains(&name) || given.iter().any(|(seen, _)| *seen == name) {
            return Err(field(name, format!("allowed is each of {} once", KNOWN.join(", "))));
        }
        given.push((name, value));
    }
    let text_of = |name: &str| given.iter().find(|(known, _)| *known == name).map(|found| found.1);
    let count = |name: &str| -> Result<Option<u64>, ModelError> {
        let Some(value) = text_of(name) else { return Ok(None) };
        let number = value.parse().ok().filter(|number| (1..=MAX_COUNT).contains(number));
        let problem = || field(name, format!("is {value:?}, allowed 1..={MAX_COUNT}"));
        number.map(Some).ok_or_else(problem)
    };
    let needed = |name: &str| count(name)?.ok_or_else(|| field(name, "is missing"));
    let cache = match (count("latent")?, count("kv-heads")?, count("head-dim")?) {
        (Some(dim), None, None) => Cache::Latent { dim: dim as u32 },
        (Some(_), ..) => return Err(field("latent", "goes without kv-heads and head-dim")),
        (None, ..) => Cache::Heads {
            kv_heads: needed("kv-heads")? as u32,
            head_dim: needed("head-dim")? as u32,
        },
    };
    let names = DTYPES.map(|(name, ..)| name);
    let dtype = text_of("dtype").ok_or_else(|| field("dtype", "is missing"))?;
    let dtype = *names
        .iter()
        .find(|name| **name == dtype)
        .ok_or_else(|| field("dtype", format!("is {dtype:?}, allowed are {}", names.join(", "))))?;
    let params = match text_of("params") {
        None => 0.0,
        Some(value) => value
            .parse()
            .ok()
            .filter(|params: &f64| (1.0..=1e15).contains(params))
            .ok_or_else(|| field("params", format!("is {value:?}, allowed 1..=1e15")))?,
    };
    let dim = match cache {
        Cache::Heads { head_dim, .. } => head_dim,
        Cache::Latent { dim } => dim,
    };
    let attention_width = count("heads")?.unwrap_or(0) * 2 * u64::from(dim);
    let layers = needed("layers")? as u32;
    Ok(Model { name: text.to_owned(), layers, cache, dtype, params, attention_width })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    /// The figures everybody quotes: 128 KiB a token for Llama 3.1 8B, 320 for 70B, and 68.6 for
    /// the latents of DeepSeek V3.
    #[test]
    fn known_models_keep_what_is_known_of_them() {
        let bytes = |name: &str| name.parse::<Model>().unwrap().token_bytes();
        assert_eq!(bytes("llama-3.1-8b"), 128 << 10);
        assert_eq!(bytes("llama-3.1-70b"), 320 << 10);
        assert_eq!(bytes("qwen3-32b"), 256 << 10);
        assert_eq!(bytes("deepseek-v3"), 61 * 576 * 2);
    }

    #[test]
    fn a_page_is_a_ranks_share_of_its_tokens() {
        let model: Model = "llama-3.1-8b".parse().unwrap();
        let page = model.geometry(1, 16).unwrap();
        assert_eq!((page.layers(), page.parts(), page.page_bytes()), (32, 2, 2 << 20));
        assert_eq!(model.geometry(8, 16).unwrap().page_bytes(), 256 << 10);
        assert!(model.geometry(3, 16).unwrap_err().to_string().contains("3 ranks"));
        // A latent is the same on every rank.
        let latent: Model = "deepseek-v3".parse().unwrap();
        let page = latent.geometry(8, 16).unwrap();
        assert_eq!((page.parts(), page.page_bytes()), (1, 16 * 61 * 576 * 2));
    }

    #[test]
    fn a_custom_model_says_all_it_is() {
        let text = "custom:layers=2,kv-heads=4,head-dim=64,dtype=fp8-e4m3,params=1e6,heads=8";
        let model: Model = text.parse().unwrap();
        assert_eq!((model.token_bytes(), model.params), (2 * 2 * 4 * 64, 1e6));
        assert_eq!(model.attention_width, 8 * 128);
        let latent: Model = "custom:dtype=bf16,latent=576,layers=3".parse().unwrap();
        assert_eq!((latent.token_bytes(), latent.params), (3 * 576 * 2, 0.0));
        for (text, says) in [
            ("llama-4", "allowed are llama-3.1-8b"),
            ("custom:layers=2", "kv-heads: is missing"),
            ("custom:layers=2,kv-heads=1,head-dim=64", "dtype: is missing"),
            ("custom:layers=0,latent=5,dtype=bf16", "layers: is \"0\""),
            ("custom:layers=2,layers=2,latent=5,dtype=bf16", "each of"),
            ("custom:latent=5,kv-heads=2,layers=2,dtype=bf16", "without kv-heads"),
            ("custom:layers=2,latent=5,dtype=fp4", "allowed are bf16"),
            ("custom:layers=2,latent=5,dtype=bf16,params=-1", "params: is"),
        ] {
            let error = text.parse::<Model>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
