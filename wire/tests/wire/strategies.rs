//! Any message a correct peer may send.

use proptest::collection::vec;
use proptest::prelude::*;
use undercroft_wire::*;

fn key() -> impl Strategy<Value = PageKey> {
    any::<[u8; 32]>().prop_map(PageKey)
}

fn keys() -> impl Strategy<Value = KeyRun<'static>> {
    vec(key(), 0..6).prop_map(KeyRun::from)
}

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,20}"
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::ZeroCopy), Just(Mode::Copy)]
}

fn slots() -> impl Strategy<Value = Vec<SlotId>> {
    vec(any::<u32>().prop_map(SlotId), 0..6)
}

fn dtype() -> impl Strategy<Value = Dtype> {
    prop::sample::select(vec![
        Dtype::Bf16,
        Dtype::F16,
        Dtype::F32,
        Dtype::Fp8E4m3,
        Dtype::Fp8E5m2,
        Dtype::Int8,
    ])
}

fn space() -> impl Strategy<Value = Space> {
    let digests = (any::<[u8; 32]>(), any::<[u8; 32]>(), dtype());
    let texts = (text(), text(), text());
    let numbers = any::<[u32; 3]>();
    let family = (digests, texts, numbers).prop_map(
        |(
            (model, adapter, dtype),
            (quantization, attention, layout),
            [layers, kv_heads, page_tokens],
        )| Family {
            model,
            adapter,
            dtype,
            quantization,
            attention,
            layout,
            layers,
            kv_heads,
            page_tokens,
        },
    );
    let rank = prop_oneof![
        Just(Rank::Shared),
        any::<(u16, u16)>().prop_map(|(index, count)| Rank::Of { index, count }),
    ];
    let geometry = (1_u32..128, vec(512_u32..65_536, 1..=MAX_PARTS)).prop_map(|(layers, parts)| {
        Geometry::of_parts(layers, &parts).expect("within the bounds of a page")
    });
    (family, rank, any::<u32>(), geometry).prop_map(|(family, rank, group, geometry)| Space {
        family,
        rank,
        group,
        geometry,
    })
}

fn lookup() -> impl Strategy<Value = Lookup<'static>> {
    let spaces = vec(any::<u32>().prop_map(SpaceId), 1..5);
    let rival = any::<(u64, u32, u32)>().prop_map(|(recompute_ns, due_ms, have)| Rival {
        recompute_ns,
        due_ms,
        have,
    });
    (spaces, keys(), any::<u32>(), rival).prop_map(|(spaces, keys, hold_ms, rival)| Lookup {
        spaces,
        keys,
        hold_ms,
        rival,
    })
}

fn fetch() -> impl Strategy<Value = Fetch<'static>> {
    let source = prop_oneof![
        keys().prop_map(|keys| FetchSource::Keys { keys }),
        any::<(u64, u32, u32)>().prop_map(|(hold, first, count)| {
            FetchSource::Hold { hold: HoldId(hold), first, count }
        }),
    ];
    (any::<(u32, u64, u64, u32, u64)>(), source).prop_map(
        |((space, lease, stamp, deadline_ms, recompute_ns), source)| Fetch {
            space: SpaceId(space),
            lease: LeaseId(lease),
            source,
            stamp: Stamp(stamp),
            deadline_ms,
            recompute_ns,
        },
    )
}

fn offer() -> impl Strategy<Value = Offer<'static>> {
    let place = prop_oneof![
        Just((None, 0)),
        (key(), 1_u32..=u32::MAX - 6).prop_map(|(parent, first)| (Some(parent), first)),
    ];
    (any::<(u32, u64)>(), place, keys()).prop_map(|((space, stamp), (parent, first), keys)| Offer {
        space: SpaceId(space),
        parent,
        first,
        keys,
        stamp: Stamp(stamp),
    })
}

fn commit() -> impl Strategy<Value = Commit> {
    (any::<(u32, u64)>(), slots(), slots()).prop_map(|((space, offer), filled, returned)| Commit {
        space: SpaceId(space),
        offer: OfferId(offer),
        filled,
        returned,
    })
}

