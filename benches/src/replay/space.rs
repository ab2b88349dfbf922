use crate::{BenchError, PageContent, Trace};
use undercroft_wire::{
    DomainId, Dtype, FRAME_ALIGN, Family, Geometry, PageKey, Rank, Space, SpaceDigest,
};

/// Fragments smaller than this are unlike any engine's, so pages are not cut finer.
const LEAST_FRAGMENT_BYTES: u32 = 4096;
/// Only a label here: the traffic names whole blocks.
const PAGE_TOKENS: u32 = 512;

/// The identity a trace is replayed under, its pages' keys and what they contain.
pub(super) struct Content {
    pub(super) space: Space,
    domain: DomainId,
    digest: SpaceDigest,
    /// By page number.
    keys: Vec<PageKey>,
}

impl Content {
    pub(super) fn new(trace: &Trace, page_bytes: u32) -> Result<Self, BenchError> {
        let geometry = geometry(page_bytes)
            .map_err(|e| BenchError::Option { option: "--page-bytes", problem: e.to_string() })?;
        let family = family(trace, geometry);
        let keys = keys_in(&family, trace);
        let space = Space { family, rank: Rank::Shared, group: 0, geometry };
        let digest = space.digest();
        Ok(Self { space, domain: DomainId::named("default"), digest, keys })
    }

    pub(super) fn key(&self, page: u32) -> PageKey {
        self.keys[page as usize]
    }

    pub(super) fn of(&self, page: u32) -> PageContent {
        PageContent::new(&self.domain, &self.digest, self.space.rank, &self.key(page))
    }
}

fn family(trace: &Trace, geometry: Geometry) -> Family {
    Family {
        // Ids mean something inside one trace only, so the trace is the model.
        model: *trace.digest(),
        adapter: [0; 32],
        dtype: Dtype::Bf16,
        quantization: "none".to_owned(),
        attention: "bench replay".to_owned(),
        layout: "bench replay".to_owned(),
        layers: geometry.layers(),
        kv_heads: 8,
        page_tokens: PAGE_TOKENS,
    }
}

fn keys_in(family: &Family, trace: &Trace) -> Vec<PageKey> {
    let digest = family.digest();
    // A trace's id names a whole prefix, which is what an engine's own block hash does.
    let key = |id: &u64| PageKey::from_engine_hash(&digest, &id.to_le_bytes());
    trace.names().iter().map(key).collect()
}

/// By page number: the keys that a replay with pages of 4 KiB gives a trace's pages. What a policy
/// learns may hang on them.
#[must_use]
pub fn replay_keys(trace: &Trace) -> Vec<PageKey> {
    let geometry = geometry(FRAME_ALIGN).expect("a page of one frame is possible");
    keys_in(&family(trace, geometry), trace)
}

/// A page cut into as many layers as a real model of its size would have.
pub(crate) fn geometry(page_bytes: u32) -> Result<Geometry, undercroft_wire::GeometryError> {
    let cut = [32, 16, 8, 4, 2, 1].into_iter().find(|layers| {
        let fragments = layers * 2;
        page_bytes.is_multiple_of(fragments) && page_bytes / fragments >= LEAST_FRAGMENT_BYTES
    });
    match cut {
        Some(layers) => Geometry::new(layers, 2, page_bytes / (layers * 2)),
        None => Geometry::new(1, 1, page_bytes),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn pages_of_every_size_have_a_shape() {
        for bytes in [512, 1000, 4096, 8192, 12_288, 65_536, 1 << 20, 2 << 20, 64 << 20] {
            assert_eq!(geometry(bytes).unwrap().page_bytes(), bytes);
        }
        let two_mib = geometry(2 << 20).unwrap();
        assert_eq!((two_mib.layers(), two_mib.part_bytes()), (32, &[32 << 10; 2][..]));
    }
}
