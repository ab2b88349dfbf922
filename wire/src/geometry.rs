use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The smallest page the protocol accepts, bytes.
pub const MIN_PAGE_BYTES: u32 = 512;
/// The largest page the protocol accepts, bytes: 512 tokens of an 8B model in bf16.
pub const MAX_PAGE_BYTES: u32 = 64 << 20;
/// Frames, slots and records start at multiples of this many bytes, so that direct I/O can move
/// a page between SSD and arena without a copy.
pub const FRAME_ALIGN: u32 = 4096;

/// The shape of a page: `layers × parts` fragments of `fragment_bytes` each, one after another
/// (layer 0 part 0, layer 0 part 1, layer 1 part 0, …).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Geometry {
    layers: u32,
    parts: u32,
    fragment_bytes: u32,
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
    /// A factor of zero, or a page outside [`MIN_PAGE_BYTES`]`..=`[`MAX_PAGE_BYTES`].
    pub fn new(layers: u32, parts: u32, fragment_bytes: u32) -> Result<Self, GeometryError> {
        for (field, value) in
            [("layers", layers), ("parts", parts), ("fragment_bytes", fragment_bytes)]
        {
            if value == 0 {
                return Err(GeometryError::Zero { field });
            }
        }
        let found = u64::from(layers)
            .saturating_mul(u64::from(parts))
            .saturating_mul(u64::from(fragment_bytes));
        if found < u64::from(MIN_PAGE_BYTES) || found > u64::from(MAX_PAGE_BYTES) {
            return Err(GeometryError::PageBytes { found });
        }
        Ok(Self { layers, parts, fragment_bytes })
    }

    /// Number of layers.
    #[must_use]
    pub fn layers(&self) -> u32 {
        self.layers
    }

    /// Fragments per layer: 2 for K and V, 1 for a shared latent.
    #[must_use]
    pub fn parts(&self) -> u32 {
        self.parts
    }

    /// Bytes of one fragment.
    #[must_use]
    pub fn fragment_bytes(&self) -> u32 {
        self.fragment_bytes
    }

    /// Bytes of one page.
    #[must_use]
    pub fn page_bytes(&self) -> u32 {
        // The constructor bounds the product; a decoded geometry is checked by `validate`.
        self.layers.saturating_mul(self.parts).saturating_mul(self.fragment_bytes)
    }

    /// Checks a geometry that came off the wire.
    ///
    /// # Errors
    /// As [`Geometry::new`].
    pub fn validate(&self) -> Result<(), GeometryError> {
        Self::new(self.layers, self.parts, self.fragment_bytes).map(|_| ())
    }
}

/// Bytes a page of `page_bytes` takes in a frame, a slot or an SSD record: rounded up to
/// [`FRAME_ALIGN`].
#[must_use]
pub fn frame_bytes(page_bytes: u32) -> u32 {
    page_bytes.next_multiple_of(FRAME_ALIGN)
}
