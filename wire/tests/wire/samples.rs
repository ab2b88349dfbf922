//! One fixed message of every kind, every field with a value of its own, so that swapped fields
//! change the bytes. What the golden file holds.

use undercroft_wire::*;

/// A key of 32 different bytes.
pub(crate) fn key(first: u8) -> PageKey {
    PageKey(std::array::from_fn(|index| first.wrapping_add(index as u8)))
}

pub(crate) fn family() -> Family {
    Family {
        model: key(1).0,
        adapter: key(65).0,
        dtype: Dtype::Fp8E4m3,
        quantization: "per-token".to_owned(),
        attention: "rope=500000;window=none".to_owned(),
        layout: "NHD".to_owned(),
        layers: 32,
        kv_heads: 8,
        page_tokens: 16,
    }
}

pub(crate) fn space() -> Space {
    Space {
        family: family(),
        rank: Rank::Of { index: 3, count: 4 },
        group: 2,
        geometry: Geometry::new(32, 2, 32_768).unwrap(),
    }
}

/// A number no other field has.
const WIDE: u64 = 0x0102_0304_0506_0708;

pub(crate) fn requests() -> Vec<(&'static str, Request<'static>)> {
    let keys = || KeyRun::from(vec![key(10), key(20)]);
    let hello = Hello { min: 1, max: 3, name: "engine-0".to_owned(), copy_mode: true };
    let lookup = Lookup {
        spaces: vec![SpaceId(5), SpaceId(300)],
        keys: keys(),
        hold_ms: 1_500,
        rival: Rival { recompute_ns: 1_600_000, due_ms: 4_000, have: 3 },
    };
    let fetch = |source| Fetch {
        space: SpaceId(5),
        lease: LeaseId(WIDE),
        source,
        stamp: Stamp(77),
        deadline_ms: 250,
        recompute_ns: 1_600_001,
    };
    let hold = FetchSource::Hold { hold: HoldId(9), first: 4, count: 1_000 };
    let release = Release { session: SessionId(6), lease: LeaseId(WIDE), upto: u32::MAX };
    let offer = Offer {
        space: SpaceId(5),
        parent: Some(key(9)),
        first: 17,
        keys: keys(),
        stamp: Stamp(77),
    };
    let root = Offer { parent: None, first: 0, ..offer.clone() };
    let commit = Commit {
        space: SpaceId(5),
        offer: OfferId(88),
        filled: vec![SlotId(0), SlotId(200)],
        returned: vec![SlotId(1)],
    };
    let prefetch = Prefetch { space: SpaceId(5), keys: keys(), ttl_ms: 60_000 };
    let hint = Hint { space: SpaceId(5), keys: keys(), kind: HintKind::ExpectedInMs(9_000) };
    vec![
        ("hello", Request::Hello(hello)),
        ("open-space", Request::OpenSpace(OpenSpace { space: space(), probe: None })),
        (
            "open-space-probe",
            Request::OpenSpace(OpenSpace { space: space(), probe: Some(key(30)) }),
        ),
        ("lookup", Request::Lookup(lookup)),
        ("fetch-keys", Request::Fetch(fetch(FetchSource::Keys { keys: keys() }))),
        ("fetch-hold", Request::Fetch(fetch(hold))),
        ("release", Request::Release(release)),
        ("drop-hold", Request::DropHold(DropHold { hold: HoldId(9) })),
        ("offer-root", Request::Offer(root)),
        ("offer", Request::Offer(offer)),
        ("commit", Request::Commit(commit)),
        ("prefetch", Request::Prefetch(prefetch)),
        ("hint", Request::Hint(hint)),
        ("status", Request::Status),
        ("ping", Request::Ping),
        ("give-hold", Request::Give(Give { what: Gift::Hold(HoldId(9)) })),
        ("give-lease", Request::Give(Give { what: Gift::Lease(LeaseId(WIDE)) })),
        (
            "take",
            Request::Take(Take { token: token(), lease: LeaseId(WIDE), space: Some(SpaceId(300)) }),
        ),
        ("take-hold", Request::Take(Take { token: token(), lease: LeaseId(0), space: None })),
        ("gpu", Request::Gpu(gpu())),
        ("missed", Request::Missed(Missed { lookups: 300 })),
        ("part-let-go", Request::PartLetGo(PartLetGo { part: PartId(1) })),
        ("purge", Request::Purge(purge(None, None))),
        ("purge-space", Request::Purge(purge(Some(SpaceDigest(key(3).0)), None))),
        ("purge-writer", Request::Purge(Purge { domain: None, ..purge(None, Some(1_000)) })),
        ("take-over", Request::TakeOver),
        ("record", Request::Record),
        ("explain", Request::Explain(Explain { last: 300, session: Some(SessionId(6)) })),
    ]
}

