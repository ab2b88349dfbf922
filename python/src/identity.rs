use crate::arguments::bytes;
use crate::error::value;
use crate::keys::to_bytes;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use undercroft_client::wire::{self, Chain, Dtype, FamilyDigest, PageKey};

const DTYPES: [(&str, Dtype); 6] = [
    ("bf16", Dtype::Bf16),
    ("f16", Dtype::F16),
    ("f32", Dtype::F32),
    ("fp8_e4m3", Dtype::Fp8E4m3),
    ("fp8_e5m2", Dtype::Fp8E5m2),
    ("int8", Dtype::Int8),
];

/// What all shards of a model share.
#[pyclass(frozen, eq, hash, module = "undercroft")]
#[derive(PartialEq, Eq)]
pub(crate) struct Family {
    pub(crate) family: wire::Family,
    pub(crate) digest: FamilyDigest,
}

impl Hash for Family {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.family.hash(state);
    }
}

#[pymethods]
impl Family {
    #[new]
    #[pyo3(signature = (*, model, dtype, layers, kv_heads, page_tokens, adapter = None,
                        quantization = "none", attention = "", layout = ""))]
    #[expect(clippy::too_many_arguments, reason = "an identity has as many fields, and names")]
    fn new(
        model: &[u8],
        dtype: &str,
        layers: u32,
        kv_heads: u32,
        page_tokens: u32,
        adapter: Option<&[u8]>,
        quantization: &str,
        attention: &str,
        layout: &str,
    ) -> PyResult<Self> {
        let adapter = adapter.map_or(Ok([0; 32]), |adapter| bytes("adapter", adapter))?;
        let family = wire::Family {
            model: bytes("model", model)?,
            adapter,
            dtype: of_name(dtype)?,
            quantization: quantization.to_owned(),
            attention: attention.to_owned(),
            layout: layout.to_owned(),
            layers,
            kv_heads,
            page_tokens,
        };
        // What is wrong with it is told here and not when a space of it is opened.
        let (rank, group) = (wire::Rank::Shared, 0);
        let geometry = wire::Geometry::new(1, 1, 4096).map_err(value)?;
        let space = wire::Space { family: family.clone(), rank, group, geometry };
        space.validate().map_err(value)?;
        let digest = family.digest();
        Ok(Self { family, digest })
    }

    #[getter]
    fn digest<'py>(&self, python: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(python, &self.digest.0)
    }

    #[getter]
    fn page_tokens(&self) -> u32 {
        self.family.page_tokens
    }

    fn key<'py>(&self, python: Python<'py>, engine_hash: &[u8]) -> Bound<'py, PyBytes> {
        PyBytes::new(python, &PageKey::from_engine_hash(&self.digest, engine_hash).0)
    }

    fn keys<'py>(
        &self,
        python: Python<'py>,
        engine_hashes: Vec<Bound<'py, PyBytes>>,
    ) -> Bound<'py, PyBytes> {
        let of =
            |hash: &Bound<'_, PyBytes>| PageKey::from_engine_hash(&self.digest, hash.as_bytes());
        to_bytes(python, &engine_hashes.iter().map(of).collect::<Vec<_>>())
    }

    #[pyo3(signature = (tokens, *, salt = None))]
    fn chain<'py>(
        &self,
        python: Python<'py>,
        tokens: Vec<u32>,
        salt: Option<&[u8]>,
    ) -> Bound<'py, PyBytes> {
        let mut chain = Chain::new(&self.digest, salt.unwrap_or_default());
        let pages = tokens.chunks_exact(self.family.page_tokens as usize);
        to_bytes(python, &pages.map(|page| chain.push(page)).collect::<Vec<_>>())
    }

    fn __repr__(&self) -> String {
        let wire::Family { layers, kv_heads, page_tokens, .. } = &self.family;
        let digest: String = self.digest.0[..4].iter().map(|b| format!("{b:02x}")).collect();
        format!("Family({digest}, {layers} layers, {kv_heads} KV heads, {page_tokens} tokens)")
    }
}

fn of_name(name: &str) -> PyResult<Dtype> {
    let known = DTYPES.iter().find(|(known, _)| *known == name).map(|(_, dtype)| *dtype);
    known.ok_or_else(|| {
        let allowed: Vec<&str> = DTYPES.iter().map(|(name, _)| *name).collect();
        value(format!("dtype is {name:?}, allowed {}", allowed.join(", ")))
    })
}

/// The shape of a page.
#[pyclass(frozen, eq, hash, from_py_object, module = "undercroft")]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry(pub(crate) wire::Geometry);

impl Hash for Geometry {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut hasher = DefaultHasher::new();
        (self.0.layers(), self.0.part_bytes()).hash(&mut hasher);
        state.write_u64(hasher.finish());
    }
}

impl Geometry {
    pub(crate) fn of(layers: u32, part_bytes: &[u32]) -> PyResult<Self> {
        wire::Geometry::of_parts(layers, part_bytes).map(Self).map_err(value)
    }
}

#[pymethods]
impl Geometry {
    #[new]
    #[expect(clippy::needless_pass_by_value, reason = "what Python hands over")]
    fn new(layers: u32, part_bytes: Vec<u32>) -> PyResult<Self> {
        Self::of(layers, &part_bytes)
    }

    #[getter]
    fn layers(&self) -> u32 {
        self.0.layers()
    }

    #[getter]
    fn part_bytes(&self) -> Vec<u32> {
        self.0.part_bytes().to_vec()
    }

    #[getter]
    fn page_bytes(&self) -> u32 {
        self.0.page_bytes()
    }

    fn __repr__(&self) -> String {
        format!("Geometry({}, {:?})", self.0.layers(), self.0.part_bytes())
    }
}
