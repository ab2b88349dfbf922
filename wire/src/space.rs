use crate::{Geometry, GeometryError};
use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

/// The most spaces one lookup may ask about: the ranks and groups of one model.
pub const MAX_SPACES_PER_LOOKUP: usize = 256;
/// The most bytes a free-text field of an identity may have.
pub const MAX_TEXT_BYTES: usize = 256;

/// The element type of the stored KV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the field's own")]
pub enum Dtype {
    Bf16,
    F16,
    F32,
    Fp8E4m3,
    Fp8E5m2,
    Int8,
}

/// Which shard of the model a space belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Rank {
    /// The page is the same on every rank (MLA).
    Shared,
    /// Rank `index` of `count`.
    Of {
        /// Zero-based.
        index: u16,
        /// Total number of ranks.
        count: u16,
    },
}

/// The identity shared by all shards of one model: a space without rank and group. Keys are
/// chained over it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Family {
    /// Digest of the model's config and of its weight files' names, sizes and headers.
    pub model: [u8; 32],
    /// Digest of the adapter (LoRA), all zero for none.
    pub adapter: [u8; 32],
    /// Element type of the stored KV.
    pub dtype: Dtype,
    /// Quantization of the KV, `none` if it has none. At most [`MAX_TEXT_BYTES`] bytes.
    pub quantization: String,
    /// Rope and attention-window settings, in the engine's canonical text. At most
    /// [`MAX_TEXT_BYTES`] bytes.
    pub attention: String,
    /// Memory layout of a fragment, in the engine's words. At most [`MAX_TEXT_BYTES`] bytes.
    pub layout: String,
    /// Layers of the whole model.
    pub layers: u32,
    /// KV heads of the whole model.
    pub kv_heads: u32,
    /// Tokens in one page.
    pub page_tokens: u32,
}

/// The full identity under which keys mean something. Two spaces never share a page, and all
/// pages of a space have one size.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Space {
    /// What all shards share.
    pub family: Family,
    /// Which shard.
    pub rank: Rank,
    /// Which KV-cache group of a hybrid model; 0 where there is one.
    pub group: u32,
    /// The shape of a page.
    pub geometry: Geometry,
}

/// BLAKE3 of a family's canonical encoding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FamilyDigest(pub [u8; 32]);

/// BLAKE3 of a space's canonical encoding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SpaceDigest(pub [u8; 32]);

/// Why an identity is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpaceError {
    /// A text field is too long.
    #[error("{field} has {found} bytes, allowed 0..={MAX_TEXT_BYTES}")]
    Text {
        /// Which field.
        field: &'static str,
        /// Its length, bytes.
        found: usize,
    },
    /// A number is out of range.
    #[error("{field} is {found}, allowed {allowed}")]
    Number {
        /// Which field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// The allowed range, for people.
        allowed: &'static str,
    },
    /// The page's shape is wrong.
    #[error("geometry: {0}")]
    Geometry(#[from] GeometryError),
}

impl Family {
    /// The digest keys are chained over.
    #[must_use]
    pub fn digest(&self) -> FamilyDigest {
        let mut hasher = blake3::Hasher::new_derive_key("undercroft family v1");
        self.feed(&mut hasher);
        FamilyDigest(*hasher.finalize().as_bytes())
    }

    fn feed(&self, hasher: &mut blake3::Hasher) {
        hasher.update(&self.model);
        hasher.update(&self.adapter);
        hasher.update(&[dtype_code(self.dtype)]);
        // Every text is preceded by its length: no two identities share an encoding.
        for text in [&self.quantization, &self.attention, &self.layout] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        for number in [self.layers, self.kv_heads, self.page_tokens] {
            hasher.update(&number.to_le_bytes());
        }
    }
}

impl SpaceDigest {
    /// All of it, as 64 hexadecimal digits.
    #[must_use]
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Space {
    /// The digest that names the space on disk.
    #[must_use]
    pub fn digest(&self) -> SpaceDigest {
        let mut hasher = blake3::Hasher::new_derive_key("undercroft space v1");
        self.family.feed(&mut hasher);
        match self.rank {
            Rank::Shared => hasher.update(&[0; 5]),
            Rank::Of { index, count } => {
                hasher.update(&[1]);
                hasher.update(&index.to_le_bytes());
                hasher.update(&count.to_le_bytes())
            }
        };
        for number in [self.group, self.geometry.layers(), self.geometry.parts()] {
            hasher.update(&number.to_le_bytes());
        }
        for bytes in self.geometry.part_bytes() {
            hasher.update(&bytes.to_le_bytes());
        }
        SpaceDigest(*hasher.finalize().as_bytes())
    }

    /// Checks an identity that came off the wire.
    ///
    /// # Errors
    /// The first field out of range.
    pub fn validate(&self) -> Result<(), SpaceError> {
        self.geometry.validate()?;
        let family = &self.family;
        for (field, text) in [
            ("quantization", &family.quantization),
            ("attention", &family.attention),
            ("layout", &family.layout),
        ] {
            if text.len() > MAX_TEXT_BYTES {
                return Err(SpaceError::Text { field, found: text.len() });
            }
        }
        for (field, value) in [
            ("layers", family.layers),
            ("kv_heads", family.kv_heads),
            ("page_tokens", family.page_tokens),
        ] {
            if value == 0 {
                return Err(SpaceError::Number { field, found: 0, allowed: "1 or more" });
            }
        }
        if let Rank::Of { index, count } = self.rank
            && index >= count
        {
            let found = u64::from(index);
            return Err(SpaceError::Number { field: "rank", found, allowed: "less than count" });
        }
        Ok(())
    }
}

/// Stable on disk and on the wire; never renumber.
fn dtype_code(dtype: Dtype) -> u8 {
    match dtype {
        Dtype::Bf16 => 0,
        Dtype::F16 => 1,
        Dtype::F32 => 2,
        Dtype::Fp8E4m3 => 3,
        Dtype::Fp8E5m2 => 4,
        Dtype::Int8 => 5,
    }
}

macro_rules! short_hex {
    ($name:ident) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "("))?;
                self.0[..8].iter().try_for_each(|b| write!(f, "{b:02x}"))?;
                write!(f, "..)")
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0[..8].iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }
    };
}
short_hex!(FamilyDigest);
short_hex!(SpaceDigest);
