//! Everything that a seed decides before a run begins.

use super::content::{Book, SpaceSpec};
use crate::lying::{Atlas, Fault, Place, Rates};
use fastrand::Rng;
use std::ops::Range;
use undercroft_core::{Admission, Config, DeviceConfig, DomainConfig, Limits, Policy, WriteBudget};
use undercroft_wire::{DomainId, Mode, SpaceDigest, frame_bytes};

/// Segments beside those for the capacity, by `docs/disk-format.md`.
const SPARE_SEGMENTS: u32 = 4;

/// What devices are allowed to do, and so what can be asked of the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Class {
    /// Devices reorder, and are cut off, and that is all: what was written is served, what was
    /// sealed or flushed survives.
    Truthful,
    /// Devices fail and stall, and say so.
    Failing,
    /// Devices lie.
    Lying,
}

/// What one device is.
#[derive(Debug, Clone)]
pub(super) struct DevicePlan {
    pub(super) capacity_bytes: u64,
    pub(super) room_bytes: u64,
    pub(super) queue_depth: u32,
    pub(super) table_flush_ms: u64,
    pub(super) stall_ms: u64,
    pub(super) encrypted: bool,
    pub(super) key: [u8; 32],
    pub(super) atlas: Atlas,
    pub(super) latency: Range<u64>,
    pub(super) slowness: Range<u64>,
}

/// A run.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) class: Class,
    pub(super) book: Book,
    pub(super) devices: Vec<DevicePlan>,
    pub(super) core: Config,
    /// The parts of the arena, and whose they are.
    pub(super) parts: Vec<(DomainId, u64)>,
    /// Process and mode of each session at first, and its domain.
    pub(super) sessions: Vec<(u32, Mode, DomainId)>,
    pub(super) slots: u32,
    /// How often the daemon is started.
    pub(super) lives: u32,
    /// What clients do in each life.
    pub(super) actions: Range<u32>,
    /// With more leases than these, clients release some.
    pub(super) leases: usize,
    /// Of 1000 copies, so many fail.
    pub(super) copies_fail: u32,
    /// Of 1000 things that clients do, so many are the end of a session or process.
    pub(super) partings: u32,
}

impl Plan {
    pub(super) fn new(rng: &mut Rng) -> Self {
        let class = match rng.u8(..8) {
            0..3 => Class::Truthful,
            3..5 => Class::Failing,
            _ => Class::Lying,
        };
        let book = book(rng);
        let largest = book.spaces.iter().map(|space| frame_bytes(space.page_bytes)).max();
        let largest = u64::from(largest.expect("there are spaces"));
        let devices: Vec<_> = (0..rng.usize(1..=3)).map(|_| device(rng, class, largest)).collect();
        let mut domains: Vec<_> = book.spaces.iter().map(|space| space.domain).collect();
        let sessions = (0..rng.u32(2..=4))
            .map(|number| {
                let mode = if rng.u8(..3) == 0 { Mode::Copy } else { Mode::ZeroCopy };
                (1 + number / 2, mode, domains[rng.usize(..domains.len())])
            })
            .collect();
        domains.dedup();
        Self {
            class,
            parts: parts(rng, &domains, largest),
            core: core_config(rng, &devices, &domains, largest),
            book,
            devices,
            sessions,
            slots: rng.u32(1..=8),
            lives: rng.u32(2..=4),
            actions: 20..rng.u32(60..200),
            leases: rng.usize(0..=6),
            copies_fail: if rng.bool() { 0 } else { 20 },
            partings: if rng.bool() { 5 } else { 40 },
        }
    }
}

impl Plan {
    /// A short run on one device that does nothing wrong by itself.
    pub(super) fn script(rng: &mut Rng, encrypted: bool) -> Self {
        let mut plan = Self::new(rng);
        let space = SpaceSpec { page_bytes: 8192, ..plan.book.spaces[0] };
        let domain = space.domain;
        let device = DevicePlan {
            capacity_bytes: 48 << 10,
            room_bytes: 16 << 10,
            queue_depth: 2,
            table_flush_ms: 1,
            stall_ms: 100,
            encrypted,
            atlas: Atlas::default(),
            latency: 20..100,
            slowness: 20..100,
            ..plan.devices.swap_remove(0)
        };
        plan.class = Class::Lying;
        plan.core = core_config(rng, std::slice::from_ref(&device), &[domain], 8192);
        plan.parts = vec![(domain, 4 * 8192)];
        plan.devices = vec![device];
        plan.book = Book { spaces: vec![space], chains: 4, depth: 5, shared: 1 };
        plan.sessions = vec![(1, Mode::ZeroCopy, domain)];
        Self { lives: 2, actions: 40..41, leases: 1, copies_fail: 0, partings: 0, slots: 4, ..plan }
    }
}

impl DevicePlan {
    /// Segments of the store.
    pub(super) fn segments(&self) -> u32 {
        self.capacity_bytes.div_ceil(self.room_bytes) as u32 + SPARE_SEGMENTS
    }
}

