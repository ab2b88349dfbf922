//! What `undercroft bench replay` does when it is told nothing: sized for 30 seconds on two
//! cores, one GiB of memory and one GiB of disk, with hits in both tiers.

/// Requests of generated traffic.
pub const REQUESTS: u64 = 600;
/// Seed of generated traffic.
pub const SEED: u64 = 42;
/// Bytes of a page.
pub const PAGE_BYTES: u32 = 256 << 10;
/// DRAM tier, bytes.
pub const DRAM_BYTES: u64 = 128 << 20;
/// SSD tier, bytes.
pub const SSD_BYTES: u64 = 512 << 20;
