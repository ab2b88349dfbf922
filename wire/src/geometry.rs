use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The smallest page the protocol accepts, bytes.
pub const MIN_PAGE_BYTES: u32 = 512;
/// The largest page the protocol accepts, bytes: 512 tokens of an 8B model in bf16.
pub const MAX_PAGE_BYTES: u32 = 64 << 20;
/// Frames, slots and records start at multiples of this many bytes, so that direct I/O can move
/// a page between SSD and arena without a copy.
pub const FRAME_ALIGN: u32 = 4096;
/// The most parts a layer may have. K, V and a scale for each are four.
pub const MAX_PARTS: usize = 8;

/// The shape of a page: its layers one after another, each made of the same parts in the same
/// order (layer 0 part 0, layer 0 part 1, layer 1 part 0, …). One part of one layer is a fragment.
/// Parts may differ in size: scales lie beside what they scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Geometry {
    layers: u32,
    /// Bytes of each part; 0 from the first one that a layer does not have.
    parts: [u32; MAX_PARTS],
}

/// Why a geometry is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum GeometryError {
    /// A factor is zero.
    #[error("{field} is 0, allowed 1 or more")]
    Zero {
        /// Which factor.
        field: &'static str,
    },
    /// A layer of too many parts.
    #[error("a layer of {found} parts, allowed 1 to {MAX_PARTS}")]
    Parts {
        /// Parts asked for.
        found: u64,
    },
    /// The page's size is out of range.
    #[error("a page of {found} bytes is outside {MIN_PAGE_BYTES}..={MAX_PAGE_BYTES} bytes")]
    PageBytes {
        /// The product, bytes.
        found: u64,
    },
}

impl Geometry {
    /// A page of `layers` layers with `parts` fragments each (2 for K and V, 1 for MLA's latent),
    /// every fragment `fragment_bytes` long.
    ///
    /// # Errors
    /// A factor of zero, more than [`MAX_PARTS`] parts, or a page outside
    /// [`MIN_PAGE_BYTES`]`..=`[`MAX_PAGE_BYTES`].
    pub fn new(layers: u32, parts: u32, fragment_bytes: u32) -> Result<Self, GeometryError> {
        if parts as usize > MAX_PARTS {
            return Err(GeometryError::Parts { found: u64::from(parts) });
        }
        Self::of_parts(layers, &[fragment_bytes; MAX_PARTS][..parts as usize])
    }

    /// A page of `layers` layers whose parts have these sizes, bytes: for quantized K and V with
    /// their scales `[k, v, k_scale, v_scale]`.
    ///
    /// # Errors
    /// No layer, no part, a part without bytes, more than [`MAX_PARTS`] parts, or a page outside
    /// [`MIN_PAGE_BYTES`]`..=`[`MAX_PAGE_BYTES`].
    pub fn of_parts(layers: u32, part_bytes: &[u32]) -> Result<Self, GeometryError> {
        if layers == 0 {
            return Err(GeometryError::Zero { field: "layers" });
        }
        if part_bytes.is_empty() {
            return Err(GeometryError::Zero { field: "parts" });
        }
        if part_bytes.len() > MAX_PARTS {
            return Err(GeometryError::Parts { found: part_bytes.len() as u64 });
        }
        if part_bytes.contains(&0) {
            return Err(GeometryError::Zero { field: "fragment_bytes" });
        }
        let mut parts = [0; MAX_PARTS];
        parts[..part_bytes.len()].copy_from_slice(part_bytes);
        let found = u64::from(layers).saturating_mul(sum(&parts));
        if found < u64::from(MIN_PAGE_BYTES) || found > u64::from(MAX_PAGE_BYTES) {
            return Err(GeometryError::PageBytes { found });
        }
        Ok(Self { layers, parts })
    }

    /// Number of layers.
    #[must_use]
    pub fn layers(&self) -> u32 {
        self.layers
    }

    /// Fragments per layer: 2 for K and V, 1 for a shared latent.
    #[must_use]
    pub fn parts(&self) -> u32 {
        self.part_bytes().len() as u32
    }

    /// Bytes of each part of a layer.
    #[must_use]
    pub fn part_bytes(&self) -> &[u32] {
        let count = self.parts.iter().position(|bytes| *bytes == 0).unwrap_or(MAX_PARTS);
        &self.parts[..count]
    }

    /// Bytes of one layer of a page.
    #[must_use]
    pub fn layer_bytes(&self) -> u32 {
        // The constructor bounds it; a decoded geometry is checked by `validate`.
        u32::try_from(sum(&self.parts)).unwrap_or(u32::MAX)
    }

    /// Bytes of one page.
    #[must_use]
    pub fn page_bytes(&self) -> u32 {
        self.layers.saturating_mul(self.layer_bytes())
    }

    /// Checks a geometry that came off the wire.
    ///
    /// # Errors
    /// As [`Geometry::of_parts`], and [`GeometryError::Zero`] for a part after one without bytes.
    pub fn validate(&self) -> Result<(), GeometryError> {
        let parts = self.part_bytes();
        if self.parts[parts.len()..].iter().any(|bytes| *bytes != 0) {
            return Err(GeometryError::Zero { field: "fragment_bytes" });
        }
        Self::of_parts(self.layers, parts).map(|_| ())
    }
}

fn sum(parts: &[u32; MAX_PARTS]) -> u64 {
    parts.iter().map(|bytes| u64::from(*bytes)).sum()
}

/// Bytes a page of `page_bytes` takes in a frame, a slot or an SSD record: rounded up to
/// [`FRAME_ALIGN`].
#[must_use]
pub fn frame_bytes(page_bytes: u32) -> u32 {
    page_bytes.next_multiple_of(FRAME_ALIGN)
}