fn book(rng: &mut Rng) -> Book {
    const SIZES: [u32; 6] = [512, 4096, 5000, 8192, 12_288, 16_384];
    let domains = [DomainId([1; 16]), DomainId([2; 16])];
    let size = |rng: &mut Rng| SIZES[rng.usize(..SIZES.len())];
    let space = |domain, digest: u8, page_bytes| SpaceSpec {
        domain,
        digest: SpaceDigest([digest; 32]),
        page_bytes,
    };
    let (one, two) = (size(rng), size(rng));
    let mut spaces = vec![space(domains[0], 1, one), space(domains[0], 2, two)];
    if rng.bool() {
        // The same space and keys as another tenant has them.
        spaces.push(space(domains[1], 1, one));
    }
    let depth = rng.u32(3..=8);
    Book { spaces, chains: rng.u64(3..=12), depth, shared: rng.u32(..depth) }
}

fn device(rng: &mut Rng, class: Class, largest: u64) -> DevicePlan {
    const ROOMS: [u64; 5] = [16 << 10, 24 << 10, 32 << 10, 64 << 10, 160 << 10];
    let room_bytes = ROOMS[rng.usize(..ROOMS.len())].max(2 * largest);
    let stall_ms = rng.u64(50..500);
    DevicePlan {
        capacity_bytes: room_bytes * rng.u64(1..=10),
        room_bytes,
        queue_depth: rng.u32(1..=8),
        table_flush_ms: [0, 1, 20][rng.usize(..3)],
        stall_ms,
        encrypted: rng.u8(..3) > 0,
        key: std::array::from_fn(|_| rng.u8(..)),
        atlas: atlas(rng, class),
        latency: if rng.bool() { 20..100 } else { 50..3_000 },
        // Now and then longer than the log has patience for.
        slowness: 2_000..stall_ms * rng.u64(500..20_000),
    }
}

fn atlas(rng: &mut Rng, class: Class) -> Atlas {
    let mut rates = Rates::default().with(Fault::Short, 200).with(Fault::Interrupted, 50);
    let failing = [Fault::ReadError, Fault::WriteError, Fault::FlushError, Fault::Slow];
    let lying = [
        Fault::Torn,
        Fault::Lost,
        Fault::Misdirected,
        Fault::Stale,
        Fault::FlippedOnRead,
        Fault::Rotten,
    ];
    // Each run has its own kinds of trouble: all of them at once would hide one behind another.
    let mut pick = |faults: &[Fault], most: u16| {
        for fault in faults {
            if rng.u8(..3) == 0 {
                rates = rates.with(*fault, rng.u16(5..most));
            }
        }
    };
    match class {
        Class::Truthful => {}
        Class::Failing => {
            pick(&failing, 400);
            pick(&[Fault::FlushError], 5_000);
            pick(&[Fault::NoSpace], 6_000);
        }
        Class::Lying => {
            pick(&lying, 300);
            pick(&[Fault::FlushIgnored], 1_000);
            pick(&[Fault::ReadError, Fault::Slow], 100);
        }
    }
    let places = [Place::Anywhere, Place::Segments, Place::OddSegments];
    Atlas { rates, place: places[rng.usize(..places.len())] }
}

fn parts(rng: &mut Rng, domains: &[DomainId], largest: u64) -> Vec<(DomainId, u64)> {
    let mut parts = Vec::new();
    for domain in domains {
        parts.extend((0..rng.u32(1..=2)).map(|_| (*domain, largest * rng.u64(2..=5))));
    }
    parts
}

fn core_config(
    rng: &mut Rng,
    devices: &[DevicePlan],
    domains: &[DomainId],
    largest: u64,
) -> Config {
    let device = |plan: &DevicePlan| DeviceConfig {
        capacity_bytes: plan.capacity_bytes,
        low_water_segments: 3,
        read_bytes_per_s: 1 << 30,
        read_latency_us: 100,
    };
    Config {
        domains: domains
            .iter()
            .map(|id| DomainConfig { id: *id, ..DomainConfig::default() })
            .collect(),
        slab_bytes: largest * rng.u64(1..=2),
        devices: devices.iter().map(device).collect(),
        demote_ahead: rng.u32(..6),
        fetch_window: rng.u32(1..=4),
        limits: Limits { max_pages: 4096, max_sessions: 64, ..Limits::default() },
        seed: rng.u64(..),
        step_pages: rng.u32(1..=8),
        policy: Policy::ALL[rng.usize(..Policy::ALL.len())],
        admission: match rng.u32(..4) {
            0 => Admission::Through,
            1 => Admission::Demote,
            _ => Admission::Auto(rng.u32(1..=20)),
        },
        write_budget: match rng.u32(..4) {
            0 => WriteBudget { bytes_per_s: Some(largest * rng.u64(1..=64)), ..WriteBudget::NONE },
            _ => WriteBudget::NONE,
        },
        ..Config::default()
    }
}