fn hint() -> impl Strategy<Value = Hint<'static>> {
    let kind = prop_oneof![
        Just(HintKind::Active),
        Just(HintKind::Paused),
        Just(HintKind::Ended),
        Just(HintKind::Demote),
        any::<u32>().prop_map(HintKind::ExpectedInMs),
        any::<u32>().prop_map(HintKind::PinMs),
    ];
    (any::<u32>(), keys(), kind).prop_map(|(space, keys, kind)| Hint {
        space: SpaceId(space),
        keys,
        kind,
    })
}

pub(crate) fn request() -> impl Strategy<Value = Request<'static>> {
    let hello = (any::<(u16, u16, bool)>(), text())
        .prop_map(|((min, max, copy_mode), name)| Hello { min, max, name, copy_mode });
    let release = any::<(u64, u64, u32)>().prop_map(|(session, lease, upto)| Release {
        session: SessionId(session),
        lease: LeaseId(lease),
        upto,
    });
    let prefetch = (any::<(u32, u32)>(), keys()).prop_map(|((space, ttl_ms), keys)| Prefetch {
        space: SpaceId(space),
        keys,
        ttl_ms,
    });
    prop_oneof![
        hello.prop_map(Request::Hello),
        (space(), prop::option::of(key()))
            .prop_map(|(space, probe)| Request::OpenSpace(OpenSpace { space, probe })),
        lookup().prop_map(Request::Lookup),
        fetch().prop_map(Request::Fetch),
        release.prop_map(Request::Release),
        any::<u64>().prop_map(|hold| Request::DropHold(DropHold { hold: HoldId(hold) })),
        offer().prop_map(Request::Offer),
        commit().prop_map(Request::Commit),
        prefetch.prop_map(Request::Prefetch),
        hint().prop_map(Request::Hint),
        Just(Request::Status),
        Just(Request::Ping),
        between_sessions(),
        Just(Request::TakeOver),
    ]
}

fn token() -> impl Strategy<Value = Token> {
    any::<[u8; 16]>().prop_map(Token)
}

fn between_sessions() -> impl Strategy<Value = Request<'static>> {
    let gift = prop_oneof![
        any::<u64>().prop_map(|hold| Gift::Hold(HoldId(hold))),
        any::<u64>().prop_map(|lease| Gift::Lease(LeaseId(lease))),
    ];
    let space = proptest::option::of(any::<u32>().prop_map(SpaceId));
    let take = (token(), any::<u64>().prop_map(LeaseId), space)
        .prop_map(|(token, lease, space)| Take { token, lease, space });
    let space = proptest::option::of(any::<[u8; 32]>().prop_map(SpaceDigest));
    let purge = (proptest::option::of(text()), space, any::<Option<u32>>())
        .prop_map(|(domain, space, writer)| Purge { domain, space, writer });
    prop_oneof![
        gift.prop_map(|what| Request::Give(Give { what })),
        take.prop_map(Request::Take),
        any::<u32>().prop_map(|part| Request::PartLetGo(PartLetGo { part: PartId(part) })),
        gpu().prop_map(Request::Gpu),
        any::<u32>().prop_map(|lookups| Request::Missed(Missed { lookups })),
        purge.prop_map(Request::Purge),
        Just(Request::Record),
        (1..=MAX_EXPLAINED, any::<Option<u64>>()).prop_map(|(last, session)| {
            Request::Explain(Explain { last, session: session.map(SessionId) })
        }),
    ]
}

fn tier() -> impl Strategy<Value = TierStatus> {
    any::<[u64; 4]>().prop_map(|[capacity_bytes, used_bytes, pages, evicted_pages]| TierStatus {
        capacity_bytes,
        used_bytes,
        pages,
        evicted_pages,
    })
}

