//! The layouts that engines have.

use super::{KvLayout, LayoutError, Place, Tensor};
use undercroft_wire::Geometry;

impl KvLayout {
    /// An array over all blocks for each fragment, the arrays one after another from address 0:
    /// for a device with memory of its own. Where parts are of one size all of it is one tensor.
    ///
    /// # Errors
    /// No blocks.
    pub fn packed(geometry: Geometry, blocks: u32) -> Result<Self, LayoutError> {
        let mut end = 0;
        let bases: Vec<u64> = fragments(&geometry)
            .map(|bytes| {
                let base = end;
                end += u64::from(bytes) * u64::from(blocks);
                base
            })
            .collect();
        let Ok(fragment) = equal_parts(&geometry) else {
            return Self::split(geometry, blocks, &bases);
        };
        let places = bases.iter().map(|base| whole(0, *base, u64::from(fragment))).collect();
        Self::new(geometry, blocks, vec![Tensor { base: 0, bytes: end }], places)
    }

    /// A tensor `[blocks, …]` of its own for every fragment, in the order fragments have in a
    /// page. SGLang's layer-first pools (K and V of each layer), MLA's latents, and scales that
    /// lie beside what they scale.
    ///
    /// # Errors
    /// No blocks, not one address for each fragment, or addresses so near that tensors overlap.
    pub fn split(geometry: Geometry, blocks: u32, bases: &[u64]) -> Result<Self, LayoutError> {
        let expected = geometry.layers() as usize * geometry.parts() as usize;
        count(bases, expected)?;
        let tensors = fragments(&geometry)
            .zip(bases)
            .map(|(bytes, base)| Tensor {
                base: *base,
                bytes: u64::from(bytes) * u64::from(blocks),
            })
            .collect();
        let places = fragments(&geometry)
            .enumerate()
            .map(|(tensor, bytes)| whole(tensor, 0, u64::from(bytes)))
            .collect();
        Self::new(geometry, blocks, tensors, places)
    }

    /// A tensor `[parts, blocks, …]` for each layer: vLLM's with K and V first.
    ///
    /// # Errors
    /// No blocks, parts of different sizes, not one address for each layer, or addresses so near
    /// that tensors overlap.
    pub fn parts_first(
        geometry: Geometry,
        blocks: u32,
        layers: &[u64],
    ) -> Result<Self, LayoutError> {
        let fragment = u64::from(equal_parts(&geometry)?);
        Self::by_layer(geometry, blocks, layers, |part| {
            (part * fragment * u64::from(blocks), fragment)
        })
    }

    /// A tensor `[blocks, parts, …]` for each layer: vLLM's with the block first. Parts may
    /// differ in size.
    ///
    /// # Errors
    /// No blocks, not one address for each layer, or addresses so near that tensors overlap.
    pub fn block_first(
        geometry: Geometry,
        blocks: u32,
        layers: &[u64],
    ) -> Result<Self, LayoutError> {
        let part_bytes = geometry.part_bytes().to_vec();
        let stride = u64::from(geometry.layer_bytes());
        Self::by_layer(geometry, blocks, layers, |part| {
            let before = part_bytes[..part as usize].iter().map(|bytes| u64::from(*bytes)).sum();
            (before, stride)
        })
    }

    /// One tensor `[blocks, layers, parts, …]`: a block is a page as it stands. vLLM's cross-layer
    /// blocks.
    ///
    /// # Errors
    /// No blocks.
    pub fn cross_layer(geometry: Geometry, blocks: u32, base: u64) -> Result<Self, LayoutError> {
        let stride = u64::from(geometry.page_bytes());
        let tensors = vec![Tensor { base, bytes: stride * u64::from(blocks) }];
        let mut offset = 0;
        let places = fragments(&geometry)
            .map(|bytes| {
                let place = whole(0, offset, stride);
                offset += u64::from(bytes);
                place
            })
            .collect();
        Self::new(geometry, blocks, tensors, places)
    }

    /// A tensor `[tokens, layers, …]` for each part, `page_tokens` of its rows to a block:
    /// SGLang's page-first pools, in which a fragment is cut into a row for each token.
    ///
    /// # Errors
    /// No blocks, tokens that do not divide a fragment, not one address for each part, or
    /// addresses so near that tensors overlap.
    pub fn token_first(
        geometry: Geometry,
        blocks: u32,
        page_tokens: u32,
        parts: &[u64],
    ) -> Result<Self, LayoutError> {
        count(parts, geometry.parts() as usize)?;
        let layers = u64::from(geometry.layers());
        let tensors = geometry.part_bytes().iter().zip(parts).map(|(bytes, base)| Tensor {
            base: *base,
            bytes: u64::from(*bytes) * layers * u64::from(blocks),
        });
        let tensors = tensors.collect();
        let places = (0..geometry.layers()).flat_map(|layer| {
            geometry.part_bytes().iter().enumerate().map(move |(part, bytes)| {
                // No tokens at all are refused as rows that do not divide the fragment.
                let row = u64::from(bytes.checked_div(page_tokens).unwrap_or(0));
                Place {
                    tensor: part,
                    offset: u64::from(layer) * row,
                    block_stride: u64::from(*bytes) * layers,
                    rows: page_tokens,
                    row_stride: row * layers,
                }
            })
        });
        let places = places.collect();
        Self::new(geometry, blocks, tensors, places)
    }

    /// A tensor for each layer; `place` gives the offset and the block stride of a part.
    fn by_layer(
        geometry: Geometry,
        blocks: u32,
        layers: &[u64],
        place: impl Fn(u64) -> (u64, u64),
    ) -> Result<Self, LayoutError> {
        count(layers, geometry.layers() as usize)?;
        let bytes = u64::from(geometry.layer_bytes()) * u64::from(blocks);
        let tensors = layers.iter().map(|base| Tensor { base: *base, bytes }).collect();
        let places = (0..layers.len()).flat_map(|layer| {
            let place = &place;
            (0..u64::from(geometry.parts())).map(move |part| {
                let (offset, stride) = place(part);
                whole(layer, offset, stride)
            })
        });
        let places = places.collect();
        Self::new(geometry, blocks, tensors, places)
    }
}

/// Bytes of each fragment of a page.
fn fragments(geometry: &Geometry) -> impl Iterator<Item = u32> {
    let layers = geometry.layers() as usize;
    geometry.part_bytes().iter().copied().cycle().take(layers * geometry.part_bytes().len())
}

fn whole(tensor: usize, offset: u64, block_stride: u64) -> Place {
    Place { tensor, offset, block_stride, rows: 1, row_stride: 0 }
}

fn count(found: &[u64], expected: usize) -> Result<(), LayoutError> {
    if found.len() == expected {
        Ok(())
    } else {
        Err(LayoutError::Tensor { found: found.len(), expected })
    }
}

fn equal_parts(geometry: &Geometry) -> Result<u32, LayoutError> {
    let parts = geometry.part_bytes();
    let one = parts[0];
    match parts.iter().find(|bytes| **bytes != one) {
        None => Ok(one),
        Some(other) => Err(LayoutError::UnequalParts { one, other: *other }),
    }
}