fn token() -> Token {
    Token(std::array::from_fn(|index| 0xa0 + index as u8))
}

fn purge(space: Option<SpaceDigest>, writer: Option<u32>) -> Purge {
    Purge { domain: Some("tenant-a".to_owned()), space, writer }
}

pub(crate) fn replies() -> Vec<(&'static str, Reply)> {
    let welcome = Welcome {
        version: 2,
        session: SessionId(6),
        epoch: Epoch(WIDE),
        mode: Mode::Copy,
        parts: 2,
        domain: "tenant-a".to_owned(),
    };
    let part = PartAdded { part: PartId(1), bytes: 1 << 30, board_offset: 4_096 };
    let lookup = LookupReply {
        pages: 12,
        dram: 8,
        ssd: 4,
        hold: Some(HoldId(9)),
        stamp: Stamp(77),
        estimate_us: 3_000,
        present: 14,
        worth: 13,
        copy_us: 2_000,
    };
    let places = vec![
        PagePlace { part: PartId(1), offset: 0x20_0000 },
        PagePlace { part: PagePlace::STAGING, offset: 4_096 },
    ];
    let outcome = FetchOutcome::Deadline.to_byte();
    let offer = OfferReply {
        offer: OfferId(88),
        outcomes: vec![OfferOutcome::Held.to_byte(), OfferOutcome::Wanted.to_byte()],
        slots: vec![SlotId(200)],
    };
    let commit = CommitReply {
        offer: OfferId(88),
        outcomes: vec![CommitOutcome::Stored.to_byte(), CommitOutcome::Failed.to_byte()],
    };
    let refused = Refused { reason: RefusedReason::Invalid, detail: "slots is 0".to_owned() };
    let opened = SpaceOpened { space: SpaceId(5), slots: 16, slot_bytes: 2_097_152 };
    vec![
        ("welcome", Reply::Welcome(welcome)),
        ("part-added", Reply::PartAdded(part)),
        ("space-opened", Reply::SpaceOpened(opened)),
        ("lookup-reply", Reply::Lookup(lookup)),
        ("fetch-ready", Reply::FetchReady(FetchReady { lease: LeaseId(WIDE), first: 4, places })),
        (
            "fetch-end",
            Reply::FetchEnd(FetchEnd { lease: LeaseId(WIDE), ready: 12, ssd: 4, outcome }),
        ),
        ("offer-reply", Reply::Offer(offer)),
        ("commit-reply", Reply::Commit(commit)),
        ("prefetch-reply", Reply::Prefetch(PrefetchReply { resident: 3, started: 5 })),
        ("status-reply", Reply::Status(Box::new(status()))),
        ("refused", Reply::Refused(refused)),
        ("done", Reply::Done),
        ("board-added", Reply::BoardAdded(BoardAdded { bytes: 1 << 20 })),
        ("part-retired", Reply::PartRetired(PartRetired { part: PartId(1) })),
        ("given", Reply::Given(Given { token: token() })),
        ("taken-hold", Reply::TakenHold(TakenHold { hold: HoldId(9), pages: 12 })),
        (
            "purged",
            Reply::Purged(Purged {
                pages: 77,
                dram_bytes: 40 << 12,
                ssd_bytes: 60 << 12,
                missed: vec!["/srv/b".to_owned()],
            }),
        ),
        ("recorded", Reply::Recorded(recorded())),
        ("explained", Reply::Explained(explained())),
        ("heirloom", Reply::Heirloom(Heirloom { name: "undercroft-state".to_owned() })),
    ]
}