fn ssd() -> impl Strategy<Value = SsdStatus> {
    let devices = vec(ssd_device(), 0..3);
    (tier(), 0.0..100.0, any::<[u64; 15]>(), devices).prop_map(
        |(tier, write_amplification, counts, devices)| SsdStatus {
            tier,
            written_bytes: counts[0],
            reappended_bytes: counts[1],
            write_amplification,
            read_bytes: counts[2],
            recovered_records: counts[3],
            unproved_records: counts[4],
            corrupt_records: counts[5],
            corrupt_tables: counts[6],
            io_errors: counts[7],
            unreachable_pages: counts[8],
            refused_pages: counts[9],
            over_budget_pages: counts[10],
            prefetch: PrefetchStatus {
                pages: counts[11],
                used_pages: counts[12],
                wasted_pages: counts[13],
                wasted_bytes: counts[14],
            },
            devices,
        },
    )
}

fn condition() -> impl Strategy<Value = DeviceCondition> {
    use DeviceCondition::{Lost, Out, ReadOnly, Recovering, Stalled, Well};
    prop::sample::select(vec![Recovering, Well, Stalled, ReadOnly, Out, Lost])
}

fn ssd_device() -> impl Strategy<Value = SsdDeviceStatus> {
    let texts = (text(), text(), prop::option::of(text()));
    let counts = (any::<[u32; 3]>(), any::<[u64; 14]>(), any::<Option<u64>>());
    (texts, condition(), (tier(), wear()), any::<[bool; 2]>(), counts).prop_map(
        |((path, engine, set_aside), condition, (tier, wear), flags, counts)| {
            let (small, counts, recovery_ms) = counts;
            SsdDeviceStatus {
                path,
                condition,
                tier,
                engine,
                registered_buffers: flags[0],
                encrypted: flags[1],
                segments: small[0],
                free_segments: small[1],
                queue_depth: small[2],
                written_bytes: counts[0],
                reappended_bytes: counts[1],
                read_bytes: counts[2],
                zeroed_bytes: counts[3],
                recovered_records: counts[4],
                recovery_ms,
                unproved_records: counts[5],
                proved_records: counts[6],
                disproved_records: counts[7],
                corrupt_records: counts[8],
                corrupt_tables: counts[9],
                io_errors: counts[10],
                stalls: counts[11],
                read_bytes_per_s: counts[12],
                read_latency_us: counts[13],
                set_aside,
                wear,
            }
        },
    )
}

fn wear() -> impl Strategy<Value = WearStatus> {
    let rates = (prop::option::of(0.0..100.0), prop::option::of(0.0..100.0));
    (any::<u64>(), rates, any::<[Option<u64>; 2]>()).prop_map(
        |(day_bytes, (drive_writes_per_day, life_years), budgets)| WearStatus {
            day_bytes,
            drive_writes_per_day,
            life_years,
            budget_bytes_per_s: budgets[0],
            budget_bytes_per_day: budgets[1],
        },
    )
}

fn session() -> impl Strategy<Value = SessionStatus> {
    let numbers = (any::<[u32; 4]>(), any::<[u64; 4]>());
    let standing = (mode(), prop::option::of(copy_reason()), process_state());
    let gpu = prop::option::of(gpu());
    (numbers, [text(), text()], standing, any::<[bool; 2]>(), gpu).prop_map(
        |((ids, counts), texts, (mode, copy_reason, process), [lingering, alarm], gpu)| {
            let [pid, uid, gid, leases] = ids;
            let [session, leased_pages, leased_bytes, silent_ms] = counts;
            SessionStatus {
                session,
                domain: texts[0].clone(),
                name: texts[1].clone(),
                pid,
                uid,
                gid,
                mode,
                leases,
                leased_pages,
                lingering,
                copy_reason,
                leased_bytes,
                silent_ms,
                process,
                alarm,
                gpu,
            }
        },
    )
}

fn gpu() -> impl Strategy<Value = GpuReport> {
    (any::<[u64; 3]>(), [text(), text(), text(), text()]).prop_map(|(bytes, texts)| {
        let [pinned_bytes, waiting_bytes, refused_bytes] = bytes;
        let [name, load, load_by_layer, store] = texts;
        GpuReport { name, load, load_by_layer, store, pinned_bytes, waiting_bytes, refused_bytes }
    })
}

fn copy_reason() -> impl Strategy<Value = CopyReason> {
    prop::sample::select(vec![
        CopyReason::Asked,
        CopyReason::Configured,
        CopyReason::Unwatched,
        CopyReason::Privileged,
        CopyReason::OwnUserContained,
        CopyReason::Container,
        CopyReason::Unknown,
    ])
}

