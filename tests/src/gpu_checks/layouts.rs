use anyhow::Result;
use undercroft_client::wire::Geometry;
use undercroft_gpu_shim::KvLayout;

/// 32 layers, K and V of 16 tokens with 8 heads of 128 in bf16: Llama-3.1-8B.
const LAYERS: u32 = 32;
const PARTS: u32 = 2;
const FRAGMENT_BYTES: u32 = 32 << 10;
const TOKENS: u32 = 16;
/// As small as a latent of few tokens: 64 layers of 4 KiB.
const LATENT_LAYERS: u32 = 64;
const LATENT_BYTES: u32 = 4 << 10;

/// How an engine keeps its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// All layers of a block together: vLLM's cross-layer blocks.
    CrossLayer,
    /// A tensor for each layer, K and V first, at uneven distances: vLLM's, each allocated alone.
    PartsFirst,
    /// One array for each fragment, at even distances: SGLang's layer-first pools.
    LayerFirst,
    /// A row for each token: SGLang's page-first pools.
    TokenFirst,
    /// A small tensor for each layer, at uneven distances: MLA.
    Latent,
}

impl Kept {
    pub(super) const ALL: [Self; 5] =
        [Self::CrossLayer, Self::PartsFirst, Self::LayerFirst, Self::TokenFirst, Self::Latent];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::CrossLayer => "cross-layer",
            Self::PartsFirst => "parts first",
            Self::LayerFirst => "layer first",
            Self::TokenFirst => "token first",
            Self::Latent => "latent",
        }
    }

    /// What a piece is that lies together on the device, bytes.
    pub(super) fn piece_bytes(self) -> u32 {
        match self {
            Self::CrossLayer => LAYERS * PARTS * FRAGMENT_BYTES,
            Self::PartsFirst | Self::LayerFirst => FRAGMENT_BYTES,
            Self::TokenFirst => FRAGMENT_BYTES / TOKENS,
            Self::Latent => LATENT_BYTES,
        }
    }

    pub(super) fn geometry(self) -> Geometry {
        let geometry = match self {
            Self::Latent => Geometry::new(LATENT_LAYERS, 1, LATENT_BYTES),
            _ => Geometry::new(LAYERS, PARTS, FRAGMENT_BYTES),
        };
        geometry.expect("a possible page")
    }

    /// What the issue of this backend asks for, as shares of the link: load, store.
    pub(super) fn goals(self) -> Option<(f64, f64)> {
        match self {
            Self::CrossLayer | Self::PartsFirst | Self::LayerFirst => Some((0.95, 0.93)),
            Self::Latent => Some((0.85, 0.85)),
            Self::TokenFirst => None,
        }
    }

    /// The layout of so many blocks, from address 0 on.
    pub(super) fn layout(self, blocks: u32) -> Result<KvLayout> {
        let geometry = self.geometry();
        let layer_bytes = u64::from(geometry.layer_bytes()) * u64::from(blocks);
        // Nothing that an even stride over layers could follow, on the boundaries CUDA allocates on.
        let uneven: Vec<u64> = (0..u64::from(geometry.layers()))
            .map(|layer| layer * (layer_bytes + 4096) + layer * layer % 7 * 512)
            .collect();
        Ok(match self {
            Self::CrossLayer => KvLayout::cross_layer(geometry, blocks, 0)?,
            Self::PartsFirst => KvLayout::parts_first(geometry, blocks, &uneven)?,
            Self::LayerFirst => KvLayout::packed(geometry, blocks)?,
            Self::TokenFirst => {
                let part = layer_bytes * u64::from(LAYERS) / u64::from(PARTS);
                KvLayout::token_first(geometry, blocks, TOKENS, &[0, part])?
            }
            Self::Latent => KvLayout::split(geometry, blocks, &uneven)?,
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn pages_are_of_the_sizes_the_goals_are_for() {
        for kept in Kept::ALL {
            let expected = if kept == Kept::Latent { 256 << 10 } else { 2 << 20 };
            let layout = kept.layout(3).unwrap();
            assert_eq!(layout.geometry().page_bytes(), expected, "{}", kept.name());
            assert!(layout.end() >= 3 * u64::from(expected));
        }
    }
}