fn explained() -> Explained {
    let miss = Miss {
        key: [1, 2, 3, 4, 5, 6, 7, 8],
        cause: MissCause::Reclaimed,
        left_unix_s: Some(1_700_000_000),
        held_in: Some(SpaceDigest(key(4).0)),
    };
    let looked = Looked {
        space: SpaceDigest(key(3).0),
        spaces: 2,
        keys: 80,
        dram: 10,
        ssd: 4,
        miss: Some(miss),
    };
    let one = |unix_ms, finding| ExplainedLookup {
        unix_ms,
        session: SessionId(6),
        pid: 4_242,
        name: "engine-0".to_owned(),
        domain: "tenant-a".to_owned(),
        finding,
    };
    let board = one(1_700_000_001_234, Finding::Board { lookups: 300 });
    let other = OtherProbe { space: SpaceDigest(key(3).0), known: [9; 8], told: [8; 8] };
    let other = one(1_700_000_002_345, Finding::OtherProbe(other));
    let lookups = vec![one(1_700_000_000_123, Finding::Looked(looked)), board, other];
    Explained { now_unix_ms: 1_700_000_009_000, lookups }
}

fn recorded() -> Recorded {
    let run = RecordedRun {
        at_ms: 61_000,
        is_lookup: true,
        domain: 1,
        page_tokens: 16,
        first: 0,
        parent: None,
        pages: vec![WIDE, 7],
    };
    let offer = RecordedRun { is_lookup: false, first: 2, parent: Some(7), ..run.clone() };
    Recorded { dropped: 300, runs: vec![run, offer] }
}