fn process_state() -> impl Strategy<Value = ProcessState> {
    prop::sample::select(vec![
        ProcessState::Unknown,
        ProcessState::Alive,
        ProcessState::Stopped,
        ProcessState::Dead,
    ])
}

fn fallback() -> impl Strategy<Value = Fallback> {
    [text(), text(), text(), text()].prop_map(|[call, since, instead, cost]| Fallback {
        call,
        since,
        instead,
        cost,
    })
}

fn arena() -> impl Strategy<Value = ArenaStatus> {
    let numbers = any::<([u32; 2], [u64; 3], bool)>();
    (numbers, [text(), text()], prop::option::of(text())).prop_map(
        |((parts, bytes, locked), [pages, backing], short)| ArenaStatus {
            parts: parts[0],
            bytes: bytes[0],
            wanted_bytes: bytes[1],
            retiring_parts: parts[1],
            retiring_bytes: bytes[2],
            short,
            pages,
            locked,
            numa_nodes: parts.to_vec(),
            backing,
        },
    )
}

fn reload() -> impl Strategy<Value = ReloadStatus> {
    (any::<u32>(), prop::option::of(text()), vec(text(), 0..3))
        .prop_map(|(times, refused, pending)| ReloadStatus { times, refused, pending })
}

fn start() -> impl Strategy<Value = StartStatus> {
    let kinds = vec![StartKind::Cold, StartKind::Warm, StartKind::Takeover];
    let counts = any::<(u32, [u64; 3], bool)>();
    (prop::sample::select(kinds), counts, prop::option::of(text())).prop_map(
        |(kind, (restarts, counts, opening), dropped)| StartStatus {
            kind,
            restarts,
            ready_ms: counts[0],
            restored_pages: counts[1],
            quarantined_bytes: counts[2],
            dropped,
            opening,
        },
    )
}

fn domain() -> impl Strategy<Value = DomainStatus> {
    let numbers = any::<([u64; 2], [u32; 8])>();
    (text(), arena(), [tier(), tier()], numbers).prop_map(
        |(name, arena, tiers, (bytes, counts))| {
            let [dram, ssd] = tiers;
            let [leased_pages, ssd_floor_bytes] = bytes;
            let [sessions, reads_in_flight, max_reads_in_flight, known_pages, max_pages, ..] =
                counts;
            let [.., spaces, max_spaces, weight] = counts;
            DomainStatus {
                name,
                arena,
                dram,
                sessions,
                leased_pages,
                ssd,
                ssd_floor_bytes,
                reads_in_flight,
                max_reads_in_flight,
                known_pages,
                max_pages,
                spaces,
                max_spaces,
                weight,
            }
        },
    )
}

fn status() -> impl Strategy<Value = StatusReport> {
    let numbers = (any::<[u32; 3]>(), any::<[u64; 7]>(), -1e12_f64..1e12);
    let misses = vec((cause(), any::<u64>()), 0..4);
    let hits = (any::<[u64; 7]>(), misses).prop_map(|(counts, misses)| HitStatus {
        lookups: counts[0],
        keys: counts[1],
        prefix_pages: counts[2],
        dram_pages: counts[3],
        ssd_pages: counts[4],
        incomplete_fetches: counts[5],
        board_lookups: counts[6],
        misses: misses.into_iter().map(|(cause, lookups)| MissStatus { cause, lookups }).collect(),
    });
    let stores = any::<[u64; 5]>().prop_map(|[offered, stored, held, declined, failed]| {
        StoreStatus { offered, stored, held, declined, failed }
    });
    let probe = prop::option::of(text());
    let space = ([text(), text()], any::<(u32, u64)>(), probe).prop_map(
        |([domain, digest], (page_bytes, pages), probe)| SpaceStatus {
            domain,
            digest,
            page_bytes,
            pages,
            probe,
        },
    );
    let tiers = ((start(), reload()), arena(), tier(), prop::option::of(ssd()));
    let lists = (vec(domain(), 0..3), vec(space, 0..3), vec(session(), 0..3), vec(text(), 0..3));
    let lists = (lists, vec(fallback(), 0..3), prop::option::of(text()));
    (numbers, (text(), text()), tiers, (hits, stores, loads()), lists).prop_map(
        |(
            numbers,
            (version, socket),
            ((start, reload), arena, dram, ssd),
            (hits, stores, loads),
            lists,
        )| {
            let ([schema, pid, descriptors], counts, cpu_s) = numbers;
            let [uptime_ms, epoch, protocol_errors, heap_bytes, known_pages, ..] = counts;
            let [.., lease_alarms, refused_probes] = counts;
            let ((domains, spaces, sessions, refused), fallbacks, told_to) = lists;
            StatusReport {
                schema,
                version,
                pid,
                uptime_ms,
                epoch,
                cpu_s,
                socket,
                start,
                reload,
                heap_bytes,
                known_pages,
                arena,
                dram,
                ssd,
                hits,
                stores,
                loads,
                domains,
                spaces,
                sessions,
                refused,
                protocol_errors,
                descriptors,
                fallbacks,
                lease_alarms,
                refused_probes,
                told_to,
            }
        },
    )
}

