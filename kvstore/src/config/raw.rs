//! The configuration file as written: every key optional, unknown keys refused.

use serde::Deserialize;

/// A whole file.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawConfig {
    pub(crate) server: RawServer,
    pub(crate) arena: RawArena,
    pub(crate) ssd: RawSsd,
    pub(crate) copy: RawCopy,
    pub(crate) policy: RawPolicy,
    pub(crate) domain: Vec<RawDomain>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawServer {
    pub(crate) socket: Option<String>,
    pub(crate) metrics: Option<String>,
    pub(crate) max_sessions: Option<u64>,
    pub(crate) realtime: Option<bool>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawArena {
    pub(crate) size: Option<Quantity>,
    pub(crate) part: Option<Quantity>,
    pub(crate) slab: Option<Quantity>,
    pub(crate) backing: Option<String>,
    pub(crate) huge_pages: Option<String>,
    pub(crate) lock: Option<bool>,
    pub(crate) staging: Option<Quantity>,
    pub(crate) staging_total: Option<Quantity>,
    pub(crate) numa_node: Option<Several<u64>>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawSsd {
    pub(crate) path: Option<Several<String>>,
    pub(crate) size: Option<Several<Quantity>>,
    pub(crate) encryption: Option<String>,
    pub(crate) key_file: Option<String>,
    pub(crate) segment: Option<Quantity>,
    pub(crate) write_budget: Option<Quantity>,
    pub(crate) write_budget_day: Option<Quantity>,
    pub(crate) endurance: Option<Quantity>,
    pub(crate) engine: Option<String>,
    pub(crate) queue_depth: Option<u64>,
    pub(crate) stall_ms: Option<u64>,
    pub(crate) table_flush_ms: Option<u64>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawCopy {
    pub(crate) workers: Option<u64>,
    pub(crate) mode: Option<String>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawPolicy {
    pub(crate) eviction: Option<String>,
    pub(crate) admission: Option<String>,
    pub(crate) load: Option<String>,
    pub(crate) demote_ahead: Option<u64>,
    pub(crate) fetch_window: Option<u64>,
    pub(crate) max_hold_ms: Option<u64>,
    pub(crate) silence_ms: Option<u64>,
    pub(crate) max_offer_ms: Option<u64>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawDomain {
    pub(crate) name: Option<String>,
    pub(crate) uid: Option<Vec<u32>>,
    pub(crate) gid: Option<Vec<u32>>,
    pub(crate) cgroup: Option<Vec<String>>,
    pub(crate) dram: Option<Quantity>,
    pub(crate) ssd: Option<Quantity>,
    pub(crate) ssd_floor: Option<Quantity>,
    pub(crate) weight: Option<u64>,
    pub(crate) max_reads_in_flight: Option<u64>,
    pub(crate) max_pages: Option<u64>,
    pub(crate) max_spaces: Option<u64>,
    pub(crate) numa_node: Option<Several<u64>>,
    pub(crate) staging_total: Option<Quantity>,
    pub(crate) session_leases: Option<Quantity>,
    pub(crate) max_sessions: Option<u64>,
    pub(crate) mode: Option<String>,
    pub(crate) max_age: Option<Quantity>,
}

/// One value or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected one value or a list of values")]
pub(crate) enum Several<T> {
    One(T),
    List(Vec<T>),
}

impl<T> Several<T> {
    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::List(list) => list,
        }
    }
}

/// A size: a bare number of bytes or a text such as `64KiB`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Quantity {
    Bytes(u64),
    Text(String),
}

impl std::fmt::Display for Quantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Text(text) => write!(f, "\"{text}\""),
        }
    }
}