fn status() -> StatusReport {
    let dram =
        TierStatus { capacity_bytes: 1 << 30, used_bytes: 1 << 29, pages: 256, evicted_pages: 3 };
    let ssd = SsdStatus {
        tier: TierStatus { capacity_bytes: 1 << 34, ..dram.clone() },
        written_bytes: 101,
        reappended_bytes: 102,
        write_amplification: 1.25,
        read_bytes: 103,
        recovered_records: 104,
        unproved_records: 105,
        corrupt_records: 106,
        corrupt_tables: 107,
        io_errors: 108,
        unreachable_pages: 109,
        refused_pages: 110,
        over_budget_pages: 111,
        prefetch: PrefetchStatus {
            pages: 112,
            used_pages: 113,
            wasted_pages: 114,
            wasted_bytes: 115,
        },
        devices: vec![SsdDeviceStatus::default(), ssd_device(dram.clone())],
    };
    let domain = DomainStatus {
        name: "tenant-a".to_owned(),
        arena: ArenaStatus {
            pages: "4k".to_owned(),
            backing: "memfd".to_owned(),
            ..ArenaStatus::default()
        },
        dram: dram.clone(),
        sessions: 502,
        leased_pages: 503,
        ssd: TierStatus { used_bytes: 504, ..dram.clone() },
        ssd_floor_bytes: 505,
        reads_in_flight: 506,
        max_reads_in_flight: 507,
        known_pages: 508,
        max_pages: 509,
        spaces: 510,
        max_spaces: 511,
        weight: 512,
    };
    let start = StartStatus {
        kind: StartKind::Warm,
        restarts: 601,
        ready_ms: 602,
        restored_pages: 603,
        quarantined_bytes: 604,
        dropped: Some("another layout".to_owned()),
        opening: true,
    };
    let reload = ReloadStatus {
        times: 611,
        refused: Some("key arena.size".to_owned()),
        pending: vec!["ssd.size".to_owned()],
    };
    let arena = ArenaStatus {
        parts: 2,
        bytes: 1 << 30,
        wanted_bytes: 1 << 31,
        retiring_parts: 1,
        retiring_bytes: 1 << 29,
        short: Some("out of memory".to_owned()),
        pages: "hugetlb".to_owned(),
        locked: true,
        numa_nodes: vec![0, 3],
        backing: "mount".to_owned(),
    };
    let session = SessionStatus {
        session: 6,
        domain: "tenant-a".to_owned(),
        name: "engine-0".to_owned(),
        pid: 4_242,
        uid: 1_000,
        gid: 1_001,
        mode: Mode::ZeroCopy,
        leases: 2,
        leased_pages: 40,
        lingering: true,
        copy_reason: Some(CopyReason::Container),
        leased_bytes: 801,
        silent_ms: 802,
        process: ProcessState::Stopped,
        alarm: true,
        gpu: Some(gpu()),
    };
    StatusReport {
        schema: 1,
        version: "0.1.0".to_owned(),
        pid: 4_241,
        uptime_ms: 123_456,
        epoch: WIDE,
        cpu_s: 1.5,
        socket: "undercroft.sock".to_owned(),
        start,
        reload,
        heap_bytes: 701,
        known_pages: 702,
        arena,
        dram,
        ssd: Some(ssd),
        hits: HitStatus {
            lookups: 201,
            board_lookups: 207,
            keys: 202,
            prefix_pages: 203,
            dram_pages: 204,
            ssd_pages: 205,
            incomplete_fetches: 206,
            misses: vec![MissStatus { cause: MissCause::Evicted, lookups: 208 }],
        },
        stores: StoreStatus { offered: 301, stored: 302, held: 303, declined: 304, failed: 305 },
        loads: LoadStatus {
            policy: "enforced".to_owned(),
            trimmed_lookups: 311,
            trimmed_pages: 312,
            behind_fetches: 313,
            behind_pages: 314,
            weighed_fetches: 315,
            expected_fetches: 316,
            expected_us: 317,
            taken_us: 318,
            error_us: 319,
            saved_us: 320,
            lost_us: 321,
        },
        domains: vec![domain],
        spaces: vec![SpaceStatus {
            domain: "tenant-a".to_owned(),
            digest: "0011223344556677".repeat(4),
            page_bytes: 2_097_152,
            pages: 256,
            probe: Some("1e1f202122232425".to_owned()),
        }],
        sessions: vec![session],
        refused: vec!["mlock: not permitted".to_owned()],
        protocol_errors: 1,
        descriptors: 803,
        fallbacks: vec![Fallback::new("SO_PEERPIDFD", "Linux 6.5", "pidfd_open", "a race")],
        lease_alarms: 804,
        refused_probes: 805,
        told_to: Some("tenant-a".to_owned()),
    }
}

fn ssd_device(tier: TierStatus) -> SsdDeviceStatus {
    SsdDeviceStatus {
        path: "store-1".to_owned(),
        condition: DeviceCondition::ReadOnly,
        tier,
        engine: "io_uring".to_owned(),
        registered_buffers: true,
        encrypted: true,
        segments: 401,
        free_segments: 402,
        queue_depth: 403,
        written_bytes: 404,
        reappended_bytes: 405,
        read_bytes: 406,
        zeroed_bytes: 407,
        recovered_records: 408,
        recovery_ms: Some(409),
        unproved_records: 410,
        proved_records: 411,
        disproved_records: 412,
        corrupt_records: 413,
        corrupt_tables: 414,
        io_errors: 415,
        stalls: 416,
        read_bytes_per_s: 417,
        read_latency_us: 418,
        set_aside: Some("pages-0.log.set-aside-1".to_owned()),
        wear: WearStatus {
            day_bytes: 417,
            drive_writes_per_day: Some(0.5),
            life_years: Some(10.0),
            budget_bytes_per_s: Some(418),
            budget_bytes_per_day: Some(419),
        },
    }
}

fn gpu() -> GpuReport {
    GpuReport {
        name: "NVIDIA H100 80GB HBM3".to_owned(),
        load: "2d".to_owned(),
        load_by_layer: "kernel".to_owned(),
        store: "batch".to_owned(),
        pinned_bytes: 1 << 36,
        waiting_bytes: 4_096,
        refused_bytes: 803,
    }
}