fn loads() -> impl Strategy<Value = LoadStatus> {
    (text(), any::<[u64; 11]>()).prop_map(|(policy, counts)| LoadStatus {
        policy,
        trimmed_lookups: counts[0],
        trimmed_pages: counts[1],
        behind_fetches: counts[2],
        behind_pages: counts[3],
        weighed_fetches: counts[4],
        expected_fetches: counts[5],
        expected_us: counts[6],
        taken_us: counts[7],
        error_us: counts[8],
        saved_us: counts[9],
        lost_us: counts[10],
    })
}

fn lookup_reply() -> impl Strategy<Value = LookupReply> {
    (any::<[u32; 5]>(), any::<Option<u64>>(), any::<[u64; 3]>()).prop_map(
        |([pages, dram, ssd, present, worth], hold, [stamp, estimate_us, copy_us])| LookupReply {
            pages,
            dram,
            ssd,
            hold: hold.map(HoldId),
            stamp: Stamp(stamp),
            estimate_us,
            present,
            worth,
            copy_us,
        },
    )
}

fn fetch_ready() -> impl Strategy<Value = FetchReady> {
    let place =
        any::<(u32, u64)>().prop_map(|(part, offset)| PagePlace { part: PartId(part), offset });
    (any::<(u64, u32)>(), vec(place, 0..6)).prop_map(|((lease, first), places)| FetchReady {
        lease: LeaseId(lease),
        first,
        places,
    })
}

fn refused() -> impl Strategy<Value = Refused> {
    let reasons = vec![
        RefusedReason::Busy,
        RefusedReason::Unknown,
        RefusedReason::Stopping,
        RefusedReason::Version,
        RefusedReason::Invalid,
        RefusedReason::Denied,
    ];
    (prop::sample::select(reasons), text()).prop_map(|(reason, detail)| Refused { reason, detail })
}

pub(crate) fn reply() -> impl Strategy<Value = Reply> {
    let welcome = (any::<(u16, u64, u64, u32)>(), mode(), text()).prop_map(
        |((version, session, epoch, parts), mode, domain)| Welcome {
            version,
            session: SessionId(session),
            epoch: Epoch(epoch),
            mode,
            parts,
            domain,
        },
    );
    let part = any::<(u32, u64, u64)>().prop_map(|(part, bytes, board_offset)| PartAdded {
        part: PartId(part),
        bytes,
        board_offset,
    });
    let opened = any::<[u32; 3]>().prop_map(|[space, slots, slot_bytes]| SpaceOpened {
        space: SpaceId(space),
        slots,
        slot_bytes,
    });
    let end = any::<(u64, u32, u32, u8)>().prop_map(|(lease, ready, ssd, outcome)| FetchEnd {
        lease: LeaseId(lease),
        ready,
        ssd,
        outcome,
    });
    let offer = (any::<(u64, Vec<u8>)>(), slots()).prop_map(|((offer, outcomes), slots)| {
        OfferReply { offer: OfferId(offer), outcomes, slots }
    });
    let commit = any::<(u64, Vec<u8>)>()
        .prop_map(|(offer, outcomes)| CommitReply { offer: OfferId(offer), outcomes });
    let prefetch =
        any::<(u32, u32)>().prop_map(|(resident, started)| PrefetchReply { resident, started });
    prop_oneof![
        welcome.prop_map(Reply::Welcome),
        part.prop_map(Reply::PartAdded),
        opened.prop_map(Reply::SpaceOpened),
        lookup_reply().prop_map(Reply::Lookup),
        fetch_ready().prop_map(Reply::FetchReady),
        end.prop_map(Reply::FetchEnd),
        offer.prop_map(Reply::Offer),
        commit.prop_map(Reply::Commit),
        prefetch.prop_map(Reply::Prefetch),
        status().prop_map(|status| Reply::Status(Box::new(status))),
        refused().prop_map(Reply::Refused),
        Just(Reply::Done),
        outliving(),
    ]
}

fn recorded_run() -> impl Strategy<Value = RecordedRun> {
    let numbers = any::<(u64, bool, u32, u32, u32, Option<u64>)>();
    (numbers, prop::collection::vec(any::<u64>(), 0..5)).prop_map(|(numbers, pages)| {
        let (at_ms, is_lookup, domain, page_tokens, first, parent) = numbers;
        RecordedRun { at_ms, is_lookup, domain, page_tokens, first, parent, pages }
    })
}

fn cause() -> impl Strategy<Value = MissCause> {
    prop::sample::select(MissCause::ALL.to_vec())
}

fn finding() -> impl Strategy<Value = Finding> {
    let digest = || any::<[u8; 32]>().prop_map(SpaceDigest);
    let left = any::<Option<u32>>();
    let miss = (any::<[u8; 8]>(), cause(), left, prop::option::of(digest()))
        .prop_map(|(key, cause, left_unix_s, held_in)| Miss { key, cause, left_unix_s, held_in });
    let looked = (digest(), any::<[u32; 4]>(), prop::option::of(miss)).prop_map(
        |(space, [spaces, keys, dram, ssd], miss)| Looked { space, spaces, keys, dram, ssd, miss },
    );
    prop_oneof![
        looked.prop_map(Finding::Looked),
        any::<u32>().prop_map(|lookups| Finding::Board { lookups }),
        (digest(), any::<[[u8; 8]; 2]>()).prop_map(|(space, [known, told])| {
            Finding::OtherProbe(OtherProbe { space, known, told })
        }),
    ]
}

fn explained_lookup() -> impl Strategy<Value = ExplainedLookup> {
    (any::<(u64, u64, u32)>(), [text(), text()], finding()).prop_map(
        |((unix_ms, session, pid), [name, domain], finding)| ExplainedLookup {
            unix_ms,
            session: SessionId(session),
            pid,
            name,
            domain,
            finding,
        },
    )
}

fn outliving() -> impl Strategy<Value = Reply> {
    prop_oneof![
        any::<u64>().prop_map(|bytes| Reply::BoardAdded(BoardAdded { bytes })),
        any::<u32>().prop_map(|part| Reply::PartRetired(PartRetired { part: PartId(part) })),
        token().prop_map(|token| Reply::Given(Given { token })),
        any::<(u64, u32)>()
            .prop_map(|(hold, pages)| Reply::TakenHold(TakenHold { hold: HoldId(hold), pages })),
        (any::<[u64; 3]>(), prop::collection::vec(text(), 0..3)).prop_map(
            |([pages, dram_bytes, ssd_bytes], missed)| {
                Reply::Purged(Purged { pages, dram_bytes, ssd_bytes, missed })
            }
        ),
        text().prop_map(|name| Reply::Heirloom(Heirloom { name })),
        (any::<u64>(), prop::collection::vec(recorded_run(), 0..3))
            .prop_map(|(dropped, runs)| Reply::Recorded(Recorded { dropped, runs })),
        (any::<u64>(), vec(explained_lookup(), 0..3)).prop_map(|(now_unix_ms, lookups)| {
            Reply::Explained(Explained { now_unix_ms, lookups })
        }),
    ]
}
